package explain

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// unrecorded reports whether a clause is about what the audit trail does not record: headers, server names, and whatever is neither who nor what nor where.
func unrecorded(c authz.Clause) bool {
	switch c.Attribute {
	case authz.Claim:
		return c.Key != "[iss]" && c.Key != "[sub]"
	case authz.RequestPrincipal, authz.SourceIP, authz.RemoteIP, authz.DestinationIP, authz.DestinationPort, authz.Host, authz.Method, authz.Path:
		return false
	}
	return !c.Attribute.Identity()
}

// target is a workload as far as decisions about requests to it go.
type target struct {
	workload  Workload
	compiled  compile.Workload
	cautious  *authz.Program
	trusting  *authz.Program
	uncertain []authz.Clause
	audited   bool // an AUDIT policy selects it
}

func (m *Mesh) target(w Workload) *target {
	t := &target{workload: w, compiled: m.compiled(w)}
	scope := t.compiled.Policies
	t.cautious, t.trusting = authz.Compile(authz.Assume(scope, unrecorded, true)), authz.Compile(authz.Assume(scope, unrecorded, false))
	t.uncertain = authz.Uncertain(scope, unrecorded)
	for _, p := range scope {
		t.audited = t.audited || p.Action == authz.Audit
	}
	return t
}

// sight finds the target of records, each once.
type sight struct {
	mesh    *Mesh
	targets map[string]*target // by who observed, or which service was called
}

// observed is a record as a request to a target.
type observed struct {
	*target
	index   uint64
	request authz.Request
	from    spiffe.ID
	allowed bool
	cut     bool // the path may be longer than what is recorded
}

// see reads a record. It says why if it is no decision that policies have a part in.
func (s *sight) see(record *telemetryv1.Record) (o observed, why string) {
	e := record.GetEvent()
	switch {
	case e.GetKind() != telemetryv1.Kind_KIND_REQUEST:
		return o, "no decision about a request"
	case e.GetVerdict() == telemetryv1.Verdict_VERDICT_REFUSED && e.GetReason() != telemetryv1.ReasonPlaintext:
		return o, "refused in the handshake, which no policy decides"
	case e.GetVerdict() == telemetryv1.Verdict_VERDICT_UNSPECIFIED:
		return o, "no verdict"
	case strings.HasPrefix(e.GetReason(), telemetryv1.ReasonAuthorizer):
		return o, "an external authorizer denied it, which can know more than policies do"
	case strings.HasPrefix(e.GetReason(), telemetryv1.ReasonTokenRefused):
		return o, "a token was refused, which no AuthorizationPolicy decides"
	}
	o.index, o.allowed = record.GetIndex(), e.GetVerdict() == telemetryv1.Verdict_VERDICT_ALLOWED
	to, _ := netip.ParseAddrPort(e.GetDestinationAddress())
	port := uint32(to.Port())
	identity := e.GetSourceIdentity()
	if e.GetReporter() == telemetryv1.Reporter_REPORTER_SOURCE {
		if o.allowed {
			return o, "the client's side of what the server's proxy decides"
		}
		identity = e.GetObserver().GetIdentity()
		o.target, port = s.called(e.GetDestinationService(), to)
	} else {
		o.target = s.observer(e.GetObserver())
	}
	if o.target == nil {
		return o, "the workload is not there any more"
	}
	if id, err := spiffe.Parse(identity); err == nil {
		o.from = id
	}
	p := portOf(o.compiled, port)
	o.request = authz.Request{
		Source: o.from, DestinationIP: to.Addr(), DestinationPort: port, Method: e.GetMethod(), Path: e.GetPath(), Host: e.GetAuthority(), Claims: claimsOf(e.GetRequestPrincipal()),
		HTTP: p.Protocol != protocol.TCP && e.GetMethod() != "", NormalizesPaths: o.compiled.Class.NormalizePaths,
	}
	if p.Mode == authz.Disable {
		o.request.Source = spiffe.ID{}
	}
	if from, err := netip.ParseAddrPort(e.GetSourceAddress()); err == nil {
		o.request.SourceIP = from.Addr()
	}
	if remote, err := netip.ParseAddrPort(e.GetRemoteAddress()); err == nil {
		o.request.RemoteIP = remote.Addr()
	}
	path, query, _ := strings.Cut(e.GetPath(), "?")
	o.cut = len(e.GetPath()) >= telemetryv1.MaxPath && query == "" && len(path) >= telemetryv1.MaxPath
	return o, ""
}

func (s *sight) observer(w *telemetryv1.Workload) *target {
	key := w.GetNamespace() + "/" + w.GetPod()
	if t, ok := s.targets[key]; ok {
		return t
	}
	var t *target
	if p := s.mesh.snap.Pod(w.GetNamespace() + "/" + s.mesh.podNow(w)); p != nil {
		t = s.mesh.target(s.mesh.workload(p))
	}
	s.targets[key] = t
	return t
}

// called is the target behind a service, and the port of it behind the service's.
func (s *sight) called(host string, at netip.AddrPort) (*target, uint32) {
	port := uint32(at.Port())
	service := s.mesh.calledService(host, at.Addr())
	if service == nil {
		return nil, 0
	}
	key := "service " + service.ID
	t, ok := s.targets[key]
	if !ok {
		if w, _, err := s.mesh.Find(service.Namespace, "svc/"+service.Name); err == nil {
			t = s.mesh.target(w)
		}
		s.targets[key] = t
	}
	if t == nil {
		return nil, 0
	}
	for _, sp := range service.Ports {
		if sp.Number == port {
			return t, compile.TargetPort(t.compiled.Class, sp)
		}
	}
	return t, port
}

// then is what would be decided: certain says whether that can be told from what is recorded.
func (o observed) then(m *Mesh) (d authz.Decision, certain bool) {
	p := portOf(o.compiled, o.request.DestinationPort)
	if o.from.IsZero() && p.Mode == authz.Strict {
		return authz.Decision{Reason: "mutual TLS is demanded (STRICT)"}, true
	}
	d = o.cautious.Decide(o.request)
	other := o.trusting.Decide(o.request)
	d.Policy = authz.Short(o.compiled.Policies, d.Policy)
	return d, d.Allowed == other.Allowed && !o.cut
}

// depends says on what an uncertain decision depends.
func (o observed) depends() string {
	if o.cut {
		return fmt.Sprintf("the path beyond %d bytes", telemetryv1.MaxPath)
	}
	seen := map[string]bool{}
	var out []string
	for _, c := range o.uncertain {
		name := string(c.Attribute)
		if c.Key != "" {
			name += " " + c.Key
		}
		if !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}
