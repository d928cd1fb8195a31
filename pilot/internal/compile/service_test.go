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

// Who calls an address of a Service is sent to endpoints of its family, as by kube-proxy: an application may listen in one alone. Behind a headless Service, where
// clients choose, each of a pod's addresses is the pod.
func TestEndpointsAreOfTheFamilyThatIsCalled(t *testing.T) {
	labels := map[string]string{"app": "db"}
	web := &registry.Service{ID: "a/web", Namespace: "a", Name: "web", ClusterIPs: []string{"10.96.0.1", "fd00::1"}, Selector: labels,
		Ports: []registry.ServicePort{{Name: "db", Number: 80, Target: 15432}}}
	pod := &registry.Pod{ID: "a/db-0", Namespace: "a", Name: "db-0", IPs: []string{"10.0.0.1", "fd00:1::1"}, ServiceAccount: "db", Labels: labels, Proxied: true}
	six := sliceOf("a/web", "a", "fd00:1::1")
	six.ID, six.Family = "a/web-6", registry.IPv6
	direct := sliceOf("a/direct", "a", "fd00:1::1")
	direct.Family = registry.IPv6
	snap := world(t, web, headless("a/direct", "a", "direct", 1, labels), pod, sliceOf("a/web", "a", "10.0.0.1"), six, direct)
	for called, want := range map[compile.Address]struct{ cluster, endpoint string }{
		{IP: "10.96.0.1", Port: 80}:    {"outbound|80||web.a.svc.cluster.local", "10.0.0.1"},
		{IP: "fd00::1", Port: 80}:      {"outbound|80|ipv6|web.a.svc.cluster.local", "fd00:1::1"},
		{IP: "fd00:1::1", Port: 15432}: {"outbound|5432||direct.a.svc.cluster.local", "fd00:1::1"},
	} {
		f := compile.FrontendAt(snap, settings, called)
		if f == nil || f.Backend() != want.cluster {
			t.Errorf("%s leads to %+v, want %s", called, f, want.cluster)
			continue
		}
		if f.Pod != nil {
			if f.Pod.Address != want.endpoint || f.Pod.Plain {
				t.Errorf("%s is the pod at %+v", called, f.Pod)
			}
			continue
		}
		if got := compile.Candidates(snap, settings, web, 80, f.Service.Family); len(got) != 1 || got[0].Address != want.endpoint || got[0].Plain {
			t.Errorf("behind %s are %+v, want %s, by mutual TLS", called, got, want.endpoint)
		}
	}
}
