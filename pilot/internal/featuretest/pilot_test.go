package featuretest

import (
	"cmp"
	"context"
	"fmt"
	"hash/crc32"
	"log/slog"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/push"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds/nodexdstest"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var settings = compile.SettingsOf(fixture.Options)

// pilot is Pilot between its informers and its network, put together as package server does, and the agents of its nodes.
type pilot struct {
	registry *registry.Registry
	store    *push.Store
	server   *push.Server
	nodes    map[string]*node
	modules  map[string]string // versions of the module of package closer that the agents of nodes leave in their pods' directories
}

// node is the agent of a node, with its stream to Pilot.
type node struct {
	*nodexds.Node
	cut  func() // the stream, which begins anew
	stop func() // and waits
}

// newPilot returns a Pilot that starts in a world where there are the objects of the events. It has to be stopped, or its nodes go on until
// the test ends.
func newPilot(t *testing.T, events []registry.Event) *pilot {
	t.Helper()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Apply(placed(events)); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	store := push.NewStore(settings, reg.Snapshot(), push.NewMetrics(prometheus.NewRegistry()), log)
	server := push.NewServer(store, push.Options{
		Certificate: nodexdstest.CertificateOf, MaxProxies: 1000, Recorder: noEvents{}, Clock: clock.RealClock{}, Log: log})
	return &pilot{reg, store, server, map[string]*node{}, modules}
}

// placed puts pods on one of two nodes, and gives those that come from files a UID.
func placed(events []registry.Event) []registry.Event {
	for _, e := range events {
		if p, ok := e.Object.(*registry.Pod); ok && p != nil {
			p.Node = fmt.Sprintf("node-%d", crc32.ChecksumIEEE([]byte(p.ID))%2)
			p.UID = cmp.Or(p.UID, p.ID)
		}
	}
	return events
}

// modules are the agents' versions where a test does not say otherwise: one is of another version than Pilot.
var modules = map[string]string{"node-0": closer.Version, "node-1": "0123456789abcdef01234567"}

// apply does what happens when informers have seen the events.
func (p *pilot) apply(t *testing.T, events []registry.Event) {
	t.Helper()
	changes, err := p.registry.Apply(placed(events))
	if err != nil {
		t.Fatal(err)
	}
	p.store.Apply(p.registry.Snapshot(), changes)
}

// pod returns a pod as Pilot knows it now, or nil.
func (p *pilot) pod(id string) *registry.Pod { return p.registry.Snapshot().Pod(id) }

// node returns the agent of a node, which runs from when it is first asked for.
func (p *pilot) node(t *testing.T, name string) *node {
	t.Helper()
	if n := p.nodes[name]; n != nil {
		return n
	}
	agent := "spiffe://" + settings.TrustDomain + "/ns/bulwark-system/sa/bulwark-agent"
	dial := nodexdstest.Dial(p.server, nodexdstest.Certificate(t, agent, spiffe.Pod{Name: "agent-" + name, UID: name, Node: name}))
	n := &node{Node: nodexds.New(clock.RealClock{}, p.modules[name])}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var mu sync.Mutex
	go func() {
		defer close(done)
		n.Run(ctx, func(ctx context.Context) (nodexds.RPC, error) {
			ctx, cut := context.WithCancel(ctx)
			mu.Lock()
			n.cut = cut
			mu.Unlock()
			return dial(ctx)
		}, slog.New(slog.DiscardHandler))
	}()
	n.stop = func() { cancel(); <-done }
	p.nodes[name] = n
	return n
}

// stop ends the streams of all nodes.
func (p *pilot) stop() {
	for name, n := range p.nodes {
		n.stop()
		delete(p.nodes, name)
	}
}

// noEvents records none.
type noEvents struct{}

func (noEvents) Eventf(_, _ runtime.Object, _, _, _, _ string, _ ...any) {}
