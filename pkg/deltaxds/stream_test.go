package deltaxds

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	status "google.golang.org/genproto/googleapis/rpc/status"
	"k8s.io/utils/clock"
)

type world struct {
	mu   sync.Mutex
	have map[string]map[string]*Resource
}

func (w *world) set(t *testing.T, url, name, value string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.have[url] == nil {
		w.have[url] = map[string]*Resource{}
	}
	if value == "" {
		delete(w.have[url], name)
		return
	}
	r, err := NewResource(name, &core.Node{Id: value})
	if err != nil {
		t.Fatal(err)
	}
	w.have[url][name] = r
}

func (w *world) Resource(url, name string) (*Resource, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.have[url][name], true
}

func (w *world) Wildcard(url string) ([]string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for n := range w.have[url] {
		names = append(names, n)
	}
	return names, true
}

func (w *world) Subscribed(string, []string, []string) {}

type pipe struct {
	ctx  context.Context
	in   chan *discovery.DeltaDiscoveryRequest
	out  chan *discovery.DeltaDiscoveryResponse
	done chan error
}

func (p *pipe) Context() context.Context { return p.ctx }
func (p *pipe) Send(r *discovery.DeltaDiscoveryResponse) error {
	p.out <- r
	return nil
}
func (p *pipe) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	select {
	case r, ok := <-p.in:
		if !ok {
			return nil, io.EOF
		}
		return r, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

// expect returns the next response and checks what it adds and removes.
func (p *pipe) expect(t *testing.T, url string, added, removed []string) *discovery.DeltaDiscoveryResponse {
	t.Helper()
	select {
	case r := <-p.out:
		var names []string
		for _, res := range r.GetResources() {
			names = append(names, res.GetName())
		}
		if r.GetTypeUrl() != url || !slices.Equal(names, added) || !slices.Equal(r.GetRemovedResources(), removed) {
			t.Fatalf("got %s added %v removed %v, want %s %v %v", r.GetTypeUrl(), names, r.GetRemovedResources(), url, added, removed)
		}
		return r
	case <-time.After(5 * time.Second):
		t.Fatalf("no response; wanted %s added %v removed %v", url, added, removed)
		return nil
	}
}

func (p *pipe) ack(r *discovery.DeltaDiscoveryResponse) {
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
}

func newPipe(t *testing.T) *pipe {
	return &pipe{t.Context(), make(chan *discovery.DeltaDiscoveryRequest), make(chan *discovery.DeltaDiscoveryResponse), make(chan error, 1)}
}

func start(t *testing.T, w *world) (*Stream, *pipe) {
	t.Helper()
	p := newPipe(t)
	s := NewStream(w, clock.RealClock{})
	go func() { p.done <- s.Serve(p, nil) }()
	t.Cleanup(func() {
		close(p.in)
		if err := <-p.done; err != nil {
			t.Error(err)
		}
	})
	return s, p
}

func TestOnlyWhatChangedIsSent(t *testing.T) {
	w := &world{have: map[string]map[string]*Resource{}}
	w.set(t, ClusterType, "a", "1")
	w.set(t, ClusterType, "b", "1")
	s, p := start(t, w)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType}
	p.ack(p.expect(t, ClusterType, []string{"a", "b"}, nil))
	w.set(t, ClusterType, "a", "2")
	s.Dirty(ClusterType, "a", "b")
	p.ack(p.expect(t, ClusterType, []string{"a"}, nil))
	w.set(t, ClusterType, "b", "")
	s.Dirty(ClusterType, "b")
	p.ack(p.expect(t, ClusterType, nil, []string{"b"}))
}

// Which versions it says it has is not believed (see session.open); that it has something is, and what has gone meanwhile is removed.
func TestReconnectingClientIsSentAllThatThereIs(t *testing.T) {
	w := &world{have: map[string]map[string]*Resource{}}
	w.set(t, ClusterType, "a", "1")
	w.set(t, ClusterType, "b", "2")
	a, _ := w.Resource(ClusterType, "a")
	_, p := start(t, w)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType, InitialResourceVersions: map[string]string{"a": a.Version, "b": "old", "gone": "x"}}
	p.ack(p.expect(t, ClusterType, []string{"a", "b"}, nil))
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ListenerType, InitialResourceVersions: map[string]string{"l": "1"}} // it may refer to it
	p.ack(p.expect(t, ListenerType, nil, []string{"l"}))
	p.ack(p.expect(t, ClusterType, nil, []string{"gone"}))
}

func TestChangesCoalesceUntilTheClientAnswers(t *testing.T) {
	w := &world{have: map[string]map[string]*Resource{}}
	w.set(t, EndpointType, "e", "1")
	s, p := start(t, w)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: EndpointType, ResourceNamesSubscribe: []string{"e"}}
	r := p.expect(t, EndpointType, []string{"e"}, nil)
	for _, v := range []string{"2", "3", "4"} {
		w.set(t, EndpointType, "e", v)
		s.Dirty(EndpointType, "e")
	}
	select {
	case r := <-p.out:
		t.Fatalf("sent %v while the last response was unanswered", r)
	default:
	}
	p.ack(r)
	p.ack(p.expect(t, EndpointType, []string{"e"}, nil))
	if st := s.Status()[EndpointType]; st.Sent != 2 {
		t.Fatalf("sent %d responses, want 2", st.Sent)
	}
}

