package explain

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Stage is who decides, in the order in which a request comes to them.
type Stage string

// The stages.
const (
	AtRevocation Stage = "revocation"      // the client's identity is revoked
	AtMutualTLS  Stage = "mutual TLS"      // a PeerAuthentication demands it
	AtPolicies   Stage = "policies"        // AuthorizationPolicies
	AtReach      Stage = "reach"           // the client's own proxy does not know the service
	AtNothing    Stage = "nobody"          // the workload has no proxy
	AtHandshake  Stage = "certificate"     // of another trust domain
	AtCodec      Stage = "malformed"       // the proxies do not read the request
	Unprotected        = "it has no proxy" // reason of AtNothing
)

// Answer says how a request is decided, and why.
type Answer struct {
	Workload string   `json:"workload"`
	Port     uint32   `json:"port"`
	Protocol string   `json:"protocol"`
	Mode     string   `json:"mode"`             // of mutual TLS at the port
	Client   string   `json:"client,omitempty"` // principal; empty without identity
	Request  string   `json:"request"`
	Service  string   `json:"service,omitempty"` // by which it is called, as far as that is known
	Allowed  bool     `json:"allowed"`
	By       Stage    `json:"by"`
	Policy   string   `json:"policy,omitempty"` // deciding rule, <namespace>/<name> rule <n>
	Reason   string   `json:"reason"`
	Notes    []string `json:"notes,omitempty"`
	Selected []string `json:"selected"` // policies that select the workload, with their actions
	Nearest  []Near   `json:"nearest"`  // rules that did not match, the nearest first
	Audited  []string `json:"audited,omitempty"`
	DryRun   *Verdict `json:"dryRun,omitempty"` // if the policies that are tried out were enforced
	// Change would admit exactly this: policies to apply after reading.
	Change      []map[string]any `json:"change,omitempty"`
	ChangeNotes []string         `json:"changeNotes,omitempty"`
	NoChange    string           `json:"noChange,omitempty"` // why there is none
}

// Verdict is a decision in few words.
type Verdict struct {
	Allowed bool   `json:"allowed"`
	Policy  string `json:"policy,omitempty"`
	Reason  string `json:"reason"`
}

// Near is a rule that did not match.
type Near struct {
	Policy string         `json:"policy"` // <namespace>/<name> rule <n>
	Action authz.Action   `json:"action"`
	DryRun bool           `json:"dryRun,omitempty"`
	Held   int            `json:"held"` // of its clauses
	Missed []authz.Missed `json:"missed,omitempty"`
	Why    string         `json:"why,omitempty"` // it is not asked at all
}

// Explain says how a request is decided.
func (m *Mesh) Explain(ask Ask) (*Answer, error) {
	a, err := m.resolve(ask)
	if err != nil {
		return nil, err
	}
	scope := a.compiled.Policies
	e := authz.Explain(scope, a.request)
	out := &Answer{
		Workload: a.workload.Name, Port: a.port.Number, Protocol: string(a.port.Protocol), Mode: string(a.port.Mode), Request: a.request.Describe(), Selected: []string{}, Nearest: []Near{},
		Allowed: e.Allowed, By: AtPolicies, Policy: authz.Short(scope, e.Policy), Reason: e.Reason,
	}
	if !a.from.IsZero() {
		out.Client = a.from.Principal()
	}
	if a.service != nil {
		out.Service = a.service.ID
	}
	for _, p := range scope {
		what := string(p.Action)
		if p.DryRun {
			what += ", tried out"
		}
		out.Selected = append(out.Selected, fmt.Sprintf("%s/%s (%s)", p.Namespace, p.Name, what))
	}
	for _, id := range e.Audited {
		out.Audited = append(out.Audited, authz.Short(scope, id))
	}
	for _, id := range e.Asked {
		a.note("an external authorizer is asked by %s, and can deny it: what it says is not known here", authz.Short(scope, id))
	}
	if e.DryRun != nil {
		out.DryRun = &Verdict{e.DryRun.Allowed, authz.Short(scope, e.DryRun.Policy), e.DryRun.Reason}
	}
	if !e.Allowed && e.Policy == "" && e.Reason == authz.DefaultDeny {
		var allowing []string
		for _, p := range scope {
			if p.Action == authz.Allow && !p.DryRun {
				allowing = append(allowing, p.Namespace+"/"+p.Name)
			}
		}
		out.Reason += "; these select the workload: " + strings.Join(allowing, ", ")
	}
	m.problems(a, scope)
	out.near(e, a)
	m.before(a, out)
	if !out.Allowed && out.By == AtPolicies {
		m.change(a, out)
	}
	out.Notes = a.notes
	return out, nil
}

// problems notes the policies that cannot be enforced as they are written.
func (m *Mesh) problems(a *asked, scope []authz.Policy) {
	for _, p := range scope {
		id := p.Namespace + "/" + p.Name
		for policy := range m.snap.Policies() {
			if policy.ID == id && len(policy.Problems) > 0 {
				a.note("%s cannot be enforced as it is written, and fails closed: %s", id, policy.Problems[0].Error())
			}
		}
	}
}

