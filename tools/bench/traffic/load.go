package traffic

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/tools/bench/report"
)

// Plan is how a load asks.
type Plan struct {
	Kind        Kind
	Connections int
	Duration    time.Duration
	Rate        float64 // units a second of all connections together; zero: as fast as they are answered
}

// Args are the plan as command-line arguments.
func (p Plan) Args() []string {
	return []string{"--kind", string(p.Kind), "--connections", fmt.Sprint(p.Connections), "--duration", p.Duration.String(), "--rate", fmt.Sprint(p.Rate)}
}

func (p *Plan) addFlags(f *pflag.FlagSet) {
	f.StringVar((*string)(&p.Kind), "kind", string(HTTP1), "")
	f.IntVar(&p.Connections, "connections", 1, "")
	f.DurationVar(&p.Duration, "duration", time.Second, "")
	f.Float64Var(&p.Rate, "rate", 0, "")
}

// Load is what a loading client saw.
type Load struct {
	Units   int           `json:"units"`
	Elapsed time.Duration `json:"elapsedNs"`
	P50     time.Duration `json:"p50Ns"`
	P90     time.Duration `json:"p90Ns"`
	P99     time.Duration `json:"p99Ns"`
}

func loadCommand() *cobra.Command {
	var t Target
	var p Plan
	cmd := &cobra.Command{Use: "load", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		result, err := load(cmd.Context(), t, p)
		if err != nil {
			return err
		}
		return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
	}}
	t.addFlags(cmd.Flags())
	p.addFlags(cmd.Flags())
	return cmd
}

// load asks over each connection as planned, once all of them are open and have been answered. An answer that is none ends it: then something
// else is measured than was meant.
func load(ctx context.Context, t Target, p Plan) (*Load, error) {
	shared := transport()
	clients := make([]client, p.Connections)
	for i := range clients {
		var err error
		if clients[i], err = p.Kind.open(ctx, t, shared); err != nil {
			return nil, fmt.Errorf("loading %s: %w", t.Address, err)
		}
		defer clients[i].Close()
		if err := clients[i].ask(ctx); err != nil {
			return nil, fmt.Errorf("loading %s: the first of %s: %w", t.Address, p.Kind, err)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	times := make([]report.Durations, p.Connections)
	began := time.Now()
	for i, c := range clients {
		g.Go(func() error {
			for next := (turns{p, began, i}); ; {
				start := next.await(len(times[i]))
				if start.Sub(began) >= p.Duration || ctx.Err() != nil {
					return nil
				}
				if err := c.ask(ctx); err != nil {
					return fmt.Errorf("after %d of %s: %w", len(times[i]), p.Kind, err)
				}
				times[i] = append(times[i], time.Since(start))
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("loading %s: %w", t.Address, err)
	}
	elapsed := time.Since(began)
	all := slices.Concat(times...)
	return &Load{Units: len(all), Elapsed: elapsed, P50: all.Percentile(50), P90: all.Percentile(90), P99: all.Percentile(99)}, nil
}

// turns are when one connection of a load asks.
type turns struct {
	Plan
	began time.Time
	index int
}

// await returns the time of a connection's next turn, the first being number 0, and not before it. An answer that is late makes the next
// turn late, and counts as its time, too: whoever would have asked meanwhile had to wait.
func (t turns) await(number int) time.Time {
	if t.Rate <= 0 {
		return time.Now()
	}
	each := float64(time.Second) / t.Rate
	at := t.began.Add(time.Duration(each * float64(number*t.Connections+t.index)))
	if left := time.Until(at); left > 0 {
		// The runtime's timers are as exact as a millisecond.
		pause := unix.NsecToTimespec(int64(left))
		_ = unix.Nanosleep(&pause, nil) // interrupted: a turn is early
	}
	return at
}