func TestRefusalIsRemembered(t *testing.T) {
	w := &world{have: map[string]map[string]*Resource{}}
	w.set(t, ListenerType, "l", "1")
	s, p := start(t, w)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType}
	p.ack(p.expect(t, ClusterType, nil, nil))
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ListenerType}
	r := p.expect(t, ListenerType, []string{"l"}, nil)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ListenerType, ResponseNonce: r.GetNonce(), ErrorDetail: &status.Status{Message: "bad"}}
	deadline := time.Now().Add(5 * time.Second)
	for s.Status()[ListenerType].Nacked != 1 {
		if time.Now().After(deadline) {
			t.Fatal("refusal was not noted")
		}
	}
	if got := s.Status()[ListenerType].Error; got != "bad" {
		t.Fatalf("error = %q", got)
	}
}

func TestClustersGoBeforeListenersAndLeaveAfterThem(t *testing.T) {
	w := &world{have: map[string]map[string]*Resource{}}
	w.set(t, ClusterType, "old", "1")
	w.set(t, ListenerType, "l", "1")
	s, p := start(t, w)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType}
	p.ack(p.expect(t, ClusterType, []string{"old"}, nil))
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ListenerType}
	p.ack(p.expect(t, ListenerType, []string{"l"}, nil))
	w.set(t, ClusterType, "old", "")
	w.set(t, ClusterType, "new", "1")
	w.set(t, ListenerType, "l", "2")
	s.mu.Lock() // both changes are seen at once
	s.session.dirty[ClusterType] = map[string]bool{"old": true, "new": true}
	s.session.dirty[ListenerType] = map[string]bool{"l": true}
	s.mu.Unlock()
	s.Dirty(ListenerType, "l")
	p.ack(p.expect(t, ClusterType, []string{"new"}, nil))
	p.ack(p.expect(t, ListenerType, []string{"l"}, nil))
	p.ack(p.expect(t, ClusterType, nil, []string{"old"}))
}

func TestUnknownNameIsAnsweredAsAbsent(t *testing.T) {
	_, p := start(t, &world{have: map[string]map[string]*Resource{}})
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ExtensionConfigType, ResourceNamesSubscribe: []string{"80"}}
	p.ack(p.expect(t, ExtensionConfigType, nil, []string{"80"}))
}

// Envoy does not answer for clusters before they have their endpoints.
func TestEndpointsDoNotWaitForClusters(t *testing.T) {
	w := &world{have: map[string]map[string]*Resource{}}
	w.set(t, ClusterType, "c", "1")
	w.set(t, EndpointType, "c", "1")
	w.set(t, ListenerType, "l", "1")
	_, p := start(t, w)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType}
	clusters := p.expect(t, ClusterType, []string{"c"}, nil)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ListenerType}
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: EndpointType, ResourceNamesSubscribe: []string{"c"}}
	p.ack(p.expect(t, EndpointType, []string{"c"}, nil))
	p.ack(clusters)
	p.ack(p.expect(t, ListenerType, []string{"l"}, nil))
}

func TestChangedClusterGetsItsEndpointsAgain(t *testing.T) {
	w := &world{have: map[string]map[string]*Resource{}}
	w.set(t, ClusterType, "c", "1")
	w.set(t, EndpointType, "c", "1")
	s, p := start(t, w)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType}
	p.ack(p.expect(t, ClusterType, []string{"c"}, nil))
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: EndpointType, ResourceNamesSubscribe: []string{"c"}}
	p.ack(p.expect(t, EndpointType, []string{"c"}, nil))
	w.set(t, ClusterType, "c", "2")
	s.Dirty(ClusterType, "c")
	clusters := p.expect(t, ClusterType, []string{"c"}, nil)
	p.ack(p.expect(t, EndpointType, []string{"c"}, nil))
	p.ack(clusters)
}

// witness hears what the client has.
type witness struct {
	*world
	heard chan string
}

func (w *witness) Took(url string, versions map[string]string) {
	for name, v := range versions {
		w.heard <- "took " + name + " " + v
	}
}

func (w *witness) Refused(url string, versions map[string]string, reason string) {
	for name, v := range versions {
		w.heard <- "refused " + name + " " + v + ": " + reason
	}
}

func TestWitnessHearsWhatTheClientHas(t *testing.T) {
	w := &witness{&world{have: map[string]map[string]*Resource{}}, make(chan string, 10)}
	w.set(t, SecretType, "default", "1")
	p := &pipe{ctx: t.Context(), in: make(chan *discovery.DeltaDiscoveryRequest), out: make(chan *discovery.DeltaDiscoveryResponse), done: make(chan error)}
	s := NewStream(w, clock.RealClock{})
	go func() { p.done <- s.Serve(p, nil) }()
	version := func() string { r, _ := w.Resource(SecretType, "default"); return r.Version }
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-w.heard:
			if got != want {
				t.Fatalf("heard %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("heard nothing, want %q", want)
		}
	}
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: SecretType, ResourceNamesSubscribe: []string{"default"}, InitialResourceVersions: map[string]string{"default": "older"}}
	expect("took default older")
	r := p.expect(t, SecretType, []string{"default"}, nil)
	if len(w.heard) > 0 {
		t.Fatal("what was sent counts as taken")
	}
	p.ack(r)
	expect("took default " + version())
	w.set(t, SecretType, "default", "2")
	s.Dirty(SecretType, "default")
	r = p.expect(t, SecretType, []string{"default"}, nil)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: SecretType, ResponseNonce: r.GetNonce(), ErrorDetail: &status.Status{Message: "no"}}
	expect("refused default " + version() + ": no")
	close(p.in)
	if err := <-p.done; err != nil {
		t.Fatal(err)
	}
}
