package load

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/pilot"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

type experiment struct {
	Options
	world *world.World
	pilot *pilot.Pilot
	fleet *fleet.Fleet
}

func (e *experiment) run(ctx context.Context) (*Result, error) {
	r := &Result{Sizes: e.Sizes}
	steps := []struct {
		what string
		do   func(context.Context, *Result) error
	}{
		{"starting Pilot", e.start},
		{"connecting all proxies", e.first},
		{"watching Pilot idle", e.idle},
		{"changing endpoints", func(ctx context.Context, r *Result) (err error) {
			r.Endpoint, err = e.changes(ctx, e.world.EndpointChange)
			return err
		}},
		{"changing policies of workloads", func(ctx context.Context, r *Result) (err error) {
			r.Workload, err = e.changes(ctx, func(n int) world.Change { return e.world.PolicyChange(world.OfWorkload, n) })
			return err
		}},
		{"changing policies of namespaces", func(ctx context.Context, r *Result) (err error) {
			r.Namespace, err = e.changes(ctx, func(n int) world.Change { return e.world.PolicyChange(world.OfNamespace, n) })
			return err
		}},
		{"connecting all proxies anew", e.reconnect},
		{"connecting all proxies to a new Pilot", e.restart},
	}
	for _, s := range steps {
		e.Progress("%s", s.what)
		if err := s.do(ctx, r); err != nil {
			return nil, fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return r, nil
}

func (e *experiment) start(ctx context.Context, r *Result) error {
	began := time.Now()
	if err := e.pilot.Start(ctx); err != nil {
		return err
	}
	r.Ready.Time = time.Since(began)
	var err error
	if r.Ready.CPU, err = e.pilot.CPU(); err != nil {
		return err
	}
	load, err := os.ReadFile(loadAverageOne)
	if err != nil {
		return err
	}
	r.LoadAverage = strings.Join(strings.Fields(string(load))[:3], " ")
	r.Before, err = e.pilot.Memory()
	return err
}

func (e *experiment) first(ctx context.Context, r *Result) (err error) {
	if r.First, err = e.connect(ctx); err != nil {
		return err
	}
	r.After, err = e.pilot.Memory()
	return err
}

// connect connects all proxies and waits until no more is said.
func (e *experiment) connect(ctx context.Context) (Episode, error) {
	within, cancel := context.WithTimeoutCause(ctx, connectWithin, fmt.Errorf("not all proxies had everything within %s", connectWithin))
	defer cancel()
	traffic, began := e.fleet.Traffic(), time.Now()
	cpu, err := e.pilot.CPU()
	if err != nil {
		return Episode{}, err
	}
	// The streams live longer than the wait for them, so the deadline is not theirs.
	stop := context.AfterFunc(within, e.fleet.Disconnect)
	last, err := e.fleet.Connect(ctx)
	if !stop() {
		return Episode{}, context.Cause(within)
	}
	if err != nil {
		return Episode{}, err
	}
	if err := e.fleet.Quiet(within, quiet); err != nil {
		return Episode{}, err
	}
	after, err := e.pilot.CPU()
	return Episode{Time: last.Sub(began), CPU: after - cpu, Traffic: e.fleet.Traffic().Since(traffic)}, err
}

func (e *experiment) idle(ctx context.Context, r *Result) error {
	cpu, err := e.pilot.CPU()
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-time.After(e.Idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := e.pilot.CPU()
	r.Idle = Rate{CPU: after - cpu, Over: time.Since(began)}
	return err
}

// changes makes changes at a steady pace, each after the one before has reached everyone.
func (e *experiment) changes(ctx context.Context, change func(int) world.Change) (Changes, error) {
	var out Changes
	cpu, err := e.pilot.CPU()
	if err != nil {
		return out, err
	}
	traffic := e.fleet.Traffic()
	tick := time.NewTicker(e.Interval)
	defer tick.Stop()
	for n := range e.Changes {
		if err := e.change(ctx, change(n), &out); err != nil {
			return out, fmt.Errorf("change %d: %w", n, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
	after, err := e.pilot.CPU()
	out.CPU = (after - cpu) / time.Duration(e.Changes)
	out.Bytes = e.fleet.Traffic().Since(traffic).Bytes / int64(e.Changes)
	return out, err
}

func (e *experiment) change(ctx context.Context, c world.Change, out *Changes) error {
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	watch := e.fleet.Expect(c.Marker, c.Affects)
	began := time.Now()
	if err := c.Make(ctx); err != nil {
		return err
	}
	out.Requests = append(out.Requests, time.Since(began))
	last, err := watch.Wait(ctx)
	if err != nil {
		return err
	}
	out.Times = append(out.Times, last.Sub(began))
	out.Affected = watch.Affected()
	out.Strays += watch.Strays()
	return nil
}

func (e *experiment) reconnect(ctx context.Context, r *Result) (err error) {
	e.fleet.Disconnect()
	r.Reconnect, err = e.connect(ctx)
	return err
}

func (e *experiment) restart(ctx context.Context, r *Result) error {
	e.fleet.Disconnect()
	if err := e.pilot.Stop(); err != nil {
		return err
	}
	if err := e.pilot.Start(ctx); err != nil {
		return err
	}
	var err error
	if r.Restart, err = e.connect(ctx); err != nil {
		return err
	}
	r.Restart.CPU, err = e.pilot.CPU()
	return err
}
