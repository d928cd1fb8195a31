package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/grpc"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

const (
	batchEvents = 500
	// window bounds what is sent and not acknowledged, so that a Mixer that is slow is not given more to hold.
	window       = 4000
	ackWithin    = time.Minute // a stream without acknowledgements for this long is given up
	checkStalled = 5 * time.Second
)

// Sender delivers a spool to Mixer.
type Sender struct {
	Spool *Spool
	Conn  grpc.ClientConnInterface
	Log   *slog.Logger
}

// Run delivers, in order, until ctx ends; it also syncs the spool.
func (s *Sender) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.syncLoop(ctx) })
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.Multiplier, retry.RandomizationFactor = 100*time.Millisecond, 2*time.Second, 2, 0.5
	for {
		acked, err := s.deliver(ctx)
		if ctx.Err() != nil {
			return
		}
		if acked {
			retry.Reset()
		}
		wait := retry.NextBackOff()
		s.Log.Warn("delivery to Mixer interrupted; events stay in the spool", "error", err, "unacknowledged", s.Spool.Stats().Unacked, "retryIn", wait.String())
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (s *Sender) syncLoop(ctx context.Context) {
	ticker := time.NewTicker(SyncEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := s.Spool.Sync(); err != nil {
				s.Log.Error("spool not synced; its events are not sent", "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// deliver sends on one stream, from the first event that is not acknowledged. It reports whether any was.
func (s *Sender) deliver(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := telemetryv1.NewIntakeClient(s.Conn).Events(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	acks, failed, done := make(chan uint64), make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		for {
			ack, err := stream.Recv()
			if err == nil && ack.GetSpool() != s.Spool.ID() {
				err = fmt.Errorf("acknowledgement is for spool %q", ack.GetSpool())
			}
			if err != nil {
				failed <- err
				return
			}
			select {
			case acks <- ack.GetSequence():
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { <-done }()
	defer cancel()
	d := delivery{Sender: s, stream: stream, reader: newReader(s.Spool)}
	defer d.reader.close()
	return d.loop(ctx, acks, failed)
}

type delivery struct {
	*Sender
	stream  grpc.BidiStreamingClient[telemetryv1.EventBatch, telemetryv1.Acknowledgement]
	reader  *reader
	sent    []uint64 // last sequence of each batch that is not acknowledged, in order
	flight  int      // events in them
	sizes   []int
	lastAck time.Time
	acked   bool
}

func (d *delivery) loop(ctx context.Context, acks <-chan uint64, failed <-chan error) (bool, error) {
	stalled := time.NewTicker(checkStalled)
	defer stalled.Stop()
	d.lastAck = time.Now()
	for {
		if err := d.fill(); err != nil {
			return d.acked, err
		}
		select {
		case <-d.Spool.wake:
		case sequence := <-acks:
			if err := d.take(sequence); err != nil {
				return d.acked, err
			}
		case <-stalled.C:
			if len(d.sent) > 0 && time.Since(d.lastAck) > ackWithin {
				return d.acked, errors.New("Mixer acknowledges nothing")
			}
		case err := <-failed:
			return d.acked, err
		case <-ctx.Done():
			return d.acked, ctx.Err()
		}
	}
}

// fill sends what there is, as far as the window allows.
func (d *delivery) fill() error {
	for d.flight < window {
		events, err := d.reader.read(batchEvents)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			return nil
		}
		if len(d.sent) == 0 {
			d.lastAck = time.Now() // from now on one is due
		}
		if err := d.stream.Send(&telemetryv1.EventBatch{Spool: d.Spool.ID(), Events: events}); err != nil {
			return err
		}
		d.sent, d.sizes = append(d.sent, events[len(events)-1].GetSequence()), append(d.sizes, len(events))
		d.flight += len(events)
	}
	return nil
}

func (d *delivery) take(sequence uint64) error {
	d.lastAck, d.acked = time.Now(), true
	for len(d.sent) > 0 && d.sent[0] <= sequence {
		d.flight -= d.sizes[0]
		d.sent, d.sizes = d.sent[1:], d.sizes[1:]
	}
	return d.Spool.Ack(sequence)
}

func (s *Spool) firstUnacked() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked + 1
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
