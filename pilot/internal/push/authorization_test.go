package push

import (
	"slices"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// A listener that changed would drain connections, and those would go on under the old policy until they end.
func TestChangedPolicyTouchesNoListener(t *testing.T) {
	m := newMesh(t)
	m.apply(service("a", "web", 80), pod("a", "web", "web-1", "10.0.0.1"), deny("a", "first", "web"))
	p := m.connect("a/web-1", deltaxds.ListenerType)
	p.in <- &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ExtensionConfigType, ResourceNamesSubscribe: []string{"authorization/http/deny", "authorization/http/allow"}}
	p.take(t, short(deltaxds.ListenerType), 4)
	p.take(t, short(deltaxds.ExtensionConfigType), 2)
	_, before := m.counts()
	m.apply(deny("a", "second", "web"))
	if got := p.take(t, short(deltaxds.ExtensionConfigType), 1); !slices.Equal(got, []string{"authorization/http/deny"}) {
		t.Fatalf("got %v", got)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if got := p.received[short(deltaxds.ListenerType)]; len(got) > 0 {
		t.Fatalf("listeners %v were sent", got)
	}
	if _, after := m.counts(); after-before > 11 { // those of the workload's authorization
		t.Fatalf("%v resources were marshalled", after-before)
	}
}
