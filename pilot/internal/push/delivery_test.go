package push

import (
	"bytes"
	"slices"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/handshake"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

func bySecret(e registry.Event) registry.Event {
	e.Object.(*registry.Pod).Delivery = delivery.BySecret
	return e
}

// Proxies share clusters with those whose certificates come in the same way, and with no others.
func TestClustersFollowHowTheProxysCertificateComes(t *testing.T) {
	const web = "outbound|80||web.a.svc.cluster.local"
	m := newMesh(t)
	m.apply(service("a", "web", 80), pod("a", "web", "web-1", "10.0.0.1"), bySecret(pod("a", "web", "web-2", "10.0.0.2")), bySecret(pod("a", "web", "web-3", "10.0.0.3")))
	connect := func(name string) *proxy {
		p := m.connect("a/"+name, deltaxds.ClusterType)
		p.take(t, "cds", 4)
		return p
	}
	agent, first := connect("web-1"), connect("web-2")
	r, n := m.counts()
	second := connect("web-3")
	m.expect(t, "another proxy of the same kind", &r, &n, 0, 0)

	cached := func(d delivery.Way) []byte {
		m.store.mu.Lock()
		defer m.store.mu.Unlock()
		r := catalog.Cluster{Service: "a/web", Port: 80, Delivery: d}
		if res := m.store.bytes[r]; res != nil {
			return res.Body().GetValue()
		}
		return nil
	}
	files := []byte(handshake.FilesPath)
	if b := cached(delivery.ByAgent); b == nil || bytes.Contains(b, files) {
		t.Fatalf("with the agent: %q", b)
	}
	if b := cached(delivery.BySecret); !bytes.Contains(b, files) {
		t.Fatalf("with a Secret: %q", b)
	}

	other := pod("a", "web", "web-4", "10.0.0.4") // another identity may serve the service
	other.Object.(*registry.Pod).ServiceAccount = "other"
	m.apply(other)
	for name, p := range map[string]*proxy{"with the agent": agent, "with a Secret": first, "another with a Secret": second} {
		if got := p.take(t, "cds", 1); !slices.Equal(got, []string{web}) {
			t.Errorf("%s: sent %v", name, got)
		}
	}
	m.expect(t, "a cluster, once for each kind, and its endpoints", &r, &n, 3, 3)

	for _, p := range []*proxy{first, second} {
		p.cancel()
	}
	m.agent.Remove("web-2")
	m.agent.Remove("web-3")
	eventually(t, "resources that nobody has go", func() bool { return cached(delivery.BySecret) == nil })
	if cached(delivery.ByAgent) == nil {
		t.Fatal("resources go that somebody has")
	}
}
