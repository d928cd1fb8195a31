package traffic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bulwark-mesh/bulwark/tools/bench/report"
)

// Load is what a loading client saw.
type Load struct {
	Requests int           `json:"requests"`
	Elapsed  time.Duration `json:"elapsedNs"`
	P50      time.Duration `json:"p50Ns"`
	P90      time.Duration `json:"p90Ns"`
	P99      time.Duration `json:"p99Ns"`
}

func loadCommand() *cobra.Command {
	var t Target
	connections, duration := 1, time.Second
	cmd := &cobra.Command{Use: "load", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		result, err := load(cmd.Context(), t, connections, duration)
		if err != nil {
			return err
		}
		return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
	}}
	t.addFlags(cmd.Flags())
	cmd.Flags().IntVar(&connections, "connections", connections, "")
	cmd.Flags().DurationVar(&duration, "duration", duration, "")
	return cmd
}

// load asks over each connection as fast as it is answered. An answer that is not 200 ends it: then something else is
// measured than was meant.
func load(ctx context.Context, t Target, connections int, duration time.Duration) (*Load, error) {
	g, ctx := errgroup.WithContext(ctx)
	times := make([]report.Durations, connections)
	began := time.Now()
	for i := range connections {
		g.Go(func() error {
			conn, err := t.connect(ctx)
			if err != nil {
				return err
			}
			defer conn.Close()
			var body bytes.Buffer
			for now := time.Now(); ; {
				body.Reset()
				code, err := conn.ask(&body)
				if err != nil {
					return err
				}
				if code != 200 {
					return fmt.Errorf("answer %d after %d requests: %.200s", code, len(times[i]), body.Bytes())
				}
				next := time.Now()
				times[i] = append(times[i], next.Sub(now))
				if now = next; now.Sub(began) >= duration || ctx.Err() != nil {
					return nil
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("loading %s: %w", t.Address, err)
	}
	elapsed := time.Since(began)
	all := slices.Concat(times...)
	return &Load{Requests: len(all), Elapsed: elapsed, P50: all.Percentile(50), P90: all.Percentile(90), P99: all.Percentile(99)}, nil
}
