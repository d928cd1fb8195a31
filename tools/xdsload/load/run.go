// Package load is the experiment: Pilot, the agents of a cluster of a given size, and how long and how much it takes these to configure the
// proxies and to follow changes.
package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/agents"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/ca"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/pilot"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

// Options of a run.
type Options struct {
	world.Sizes
	Worlds     []string // kinds
	Growth     []int    // numbers of services, for RunGrowth
	Dense      int      // pods of a node in one experiment more of a world; 0: none
	Kubeconfig string
	Binary     string   // of Pilot
	PilotArgs  []string // more arguments for it
	Changes    int      // of each kind
	Interval   time.Duration
	Idle       time.Duration // how long Pilot is watched doing nothing
	Envoy      bool          // measure a real Envoy's memory
	LogDir     string        // keep logs there; empty does not
	Progress   func(format string, args ...any)
}

// Defaults are the sizes that docs/benchmarks.md speaks of.
func Defaults() Options {
	return Options{
		Worlds: []string{string(world.Open)},
		Sizes:  world.Sizes{Nodes: 10, PodsPerNode: 20, Services: 1000, Endpoints: 4, Namespaces: 10, Targets: 10},
		Binary: "bin/pilot", Kubeconfig: ".cluster/kubeconfig", Changes: 100, Interval: 100 * time.Millisecond, Idle: 5 * time.Second, Envoy: true,
	}
}

const (
	quiet          = time.Second // without a word, and all has been said
	connectWithin  = 5 * time.Minute
	changeWithin   = 30 * time.Second
	cleanUpWithin  = 20 * time.Minute
	createWithin   = 20 * time.Minute
	loadAverageOne = "/proc/loadavg"
)

// RunAny runs what the options ask for: one experiment, or one for each number of services, in one world or in several.
func RunAny(ctx context.Context, o Options) (report.Tabular, error) {
	if len(o.Worlds) != 1 || o.Dense > 0 {
		return RunWorlds(ctx, o)
	}
	o.Kind = world.Kind(o.Worlds[0])
	if len(o.Growth) > 0 {
		return RunGrowth(ctx, o)
	}
	return Run(ctx, o)
}

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
		if e := w.Remove(ctx); e != nil {
			err = errors.Join(err, e)
			o.show(result) // which is not lost for that
		}
	}()
	return runIn(ctx, o, w, authority)
}

// runIn makes the objects and keeps the nodes alive until the experiment has run.
func runIn(ctx context.Context, o Options, w *world.World, authority *ca.CA) (*Result, error) {
	if err := w.CreateNodes(ctx); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	var result *Result
	g.Go(func() error { return w.KeepAlive(ctx) })
	g.Go(func() error {
		defer stop()
		o.Progress("making %d services of %d pods each, and their policies", o.Services, o.Endpoints)
		creating, cancel := context.WithTimeout(ctx, createWithin)
		defer cancel()
		began := time.Now()
		if err := w.Create(creating); err != nil {
			return err
		}
		o.Progress("made in %.1f s", time.Since(began).Seconds())
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
	dir, err := os.MkdirTemp("", "xdsload")
	if err != nil {
		return nil, fmt.Errorf("directory for sockets and Pilot's token: %w", err)
	}
	defer os.RemoveAll(dir)
	logs := cmp.Or(o.LogDir, dir)
	p, err := pilot.New(pilot.Options{Binary: o.Binary, Kubeconfig: o.Kubeconfig, Citadel: citadel.Address, Token: citadel.Token, Dir: logs, Args: append(o.Sizes.PilotArgs(), o.PilotArgs...)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	members := w.Members()
	settings, err := agents.For(authority, p.Address, dir, members)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(logs, "agents.log"))
	if err != nil {
		return nil, fmt.Errorf("log of the agents: %w", err)
	}
	defer log.Close()
	a, err := agents.Start(ctx, settings, log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Stop()) }()
	e := &experiment{Options: o, world: w, pilot: p, agents: a, members: members, fleet: fleet.New(members), dir: dir}
	defer e.fleet.Disconnect()
	return e.run(ctx)
}
