package translate_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Where policies name many peers, each peer has a filter of its own. Whoever is found to be none of them is asked everything: in plaintext, with two
// names, and on connections of a listener that does not note who the peer is.
func TestWhoeverIsNotFoundByNameIsAskedEverything(t *testing.T) {
	ca := envoytest.NewCA(t)
	deny := &security.AuthorizationPolicy{Action: security.AuthorizationPolicy_DENY}
	for i := range 40 {
		deny.Rules = append(deny.Rules, &security.Rule{From: []*security.Rule_From{{Source: &security.Source{Principals: []string{fmt.Sprintf("cluster.local/ns/shop/sa/s%d", i)}}}},
			To: []*security.Rule_To{{Operation: &security.Operation{Paths: []string{"/"}, Methods: []string{"GET"}}}}})
	}
	noPlaintext := &security.AuthorizationPolicy{Action: security.AuthorizationPolicy_DENY, Rules: []*security.Rule{{
		From: []*security.Rule_From{{Source: &security.Source{NotPrincipals: []string{"*"}}}}}}}
	var policies []authz.Policy
	for i, spec := range []*security.AuthorizationPolicy{deny, noPlaintext} {
		p, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: fmt.Sprint(i)}, spec, aliasedOptions)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		policies = append(policies, p)
	}
	if authz.ByPeer(policies, authz.Deny) == nil {
		t.Fatal("the policies are not taken apart")
	}
	ports := envoytest.FreePorts(t, 3)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[2]}
	server := ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")
	noting, older := workloadListener(t, policies, false, ports[0], ca, server), workloadListener(t, policies, false, ports[1], ca, server)
	for _, c := range older.GetFilterChains() {
		c.Filters = slices.DeleteFunc(c.Filters, func(f *listener.Filter) bool { return f.GetName() == "envoy.filters.network.set_filter_state" })
	}
	b.StaticResources.Listeners = append(b.StaticResources.Listeners, noting, older)
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	const named, web = "spiffe://cluster.local/ns/shop/sa/s7", "spiffe://cluster.local/ns/web/sa/a"
	for _, port := range ports[:2] {
		for _, id := range []string{named, "spiffe://old.local/ns/shop/sa/s39"} {
			if got := askAs(t, port, ca.Issue(t, id)); got != http.StatusForbidden {
				t.Errorf("%s, which is denied, gets %d", id, got)
			}
		}
		if got := askAs(t, port, ca.Issue(t, web)); got != http.StatusOK {
			t.Errorf("whom no rule names gets %d", got)
		}
		for _, uris := range [][]string{{named, web}, {web, named}} {
			leaf := ca.IssueChanged(t, web, names(t, uriName(uris[0]), uriName(uris[1])))
			if got := askAs(t, port, leaf); got == http.StatusOK {
				t.Errorf("names %v evade a rule about one of them", uris)
			}
		}
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("plaintext, which is denied, gets %d", resp.StatusCode)
		}
	}
}
