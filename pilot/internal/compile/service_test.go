package compile_test

import (
	"slices"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// A service is served by the accounts of its pods under each trust domain of the mesh, until they are revoked under one.
func TestServiceIsServedUnderEachTrustDomain(t *testing.T) {
	set := compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system", TrustDomainAliases: []string{"old.local"}}
	web := &registry.Service{ID: "shop/web", Namespace: "shop", Name: "web", Selector: map[string]string{"app": "web"}, Ports: []registry.ServicePort{{Number: 80}}}
	pod := func(account string) *registry.Pod {
		return &registry.Pod{ID: "shop/" + account, Namespace: "shop", Name: account, ServiceAccount: account, Labels: map[string]string{"app": "web"}, Proxied: true}
	}
	r := &registry.Revocation{ID: "r"}
	r.Identity = "spiffe://old.local/ns/shop/sa/thief"
	got := compile.ServicePorts(world(t, web, pod("web"), pod("thief"), r), set, web)[0].Identities
	if want := []string{"spiffe://cluster.local/ns/shop/sa/web", "spiffe://old.local/ns/shop/sa/web"}; !slices.Equal(got, want) {
		t.Errorf("the service is served by %v, want %v", got, want)
	}
}
