package load

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/xdsload/agents"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/pilot"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/world"
)

type experiment struct {
	Options
	world   *world.World
	pilot   *pilot.Pilot
	agents  *agents.Process
	members []fleet.Member
	fleet   *fleet.Fleet
	dir     string // of sockets
}

type step struct {
	what string
	do   func(context.Context, *Result) error
}

func (e *experiment) run(ctx context.Context) (*Result, error) {
	r := &Result{Sizes: e.Sizes, Proxies: e.Proxies()}
	steps := []step{
		{"starting Pilot", e.start},
		{"connecting all agents and proxies", e.first},
		{"watching them idle", e.idle},
		{"changing endpoints", func(ctx context.Context, r *Result) (err error) {
			r.Endpoint, err = e.changes(ctx, e.world.EndpointChange)
			return err
		}},
		{"changing policies of workloads", func(ctx context.Context, r *Result) (err error) {
			r.Workload, err = e.changes(ctx, e.world.WorkloadPolicyChange)
			return err
		}},
		{"changing policies of namespaces", func(ctx context.Context, r *Result) (err error) {
			r.Namespace, err = e.changes(ctx, e.world.NamespacePolicyChange)
			return err
		}},
	}
	if e.Requests {
		steps = append(steps, step{"changing whose tokens workloads take", func(ctx context.Context, r *Result) (err error) {
			r.Tokens, err = e.changes(ctx, e.world.TokenChange)
			return err
		}}, step{"changing what an authorizer is asked about", func(ctx context.Context, r *Result) (err error) {
			r.Questions, err = e.changes(ctx, e.world.QuestionChange)
			return err
		}})
	}
	steps = append(steps, step{"connecting all proxies anew", e.reconnect}, step{"killing Pilot and starting another", e.restart})
	if e.Envoy {
		steps = append(steps, step{"starting a real Envoy as the first pod's", e.envoy})
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
	r.Before, err = e.memory()
	return err
}

// memory is what Pilot and the agents take.
func (e *experiment) memory() (out Memory, err error) {
	if out.Pilot, err = e.pilot.Memory(); err != nil {
		return out, err
	}
	out.Agents, err = e.agents.Memory()
	return out, err
}

// reading is what there has been since the beginning.
type reading struct {
	CPU
	proxies fleet.Traffic
	agents  agents.Count
}

func (e *experiment) read() (out reading, err error) {
	if out.Pilot, err = e.pilot.CPU(); err != nil {
		return out, err
	}
	if out.Agents, err = e.agents.CPU(); err != nil {
		return out, err
	}
	out.proxies = e.fleet.Traffic()
	out.agents, err = e.agents.Count()
	return out, err
}

// since is what there was after an earlier reading.
func (r reading) since(before reading) Episode {
	return Episode{CPU: CPU{r.Pilot - before.Pilot, r.Agents - before.Agents}, Traffic: r.proxies.Since(before.proxies), Wire: r.agents.Since(before.agents)}
}

func (e *experiment) first(ctx context.Context, r *Result) (err error) {
	r.First, err = e.episode(ctx, func(ctx context.Context) error {
		if err := e.agents.Follow(); err != nil {
			return err
		}
		return e.connect(ctx)
	})
	if err != nil {
		return err
	}
	r.After, err = e.memory()
	return err
}

func (e *experiment) reconnect(ctx context.Context, r *Result) (err error) {
	e.fleet.Disconnect()
	r.Reconnect, err = e.episode(ctx, e.connect)
	return err
}

// connect connects all proxies.
func (e *experiment) connect(ctx context.Context) error {
	// The streams live longer than the wait for them, so the deadline is not theirs.
	stop := context.AfterFunc(ctx, e.fleet.Disconnect)
	_, err := e.fleet.Connect(context.WithoutCancel(ctx))
	if !stop() {
		return context.Cause(ctx)
	}
	return err
}

// episode measures what happens, until no more is said.
func (e *experiment) episode(ctx context.Context, happens func(context.Context) error) (Episode, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectWithin, fmt.Errorf("not all had everything within %s", connectWithin))
	defer cancel()
	before, err := e.read()
	if err != nil {
		return Episode{}, err
	}
	began := time.Now()
	if err := happens(ctx); err != nil {
		return Episode{}, err
	}
	return e.settled(ctx, before, began)
}

