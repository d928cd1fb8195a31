package translate_test

import (
	"fmt"
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
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// TestOnlyFiltersWithNothingToSayAreLeftOut compares, for every combination of policies and modes, which filters the tables of a workload leave out
// with what these filters are configured to do.
func TestOnlyFiltersWithNothingToSayAreLeftOut(t *testing.T) {
	clause := authz.Clause{Attribute: authz.Path, Values: []authz.Match{{Kind: authz.Exact, Value: "/a"}}}
	var kinds []authz.Policy
	for _, action := range []authz.Action{authz.Allow, authz.Deny, authz.Audit} {
		for _, to := range [][]authz.Clauses{nil, {{clause}}} {
			for _, dryRun := range []bool{false, true} {
				kinds = append(kinds, authz.Policy{Meta: authz.Meta{Name: "p", Namespace: "a", DryRun: dryRun}, Action: action, Rules: []authz.Rule{{To: to}}})
			}
		}
		kinds = append(kinds, authz.Policy{Meta: authz.Meta{Name: "none", Namespace: "a"}, Action: action}, authz.Policy{Meta: authz.Meta{Name: "ignored", Namespace: "a"}, Action: action, Ignored: true, Rules: []authz.Rule{{}}})
	}
	list := []revocation.Revocation{{Name: "r", Identity: "spiffe://cluster.local/ns/a/sa/b"}}
	left := 0
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
			}
		}
	}
	for _, mode := range []authz.TLSMode{authz.Strict, authz.Permissive} {
		for i := range kinds {
			for j := range kinds {
				w := &compile.Workload{Policies: []authz.Policy{kinds[i], kinds[j]}, Other: compile.InboundPort{Mode: mode}}
				check(w, nil)
				check(w, list)
			}
		}
		none := &compile.Workload{Other: compile.InboundPort{Mode: mode}}
		check(none, nil)
	}
	if left < 500 {
		t.Errorf("%d filters are left out in all, too few to be of use", left)
	}
	strict := translate.InboundRoutes(&compile.Workload{Other: compile.InboundPort{Mode: authz.Strict}}, false, "inbound-tls")
	if n := len(strict.GetVirtualHosts()[0].GetTypedPerFilterConfig()); n != 4 {
		t.Errorf("%d filters are left out of requests over mutual TLS where there are no policies, want all 4", n)
	}
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
	for _, name := range slices.Concat(translate.AuthorizationNames(), translate.RevocationNames()) {
		config := translate.Authorization(w, name)
		if m, ok := translate.Revocations(settings, revoked, name).(*core.TypedExtensionConfig); ok {
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
