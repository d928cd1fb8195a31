package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"

	"github.com/bulwark-mesh/bulwark/tools/bench/netns"
	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/report"
	"github.com/bulwark-mesh/bulwark/tools/bench/stage"
	"github.com/bulwark-mesh/bulwark/tools/bench/tokens"
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
	Requests report.Durations `json:"requestsNs"`          // of all these changes, the requests to the API server
	Services int              `json:"services"`            // beside the server's
	Taken    report.Durations `json:"takenNs,omitempty"`   // of other keys in a RequestAuthentication, until the client's token is taken
	Refused  report.Durations `json:"refusedNs,omitempty"` // … until it is refused
	Passed   report.Durations `json:"passedNs,omitempty"`  // of a CUSTOM policy's path, until its authorizer is not asked any more
	Asked    report.Durations `json:"askedNs,omitempty"`   // … until it is, which nobody answers
}

func policyCommand(c *common) *cobra.Command {
	changes, interval, services := 50, 100*time.Millisecond, 0
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
			progress("making %d services", services)
			if err := s.Crowd(ctx, services); err != nil {
				return err
			}
			progress("starting pods")
			if err := s.RealPods(ctx); err != nil {
				return err
			}
			p := policyRun{Stage: s, changes: changes, interval: interval, policyResult: &policyResult{Services: services}}
			for _, measure := range []func(context.Context) error{p.allow, p.tokens, p.authorizer} {
				if err := measure(ctx); err != nil {
					return err
				}
			}
			return c.write(cmd, p.policyResult)
		},
	}
	cmd.Flags().IntVar(&changes, "changes", changes, "changes in each direction")
	cmd.Flags().IntVar(&services, "services", services, "services beside the server's, which everyone may call")
	cmd.Flags().DurationVar(&interval, "interval", interval, "from one change to the next, at least")
	return cmd
}

// policyRun measures series of changes on a stage.
type policyRun struct {
	*stage.Stage
	*policyResult
	changes  int
	interval time.Duration
}

// change is one of a series.
type change struct {
	make func(context.Context) error
	code int               // of the answers that obey it
	into *report.Durations // nil: the client's answer stays, and an interval is enough
}

// allow changes an ALLOW policy.
func (p policyRun) allow(ctx context.Context) error {
	reads := func(account, path string) func(context.Context) error {
		return func(ctx context.Context) error { return p.Allow(ctx, stage.Reads(account, path)) }
	}
	return p.series(ctx, "an ALLOW policy", "", 403, []change{
		{reads(stage.Client, allowed), 200, &p.Granted}, {reads(stage.Client, other), 403, &p.Revoked},
		{reads(nobody, allowed), 0, nil}, {reads(stage.Client, allowed), 200, &p.Admitted}, {reads(nobody, allowed), 403, &p.Excluded}, {reads(stage.Client, other), 0, nil},
	})
}

// tokens changes the keys by which the client's token is verified.
func (p policyRun) tokens(ctx context.Context) error {
	const kind, name, field = "RequestAuthentication", "tokens", "jwtRules"
	if err := p.Allow(ctx, stage.Reads(stage.Client, allowed)); err != nil {
		return err
	}
	var issuers [2]tokens.Issuer
	var keys [2]func(context.Context) error
	for i := range issuers {
		var err error
		if issuers[i], err = tokens.New(jose.RS256); err != nil {
			return err
		}
		keys[i] = func(ctx context.Context) error {
			return p.Change(ctx, kind, name, field, map[string]any{"issuer": issuers[i].Name, "jwks": issuers[i].Keys})
		}
	}
	remove, err := p.ForServer(ctx, kind, name, map[string]any{field: []any{map[string]any{"issuer": issuers[1].Name, "jwks": issuers[1].Keys}}})
	if err != nil {
		return err
	}
	return errors.Join(p.series(ctx, "a RequestAuthentication", issuers[0].Token, 401, []change{{keys[0], 200, &p.Taken}, {keys[1], 401, &p.Refused}}), remove(ctx))
}

// authorizer changes what the authorizer is asked about. Nobody is behind its Service, so what it is asked about is denied.
func (p policyRun) authorizer(ctx context.Context) error {
	known, err := p.KnowsAuthorizer(ctx)
	if err != nil {
		return err
	}
	if !known {
		progress("CUSTOM policies are left out: the installation has no external authorizer %s (make bench installs Bulwark with it)", stage.Provider)
		return nil
	}
	const kind, name, field = "AuthorizationPolicy", "asked", "rules"
	about := func(path string) map[string]any {
		return map[string]any{"to": []any{map[string]any{"operation": map[string]any{"paths": []any{path}}}}}
	}
	asks := func(path string) func(context.Context) error {
		return func(ctx context.Context) error { return p.Change(ctx, kind, name, field, about(path)) }
	}
	if err := errors.Join(p.AuthorizerService(ctx), p.Allow(ctx, stage.Reads(stage.Client, allowed))); err != nil {
		return err
	}
	remove, err := p.ForServer(ctx, kind, name, map[string]any{"action": "CUSTOM", "provider": map[string]any{"name": stage.Provider}, field: []any{about(allowed)}})
	if err != nil {
		return err
	}
	return errors.Join(p.series(ctx, "a CUSTOM policy", "", 403, []change{{asks(other), 200, &p.Passed}, {asks(allowed), 403, &p.Asked}}), remove(ctx))
}

// series makes changes in turn, each after the one before is obeyed, from when the client gets an answer.
func (p policyRun) series(ctx context.Context, what, token string, first int, list []change) error {
	verdicts, stop, err := watchAs(ctx, stage.Client, traffic.Target{Address: p.ServiceIP + ":80", Host: stage.Host, Path: asked, Token: token})
	if err != nil {
		return err
	}
	defer stop()
	if _, err := await(ctx, verdicts, first); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	progress("changing %s", what)
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	for range p.changes {
		for _, c := range list {
			began := time.Now()
			if err := c.make(ctx); err != nil {
				return err
			}
			p.Requests = append(p.Requests, time.Since(began))
			if c.into != nil {
				at, err := await(ctx, verdicts, c.code)
				if err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				*c.into = append(*c.into, at.Sub(began))
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
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
		{"a RequestAuthentication's keys: the token taken", r.Taken}, {"refused", r.Refused}, {"a CUSTOM policy's path: not asked any more", r.Passed}, {"asked", r.Asked},
		{"of each, the request to the API server", r.Requests}} {
		if len(row.times) == 0 {
			continue
		}
		t.Row(row.name, fmt.Sprint(len(row.times)), report.Millis(row.times.Percentile(50)),
			report.Millis(row.times.Percentile(99)), report.Millis(row.times.Percentile(100)))
	}
	return t
}
