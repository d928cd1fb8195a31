package catalog

import (
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"slices"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

const webCluster = "outbound|80||web.a.svc.cluster.local"

// world is a catalogue of one Service, and what changes it.
type world struct {
	*Catalog
	t        *testing.T
	registry *registry.Registry
}

func newWorld(t *testing.T) *world {
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{New(compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}, reg.Snapshot()), t, reg}
	w.set(&registry.Service{ID: "a/web", Namespace: "a", Name: "web", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": "web"},
		Ports: []registry.ServicePort{{Name: "http", Number: 80, Target: 8080, Protocol: protocol.HTTP}}})
	return w
}

// set returns what may have changed.
func (w *world) set(s *registry.Service) []Resource {
	w.t.Helper()
	var out []Resource
	touched, _ := w.object(registry.Services, s.ID, s)
	for _, t := range touched {
		out = append(out, t.Resource)
	}
	return out
}

func podOf(name string, d delivery.Way, labels map[string]string) *registry.Pod {
	return &registry.Pod{ID: "a/" + name, Namespace: "a", Name: name, UID: name, IPs: []string{"10.0.0.1"}, ServiceAccount: "web", Labels: labels, Proxied: true, Delivery: d}
}

// Who gets a certificate in another way has clusters of its own, and everything else in common with everybody.
func TestALayerOfOnesOwnComesFirst(t *testing.T) {
	w := newWorld(t)
	agent, secret := w.Join(podOf("one", delivery.ByAgent, nil), translate.ModuleSent), w.Join(podOf("two", delivery.BySecret, nil), translate.ModuleSent)
	for s, want := range map[Subject]Resource{
		agent:  Cluster{"a/web", 80, registry.IPv4, delivery.ByAgent, "", false},
		secret: Cluster{"a/web", 80, registry.IPv4, delivery.BySecret, "", false},
	} {
		if got := w.Find(s, deltaxds.ClusterType, webCluster); got != want {
			t.Errorf("%+v has %+v, want %+v", s, got, want)
		}
		if got := w.Find(s, deltaxds.EndpointType, webCluster); got != (Endpoints{Service: "a/web", Port: 80}) {
			t.Errorf("%+v has the endpoints %+v", s, got)
		}
		names := w.Names(s, deltaxds.ClusterType)
		if all := w.All(s, deltaxds.ClusterType); !slices.Contains(names, webCluster) || !slices.Contains(all, want) || slices.Contains(all, w.other(want)) {
			t.Errorf("%+v has the clusters %v", s, all)
		}
	}
}

func (w *world) other(r Resource) Resource {
	c := r.(Cluster)
	if c.Delivery == delivery.ByAgent {
		c.Delivery = delivery.BySecret
	} else {
		c.Delivery = delivery.ByAgent
	}
	return c
}

// What nobody has costs nothing, and what comes and goes is listed and is no longer.
func TestNothingIsKeptForWhomThereIsNot(t *testing.T) {
	w := newWorld(t)
	if touched := w.set(&registry.Service{ID: "a/web", Namespace: "a", Name: "web"}); len(touched) != 0 || len(w.layers) != 0 {
		t.Errorf("without subjects %v are touched", touched)
	}
	one, two := w.Join(podOf("one", delivery.ByAgent, nil), translate.ModuleSent), w.Join(podOf("two", delivery.ByAgent, nil), translate.ModuleSent)
	if w.Find(one, deltaxds.ClusterType, webCluster) != nil {
		t.Error("a port that went is there")
	}
	port := Cluster{"a/web", 80, registry.IPv4, delivery.ByAgent, "", false}
	touched := w.set(&registry.Service{ID: "a/web", Namespace: "a", Name: "web", Ports: []registry.ServicePort{{Number: 80}}})
	if !slices.Contains(touched, Resource(port)) || slices.Contains(touched, w.other(port)) || w.Find(two, deltaxds.ClusterType, webCluster) != port || w.Make(port) == nil {
		t.Errorf("a port that came: %v are touched", touched)
	}
	if gone := w.Leave(one); len(gone) != 0 {
		t.Errorf("the first who leaves takes %v along", gone)
	}
	if gone := w.Leave(two); !slices.Contains(gone, Resource(port)) || len(w.layers)+len(w.where)+len(w.classes)+len(w.pods) != 0 || w.reach != nil {
		t.Errorf("the last who leaves takes %v along, and %v stay", gone, w.layers)
	}
	if w.Find(two, deltaxds.ClusterType, webCluster) != nil || w.Make(port) != nil {
		t.Error("who has left has something")
	}
}

