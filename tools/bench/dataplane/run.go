// Package dataplane measures what a request costs on its way through a client's and a server's Envoy, with Bulwark's
// configuration, with less of it, and with a minimal one, in network namespaces of its own.
//
// The configuration is Pilot's, asked for as the two pods' proxies ask, and given to two Envoys that were started as
// injection says. The pods exist in the API server alone; their addresses are those of the namespaces.
package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/netns"
	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

const readyWithin = 30 * time.Second

// Options of a run.
type Options struct {
	Kubeconfig string
	Pilot      string // binaries
	Agent      string
	Rounds     int
	Duration   time.Duration // of one variant in one round
	Traffic    []string      // patterns
	Vary       []string      // variations, plus signs between those that are measured together
	Rules      []int         // of policies to be measured besides the one with one rule
	Add        []string      // additions
	Profile    bool          // sample where the time is spent
	Progress   func(format string, args ...any)
}

// Defaults take about three minutes.
func Defaults() Options {
	return Options{Pilot: "bin/pilot", Agent: "bin/agent", Rounds: 30, Duration: time.Second, Traffic: []string{"http1"}, Vary: []string{"telemetry"}}
}

// Run measures all variants in turn, round after round, with one pattern after the other.
func Run(ctx context.Context, o Options) (result *Result, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var patterns []pattern
	for _, text := range o.Traffic {
		p, err := patternOf(text)
		if err != nil {
			return nil, err
		}
		patterns = append(patterns, p)
	}
	o.Progress("making two pods and asking Pilot for their configuration")
	s, err := newScene(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { stop(); err = errors.Join(err, s.close()) }()
	o.Progress("starting Envoys")
	variants, err := s.variants(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range variants {
		if err := v.awaitReady(ctx, s.self); err != nil {
			return nil, err
		}
		if err := v.adds.proves(ctx, s.self, v); err != nil {
			return nil, err
		}
	}
	result = &Result{Duration: o.Duration}
	for _, p := range patterns {
		m, err := measure(ctx, s, variants, p)
		if err != nil {
			return nil, err
		}
		result.Patterns = append(result.Patterns, *m)
	}
	return result, nil
}

// measure loads all variants in one pattern. In each round they are in another order, so that none is always behind the same.
func measure(ctx context.Context, s *scene, variants []*variant, p pattern) (*Pattern, error) {
	plan := traffic.Plan{Kind: p.kind, Connections: p.connections, Duration: s.Duration}
	out := &Pattern{Traffic: p.text, Variants: make([]Variant, len(variants))}
	if p.half {
		for _, v := range variants {
			if v.name == whole {
				l, err := v.load(ctx, s.self, plan)
				if err != nil {
					return nil, fmt.Errorf("%s: %w\n%s", v.name, err, v.logs())
				}
				plan.Rate = float64(l.Units) / l.Elapsed.Seconds() / 2
			}
		}
	}
	rounds := func() error {
		for round := range s.Rounds {
			s.Progress("%s: round %d of %d", p.text, round+1, s.Rounds)
			for _, i := range rand.Perm(len(variants)) {
				r, err := variants[i].round(ctx, s.self, plan)
				if err != nil {
					return fmt.Errorf("%s: %w\n%s", variants[i].name, err, variants[i].logs())
				}
				out.Variants[i].Rounds = append(out.Variants[i].Rounds, r)
			}
		}
		return nil
	}
	var seen profile
	var err error
	if s.Profile {
		seen, err = profiled(ctx, s.dir, rounds)
	} else {
		err = rounds()
	}
	if err != nil {
		return nil, err
	}
	for i, v := range variants {
		if s.Profile {
			out.Variants[i].Profile = seen.of(v.envoys)
		}
		out.Variants[i].Name, out.Variants[i].Base = v.name, v.base
		for _, p := range v.envoys {
			memory, err := p.cost()
			if err != nil {
				return nil, err
			}
			out.Variants[i].Memory = append(out.Variants[i].Memory, memory)
		}
	}
	return out, nil
}

// variant is a client and a server in namespaces of their own, with an Envoy each, or without.
type variant struct {
	name   string
	dir    string
	pair   *netns.Pair
	envoys []program // the server's, the client's
	at     func(traffic.Kind) string
	target traffic.Target // of which at says the address
	base   string         // the variant to which it adds one thing, if it does
	adds   addition
}

// awaitReady returns when requests are answered.
func (v *variant) awaitReady(ctx context.Context, self string) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := v.load(ctx, self, traffic.Plan{Kind: traffic.HTTP1, Connections: 1, Duration: time.Millisecond})
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w\n%s", v.name, err, v.logs())
		}
	}
}

func (v *variant) logs() []byte {
	var out []byte
	for _, side := range []string{"client", "server"} {
		text, _ := os.ReadFile(v.dir + "/" + side + ".log") // what there is
		out = append(out, text[max(0, len(text)-1500):]...)
	}
	return out
}

func (v *variant) load(ctx context.Context, self string, p traffic.Plan) (*traffic.Load, error) {
	target := v.target
	target.Address = v.at(p.Kind)
	args := append(append([]string{"traffic", "load"}, p.Args()...), target.Args()...)
	cmd := v.pair.Client.Command(ctx, netns.Options{CPU: clientCPU}, self, args...)
	var failed bytes.Buffer
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("loading: %w: %s", err, failed.Bytes())
	}
	var l traffic.Load
	if err := json.Unmarshal(out, &l); err != nil {
		return nil, fmt.Errorf("the load's output: %w", err)
	}
	return &l, nil
}

// round loads one variant once and reads what it cost its Envoys.
func (v *variant) round(ctx context.Context, self string, p traffic.Plan) (Round, error) {
	before, err := v.cpu()
	if err != nil {
		return Round{}, err
	}
	l, err := v.load(ctx, self, p)
	if err != nil {
		return Round{}, err
	}
	after, err := v.cpu()
	if err != nil {
		return Round{}, err
	}
	n := time.Duration(max(l.Units, 1))
	r := Round{Load: *l}
	for i := range after {
		used := after[i].Since(before[i])
		r.CPU = append(r.CPU, used.Sum()/n)
		r.User += used.User / n
	}
	return r, nil
}

func (v *variant) cpu() ([]proc.Times, error) {
	out := make([]proc.Times, len(v.envoys))
	for i, p := range v.envoys {
		var err error
		if out[i], err = proc.TimesOf(p.cmd.Process.Pid); err != nil {
			return nil, err
		}
	}
	return out, nil
}
