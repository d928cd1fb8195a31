// Package load is the experiment: Pilot, a cluster of a given size, and how long and how much it takes Pilot to
// configure the proxies and to follow changes.
package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/ca"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/pilot"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

// Options of a run.
type Options struct {
	world.Sizes
	Kubeconfig string
	Binary     string   // of Pilot
	PilotArgs  []string // more arguments for it
	Changes    int      // of each kind
	Interval   time.Duration
	Idle       time.Duration // how long Pilot is watched doing nothing
	LogDir     string        // keep Pilot's log there; empty does not
	Progress   func(format string, args ...any)
}

// Defaults are the sizes that docs/benchmarks.md speaks of.
func Defaults() Options {
	return Options{
		Sizes:  world.Sizes{Proxies: 200, Services: 1000, Endpoints: 4, Namespaces: 10, Nodes: 4, Targets: 10},
		Binary: "bin/pilot", Kubeconfig: ".cluster/kubeconfig", Changes: 100, Interval: 100 * time.Millisecond, Idle: 5 * time.Second,
	}
}

const (
	quiet          = time.Second // without a response, and all has been said
	connectWithin  = 3 * time.Minute
	changeWithin   = 30 * time.Second
	cleanUpWithin  = 4 * time.Minute
	createMinutes  = 5 * time.Minute
	loadAverageOne = "/proc/loadavg"
)

// Run makes the cluster's objects, measures, and removes them again, also when ctx ends early.
func Run(ctx context.Context, o Options) (result *Result, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("configuration of the Kubernetes client: %w", err)
	}
	w, err := world.New(config, o.Sizes)
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	authority, err := ca.Load(ctx, kube)
	if err != nil {
		return nil, err
	}
	o.Progress("removing what an earlier run may have left")
	if err := w.Remove(ctx); err != nil {
		return nil, err
	}
	defer func() {
		o.Progress("removing the load test's objects")
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpWithin)
		defer cancel()
		err = errors.Join(err, w.Remove(ctx))
	}()
	return runIn(ctx, o, w, authority)
}

// runIn makes the objects and keeps them alive while the experiment runs.
func runIn(ctx context.Context, o Options, w *world.World, authority *ca.CA) (*Result, error) {
	o.Progress("making %d pods, %d services and their policies", o.Proxies, o.Services)
	creating, cancel := context.WithTimeout(ctx, createMinutes)
	defer cancel()
	began := time.Now()
	if err := w.Create(creating); err != nil {
		return nil, err
	}
	o.Progress("made in %.1f s", time.Since(began).Seconds())
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	var result *Result
	g.Go(func() error { return w.KeepAlive(ctx) })
	g.Go(func() error {
		defer stop()
		var err error
		result, err = withPilot(ctx, o, w, authority)
		return err
	})
	return result, g.Wait()
}

func withPilot(ctx context.Context, o Options, w *world.World, authority *ca.CA) (result *Result, err error) {
	citadel, err := authority.Serve()
	if err != nil {
		return nil, err
	}
	defer citadel.Stop()
	dir := o.LogDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "xdsload"); err != nil {
			return nil, fmt.Errorf("directory for Pilot's token: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	p, err := pilot.New(pilot.Options{Binary: o.Binary, Kubeconfig: o.Kubeconfig, Citadel: citadel.Address, Token: citadel.Token, Dir: dir, Args: o.PilotArgs})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	dial, err := Dialer(authority, p.Address)
	if err != nil {
		return nil, err
	}
	e := &experiment{Options: o, world: w, pilot: p, fleet: fleet.New(w.Members(), dial)}
	defer e.fleet.Disconnect()
	return e.run(ctx)
}

// Dialer connects agents to the Pilot at an address, each with an SVID that names its node.
func Dialer(authority *ca.CA, address string) (fleet.Dialer, error) {
	id, err := spiffe.New(mesh.DefaultTrustDomain, mesh.Namespace, mesh.PilotAccount)
	if err != nil {
		return nil, err
	}
	return func(node string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
		svid, err := authority.IssueTo(mesh.Namespace, mesh.AgentAccount, spiffe.Pod{Name: "xdsload", UID: "xdsload", Node: node})
		if err != nil {
			return nil, err
		}
		options = append(options, mtls.DialOptions(mtls.Client(svid, authority.Bundle, mtls.OneOf(id)))...)
		return grpc.NewClient(address, append(options, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(nodexds.MaxMessage)))...)
	}, nil
}
