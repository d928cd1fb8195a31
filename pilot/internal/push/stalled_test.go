package push

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// noted are the events that were recorded, each as "<pod> <reason>: <note>".
type noted struct {
	mu   sync.Mutex
	said []string
}

func (n *noted) Eventf(regarding, _ runtime.Object, kind, reason, _, note string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := regarding.(*corev1.Pod)
	n.said = append(n.said, fmt.Sprintf("%s %s/%s %s %s: %s", kind, p.Namespace, p.Name, p.UID, reason, fmt.Sprintf(note, args...)))
}

// A proxy that does not answer is told of, and its stream ends; one that connects again is served.
func TestProxyThatDoesNotAnswerIsReportedAndItsStreamEnds(t *testing.T) {
	m := newMesh(t)
	clock, events := clocktesting.NewFakeClock(time.Now()), &noted{}
	m.server.options.Clock, m.server.options.Recorder = clock, events
	m.apply(service("a", "web", 80), pod("a", "web", "web-1", "10.0.0.1"))
	for round := 1; round <= 2; round++ {
		p := m.connect(node("10.0.0.1", "web-1", "a"), account("a", "web"))
		p.silent = true
		p.in <- first(node("10.0.0.1", "web-1", "a"), deltaxds.ClusterType)
		p.take(t, "cds", 1)
		for !clock.HasWaiters() { // until the stream has looked at the clock
			time.Sleep(time.Millisecond)
		}
		clock.Step(deltaxds.StallLimit)
		err := <-p.done
		p.done <- nil
		if status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "no answer to") {
			t.Fatalf("the stream ended with %v", err)
		}
		if n := testutil.ToFloat64(m.store.metrics.stalled.WithLabelValues("cds")); n != float64(round) {
			t.Fatalf("round %d: counted %g", round, n)
		}
		const want = "Warning a/web-1 web-1 ProxyNotUpdated: the proxy goes on with old configuration: no answer to ["
		if len(events.said) != round || !strings.HasPrefix(events.said[0], want) {
			t.Fatalf("round %d: events %q", round, events.said)
		}
	}
	if n := len(m.store.connected()); n != 0 {
		t.Fatalf("%d proxies are left", n)
	}
}

func TestEventsAreBoundedWhenManyProxiesStall(t *testing.T) {
	m := newMesh(t)
	clock, events := clocktesting.NewFakeClock(time.Now()), &noted{}
	m.server.options.Clock, m.server.options.Recorder = clock, events
	m.apply(pod("a", "web", "web-1", "10.0.0.1"))
	stalled := func(n int) {
		for range n {
			m.server.stalled(&client{}, m.store.catalog.Snapshot().Pod("a/web-1"), &deltaxds.Stalled{Type: deltaxds.ListenerType, Names: []string{strings.Repeat("é", 3000)}})
		}
	}
	stalled(500)
	if len(events.said) != eventsAtOnce {
		t.Fatalf("%d events of 500 proxies", len(events.said))
	}
	if n := testutil.ToFloat64(m.store.metrics.stalled.WithLabelValues("lds")); n != 500 {
		t.Fatalf("%g counted", n)
	}
	clock.Step(3 * time.Second)
	stalled(500)
	if len(events.said) != eventsAtOnce+3*eventsPerSecond {
		t.Fatalf("%d events three seconds later", len(events.said))
	}
}
