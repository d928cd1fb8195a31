package featuretest

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/push"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var settings = compile.Settings{TrustDomain: fixture.Options.TrustDomain, RootNamespace: fixture.Options.RootNamespace}

// pilot is Pilot between its informers and its network, put together as package server does.
type pilot struct {
	registry *registry.Registry
	store    *push.Store
	server   *push.Server
}

// identityKey is where the context of a stream has the identity that a handshake would have proven.
type identityKey struct{}

// newPilot returns a Pilot that starts in a world where there are the objects of the events.
func newPilot(t *testing.T, events []registry.Event) *pilot {
	t.Helper()
	reg, err := registry.New()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Apply(events); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	store := push.NewStore(settings, reg.Snapshot(), push.NewMetrics(prometheus.NewRegistry()), log)
	identify := func(ctx context.Context) (spiffe.ID, error) {
		id, ok := ctx.Value(identityKey{}).(spiffe.ID)
		if !ok {
			return id, errors.New("no certificate")
		}
		return id, nil
	}
	return &pilot{reg, store, push.NewServer(store, push.Options{Identify: identify, MaxProxies: 1000, Recorder: noEvents{}, Clock: clock.RealClock{}, Log: log})}
}

// apply does what happens when informers have seen the events.
func (p *pilot) apply(t *testing.T, events []registry.Event) {
	t.Helper()
	changes, err := p.registry.Apply(events)
	if err != nil {
		t.Fatal(err)
	}
	p.store.Apply(p.registry.Snapshot(), changes)
}

// pod returns a pod as Pilot knows it now, or nil.
func (p *pilot) pod(id string) *registry.Pod { return p.registry.Snapshot().Pod(id) }

// noEvents records none.
type noEvents struct{}

func (noEvents) Eventf(_, _ runtime.Object, _, _, _, _ string, _ ...any) {}
