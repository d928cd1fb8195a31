package run

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/citadel/internal/holdings"
	identityv1 "github.com/bulwark-mesh/bulwark/pkg/api/identity/v1"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

type isLeading = atomic.Bool

// roots is the keeper's trust bundle as Citadel itself verifies by it.
type roots struct {
	keeper *ca.Keeper
	td     spiffeid.TrustDomain
}

func newRoots(keeper *ca.Keeper, trustDomain string) (roots, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return roots{}, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	return roots{keeper, td}, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (r roots) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != r.td {
		return nil, fmt.Errorf("no bundle for trust domain %q", td.Name())
	}
	return x509bundle.FromX509Authorities(td, r.keeper.Current().Roots), nil
}

// peer is this replica among the others: it renews its own certificate when the signer changes, and tells the leader
// what it holds, so that no root is retired by which another replica still signs.
type peer struct {
	keeper   *ca.Keeper
	self     *self
	holdings *holdings.Server
	leading  *isLeading
	conn     *grpc.ClientConn
	log      *slog.Logger
}

func newPeer(trust roots, own *self, h *holdings.Server, leading *isLeading, log *slog.Logger) (*peer, error) {
	citadel, err := spiffe.New(trust.td.Name(), mesh.Namespace, mesh.CitadelAccount)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(svid.DefaultLeader, mtls.DialOptions(mtls.Client(own, trust, mtls.OneOf(citadel)))...)
	if err != nil {
		return nil, fmt.Errorf("address of the leader: %w", err)
	}
	return &peer{keeper: trust.keeper, self: own, holdings: h, leading: leading, conn: conn, log: log}, nil
}

// run tells until ctx ends.
func (p *peer) run(ctx context.Context) error {
	defer p.conn.Close()
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval, retry.RandomizationFactor = 200*time.Millisecond, 5*time.Second, 0.5
	for ctx.Err() == nil {
		began := time.Now()
		if p.leading.Load() {
			p.tellItself(ctx)
		} else if err := p.tellLeader(ctx); ctx.Err() == nil {
			p.log.Debug("telling the leader what this replica holds", "error", err)
		}
		if time.Since(began) > time.Minute {
			retry.Reset()
		}
		pause(ctx, retry.NextBackOff())
	}
	return nil
}

const tellEvery = time.Second // and at once when the keeper changes

// tellItself notes what this replica holds for as long as it leads.
func (p *peer) tellItself(ctx context.Context) {
	for ctx.Err() == nil && p.leading.Load() {
		changed := p.keeper.Changed()
		p.holdings.Note(p.holding())
		p.wait(ctx, changed)
	}
}

func (p *peer) tellLeader(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := identityv1.NewTrustBundlesClient(p.conn).Watch(ctx)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { // ends with the stream; what it says is in the CA Secret too
		for {
			if _, err := stream.Recv(); err != nil {
				failed <- err
				cancel()
				return
			}
		}
	}()
	for !p.leading.Load() {
		changed := p.keeper.Changed()
		if err := stream.Send(p.holding()); err != nil {
			return <-failed
		}
		p.wait(ctx, changed)
		if ctx.Err() != nil {
			return <-failed
		}
	}
	return nil
}

func (p *peer) wait(ctx context.Context, changed <-chan struct{}) {
	timer := time.NewTimer(tellEvery)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// holding is what this replica holds. Its certificate is made anew if an earlier key has signed it.
func (p *peer) holding() *identityv1.Holding {
	state := p.keeper.Current()
	h := &identityv1.Holding{Component: "citadel", Pod: podName(), Node: os.Getenv("NODE_NAME"), Sequence: state.Sequence, ProxiesSequence: state.Sequence, Issuers: map[string]uint32{}}
	if own, err := p.self.GetX509SVID(); err == nil {
		h.Issuers[hex.EncodeToString(own.Certificates[0].AuthorityKeyId)]++
		if !state.Signer.Signed(own.Certificates[0]) {
			p.self.Renew()
		}
	}
	return h
}

// podName is the name of this replica's pod, which is also its host name.
func podName() string {
	if name := os.Getenv("POD_NAME"); name != "" {
		return name
	}
	host, _ := os.Hostname()
	return host
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