// settled waits until no more is said, and returns what there was.
func (e *experiment) settled(ctx context.Context, before reading, began time.Time) (Episode, error) {
	last, err := e.quiet(ctx)
	if err != nil {
		return Episode{}, err
	}
	after, err := e.read()
	if err != nil {
		return Episode{}, err
	}
	out := after.since(before)
	out.Time = last.Sub(began)
	return out, nil
}

// quiet returns when nothing has been said to proxies, nor between agents and Pilot, for a while, and when the last word was.
func (e *experiment) quiet(ctx context.Context) (last time.Time, err error) {
	for {
		if err := e.fleet.Quiet(ctx, quiet); err != nil {
			return last, err
		}
		c, err := e.agents.Count()
		if err != nil {
			return last, err
		}
		last = e.fleet.Heard()
		if c.Last.After(last) {
			last = c.Last
		}
		if time.Since(last) >= quiet {
			return last, nil
		}
	}
}

func (e *experiment) idle(ctx context.Context, r *Result) error {
	before, err := e.read()
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-time.After(e.Idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := e.read()
	r.Idle = Rate{CPU: after.since(before).CPU, Over: time.Since(began)}
	return err
}

// changes makes changes at a steady pace, each after the one before has reached everyone.
func (e *experiment) changes(ctx context.Context, change func(int) world.Change) (Changes, error) {
	var out Changes
	before, err := e.read()
	if err != nil {
		return out, err
	}
	tick := time.NewTicker(e.Interval)
	defer tick.Stop()
	for n := range e.Changes {
		watch, err := e.change(ctx, change(n), &out)
		if err != nil {
			return out, fmt.Errorf("change %d: %w", n, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return out, ctx.Err()
		}
		out.Strays += watch.Strays() // not before, as who need not hear of it may be told last
	}
	if _, err := e.quiet(ctx); err != nil {
		return out, err
	}
	after, err := e.read()
	was, n := after.since(before), int64(e.Changes)
	out.CPU = CPU{was.CPU.Pilot / time.Duration(n), was.CPU.Agents / time.Duration(n)}
	out.Bytes, out.FromPilot = was.Traffic.Bytes/n, was.Wire.FromPilot/n
	return out, err
}

func (e *experiment) change(ctx context.Context, c world.Change, out *Changes) (*fleet.Watch, error) {
	ctx, cancel := context.WithTimeout(ctx, changeWithin)
	defer cancel()
	watch := e.fleet.Expect(c.Marker, c.Affects)
	began := time.Now()
	if err := c.Make(ctx); err != nil {
		return nil, err
	}
	out.Requests = append(out.Requests, time.Since(began))
	last, err := watch.Wait(ctx)
	if err != nil {
		return nil, err
	}
	out.Times = append(out.Times, last.Sub(began))
	out.Affected = watch.Affected()
	return watch, nil
}

// restart has another Pilot take the place of one that was killed.
func (e *experiment) restart(ctx context.Context, r *Result) error {
	ctx, cancel := context.WithTimeoutCause(ctx, connectWithin, fmt.Errorf("not all agents have heard the new Pilot within %s", connectWithin))
	defer cancel()
	before, err := e.read()
	if err != nil {
		return err
	}
	before.Pilot = 0 // which is the other's
	if err := e.pilot.Kill(); err != nil {
		return err
	}
	began := time.Now()
	if err := e.pilot.Start(ctx); err != nil {
		return err
	}
	if r.Restart.Ready, err = e.pilot.CPU(); err != nil {
		return err
	}
	if err := e.applied(ctx, before.agents.Applied+int64(e.Nodes)); err != nil {
		return err
	}
	r.Restart.Episode, err = e.settled(ctx, before, began)
	return err
}

// applied returns when agents have applied the first updates of so many streams.
func (e *experiment) applied(ctx context.Context, streams int64) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := e.agents.Count()
		if err != nil || c.Applied >= streams {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
