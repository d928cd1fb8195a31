package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/netns"
	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/bench/stage"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

const (
	asked         = "/accounts/1"
	allowed       = "/accounts/*"
	other         = "/other/*"
	nobody        = "nobody" // an account that there is not
	verdictWithin = 30 * time.Second
)

type policyResult struct {
	Granted  report.Durations `json:"grantedNs"`  // from before the API request until the client is let in
	Revoked  report.Durations `json:"revokedNs"`  // … until it is refused
	Admitted report.Durations `json:"admittedNs"` // the same where no rule names the client before: its proxy does not know the service
	Excluded report.Durations `json:"excludedNs"`
	Requests report.Durations `json:"requestsNs"` // of all these changes, the requests to the API server
}

func policyCommand(c *common) *cobra.Command {
	changes, interval := 50, 100*time.Millisecond
	cmd := &cobra.Command{
		Use: "policy", Short: "Time from a policy's change to its being enforced", Args: cobra.NoArgs,
		Long: "Two pods in the mesh; a client in one's network namespace asks every millisecond while the policy is changed.",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			ctx := cmd.Context()
			s, err := stage.New(ctx, c.kubeconfig, stage.Reads(stage.Client, other))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, s.Remove(ctx)) }()
			progress("starting pods")
			if err := s.RealPods(ctx); err != nil {
				return err
			}
			result, err := measurePolicy(ctx, s, changes, interval)
			if err != nil {
				return err
			}
			return c.write(cmd, result)
		},
	}
	cmd.Flags().IntVar(&changes, "changes", changes, "changes in each direction")
	cmd.Flags().DurationVar(&interval, "interval", interval, "from one change to the next, at least")
	return cmd
}

func measurePolicy(ctx context.Context, s *stage.Stage, changes int, interval time.Duration) (*policyResult, error) {
	verdicts, stop, err := watchAs(ctx, stage.Client, traffic.Target{Address: s.ServiceIP + ":80", Host: stage.Host, Path: asked})
	if err != nil {
		return nil, err
	}
	defer stop()
	if _, err := await(ctx, verdicts, 403); err != nil {
		return nil, err
	}
	progress("changing the policy")
	r := &policyResult{}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for range changes {
		for _, step := range []struct {
			account, path string
			code          int
			into          *report.Durations // nil: the client's answer stays, and an interval is enough
		}{
			{stage.Client, allowed, 200, &r.Granted}, {stage.Client, other, 403, &r.Revoked},
			{nobody, allowed, 0, nil}, {stage.Client, allowed, 200, &r.Admitted}, {nobody, allowed, 403, &r.Excluded}, {stage.Client, other, 0, nil},
		} {
			began := time.Now()
			if err := s.Allow(ctx, stage.Reads(step.account, step.path)); err != nil {
				return nil, err
			}
			r.Requests = append(r.Requests, time.Since(began))
			if step.into != nil {
				at, err := await(ctx, verdicts, step.code)
				if err != nil {
					return nil, err
				}
				*step.into = append(*step.into, at.Sub(began))
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return r, nil
}

// await returns when the client first had the answer.
func await(ctx context.Context, verdicts <-chan traffic.Verdict, code int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, verdictWithin)
	defer cancel()
	last := 0
	for {
		select {
		case v, ok := <-verdicts:
			if !ok {
				return time.Time{}, errors.New("the client ended")
			}
			if last = v.Code; last == code {
				return v.At, nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("waiting for answer %d, the last was %d: %w", code, last, ctx.Err())
		}
	}
}

// watchAs runs a client in the network namespace of a pod, where its traffic is the pod's.
func watchAs(ctx context.Context, workload string, t traffic.Target) (<-chan traffic.Verdict, func(), error) {
	pid, err := proxyOf(workload)
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := netns.OfProcess(pid).Command(ctx, netns.Options{CPU: -1}, self, append([]string{"traffic", "watch"}, t.Args()...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, nil, fmt.Errorf("starting the client: %w", err)
	}
	verdicts := make(chan traffic.Verdict, 16)
	go func() {
		defer close(verdicts)
		for in := json.NewDecoder(out); ; {
			var v traffic.Verdict
			if err := in.Decode(&v); err != nil {
				if !errors.Is(err, io.EOF) && ctx.Err() == nil {
					progress("the client's output: %v", err)
				}
				return
			}
			select {
			case verdicts <- v:
			case <-ctx.Done():
				return
			}
		}
	}()
	return verdicts, func() { cancel(); _ = cmd.Wait() }, nil
}

// proxyOf finds the Envoy of a pod of the stage by its arguments.
func proxyOf(workload string) (int, error) {
	processes, err := proc.All()
	if err != nil {
		return 0, err
	}
	want := workload + "." + stage.Namespace
	for _, p := range processes {
		for i, arg := range p.Args {
			if p.Program == "envoy" && arg == "--service-cluster" && i+1 < len(p.Args) && p.Args[i+1] == want {
				return p.PID, nil
			}
		}
	}
	return 0, fmt.Errorf("no Envoy of workload %s runs on this machine", want)
}

func (r *policyResult) Table() report.Table {
	t := report.Table{Columns: []string{"change", "count", "p50", "p99", "longest"}}
	for _, row := range []struct {
		name  string
		times report.Durations
	}{{"a rule's path: granted", r.Granted}, {"revoked", r.Revoked}, {"the first rule that names the client: admitted", r.Admitted}, {"excluded", r.Excluded},
		{"of each, the request to the API server", r.Requests}} {
		t.Row(row.name, fmt.Sprint(len(row.times)), report.Millis(row.times.Percentile(50)),
			report.Millis(row.times.Percentile(99)), report.Millis(row.times.Percentile(100)))
	}
	return t
}
