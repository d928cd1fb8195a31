package registry

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/hashicorp/go-memdb"
	istio "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// Policies are the AuthorizationPolicies.
var Policies = &KindOf[Policy]{
	name:     "policy",
	resource: Resource{GroupVersionResource: security.WithResource("authorizationpolicies"), Kind: "AuthorizationPolicy"},
	source:   custom(makePolicy),
	indexes:  []*memdb.IndexSchema{bySelector, byEach("target", "Services")},
	judge: func(p *Policy) Verdict {
		idle := p.Ignored || p.DryRun || p.Action != authz.Allow && len(p.Rules) == 0
		return verdictOn(p.ID, p.Generation, idle, p.Problems)
	},
	advise: advisePolicy,
}

// Policy is an AuthorizationPolicy, compiled, with what of it cannot be enforced.
type Policy struct {
	ID        string
	Namespace string
	authz.Policy
	Generation int64
	Problems   []authz.Problem
}

// makePolicy compiles a policy. One that cannot be decoded denies everything to those it selects.
func makePolicy(u *unstructured.Unstructured, o authz.Options) *Policy {
	out := &Policy{ID: IDOf(u), Namespace: u.GetNamespace(), Generation: u.GetGeneration()}
	meta := metaOf(u)
	var spec istio.AuthorizationPolicy
	if out.Problems = decodeSpec(u, &spec); out.Problems != nil {
		out.Policy = authz.Policy{Meta: meta, Action: authz.Deny, Selector: selectorOf(u), Rules: []authz.Rule{{}}}
		return out
	}
	value, set := u.GetAnnotations()[istiocompat.DryRunAnnotation]
	dry, problems := authz.DryRun(value, set)
	meta.DryRun = dry
	out.Policy, out.Problems = authz.FromAuthorizationPolicy(meta, &spec, o)
	out.Problems = append(problems, out.Problems...)
	return out
}

// advisePolicy warns of what rules mean on ports that do not speak HTTP, and of values that may not be meant as they are written.
func advisePolicy(p *Policy) []string {
	var out []string
	tcp := p.TCP()
	for i, r := range p.Rules {
		if p.Action == authz.Allow && len(tcp.Rules) < len(p.Rules) {
			out = append(out, "rules that ask for something of HTTP never match on ports that are not HTTP")
			break
		}
		if p.Action == authz.Deny && demands(tcp.Rules[i]) < demands(r) {
			out = append(out, fmt.Sprintf("spec.rules[%d]: on ports that are not HTTP what it asks of HTTP is left out, so it denies more", i))
		}
	}
	if !authz.ByIdentity([]authz.Policy{p.Policy}) {
		out = append(out, "decided at a client's first bytes: at a port of no declared protocol, a client that waits for the server to speak gets nothing; "+
			"declare such ports (names such as mysql, smtp, nats or ssh, or appProtocol: "+protocol.Greeting+")")
	}
	for _, w := range p.Warnings {
		out = append(out, w.Error())
	}
	return out
}

// demands counts the clauses of a rule.
func demands(r authz.Rule) int {
	n := len(r.When)
	for _, alternatives := range [][]authz.Clauses{r.From, r.To} {
		for _, clauses := range alternatives {
			n += len(clauses)
		}
	}
	return n
}

// Policies returns every AuthorizationPolicy.
func (s *Snapshot) Policies() iter.Seq[*Policy] { return Policies.all(s, byID.Name) }

// PoliciesFor returns the AuthorizationPolicies of a namespace whose selectors find pods with the labels, in the order of their names.
func (s *Snapshot) PoliciesFor(ns string, labels map[string]string) []*Policy {
	return selectingPods(s, Policies, ns, labels)
}

// Targeting returns the policies that target a Service ("namespace/name").
func (s *Snapshot) Targeting(service string) (out []PolicyRef) {
	namespace, name, _ := strings.Cut(service, "/")
	for p := range Policies.all(s, "target", name) {
		if p.Namespace == namespace {
			out = append(out, PolicyRef{Policies, p.ID})
		}
	}
	for r := range RequestAuths.all(s, bySelector.Name, namespace, "", "") {
		if slices.Contains(r.Services, name) {
			out = append(out, PolicyRef{RequestAuths, r.ID})
		}
	}
	return out
}

func (p *Policy) targets() []string { return p.Services }

func (p *Policy) selects() (id, namespace string, selector map[string]string) {
	return p.ID, p.Namespace, p.Selector
}
