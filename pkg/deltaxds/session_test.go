package deltaxds

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	status "google.golang.org/genproto/googleapis/rpc/status"
	clocktesting "k8s.io/utils/clock/testing"
)

// steps drives a stream without a connection.
type steps struct {
	t *testing.T
	*world
	*Stream
	clock *clocktesting.FakeClock
}

func newSteps(t *testing.T) *steps {
	w, c := &world{have: map[string]map[string]*Resource{}}, clocktesting.NewFakeClock(time.Now())
	return &steps{t, w, NewStream(w, c), c}
}

// started is a proxy that has asked for everything, and has the endpoints of a cluster called other.
func started(t *testing.T) *steps {
	t.Helper()
	s := newSteps(t)
	s.put(EndpointType, "other", "1")
	s.ask(ClusterType)
	s.answer(s.says("Cluster"), "")
	s.ask(EndpointType, "other")
	s.answer(s.says("ClusterLoadAssignment other"), "")
	s.ask(ListenerType)
	s.answer(s.says("Listener"), "")
	return s
}

func (s *steps) ask(url string, names ...string) {
	s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: names})
}

func (s *steps) put(url, name, value string) {
	s.set(s.t, url, name, value)
	s.Dirty(url, name)
}

// says checks the next response: the type's last word, then names, those that are removed with a minus.
func (s *steps) says(want string) *discovery.DeltaDiscoveryResponse {
	s.t.Helper()
	resp := s.Next()
	got := ""
	if resp != nil {
		got = resp.GetTypeUrl()[strings.LastIndexByte(resp.GetTypeUrl(), '.')+1:]
		for _, r := range resp.GetResources() {
			got += " " + r.GetName()
		}
		for _, n := range resp.GetRemovedResources() {
			got += " -" + n
		}
	}
	if got != want {
		s.t.Fatalf("says %q, want %q; %+v", got, want, s.Status())
	}
	if resp == nil {
		return nil
	}
	return resp.DeltaDiscoveryResponse
}

func (s *steps) answer(r *discovery.DeltaDiscoveryResponse, refusal string) {
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if refusal != "" {
		req.ErrorDetail = &status.Status{Message: refusal}
	}
	s.Take(req)
}

// A Service that is made and deleted at once must not freeze a proxy: its cluster warms until a word about its endpoints
// comes, and that must not wait for the answer about the cluster.
func TestServiceThatGoesWhileItsClusterWarms(t *testing.T) {
	s := newSteps(t)
	s.put(ClusterType, "c", "1")
	s.ask(ClusterType)
	clusters := s.says("Cluster c")
	s.put(ClusterType, "c", "")
	s.put(EndpointType, "c", "")
	s.ask(EndpointType, "c")
	s.answer(s.says("ClusterLoadAssignment -c"), "")
	s.says("")
	s.answer(clusters, "")
	s.says("Cluster -c")
}

// The endpoints of a changed cluster go while it warms: the proxy has some, and needs a word all the same.
func TestChangedClusterWhoseEndpointsGo(t *testing.T) {
	s := newSteps(t)
	s.put(ClusterType, "c", "1")
	s.put(EndpointType, "c", "1")
	s.ask(ClusterType)
	s.answer(s.says("Cluster c"), "")
	s.ask(EndpointType, "c")
	s.answer(s.says("ClusterLoadAssignment c"), "")
	s.put(ClusterType, "c", "2")
	s.says("Cluster c")
	s.put(EndpointType, "c", "")
	s.says("ClusterLoadAssignment -c")
}

func TestNameWithoutResourceIsAnsweredOnceUntilItIsAskedForAgain(t *testing.T) {
	s := newSteps(t)
	s.ask(ExtensionConfigType, "80")
	s.answer(s.says("TypedExtensionConfig -80"), "")
	s.Dirty(ExtensionConfigType, "80")
	s.says("")
	s.ask(ExtensionConfigType, "80")
	s.answer(s.says("TypedExtensionConfig -80"), "")
	s.put(ExtensionConfigType, "80", "1")
	s.says("TypedExtensionConfig 80")
}