// but are the layers without the first two and the last, which are its class's.
func but(layers []Layer) []Layer { return layers[2 : len(layers)-1] }

// A pod of other labels is another subject, and takes nothing along that others have.
func TestWhoBecomesAnotherHasOtherLayers(t *testing.T) {
	w := newWorld(t)
	was := w.Join(podOf("one", delivery.ByAgent, nil), translate.ModuleSent)
	now, gone := w.Follow(was, podOf("one", delivery.ByAgent, map[string]string{"app": "web"}))
	if now.Layers()[0] == was.Layers()[0] || !slices.Equal(but(now.Layers()), but(was.Layers())) {
		t.Errorf("its layers were %v and are %v", was.Layers(), now.Layers())
	}
	if now == was || !slices.Contains(gone, Resource(Inbound{was.class})) || slices.Contains(gone, Resource(Inbound{now.class})) {
		t.Fatalf("%+v, and %v are gone", now, gone)
	}
	if same, gone := w.Follow(now, podOf("one", delivery.ByAgent, map[string]string{"app": "web"})); same != now || gone != nil {
		t.Errorf("nothing has changed, and %v are gone", gone)
	}
}

func (w *world) object(k registry.Kind, id string, o any) ([]Touched, []*registry.Pod) {
	w.t.Helper()
	changes, err := w.registry.Apply([]registry.Event{{Kind: k, ID: id, Object: o}})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.Apply(w.registry.Snapshot(), changes)
}

// admits is a policy of the web's pods for one identity.
func admits(namespace, account string) *registry.Policy {
	m := authz.Member{Namespace: namespace, Account: account}
	return &registry.Policy{ID: "a/p", Namespace: "a", Policy: authz.Policy{Meta: authz.Meta{Namespace: "a", Name: "p"}, Action: authz.Allow,
		Rules: []authz.Rule{{From: []authz.Clauses{{{Attribute: authz.Principal, Members: []authz.Member{m}}}}}}}}
}

// A policy that names its clients takes the service from all others, who alone hear of it beside those who get it; and one that names
// others moves it from these to those.
func TestAPolicyMovesAServiceBetweenLayers(t *testing.T) {
	w := newWorld(t)
	one := w.Join(podOf("one", delivery.ByAgent, nil), translate.ModuleSent)
	port := Cluster{"a/web", 80, registry.IPv4, delivery.ByAgent, "", false}
	for _, c := range []struct {
		policy *registry.Policy
		moves  []Layer // that anybody has
		has    bool
	}{
		{admits("a", "web"), []Layer{ofMember(authz.Member{Namespace: "a", Account: "web"}), Everyone}, true},
		{admits("b", "other"), []Layer{ofMember(authz.Member{Namespace: "a", Account: "web"})}, false},
		{admits("b", "another"), nil, false},
		{admits("a", ""), []Layer{ofMember(authz.Member{Namespace: "a"})}, true},
	} {
		touched, _ := w.object(registry.Policies, "a/p", c.policy)
		var got []Layer
		for _, t := range touched {
			if t.Resource == port {
				got = append(got, t.Moves...)
			}
		}
		if !slices.Equal(got, c.moves) {
			t.Errorf("%+v moves the cluster: %v, want %v", c.policy.Rules[0].From, got, c.moves)
		}
		if found := w.Find(one, deltaxds.ClusterType, webCluster) != nil; found != c.has {
			t.Errorf("%+v: the pod has it: %v", c.policy.Rules[0].From, found)
		}
	}
}

