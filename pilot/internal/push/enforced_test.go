package push

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

func generation(n int64, e registry.Event) registry.Event {
	e.Object.(*registry.Policy).Generation = n
	e.Object.(*registry.Policy).DryRun = n%2 == 0 // something of it is another
	return e
}

func ref(ns, name string) registry.PolicyRef {
	return registry.PolicyRef{Kind: registry.Policies, ID: ns + "/" + name}
}

// told is what is known of a policy, as "generation: taken of proxies, names of those that lag".
func (m *testMesh) told(ns, name string) string {
	e := m.store.Enforcement([]registry.PolicyRef{ref(ns, name)}, 10)[0]
	out := fmt.Sprintf("%d: %d of %d", e.Generation, e.Taken, e.Proxies)
	for _, l := range e.Lagging {
		out += " " + l.Proxy
	}
	return out
}

func (m *testMesh) expectTold(ns, name, want string) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("%s/%s is %s", ns, name, want), func() bool { return m.told(ns, name) == want })
}

// enforcer connects the proxy of a pod that asks for all by which policies hold.
func (m *testMesh) enforcer(pod string) *proxy {
	p := m.connect(pod, deltaxds.ClusterType, deltaxds.ListenerType)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.RouteType, ResourceNamesSubscribe: translate.InboundTables()}
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ExtensionConfigType, ResourceNamesSubscribe: translate.AuthorizationNames}
	return p
}

func (p *proxy) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = true
}

func TestPolicyIsEnforcedByWhoHasAcknowledgedIt(t *testing.T) {
	m := newMesh(t)
	m.apply(pod("shop", "a", "a-0", "10.1.0.1"), pod("shop", "a", "a-1", "10.1.0.2"), pod("shop", "b", "b-0", "10.1.0.3"), pod("bank", "a", "c-0", "10.1.0.4"),
		generation(1, deny("shop", "p", "a")), generation(1, deny("bulwark-system", "everywhere", "a")))
	m.expectTold("shop", "p", "1: 0 of 0")
	m.enforcer("shop/a-0")
	hangs := m.enforcer("shop/a-1")
	m.enforcer("shop/b-0")
	m.enforcer("bank/c-0")
	m.expectTold("shop", "p", "1: 2 of 2")
	m.expectTold("bulwark-system", "everywhere", "1: 3 of 3")
	m.expectTold("shop", "none", "0: 0 of 0")

	hangs.silence()
	m.apply(generation(2, deny("shop", "p", "a")))
	m.expectTold("shop", "p", "2: 1 of 2 a-1.shop")
	if got := m.store.Enforcement([]registry.PolicyRef{ref("shop", "p")}, 10)[0].Lagging[0].Reason; !strings.Contains(got, "not answered about ecds") {
		t.Errorf("it lags because %s", got)
	}
	// What was taken before stays so, and what comes to other pods does not wait for this one.
	m.expectTold("bulwark-system", "everywhere", "1: 3 of 3")
	m.apply(generation(1, deny("shop", "q", "b")))
	m.expectTold("shop", "q", "1: 1 of 1")
	m.apply(generation(3, deny("bulwark-system", "everywhere", "a")))
	m.expectTold("bulwark-system", "everywhere", "3: 2 of 3 a-1.shop")
	if n := len(m.store.Enforcement([]registry.PolicyRef{ref("shop", "p")}, 0)[0].Lagging); n != 0 {
		t.Errorf("%d are named that nobody asked for", n)
	}

	hangs.cancel()
	m.expectTold("shop", "p", "2: 1 of 1")
	m.enforcer("shop/a-1")
	m.expectTold("shop", "p", "2: 2 of 2")
	m.apply(registry.Event{Kind: registry.Policies, ID: "shop/p"})
	m.expectTold("shop", "p", "0: 0 of 0")
	if n := len(m.store.progress.since); n != 2 {
		t.Errorf("%d policies are remembered, and there are 2", n)
	}
}

// What is to be counted anew are policies that have changed, and those that select a class whose proxies have come or gone: no others.
func TestOnlyWhatMovedIsCountedAnew(t *testing.T) {
	m := newMesh(t)
	m.apply(pod("shop", "a", "a-0", "10.1.0.1"), generation(1, deny("shop", "p", "a")), generation(1, deny("shop", "q", "b")), generation(1, deny("bulwark-system", "r", "a")))
	moved := func() (out []string) {
		for _, r := range m.store.Moved() {
			out = append(out, r.ID)
		}
		slices.Sort(out)
		return out
	}
	if got := moved(); !slices.Equal(got, []string{"bulwark-system/r", "shop/p", "shop/q"}) {
		t.Errorf("at first %v", got)
	}
	p := m.enforcer("shop/a-0")
	m.expectTold("shop", "p", "1: 1 of 1")
	if got := moved(); !slices.Equal(got, []string{"bulwark-system/r", "shop/p"}) {
		t.Errorf("after a proxy came, %v", got)
	}
	m.apply(service("shop", "x", 80), generation(2, deny("shop", "q", "b")))
	if got := moved(); !slices.Equal(got, []string{"shop/q"}) {
		t.Errorf("after a policy has changed, %v", got)
	}
	p.cancel()
	m.expectTold("shop", "p", "1: 0 of 0")
	if got := moved(); !slices.Equal(got, []string{"bulwark-system/r", "shop/p"}) {
		t.Errorf("after the proxy went, %v", got)
	}
	if len(m.store.progress.fleets)+len(m.store.progress.in) != 0 {
		t.Error("fleets are kept without proxies")
	}
}

// A pod that comes to have other labels has other policies, and begins anew with them.
func TestPodWithNewLabelsCountsForTheirPolicies(t *testing.T) {
	m := newMesh(t)
	m.apply(pod("shop", "a", "a-0", "10.1.0.1"), generation(1, deny("shop", "p", "a")), generation(1, deny("shop", "q", "b")))
	p := m.enforcer("shop/a-0")
	m.expectTold("shop", "p", "1: 1 of 1")
	p.silence()
	moved := pod("shop", "b", "a-0", "10.1.0.1")
	moved.Object.(*registry.Pod).ServiceAccount = "a"
	m.apply(moved)
	m.expectTold("shop", "p", "1: 0 of 0")
	m.expectTold("shop", "q", "1: 0 of 1 a-0.shop")
}

// A policy that targets a Service is for the pods behind it alone, and counts anew when the Service comes to lead to others.
func TestPolicyOfAServiceIsCountedBehindIt(t *testing.T) {
	m := newMesh(t)
	policy := generation(1, deny("shop", "p", ""))
	policy.Object.(*registry.Policy).Selector, policy.Object.(*registry.Policy).Services = nil, []string{"a"}
	m.apply(service("shop", "a", 80), pod("shop", "a", "a-0", "10.1.0.1"), pod("shop", "b", "b-0", "10.1.0.2"), policy)
	m.enforcer("shop/a-0")
	other := m.enforcer("shop/b-0")
	m.expectTold("shop", "p", "1: 1 of 1")
	_ = m.store.Moved()
	other.silence()
	to := service("shop", "a", 80)
	to.Object.(*registry.Service).Selector = map[string]string{"app": "b"}
	m.apply(to)
	m.expectTold("shop", "p", "1: 0 of 1 b-0.shop")
	if got := m.store.Moved(); !slices.Contains(got, ref("shop", "p")) {
		t.Errorf("the Service leads elsewhere, and what moved is %v", got)
	}
}