// A listener waits for the cluster that comes with it to warm, for which a proxy asks for the endpoints, also when the Service has gone and
// comes back. Of a changed cluster it does not ask.
func TestListenerWaitsForTheAnswerAboutItsCluster(t *testing.T) {
	s := started(t)
	for range 2 {
		s.put(ListenerType, "c", "1")
		s.put(EndpointType, "c", "1")
		s.put(ClusterType, "c", "1")
		clusters := s.says("Cluster c")
		s.says("")
		s.ask(EndpointType, "c")
		s.answer(s.says("ClusterLoadAssignment c"), "")
		s.says("")
		s.answer(clusters, "")
		s.answer(s.says("Listener c"), "")

		s.put(ListenerType, "c", "2")
		s.put(ClusterType, "c", "2")
		clusters = s.says("Cluster c")
		s.answer(s.says("ClusterLoadAssignment c"), "")
		s.says("")
		s.answer(clusters, "")
		s.answer(s.says("Listener c"), "")

		s.put(ListenerType, "c", "")
		s.put(ClusterType, "c", "")
		s.put(EndpointType, "c", "")
		s.answer(s.says("ClusterLoadAssignment -c"), "")
		s.answer(s.says("Listener -c"), "")
		s.answer(s.says("Cluster -c"), "")
		s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: EndpointType, ResourceNamesUnsubscribe: []string{"c"}})
		s.says("")
	}
}

// A proxy that returns while a cluster warms asks for listeners and not for clusters: a listener that has come meanwhile waits for those
// that it refers to. What has gone meanwhile goes when it is known which listeners the proxy has.
func TestReturningProxyHasItsClustersFirst(t *testing.T) {
	s := newSteps(t)
	s.put(ClusterType, "c", "1")
	s.put(ListenerType, "l", "1")
	s.ask(ListenerType)
	s.says("")
	s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType, InitialResourceVersions: map[string]string{"gone": "1"}})
	s.answer(s.says("Cluster c"), "")
	s.answer(s.says("Listener l"), "")
	s.answer(s.says("Cluster -gone"), "")

	s = newSteps(t)
	s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType, InitialResourceVersions: map[string]string{"gone": "1"}})
	s.answer(s.says("Cluster"), "")
	s.says("")
	s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: ListenerType, InitialResourceVersions: map[string]string{"gone": "1"}})
	s.answer(s.says("Listener -gone"), "")
	s.answer(s.says("Cluster -gone"), "")
}

// What waits, waits for a bounded time, whoever does not answer.
func TestNoAnswerIsWaitedForLongerThanPatience(t *testing.T) {
	s := newSteps(t)
	s.put(ClusterType, "old", "1")
	s.put(ListenerType, "l", "1")
	s.ask(ClusterType)
	first := s.says("Cluster old")
	s.ask(ListenerType)
	s.says("") // the clusters that it refers to may not be there yet
	s.clock.Step(Patience)
	s.says("Listener l") // neither is answered from here on
	s.put(ListenerType, "l", "")
	s.put(ClusterType, "old", "")
	s.put(ClusterType, "new", "1")
	s.says("Cluster new")
	s.says("")
	s.clock.Step(Patience)
	s.says("Listener -l")
	s.says("Cluster -old")
	s.says("")
	s.answer(first, "") // an answer to one of several
	if st := s.Status()[ClusterType]; st.Acked != 1 || !st.Pending {
		t.Fatalf("after one of three answers: %+v", st)
	}
	if stalled := s.Stalled(); stalled != nil {
		t.Fatalf("stalled too early: %v", stalled)
	}
}

func TestListenersThatComeAndGoAreSentTogether(t *testing.T) {
	s := newSteps(t)
	s.put(ListenerType, "a", "1")
	s.ask(ClusterType)
	s.answer(s.says("Cluster"), "")
	s.ask(ListenerType)
	s.answer(s.says("Listener a"), "")
	s.put(ListenerType, "a", "")
	s.put(ListenerType, "b", "1")
	s.says("Listener b -a") // b may have the address of a; Envoy removes first
}

