package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Recorded is a record of the audit trail as far as it says what was asked and what was decided.
type Recorded struct {
	Index   uint64    `json:"index"`
	Time    time.Time `json:"time"`
	Verdict string    `json:"verdict"`          // allowed, denied or refused
	Policy  string    `json:"policy,omitempty"` // <namespace>/<name> rule <n>
	Reason  string    `json:"reason,omitempty"`
	Trial   *Verdict  `json:"trial,omitempty"` // what the policies on trial would have decided then, where that is something else
	Ask     Ask       `json:"-"`
}

// Summary is the record in a line.
func (r *Recorded) Summary() string {
	out := strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Time.UTC().Format(time.RFC3339), r.Verdict, r.Policy, r.Reason))
	if t := r.Trial; t != nil {
		out += fmt.Sprintf("; on trial %s: %s", map[bool]string{true: "allowed", false: "denied"}[t.Allowed], cmp.Or(t.Policy, t.Reason))
	}
	return out
}

// Recorded reads a record of the audit trail. It is an error if that is no decision about a request that a workload was to have.
func (m *Mesh) Recorded(record *telemetryv1.Record) (*Recorded, error) {
	e := record.GetEvent()
	if e.GetKind() != telemetryv1.Kind_KIND_REQUEST || e.GetVerdict() == telemetryv1.Verdict_VERDICT_UNSPECIFIED {
		return nil, fmt.Errorf("record %d is no decision of a proxy about a request, but %s by %s", record.GetIndex(),
			strings.ToLower(strings.TrimPrefix(e.GetKind().String(), "KIND_")), cmp.Or(e.GetObserver().GetIdentity(), "its sender"))
	}
	out := &Recorded{
		Index: record.GetIndex(), Time: e.GetTime().AsTime(), Verdict: strings.ToLower(strings.TrimPrefix(e.GetVerdict().String(), "VERDICT_")), Policy: e.GetPolicy(), Reason: e.GetReason(),
		Ask: Ask{Method: e.GetMethod(), Path: e.GetPath(), Host: e.GetAuthority(), From: e.GetSourceIdentity(), Plaintext: e.GetSourceIdentity() == "", TCP: e.GetMethod() == "" && e.GetPath() == ""},
	}
	if t := e.GetTrial(); t != nil {
		out.Trial = &Verdict{Allowed: t.GetVerdict() == telemetryv1.Verdict_VERDICT_ALLOWED, Policy: t.GetPolicy(), Reason: t.GetReason()}
	}
	out.Ask.Claims = claimsOf(e.GetRequestPrincipal())
	if from, err := netip.ParseAddrPort(e.GetSourceAddress()); err == nil {
		out.Ask.SourceIP = from.Addr().Unmap()
	}
	if remote, err := netip.ParseAddrPort(e.GetRemoteAddress()); err == nil {
		out.Ask.RemoteIP = remote.Addr().Unmap()
	}
	to, addressed := netip.ParseAddrPort(e.GetDestinationAddress())
	if e.GetReporter() == telemetryv1.Reporter_REPORTER_SOURCE {
		// The client's own proxy decided: it is the observer, and whom it called is a service.
		out.Ask.From, out.Ask.Plaintext = cmp.Or(e.GetObserver().GetIdentity(), e.GetSourceIdentity()), false
		service := m.calledService(e.GetDestinationService(), to.Addr())
		if service == nil {
			return nil, fmt.Errorf("record %d is of the client's proxy, and %s is no Service's (any more)", record.GetIndex(), cmp.Or(e.GetDestinationService(), e.GetDestinationAddress(), "what was called"))
		}
		out.Ask.Namespace, out.Ask.To = service.Namespace, "svc/"+service.Name
	} else {
		out.Ask.Namespace, out.Ask.To = e.GetObserver().GetNamespace(), "pod/"+m.podNow(e.GetObserver())
	}
	if addressed == nil {
		out.Ask.Port = uint32(to.Port())
	}
	return out, nil
}

// claimsOf are what a request principal, <issuer>/<subject>, says of a token; nil if there was none.
func claimsOf(principal string) map[string]any {
	if principal == "" {
		return nil
	}
	issuer, subject := authz.Match{Kind: authz.Exact, Value: principal}.IssuerSubject()
	return map[string]any{"iss": issuer.Value, "sub": subject.Value}
}

// podNow is the pod of an observer, or one that has taken its place: of the same account, and with a name that begins alike.
func (m *Mesh) podNow(w *telemetryv1.Workload) string {
	if m.snap.Pod(w.GetNamespace()+"/"+w.GetPod()) != nil {
		return w.GetPod()
	}
	alike, best := 0, w.GetPod()
	for p := range m.snap.PodsIn(w.GetNamespace()) {
		if p.ServiceAccount != w.GetServiceAccount() && w.GetServiceAccount() != "" {
			continue
		}
		n := 0
		for n < min(len(p.Name), len(w.GetPod())) && p.Name[n] == w.GetPod()[n] {
			n++
		}
		if n > alike {
			alike, best = n, p.Name
		}
	}
	return best
}

// calledService is the service of a host name, or else of an address; nil if there is none.
func (m *Mesh) calledService(host string, at netip.Addr) *registry.Service {
	if name, namespace, ok := serviceOf(host); ok {
		if s := m.snap.Service(namespace + "/" + name); s != nil {
			return s
		}
	}
	for s := range m.snap.ServicesAt(at.Unmap().String()) {
		return s
	}
	if p := m.snap.PodAt(at.Unmap().String()); p != nil { // of a headless one
		for _, s := range m.snap.ServicesFor(p.Namespace, p.Labels) {
			return s
		}
	}
	return nil
}

// serviceOf reads a service's host name, <name>.<namespace>.svc.<cluster domain>, maybe with a port.
func serviceOf(host string) (name, namespace string, ok bool) {
	host, _, _ = strings.Cut(host, ":")
	parts := strings.SplitN(host, ".", 3)
	if len(parts) < 2 {
		return "", "", false
	}
	_, err := spiffe.New("x", parts[1], parts[0])
	return parts[0], parts[1], err == nil
}
