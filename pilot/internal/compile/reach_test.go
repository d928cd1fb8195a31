package compile_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// allow is a policy of a rule for each list of members; a list that is nil is a rule for everybody.
func allow(ns, name string, selector map[string]string, rules ...[]authz.Member) *registry.Policy {
	p := authz.Policy{Meta: authz.Meta{Namespace: ns, Name: name}, Action: authz.Allow, Selector: selector}
	for i, members := range rules {
		r := authz.Rule{Index: i}
		if members != nil {
			r.From = []authz.Clauses{{{Attribute: authz.Principal, Members: members}}}
		}
		p.Rules = append(p.Rules, r)
	}
	return &registry.Policy{ID: ns + "/" + name, Namespace: ns, Policy: p}
}

// A service is everyone's, with a reason, unless its policies say for certain who may use it.
func TestAudience(t *testing.T) {
	app := map[string]string{"app": "web"}
	web := &registry.Service{ID: "shop/web", Namespace: "shop", Name: "web", Selector: app, Ports: []registry.ServicePort{{Number: 80}}}
	bare := &registry.Service{ID: "shop/web", Namespace: "shop", Name: "web", Ports: []registry.ServicePort{{Number: 80}}}
	pod := func(name, ip string, more ...string) *registry.Pod {
		p := &registry.Pod{ID: "shop/" + name, Namespace: "shop", Name: name, IPs: []string{ip}, ServiceAccount: "web", Labels: maps.Clone(app), Proxied: true}
		for _, m := range more {
			p.Labels[m] = "yes"
		}
		return p
	}
	exported := func(to ...string) *registry.Service {
		s := *web
		s.ExportTo = to
		return &s
	}
	without := pod("two", "10.0.0.2")
	without.Proxied = false
	dry := allow("shop", "dry", nil, []authz.Member{{Namespace: "bank"}})
	dry.DryRun = true
	ignored := allow("shop", "ignored", nil, []authz.Member{{Namespace: "bank"}})
	ignored.Ignored = true
	deny := allow("shop", "deny", nil, []authz.Member{{Namespace: "bank"}})
	deny.Action = authz.Deny
	never := allow("shop", "never", nil, nil)
	never.Rules[0].Never = true
	teller, bank := []authz.Member{{Namespace: "bank", Account: "teller"}}, []authz.Member{{Namespace: "bank"}}
	for name, c := range map[string]struct {
		service *registry.Service
		objects []any
		want    string // "everyone: …", or who may
	}{
		"no policy":                                 {web, []any{pod("one", "")}, "everyone: no ALLOW policy holds for pod shop/one"},
		"an identity":                               {web, []any{pod("one", ""), allow("shop", "p", app, teller)}, "bank/teller by shop/p"},
		"a namespace, by the mesh's policy":         {web, []any{pod("one", ""), allow("bulwark-system", "p", nil, bank)}, "bank/* by bulwark-system/p"},
		"two policies":                              {web, []any{pod("one", ""), allow("shop", "p", nil, bank), allow("shop", "q", app, teller, bank)}, "bank/* by shop/p shop/q, bank/teller by shop/q"},
		"a policy without rules":                    {web, []any{pod("one", ""), allow("shop", "nothing", nil)}, ""},
		"a rule that matches nothing":               {web, []any{pod("one", ""), never}, ""},
		"a rule for others than it names":           {web, []any{pod("one", ""), allow("shop", "p", nil, bank, nil)}, "everyone: policy shop/p admits others than namespaces and identities that it names"},
		"a policy of another workload":              {web, []any{pod("one", ""), allow("shop", "p", map[string]string{"app": "other"}, bank)}, "everyone: no ALLOW policy holds for pod shop/one"},
		"a policy of another namespace":             {web, []any{pod("one", ""), allow("bank", "p", nil, bank)}, "everyone: no ALLOW policy holds for pod shop/one"},
		"dry run":                                   {web, []any{pod("one", ""), dry}, "everyone: no ALLOW policy holds for pod shop/one"},
		"a policy that touches nothing":             {web, []any{pod("one", ""), ignored}, "everyone: no ALLOW policy holds for pod shop/one"},
		"only DENY":                                 {web, []any{pod("one", ""), deny}, "everyone: no ALLOW policy holds for pod shop/one"},
		"a pod without a proxy":                     {web, []any{pod("one", ""), without, allow("shop", "p", nil, bank)}, "everyone: pod shop/two has no proxy"},
		"pods of which a policy selects one":        {web, []any{pod("one", "", "x"), pod("two", ""), allow("shop", "p", map[string]string{"x": "yes"}, bank)}, "everyone: no ALLOW policy holds for pod shop/two"},
		"pods with policies of their own":           {web, []any{pod("one", "", "x"), pod("two", "", "y"), allow("shop", "x", map[string]string{"x": "yes"}, bank), allow("shop", "y", map[string]string{"y": "yes"}, teller)}, "bank/* by shop/x, bank/teller by shop/y"},
		"no pods yet":                               {web, []any{allow("shop", "p", app, teller)}, "bank/teller by shop/p"},
		"no pods, and no policy":                    {web, nil, "everyone: no ALLOW policy holds for the pods that it selects"},
		"exported to its own namespace and another": {exported(".", "bank"), nil, "bank/*, shop/*"},
		"exported to nobody":                        {exported("~"), nil, ""},
		"exported to all":                           {exported("*", "bank"), nil, "everyone: no ALLOW policy holds for the pods that it selects"},
		"exported to some of whom policies admit":   {exported("bank"), []any{allow("shop", "p", nil, teller, []authz.Member{{Namespace: "shop"}})}, "bank/teller by shop/p"},
		"no selector, and a pod behind":             {bare, []any{pod("one", "10.0.0.1"), sliceOf("shop/web", "shop", "10.0.0.1"), allow("shop", "p", nil, bank)}, "bank/* by shop/p"},
		"no selector, and a stranger behind":        {bare, []any{pod("one", "10.0.0.1"), sliceOf("shop/web", "shop", "10.0.0.1", "203.0.113.1"), allow("shop", "p", nil, bank)}, "everyone: behind it is an address of no pod, 203.0.113.1"},
		"no selector, and nothing behind":           {bare, []any{allow("shop", "p", nil, bank)}, "everyone: it selects no pods, and nothing is behind it"},
	} {
		a := compile.AudienceOf(world(t, append(c.objects, c.service)...), compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}, c.service)
		got := "everyone: " + a.Open
		if !a.Everyone {
			var members []string
			for _, m := range slices.SortedFunc(maps.Keys(a.Members), authz.Member.Compare) {
				text := m.String()
				if by := a.Members[m]; by != nil {
					text += " by " + strings.Join(by, " ")
				}
				members = append(members, text)
			}
			got = strings.Join(members, ", ")
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestAudienceAdmits(t *testing.T) {
	a := compile.Audience{Members: map[authz.Member][]string{{Namespace: "bank"}: {"shop/p"}, {Namespace: "bank", Account: "teller"}: {"shop/q", "shop/p"}}}
	for _, c := range []struct {
		namespace, account, want string
	}{{"bank", "teller", "[shop/p shop/q] true"}, {"bank", "other", "[shop/p] true"}, {"shop", "teller", "[] false"}} {
		by, ok := a.Admits(c.namespace, c.account)
		if got := fmt.Sprint(by, ok); got != c.want {
			t.Errorf("%s/%s: %s, want %s", c.namespace, c.account, got, c.want)
		}
	}
}

// A policy that targets a Service holds for the pods behind it, whichever way they are called, and for no others of its namespace.
func TestPoliciesOfServices(t *testing.T) {
	const objects = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.96.0.1], selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: canary, namespace: shop}
spec: {clusterIPs: [10.96.0.2], selector: {app: web, track: canary}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: w, namespace: shop, labels: {app: web, track: canary, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: web}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {app: other, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: other}
status: {podIP: 10.0.0.2}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: canary, namespace: shop}
spec: {targetRefs: [{kind: Service, name: canary}], rules: [{from: [{source: {namespaces: [bank]}}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: canary, namespace: shop}
spec: {targetRefs: [{kind: Service, name: canary}], jwtRules: [{issuer: "https://issuer.example"}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gateway, namespace: shop}
spec: {targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}], rules: []}`
	reg, err := fixture.Load([]byte(objects))
	if err != nil {
		t.Fatal(err)
	}
	set := compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}
	check := func(when, pod string, policies, issuers int, everyone bool) {
		t.Helper()
		snap := reg.Snapshot()
		w := compile.CompileWorkload(snap, set, compile.ClassOf(snap.Pod("shop/"+pod)))
		if len(w.Policies) != policies || len(w.Issuers) != issuers {
			t.Errorf("%s, pod %s has %d policies and %d issuers, want %d and %d", when, pod, len(w.Policies), len(w.Issuers), policies, issuers)
		}
		if a := compile.AudienceOf(snap, set, snap.Service("shop/web")); (a.Open != "") != everyone {
			t.Errorf("%s, web is everyone's: %v (%s)", when, a.Open != "", a.Open)
		}
	}
	check("in the beginning", "w", 1, 1, false)
	check("in the beginning", "other", 0, 0, false)
	events, err := fixture.Events([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: canary, namespace: shop}\nspec: {clusterIPs: [10.96.0.2], selector: {app: other}, ports: [{port: 80}]}"))
	if err != nil {
		t.Fatal(err)
	}
	changes, err := reg.Apply(events)
	if err != nil {
		t.Fatal(err)
	}
	check("with the service before others", "w", 0, 0, true)
	check("with the service before others", "other", 1, 1, true)
	if e := compile.EffectsOf(reg.Snapshot(), set, changes); !e.Reach["shop/web"] {
		t.Errorf("who may reach a service of the same pods is not looked at again: %v", e.Reach)
	}
}