// A Sidecar makes subjects of a scope of their own, which has of what they may reach what it names, and follows what changes later.
func TestASidecarNarrowsWhatASubjectMayReach(t *testing.T) {
	w := newWorld(t)
	all := w.Join(podOf("one", delivery.ByAgent, nil), translate.ModuleSent)
	sidecar := func(host string) *registry.Sidecar {
		return &registry.Sidecar{ID: "a/s", Namespace: "a", Name: "s", Egress: []registry.EgressHost{{Namespace: "*", Host: host}}}
	}
	_, following := w.object(registry.Sidecars, "a/s", sidecar("other.a.svc.cluster.local"))
	if len(following) != 1 || following[0].ID != "a/one" {
		t.Fatalf("these follow: %v", following)
	}
	none, _ := w.Follow(all, following[0])
	if none == all || w.Find(none, deltaxds.ClusterType, webCluster) != nil {
		t.Error("a Sidecar that names another service leaves it")
	}
	if w.Find(none, deltaxds.ListenerType, "virtualOutbound") == nil {
		t.Error("what every proxy has is gone, too")
	}
	w.object(registry.Services, "a/other", &registry.Service{ID: "a/other", Namespace: "a", Name: "other", Ports: []registry.ServicePort{{Number: 80}}})
	if w.Find(none, deltaxds.ClusterType, "outbound|80||other.a.svc.cluster.local") == nil {
		t.Error("a service that it names and that came later is not there")
	}
	_, following = w.object(registry.Sidecars, "a/s", sidecar("web.a.svc.cluster.local"))
	web, gone := w.Follow(none, following[0])
	if w.Find(web, deltaxds.ClusterType, webCluster) == nil || !slices.Contains(gone, Resource(Cluster{"a/other", 80, registry.IPv4, delivery.ByAgent, "", false})) {
		t.Errorf("another Sidecar names it, and it is not there; gone are %v", gone)
	}
	_, following = w.object(registry.Sidecars, "a/s", nil)
	free, _ := w.Follow(web, following[0])
	if w.Find(free, deltaxds.ClusterType, webCluster) == nil || len(w.scopes) != 0 {
		t.Errorf("without a Sidecar it is not there, or a scope stays: %v", w.scopes)
	}
	w.Leave(free)
	if len(w.layers)+len(w.where)+len(w.scopes) != 0 {
		t.Error("something stays")
	}
}

// While Pilot is away, a pod is known by what it was injected as. Another on its node that Pilot knows has been given the node's zone as a label since.
func TestPodsOfAZoneAreKnownAsTheyWereInjected(t *testing.T) {
	w := newWorld(t)
	injected := AsInjected(compile.ClassOf(podOf("new", delivery.ByAgent, map[string]string{"app": "web"})))
	for zone, labels := range map[string]map[string]string{"": {"app": "web"}, "east": {"app": "web", "topology.kubernetes.io/zone": "east", "topology.kubernetes.io/region": "world"}} {
		s := w.Join(podOf("known"+zone, delivery.ByAgent, labels), translate.ModuleSent)
		if !slices.Contains(s.Layers(), injected) {
			t.Errorf("in zone %q, a pod has the layers %v", zone, s.Layers())
		}
		if len(w.In(injected)) != 0 {
			t.Errorf("it has %v by it", w.In(injected))
		}
	}
	if other := w.Join(podOf("other", delivery.ByAgent, map[string]string{"app": "other"}), translate.ModuleSent); slices.Contains(other.Layers(), injected) {
		t.Errorf("a pod of another class has the layers %v", other.Layers())
	}
}
