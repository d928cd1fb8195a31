package translate_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// TestOnlyFiltersWithNothingToSayAreLeftOut compares, for every combination of policies and modes, which filters the tables of a workload leave out
// with what these filters are configured to do.
func TestOnlyFiltersWithNothingToSayAreLeftOut(t *testing.T) {
	clause := authz.Clause{Attribute: authz.Path, Values: []authz.Match{{Kind: authz.Exact, Value: "/a"}}}
	host := authz.Clause{Attribute: authz.Host, Values: []authz.Match{{Kind: authz.Exact, Value: "a"}}}
	method := authz.Clause{Attribute: authz.Method, Values: []authz.Match{{Kind: authz.Exact, Value: "GET"}}}
	var kinds []authz.Policy
	for _, action := range []authz.Action{authz.Allow, authz.Deny, authz.Audit} {
		for _, to := range [][]authz.Clauses{nil, {{clause}}, {{clause, method}}, {{host}}} {
			for _, dryRun := range []bool{false, true} {
				kinds = append(kinds, authz.Policy{Meta: authz.Meta{Name: "p", Namespace: "a", DryRun: dryRun}, Action: action, Rules: []authz.Rule{{To: to}}})
			}
		}
		kinds = append(kinds, authz.Policy{Meta: authz.Meta{Name: "none", Namespace: "a"}, Action: action}, authz.Policy{Meta: authz.Meta{Name: "ignored", Namespace: "a"}, Action: action, Ignored: true, Rules: []authz.Rule{{}}})
	}
	list := []revocation.Revocation{{Name: "r", Identity: "spiffe://cluster.local/ns/a/sa/b"}}
	left, quiet := 0, 0
	check := func(w *compile.Workload, revoked []revocation.Revocation) {
		for _, table := range translate.InboundTables() {
			routes := translate.InboundRoutes(w, len(revoked) > 0, table)
			for _, f := range httpFilters(t, w, revoked) {
				var off route.FilterConfig
				said, is := routes.GetVirtualHosts()[0].GetTypedPerFilterConfig()[f.name]
				if is && (said.UnmarshalTo(&off) != nil || !off.GetDisabled()) {
					t.Fatalf("%s: %v", f.name, said)
				}
				if is {
					left++
				}
				if does := f.does(table); is && does != "" {
					t.Errorf("%s leaves out %s, which %s (policies %+v, modes %v)", table, f.name, does, w.Policies, w.Other.Mode)
				}
				quiet += checkQuiet(t, f, table, routes.GetVirtualHosts()[0].GetRoutes()[2:])
			}
		}
	}
	for _, mode := range []authz.TLSMode{authz.Strict, authz.Permissive} {
		for i := range kinds {
			for j := range kinds {
				w := &compile.Workload{Policies: []authz.Policy{kinds[i], kinds[j]}, Other: compile.InboundPort{Mode: mode}, Ports: []compile.InboundPort{{Number: 1, ServiceName: "a", Mode: mode}}}
				check(w, nil)
				check(w, list)
			}
		}
		none := &compile.Workload{Other: compile.InboundPort{Mode: mode}}
		check(none, nil)
	}
	verifying := &compile.Workload{Issuers: []compile.Issuer{{Rule: jwt.Rule{Issuer: "a"}, KeySet: jwt.NoKeys}}, Other: compile.InboundPort{Mode: authz.Strict}}
	for _, table := range translate.InboundTables() {
		if _, left := translate.InboundRoutes(verifying, false, table).GetVirtualHosts()[0].GetTypedPerFilterConfig()["authorization/http/jwt"]; left {
			t.Errorf("%s leaves out the filter that verifies tokens", table)
		}
	}
	if left < 500 || quiet < 50 {
		t.Errorf("%d filters are left out in all, %d more of requests that are not suspicious: too few to be of use", left, quiet)
	}
	strict := translate.InboundRoutes(&compile.Workload{Other: compile.InboundPort{Mode: authz.Strict}}, false, "inbound-tls")
	if n := len(strict.GetVirtualHosts()[0].GetTypedPerFilterConfig()); n != 6 {
		t.Errorf("%d filters are left out of requests over mutual TLS where there are no policies, want all 6", n)
	}
}

// checkQuiet compares what a filter does with the routes to the application that leave it out, and counts them. Where one does, those before it that match what is suspicious
// do not, and there is nothing else that the filter says.
func checkQuiet(t *testing.T, f configured, table string, routes []*route.Route) (n int) {
	t.Helper()
	asked := map[string]bool{} // by the lines of requests whose routes come first
	for _, r := range routes {
		ofForm := func(h *route.HeaderMatcher) bool { return h.GetName() == "x-bulwark-form" }
		headers := slices.DeleteFunc(slices.Clone(r.GetMatch().GetHeaders()), ofForm)
		if _, is := r.GetTypedPerFilterConfig()[f.name]; !is {
			for _, h := range headers {
				asked[h.GetName()] = true
			}
			continue
		}
		n++
		if len(headers) > 0 || r.GetMatch().GetConnectMatcher() != nil || !denies(f.GetRules()) || !denies(f.GetShadowRules()) {
			t.Errorf("%s: route %v leaves out %v", table, r, f)
		}
		for _, name := range slices.Concat(slices.Collect(maps.Keys(f.GetRules().GetPolicies())), slices.Collect(maps.Keys(f.GetShadowRules().GetPolicies()))) {
			line := map[string]string{authz.AmbiguousPathRule: ":path", authz.AmbiguousMethodRule: ":method"}[name]
			if !asked[line] && name != authz.TunnelRule && (name != rbac.PlaintextRule || table != "inbound-tls") {
				t.Errorf("%s: a route leaves out %s, which has rule %s, and no route before it asks it", table, f.name, name)
			}
		}
		clear(asked)
	}
	return n
}

// denies says whether rules, if there are any, are of those that deny.
func denies(rules *rbacv3.RBAC) bool {
	return rules == nil || rules.GetAction() == rbacv3.RBAC_DENY
}

type configured struct {
	name string
	*httprbac.RBAC
}

// does says what a filter does, as somebody would read its configuration; nothing if that is nothing.
func (f configured) does(table string) string {
	rules := f.GetRules()
	for name := range rules.GetPolicies() {
		if name != rbac.PlaintextRule || table != "inbound-tls" {
			return fmt.Sprintf("has rule %s", name)
		}
	}
	switch {
	case f.GetShadowRules() != nil:
		return "tries policies out"
	case rules != nil && rules.GetAction() == rbacv3.RBAC_ALLOW:
		return "allows nothing"
	}
	return ""
}

func httpFilters(t *testing.T, w *compile.Workload, revoked []revocation.Revocation) (out []configured) {
	t.Helper()
	for _, name := range slices.Concat(translate.AuthorizationNames, translate.RevocationNames()) {
		config := translate.Authorization(w, name, translate.ModuleSent)
		if m, ok := translate.Revocations(settings, revoked, name, translate.ModuleSent).(*core.TypedExtensionConfig); ok {
			config = m
		}
		f := configured{name, &httprbac.RBAC{}}
		if config.GetTypedConfig().MessageIs(f.RBAC) {
			if err := config.GetTypedConfig().UnmarshalTo(f.RBAC); err != nil {
				t.Fatal(err)
			}
			out = append(out, f)
		}
	}
	return out
}