// One bad resource makes a proxy refuse what came with it. The others are sent again without it.
func TestRefusedResourceDoesNotKeepOthersBack(t *testing.T) {
	s := newSteps(t)
	for _, name := range []string{"a", "b", "bad", "c"} {
		s.put(ExtensionConfigType, name, "1")
	}
	s.ask(ExtensionConfigType, "a", "b", "bad", "c", "none")
	s.answer(s.says("TypedExtensionConfig a b bad c -none"), "bad is bad")
	s.answer(s.says("TypedExtensionConfig a b"), "")
	if st := s.Status()[ExtensionConfigType]; st.Error != "bad is bad" || !st.Pending {
		t.Fatalf("while it is looked for: %+v", st)
	}
	s.answer(s.says("TypedExtensionConfig bad c"), "bad is bad")
	s.answer(s.says("TypedExtensionConfig bad"), "bad is bad")
	s.answer(s.says("TypedExtensionConfig c"), "")
	s.answer(s.says("TypedExtensionConfig -none"), "")
	s.says("")
	if st := s.Status()[ExtensionConfigType]; st.Resource != "bad" || st.Error != "bad is bad" {
		t.Fatalf("what is refused: %+v", st)
	}
	s.put(ExtensionConfigType, "c", "2")
	s.answer(s.says("TypedExtensionConfig c"), "")
	if st := s.Status()[ExtensionConfigType]; st.Error != "bad is bad" || st.Pending {
		t.Fatalf("another one was taken: %+v", st)
	}
	s.put(ExtensionConfigType, "bad", "2")
	s.answer(s.says("TypedExtensionConfig bad"), "")
	if st := s.Status()[ExtensionConfigType]; st.Error != "" || st.Pending {
		t.Fatalf("when it was mended: %+v", st)
	}
}

// A proxy that reconnects while it warms a cluster says that it has the endpoints; it has those of the cluster before.
func TestReconnectingProxyGetsTheEndpointsItWarmsWith(t *testing.T) {
	for _, c := range []struct {
		name  string
		warms func(*steps)
	}{
		{"warming already: it does not ask for clusters before the endpoints have come", func(*steps) {}},
		{"the cluster has changed meanwhile", func(s *steps) {
			s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType, InitialResourceVersions: map[string]string{"c": "before"}})
			s.says("Cluster c")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSteps(t)
			s.put(ClusterType, "c", "2")
			s.put(EndpointType, "c", "1")
			e, _ := s.Resource(EndpointType, "c")
			c.warms(s)
			s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: EndpointType, ResourceNamesSubscribe: []string{"c"},
				InitialResourceVersions: map[string]string{"c": e.Version}})
			s.says("ClusterLoadAssignment c")
		})
	}
}

func TestUnsubscribingFromANameThatEverythingIncludes(t *testing.T) {
	s := newSteps(t)
	s.put(ClusterType, "a", "1")
	s.ask(ClusterType, "*", "a", "none")
	s.answer(s.says("Cluster a -none"), "")
	s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType, ResourceNamesUnsubscribe: []string{"a", "none"}})
	s.answer(s.says("Cluster a"), "") // the client cannot know which of the two it still has
	s.answer(s.says("Cluster -none"), "")
	s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType, ResourceNamesUnsubscribe: []string{"*"}})
	s.put(ClusterType, "a", "2")
	s.says("")
	s.ask(ClusterType, "*")
	s.says("Cluster a")
}

func TestClientThatDoesNotAnswerHasStalled(t *testing.T) {
	s := newSteps(t)
	s.put(ClusterType, "c", "1")
	s.ask(ClusterType)
	s.says("Cluster c")
	s.ask(EndpointType, "c")
	s.says("ClusterLoadAssignment -c")
	s.clock.Step(StallLimit - time.Second)
	if stalled := s.Stalled(); stalled != nil {
		t.Fatal(stalled)
	}
	s.clock.Step(time.Second)
	stalled := s.Stalled()
	if stalled == nil || stalled.Type != ClusterType || !slices.Equal(stalled.Names, []string{"c"}) || stalled.For != StallLimit {
		t.Fatalf("stalled: %+v", stalled)
	}
	if text := stalled.Error(); !strings.Contains(text, `["c"]`) || !strings.Contains(text, EndpointType) {
		t.Fatal(text)
	}
}

// hiding does not know its secrets yet.
type hiding struct{ *world }