// near lists the rules that did not match, the nearest first: of the same distance, those of which more holds.
func (out *Answer) near(e authz.Explanation, a *asked) {
	for _, p := range e.Policies {
		for _, r := range p.Rules {
			if r.Matches || p.Action == authz.Audit {
				if r.Wider != "" && p.Action == authz.Deny {
					a.note("%s/%s rule %d: %s, so it denies more", p.Namespace, p.Name, r.Index, r.Wider)
				}
				continue
			}
			out.Nearest = append(out.Nearest, Near{fmt.Sprintf("%s/%s rule %d", p.Namespace, p.Name, r.Index), p.Action, p.DryRun, r.Held, r.Missed, r.Skipped})
		}
	}
	slices.SortStableFunc(out.Nearest, func(x, y Near) int {
		skipped := func(n Near) int { return min(1, len(n.Why)) }
		// Of a denial, what might have allowed comes first; else what might have denied.
		other := func(n Near) int {
			if (n.Action == authz.Allow) != out.Allowed {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(other(x), other(y)), cmp.Compare(skipped(x), skipped(y)), cmp.Compare(len(x.Missed), len(y.Missed)), cmp.Compare(y.Held, x.Held))
	})
}

// before says what decides before the policies do, or keeps a request from coming to them.
func (m *Mesh) before(a *asked, out *Answer) {
	refuse := func(by Stage, format string, args ...any) {
		out.Allowed, out.By, out.Policy, out.Reason = false, by, "", fmt.Sprintf(format, args...)
	}
	if !a.workload.pod.Proxied {
		out.Allowed, out.By, out.Policy, out.Reason = true, AtNothing, "", Unprotected+": nothing decides about what comes to it, whatever the policies"
		return
	}
	if !a.workload.pod.Serves(a.port.Number) {
		out.Allowed, out.By, out.Policy, out.Reason = true, AtNothing, "", fmt.Sprintf("port %d is left out of redirection by an annotation of the pod: its proxy decides nothing there", a.port.Number)
		return
	}
	// What the client's proxy refuses never comes to the server's.
	if reason := m.outOfReach(a); reason != "" && out.Allowed {
		refuse(AtReach, "%s", reason)
		out.NoChange = "let the service be known there: the Service's annotation networking.istio.io/exportTo, or the Sidecar's egress"
	} else if reason != "" {
		a.note("the client's own proxy refuses it first: %s", reason)
	}
	switch uri := a.from.String(); {
	case !a.from.IsZero() && !slices.Contains(m.set.TrustDomains(), a.from.TrustDomain):
		refuse(AtHandshake, "%s is of another trust domain: its certificate is not of the mesh's", uri)
		out.NoChange = "nothing but the mesh's trust domain and its aliases (trustDomainAliases) say whose certificates are its own"
	case !a.from.IsZero() && slices.ContainsFunc(m.set.Same(uri), m.snap.Revoked):
		refuse(AtRevocation, "the identity %s is revoked: no policy admits it", a.from.Principal())
		out.NoChange = "meshctl identity revocations shows why, and meshctl identity restore NAME takes it back"
	case a.from.IsZero() && a.port.Mode == authz.Strict:
		refuse(AtMutualTLS, "port %d takes mutual TLS alone (PeerAuthentication, mode STRICT%s), and the client has no identity", a.port.Number, m.peerPolicy(a))
		out.NoChange = "have the client come with a proxy, or make the port PERMISSIVE, which opens it to every client without identity that policies admit"
	case out.By == AtPolicies && !out.Allowed && out.Policy == "" && a.request.HTTP && !authz.Evaluate(nil, a.request).Allowed:
		out.By = AtCodec
		out.NoChange = fmt.Sprintf("the proxies answer %d before any rule is asked", http.StatusBadRequest)
	}
}

// peerPolicy names the PeerAuthentication by which a port has its mode.
func (m *Mesh) peerPolicy(a *asked) string {
	by := compile.ModesOf(m.snap, m.set, a.workload.pod.Namespace, a.workload.pod.Labels).By(a.port.Number)
	if by == nil {
		return ""
	}
	return fmt.Sprintf(", by %s/%s", by.Namespace, by.Name)
}

// outOfReach says why the client's proxy does not know the service; empty if it does, or that cannot be told.
func (m *Mesh) outOfReach(a *asked) string {
	if a.service == nil || a.from.IsZero() || !slices.Contains(m.set.TrustDomains(), a.from.TrustDomain) {
		return ""
	}
	ns, account := a.from.Namespace, a.from.ServiceAccount
	if _, ok := compile.AudienceOf(m.snap, m.set, a.service).Admits(ns, account); !ok {
		if !compile.Exported(a.service, ns) {
			return fmt.Sprintf("Service %s is not exported to namespace %s (annotation networking.istio.io/exportTo)", a.service.ID, ns)
		}
		return fmt.Sprintf("no ALLOW policy can admit %s/%s to Service %s, so it is out of its reach", ns, account, a.service.ID)
	}
	for p := range m.snap.PodsIn(ns) {
		if p.ServiceAccount != account || !p.Proxied {
			continue
		}
		if sidecar := compile.SidecarOf(m.snap, m.set, ns, p.Labels); !compile.Imports(sidecar, ns, a.service) {
			return fmt.Sprintf("Sidecar %s does not let Service %s be known to pod %s", sidecar.ID, a.service.ID, p.ID)
		}
	}
	return ""
}

// change finds the smallest change that admits the request.
func (m *Mesh) change(a *asked, out *Answer) {
	scope := a.compiled.Policies
	changed, err := authz.Admit(scope, m.specs(scope), a.request, nameFor(a), a.workload.labels, m.options)
	if err != nil {
		out.NoChange = err.Error()
		if strings.Contains(out.Reason, "the path in different ways") && !a.request.NormalizesPaths {
			out.NoChange += "; the client can send the path as it is meant, or the pods ask their proxies to normalise paths (docs/annotations.md)"
		}
		return
	}
	for _, c := range changed {
		o, err := m.object(c)
		if err != nil {
			out.NoChange = err.Error()
			out.Change = nil
			return
		}
		out.Change = append(out.Change, o)
		switch was := m.snap.Policies(); {
		case m.written[c.Namespace+"/"+c.Name] == nil:
			if !slices.ContainsFunc(scope, func(p authz.Policy) bool { return p.Uses(authz.Path) }) && a.request.HTTP {
				out.ChangeNotes = append(out.ChangeNotes, "no rule has looked at paths so far: with one that does, paths that servers read in different ways are denied to all")
			}
		default:
			for p := range was {
				if p.ID == c.Namespace+"/"+c.Name && (p.Namespace == m.set.RootNamespace || len(p.Selector) == 0) {
					out.ChangeNotes = append(out.ChangeNotes, fmt.Sprintf("%s holds for other workloads, too: the exception is one at each of them", p.ID))
				}
			}
		}
	}
	if a.request.Claims == nil && a.request.HTTP && slices.ContainsFunc(scope, func(p authz.Policy) bool { return p.Uses(authz.RequestPrincipal) || p.Uses(authz.Claim) }) {
		out.ChangeNotes = append(out.ChangeNotes, "rules ask for tokens here, and this admits a request without one: the client may better bring one")
	}
	if len(a.request.Headers) > 0 || a.request.Claims != nil || (a.request.SourceIP.IsValid() || a.request.RemoteIP.IsValid()) && !a.from.IsZero() {
		out.ChangeNotes = append(out.ChangeNotes, "the change looks at identity, the token's principal, port, method and path: it admits the same with any other headers and claims, and from any address")
	}
}

// nameFor names a policy for a request, the same whenever it is asked for.
func nameFor(a *asked) authz.Meta {
	who := "plaintext"
	if !a.request.Source.IsZero() {
		who = a.request.Source.ServiceAccount
	}
	_, to, _ := strings.Cut(a.workload.Name, "/")
	_, to, _ = strings.Cut(to, "/")
	sum := sha256.Sum256([]byte(fmt.Sprint(a.request.Source, cmp.Or(a.request.RemoteIP, a.request.SourceIP), a.request.DestinationPort, a.request.Method, a.request.Path, a.workload.Name)))
	name := "allow-" + who + "-to-" + to
	name = strings.TrimRight(name[:min(len(name), validation.DNS1123SubdomainMaxLength-9)], "-.") + "-" + hex.EncodeToString(sum[:4])
	return authz.Meta{Namespace: a.workload.pod.Namespace, Name: name}
}

// object is a policy as it is applied. One that is there keeps its labels and annotations.
func (m *Mesh) object(s authz.Spec) (map[string]any, error) {
	text, err := protojson.Marshal(s.AuthorizationPolicy)
	if err != nil {
		return nil, fmt.Errorf("AuthorizationPolicy %s/%s: %w", s.Namespace, s.Name, err)
	}
	var spec map[string]any
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("AuthorizationPolicy %s/%s: %w", s.Namespace, s.Name, err)
	}
	spec["action"] = s.GetAction().String() // also where it is the one that policies have without saying so
	o := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	o.SetAPIVersion("security.istio.io/v1")
	o.SetKind(registry.Policies.Resource().Kind)
	o.SetNamespace(s.Namespace)
	o.SetName(s.Name)
	if was := m.written[s.Namespace+"/"+s.Name]; was != nil {
		annotations := was.GetAnnotations()
		delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
		o.SetLabels(was.GetLabels())
		if len(annotations) > 0 {
			o.SetAnnotations(annotations)
		}
	}
	return o.Object, nil
}
