package nodexds

import (
	"context"
	"log/slog"
	"time"

	"github.com/cenkalti/backoff/v5"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
)

const (
	// MaxMessage bounds one message of Pilot: one resource may be as large.
	MaxMessage = 64 << 20
	longLived  = 10 * time.Second // a stream that lasted this long was a good one: the next retry is quick
	// reportEvery is the time in which what proxies take is gathered into one report.
	reportEvery = 20 * time.Millisecond
)

// RPC is the agent's side of the stream to Pilot.
type RPC interface {
	Send(*nodev1.Report) error
	Recv() (*nodev1.Update, error)
}

// Run keeps a stream to Pilot until ctx ends. Losing it changes nothing for proxies.
func (n *Node) Run(ctx context.Context, dial func(context.Context) (RPC, error), log *slog.Logger) {
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.Multiplier, retry.RandomizationFactor = 100*time.Millisecond, 5*time.Second, 2, 0.5
	for {
		began := n.clock.Now()
		err := n.follow(ctx, dial, log)
		if ctx.Err() != nil {
			return
		}
		if n.clock.Since(began) > longLived {
			retry.Reset()
		}
		wait := retry.NextBackOff()
		log.Warn("stream to Pilot ended; the proxies of the node keep their configuration", "error", err, "retryIn", wait.String())
		timer := n.clock.NewTimer(wait)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// follow is one stream. What comes is applied as it comes, whether or not Pilot takes what is said meanwhile.
func (n *Node) follow(ctx context.Context, dial func(context.Context) (RPC, error), log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rpc, err := dial(ctx)
	if err != nil {
		return err
	}
	d, opening := n.open()
	failed, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		failed <- d.receive(rpc, log)
	}()
	defer n.leave()
	defer func() { <-done }() // nothing is applied any more
	defer cancel()
	return d.speak(rpc, opening, failed)
}

func (d *dialogue) receive(rpc RPC, log *slog.Logger) error {
	for {
		update, err := rpc.Recv()
		for _, w := range update.GetWords() {
			if w.GetRefused() != "" {
				log.Warn("Pilot has no configuration for a pod", "pod", d.node.nameOf(w.GetUid()), "uid", w.GetUid(), "reason", w.GetRefused())
			}
		}
		if err == nil {
			err = d.take(update)
		}
		if err != nil {
			return err
		}
	}
}

// speak says what there is to say until the stream ends, and returns why it did.
func (d *dialogue) speak(rpc RPC, opening []*nodev1.Report, failed <-chan error) error {
	for _, report := range opening {
		if rpc.Send(report) != nil {
			return <-failed // which knows why
		}
	}
	gathered := d.node.clock.NewTimer(reportEvery)
	defer gathered.Stop()
	for gathers := true; ; {
		var report *nodev1.Report
		select {
		case err := <-failed:
			return err
		case <-d.node.urgent:
			report = d.news()
		case <-d.node.moved:
			if !gathers {
				gathered.Reset(reportEvery)
				gathers = true
			}
		case <-gathered.C():
			gathers = false
			report = d.progress()
		}
		if report != nil && rpc.Send(report) != nil {
			return <-failed
		}
	}
}
