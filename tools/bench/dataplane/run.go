// Package dataplane measures what a request costs on its way through a client's and a server's Envoy, with Bulwark's
// configuration and with a minimal one, in network namespaces of its own.
//
// The configuration is Pilot's, asked for as the two pods' proxies ask, and given unchanged to two Envoys that were started as
// injection says. The pods exist in the API server alone; their addresses are those of the namespaces.
package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/bench/netns"
	"github.com/bulwark-mesh/bulwark/tools/bench/proc"
	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

const (
	clientIP    = "10.252.0.1"
	serverIP    = "10.252.0.2"
	appPort     = 8080
	minimalPort = 18080
	asked       = "/accounts/1"

	readyWithin = 30 * time.Second
)

// Options of a run.
type Options struct {
	Kubeconfig  string
	Pilot       string // binaries
	Agent       string
	Rounds      int
	Duration    time.Duration // of one variant in one round
	Connections int
	Progress    func(format string, args ...any)
}

// Defaults take about two minutes.
func Defaults() Options {
	return Options{Pilot: "bin/pilot", Agent: "bin/agent", Rounds: 10, Duration: 4 * time.Second, Connections: 16}
}

// Run measures all variants in turn, round after round.
func Run(ctx context.Context, o Options) (result *Result, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
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
	}
	result = &Result{Connections: o.Connections, Duration: o.Duration, Variants: make([]Variant, len(variants))}
	for round := range o.Rounds {
		o.Progress("round %d of %d", round+1, o.Rounds)
		for i, v := range variants {
			r, err := v.round(ctx, s.self, o)
			if err != nil {
				return nil, fmt.Errorf("%s: %w\n%s", v.name, err, v.logs())
			}
			result.Variants[i].Name = v.name
			result.Variants[i].Rounds = append(result.Variants[i].Rounds, r)
		}
	}
	for i, v := range variants {
		if result.Variants[i].ClientMemory, err = v.client.cost(); err != nil {
			return nil, err
		}
		if result.Variants[i].ServerMemory, err = v.server.cost(); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// variant is two Envoys in namespaces of their own.
type variant struct {
	name           string
	dir            string
	pair           *netns.Pair
	client, server program
	target         traffic.Target
}

// awaitReady returns when requests are answered.
func (v *variant) awaitReady(ctx context.Context, self string) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := v.load(ctx, self, 1, time.Millisecond)
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

func (v *variant) load(ctx context.Context, self string, connections int, duration time.Duration) (*traffic.Load, error) {
	args := append([]string{"traffic", "load", "--connections", fmt.Sprint(connections), "--duration", duration.String()}, v.target.Args()...)
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
func (v *variant) round(ctx context.Context, self string, o Options) (Round, error) {
	before, err := v.cpu()
	if err != nil {
		return Round{}, err
	}
	l, err := v.load(ctx, self, o.Connections, o.Duration)
	if err != nil {
		return Round{}, err
	}
	after, err := v.cpu()
	if err != nil {
		return Round{}, err
	}
	n := time.Duration(max(l.Requests, 1))
	client, server := after[0].Since(before[0]), after[1].Since(before[1])
	return Round{Load: *l, Client: client.Sum() / n, Server: server.Sum() / n, User: (client.User + server.User) / n}, nil
}

func (v *variant) cpu() (out [2]proc.Times, err error) {
	for i, p := range []program{v.client, v.server} {
		if out[i], err = proc.TimesOf(p.cmd.Process.Pid); err != nil {
			return out, err
		}
	}
	return out, nil
}
