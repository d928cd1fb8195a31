package svid

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// DefaultLeader is the address of the Citadel that holds the Lease, inside a cluster.
var DefaultLeader = fmt.Sprintf("%s:%d", mesh.ServiceHost(mesh.CitadelLeader), mesh.CSRPort)

const (
	maxBundleMessage = maxDocument + 64<<10
	firstMessage     = 30 * time.Second // a Citadel that leads sends the bundle at once
	reportEvery      = time.Second      // a report that says nothing new is not sent
	goodStream       = 10 * time.Second // one that lasted so long is opened again soon
	longestSpread    = 24 * time.Hour   // of renewals, whatever Citadel says
)

// Follower keeps a stream to the Citadel that leads: down it come the trust bundle and who signs, up goes what this
// component holds.
type Follower struct {
	leader  string
	citadel spiffe.ID
	own     *Rotator
	bundle  *Bundle
	fill    func(*identityv1.Holding) // may be nil
	clock   clock.Clock
	log     *slog.Logger
}

// NewFollower returns a follower that shows its own SVID and feeds the bundle.
func NewFollower(leader, trustDomain string, own *Rotator, b *Bundle, c clock.Clock, log *slog.Logger) (*Follower, error) {
	citadel, err := spiffe.New(trustDomain, mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	return &Follower{leader: leader, citadel: citadel, own: own, bundle: b, clock: c, log: log}, nil
}

// Run keeps the stream until ctx ends. There must be an SVID. While there is no stream the bundle stays as it is.
func (f *Follower) Run(ctx context.Context) {
	retry := retries(firstRetry, longestRetry)
	said := ""
	for {
		began := f.clock.Now()
		err := f.stream(ctx)
		f.bundle.hungUp()
		if ctx.Err() != nil {
			return
		}
		if f.clock.Since(began) > goodStream {
			retry.Reset()
			said = ""
		}
		wait := retry.NextBackOff()
		level := slog.LevelDebug
		if code := codeOf(err); code != said {
			level, said = slog.LevelWarn, code
		}
		f.log.Log(ctx, level, "no stream of trust bundles; keeping the last one", "error", err, "retryIn", wait.String())
		timer := f.clock.NewTimer(wait)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// stream speaks with Citadel until it fails.
func (f *Follower) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A connection of its own for each stream: another Citadel may lead by now, and the old connection would go on to
	// end at the one that does not. It also leaves the time of connecting to the schedule of Run.
	conn, err := grpc.NewClient(f.leader, append(mtls.DialOptions(mtls.Client(f.own, f.bundle, mtls.OneOf(f.citadel))),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxBundleMessage)))...)
	if err != nil {
		return fmt.Errorf("address of the leading Citadel %q: %w", f.leader, err)
	}
	defer conn.Close()
	rpc, err := identityv1.NewTrustBundlesClient(conn).Watch(ctx)
	if err != nil {
		return fmt.Errorf("opening the stream: %w", err)
	}
	messages, failed, done := make(chan *identityv1.Bundle), make(chan error, 1), make(chan struct{})
	go func() { // ends with ctx
		defer close(done)
		for {
			m, err := rpc.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { <-done }()
	defer cancel()
	return f.converse(ctx, rpc, messages, failed)
}

func (f *Follower) converse(ctx context.Context, rpc identityv1.TrustBundles_WatchClient, messages <-chan *identityv1.Bundle, failed <-chan error) error {
	tooLong := f.clock.NewTimer(firstMessage)
	defer tooLong.Stop()
	var last *identityv1.Holding
	heard := false
	for {
		if now := f.holding(); !proto.Equal(now, last) {
			if err := rpc.Send(now); err != nil {
				return reason(messages, failed)
			}
			last = now
		}
		report := f.clock.NewTimer(reportEvery)
		select {
		case m := <-messages:
			err := f.bundle.hear(m.GetDocument(), m.GetIssuer(), min(max(m.GetRenewWithin().AsDuration(), 0), longestSpread), !heard)
			if err != nil {
				f.log.Error("a trust bundle of Citadel is refused; keeping the last good one", "error", err)
				break
			}
			heard = true
			tooLong.Stop()
		case <-report.C():
		case err := <-failed:
			report.Stop()
			return err
		case <-tooLong.C():
			report.Stop()
			return fmt.Errorf("no bundle within %s", firstMessage)
		}
		report.Stop()
	}
}

// reason is why a stream has ended on which nothing can be sent: receiving says it.
func reason(messages <-chan *identityv1.Bundle, failed <-chan error) error {
	for {
		select {
		case <-messages:
		case err := <-failed:
			return err
		}
	}
}

// holding is what this component holds.
func (f *Follower) holding() *identityv1.Holding {
	h := &identityv1.Holding{Pod: ownPod(), Node: os.Getenv("NODE_NAME"), Issuers: map[string]uint32{}}
	if trust, _, err := f.bundle.Current(); err == nil {
		h.Sequence, h.ProxiesSequence = trust.Sequence, trust.Sequence
	}
	if own, err := f.own.GetX509SVID(); err == nil {
		h.Issuers[hex.EncodeToString(own.Certificates[0].AuthorityKeyId)]++
		id, _ := spiffe.Parse(own.ID.String())
		h.Component = strings.TrimPrefix(id.ServiceAccount, "bulwark-")
	}
	if f.fill != nil {
		f.fill(h)
	}
	return h
}

func ownPod() string {
	host, _ := os.Hostname() // a pod's is its name
	return cmp.Or(os.Getenv("POD_NAME"), host)
}
