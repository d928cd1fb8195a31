package push

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// noted are the events that were recorded, each as "<pod> <reason> <action>: <note>".
type noted struct {
	mu   sync.Mutex
	said []string
}

func (n *noted) Eventf(regarding, _ runtime.Object, kind, reason, action, note string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := regarding.(*corev1.Pod)
	n.said = append(n.said, fmt.Sprintf("%s %s/%s %s %s %s: %s", kind, p.Namespace, p.Name, p.UID, reason, action, fmt.Sprintf(note, args...)))
}

// A proxy that does not answer is told of by its agent, and another stream of it is served.
func TestProxyThatDoesNotAnswerIsReportedAndItsStreamEnds(t *testing.T) {
	m := newMesh(t)
	clock, events := clocktesting.NewFakeClock(time.Now()), &noted{}
	m.clock, m.server.options.Recorder = clock, events
	m.apply(service("a", "web", 80), pod("a", "web", "web-1", "10.0.0.1"))
	for round := 1; round <= 2; round++ {
		p := m.connect("a/web-1")
		p.silent = true
		p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ClusterType}
		p.take(t, "cds", 1)
		for !clock.HasWaiters() { // until the stream has looked at the clock
			time.Sleep(time.Millisecond)
		}
		clock.Step(deltaxds.StallLimit)
		err := <-p.done
		p.done <- nil
		var stalled *deltaxds.Stalled
		if !errors.As(err, &stalled) {
			t.Fatalf("the stream ended with %v", err)
		}
		eventually(t, "the stall is counted", func() bool {
			return testutil.ToFloat64(m.store.metrics.stalled.WithLabelValues("cds")) == float64(round)
		})
		eventually(t, "an event", func() bool { return events.count() == round })
		const want = "Warning a/web-1 web-1 ProxyNotUpdated SendCDS: the proxy goes on with old configuration: no answer to ["
		if !strings.HasPrefix(events.said[0], want) {
			t.Fatalf("round %d: events %q", round, events.said)
		}
		if all := m.store.Proxies(); len(all) != 1 || all[0].Synced || !all[0].Types["CDS"].Pending {
			t.Fatalf("round %d: its state is %+v", round, all)
		}
	}
}

func (n *noted) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.said)
}

func TestEventsAreBoundedWhenManyProxiesStall(t *testing.T) {
	m := newMesh(t)
	clock, events := clocktesting.NewFakeClock(time.Now()), &noted{}
	m.server.options.Clock, m.server.options.Recorder = clock, events
	stalled := func(n int) {
		for range n {
			m.server.proxyStalled(stall{&member{id: "a/web-1", uid: "u"}, deltaxds.Stalled{Type: deltaxds.ListenerType, Names: []string{strings.Repeat("é", 3000)}}})
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
