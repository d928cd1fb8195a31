package catalog

import (
	"slices"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
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
		Ports: []registry.ServicePort{{Name: "http", Number: 80, Target: 8080, Protocol: registry.HTTP}}})
	return w
}

// set returns what may have changed.
func (w *world) set(s *registry.Service) []Resource {
	w.t.Helper()
	var out []Resource
	for _, t := range w.apply(registry.Event{Kind: registry.Services, ID: s.ID, Object: s}) {
		out = append(out, t.Resource)
	}
	return out
}

func (w *world) apply(events ...registry.Event) []Touched {
	w.t.Helper()
	changes, err := w.registry.Apply(events)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.Apply(w.registry.Snapshot(), changes)
}

func podOf(name string, d registry.Delivery, labels map[string]string) *registry.Pod {
	return &registry.Pod{ID: "a/" + name, Namespace: "a", Name: name, UID: name, IP: "10.0.0.1", ServiceAccount: "web", Labels: labels, Proxied: true, Delivery: d}
}

// Who gets a certificate in another way has clusters of its own, and everything else in common with everybody.
func TestALayerOfOnesOwnComesFirst(t *testing.T) {
	w := newWorld(t)
	agent, secret := w.Join(podOf("one", registry.ByAgent, nil)), w.Join(podOf("two", registry.BySecret, nil))
	for s, want := range map[Subject]Resource{
		agent:  Cluster{"a/web", 80, registry.ByAgent},
		secret: Cluster{"a/web", 80, registry.BySecret},
	} {
		if got := w.Find(s, deltaxds.ClusterType, webCluster); got != want {
			t.Errorf("%+v has %+v, want %+v", s, got, want)
		}
		if got := w.Find(s, deltaxds.EndpointType, webCluster); got != (Endpoints{"a/web", 80}) {
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
	if c.Delivery == registry.ByAgent {
		c.Delivery = registry.BySecret
	} else {
		c.Delivery = registry.ByAgent
	}
	return c
}

// What nobody has costs nothing, and what comes and goes is listed and is no longer.
func TestNothingIsKeptForWhomThereIsNot(t *testing.T) {
	w := newWorld(t)
	if touched := w.set(&registry.Service{ID: "a/web", Namespace: "a", Name: "web"}); len(touched) != 0 || len(w.layers) != 0 {
		t.Errorf("without subjects %v are touched", touched)
	}
	one, two := w.Join(podOf("one", registry.ByAgent, nil)), w.Join(podOf("two", registry.ByAgent, nil))
	if w.Find(one, deltaxds.ClusterType, webCluster) != nil {
		t.Error("a port that went is there")
	}
	port := Cluster{"a/web", 80, registry.ByAgent}
	touched := w.set(&registry.Service{ID: "a/web", Namespace: "a", Name: "web", Ports: []registry.ServicePort{{Number: 80}}})
	if !slices.Contains(touched, Resource(port)) || slices.Contains(touched, w.other(port)) || w.Find(two, deltaxds.ClusterType, webCluster) != port || w.Make(port) == nil {
		t.Errorf("a port that came: %v are touched", touched)
	}
	if gone := w.Leave(one); !slices.Equal(gone, []Resource{Health{"a/one"}}) {
		t.Errorf("the first who leaves takes %v along", gone)
	}
	if gone := w.Leave(two); !slices.Contains(gone, Resource(port)) || len(w.layers)+len(w.where)+len(w.classes)+len(w.pods) != 0 || w.reach != nil {
		t.Errorf("the last who leaves takes %v along, and %v stay", gone, w.layers)
	}
	if w.Find(two, deltaxds.ClusterType, webCluster) != nil || w.Make(port) != nil {
		t.Error("who has left has something")
	}
}

// A pod of other labels is another subject, and is told of what it had and of what it has now.
func TestWhoBecomesAnotherIsToldSo(t *testing.T) {
	w := newWorld(t)
	was := w.Join(podOf("one", registry.ByAgent, nil))
	now, gone, news := w.Follow(was, podOf("one", registry.ByAgent, map[string]string{"app": "web"}))
	if now == was || !slices.Contains(gone, Resource(Inbound{was.class})) || slices.Contains(gone, Resource(Inbound{now.class})) {
		t.Fatalf("%+v, and %v are gone", now, gone)
	}
	for _, want := range []Resource{Inbound{was.class}, Inbound{now.class}} {
		if !slices.Contains(news, want) {
			t.Errorf("not told of %+v", want)
		}
	}
	if slices.Contains(news, Resource(Cluster{"a/web", 80, registry.ByAgent})) {
		t.Errorf("told of everyone's: %v", news)
	}
	if same, gone, news := w.Follow(now, podOf("one", registry.ByAgent, map[string]string{"app": "web"})); same != now || gone != nil || news != nil {
		t.Errorf("nothing has changed, and %v are gone, %v news", gone, news)
	}
}