func (h hiding) Resource(url, name string) (*Resource, bool) {
	if url == SecretType {
		return nil, false
	}
	return h.world.Resource(url, name)
}

func TestClientThatWaitsForUsHasNotStalled(t *testing.T) {
	s := newSteps(t)
	s.Stream = NewStream(hiding{s.world}, s.clock)
	s.put(ClusterType, "c", "1")
	s.ask(ClusterType)
	s.says("Cluster c")
	s.ask(SecretType, "default")
	s.says("")
	s.clock.Step(2 * StallLimit)
	if stalled := s.Stalled(); stalled != nil {
		t.Fatal(stalled)
	}
	s.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: SecretType, ResourceNamesUnsubscribe: []string{"default"}})
	s.clock.Step(StallLimit)
	if s.Stalled() == nil {
		t.Fatal("it waits for nothing and has not stalled")
	}
}

func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to that")
		}
	}
}

// mute is a client that reads nothing: sending to it waits.
type mute struct {
	ctx   context.Context
	ended chan struct{}
}

func (m *mute) Context() context.Context { return m.ctx }
func (m *mute) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	<-m.ctx.Done()
	return nil, m.ctx.Err()
}
func (m *mute) Send(*discovery.DeltaDiscoveryResponse) error {
	defer close(m.ended)
	<-m.ctx.Done()
	return m.ctx.Err()
}

func TestServeEndsForAClientThatDoesNotRead(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m := &mute{ctx, make(chan struct{})}
	w, c := &world{have: map[string]map[string]*Resource{}}, clocktesting.NewFakeClock(time.Now())
	w.set(t, ClusterType, "c", "1")
	done := make(chan error, 1)
	go func() { done <- NewStream(w, c).Serve(m, &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType}) }()
	eventually(t, c.HasWaiters)
	c.Step(StallLimit)
	var stalled *Stalled
	if err := <-done; !errors.As(err, &stalled) {
		t.Fatalf("ended with %v", err)
	}
	cancel() // as gRPC does when the call returns
	<-m.ended
}

// Serve takes up by itself what has waited long enough.
func TestServeSendsWhatHasWaitedLongEnough(t *testing.T) {
	w, c := &world{have: map[string]map[string]*Resource{}}, clocktesting.NewFakeClock(time.Now())
	w.set(t, ClusterType, "c", "1")
	w.set(t, ListenerType, "l", "1")
	s, p := NewStream(w, c), newPipe(t)
	go func() { p.done <- s.Serve(p, nil) }()
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType}
	p.expect(t, ClusterType, []string{"c"}, nil)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ListenerType}
	eventually(t, func() bool { return s.Status()[ListenerType].Pending && c.HasWaiters() })
	c.Step(Patience)
	p.expect(t, ListenerType, []string{"l"}, nil)
	close(p.in)
	if err := <-p.done; err != nil {
		t.Fatal(err)
	}
}

// laborious takes its time to make a resource.
type laborious struct {
	*world
	clock *clocktesting.FakeClock
}

func (l *laborious) Resource(url, name string) (*Resource, bool) {
	l.clock.Step(time.Minute)
	return l.world.Resource(url, name)
}

// A server with much to do hears late what its clients have said long ago. That is not their silence.
func TestTimeInWhichTheServerDoesNotListenIsNotTheClients(t *testing.T) {
	c := clocktesting.NewFakeClock(time.Now())
	w := &laborious{&world{have: map[string]map[string]*Resource{}}, c}
	w.set(t, ClusterType, "c", "1")
	w.set(t, EndpointType, "c", "1")
	s, p := NewStream(w, c), newPipe(t)
	go func() { p.done <- s.Serve(p, nil) }()
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: ClusterType}
	clusters := p.expect(t, ClusterType, []string{"c"}, nil)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: EndpointType, ResourceNamesSubscribe: []string{"c"}}
	endpoints := p.expect(t, EndpointType, []string{"c"}, nil) // which took a minute, while the clusters were unanswered
	p.ack(clusters)
	p.ack(endpoints)
	eventually(t, func() bool { st := s.Status(); return st[ClusterType].Acked == 1 && st[EndpointType].Acked == 1 })
	close(p.in)
	if err := <-p.done; err != nil {
		t.Fatal(err)
	}
}
