// Package identity keeps the X.509-SVID of each pod of the node: its key in memory, its certificate from Citadel by the
// pod's own bound token and the agent's.
package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// Facts are what kubelet says of a pod. Nothing in them comes from the pod itself.
type Facts struct {
	Namespace      string `json:"namespace"`
	Pod            string `json:"pod"`
	UID            string `json:"uid"`
	ServiceAccount string `json:"serviceAccount"`
}

// Issuer makes the identities of this node's pods.
type Issuer struct {
	Requester   *svid.Requester
	TrustDomain string
	TokenFile   string // the agent's own token
	TTL         time.Duration
	Clock       clock.Clock
	Log         *slog.Logger
}

// Identity is one pod's. It implements x509svid.Source.
type Identity struct {
	*svid.Rotator
	Facts Facts
	ID    spiffe.ID

	mu      sync.Mutex
	token   string
	expires time.Time
	changed chan struct{} // closed and replaced with each new SVID
}

// New returns the identity of a pod; it obtains its SVID when it is Run and has a token.
func (i *Issuer) New(f Facts) (*Identity, error) {
	id, err := spiffe.New(i.TrustDomain, f.Namespace, f.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", f.Namespace, f.Pod, err)
	}
	out := &Identity{Facts: f, ID: id, changed: make(chan struct{})}
	log := i.Log.With("pod", f.Namespace+"/"+f.Pod, "podUID", f.UID)
	out.Rotator = svid.NewRotator(func(ctx context.Context) (*x509svid.SVID, error) { return i.fetch(ctx, out) }, i.Clock, log, func(*x509svid.SVID) { out.announce() })
	return out, nil
}

// ErrNoToken is why a pod has no SVID shortly after the agent has started: kubelet has yet to hand the pod's token over.
var ErrNoToken = errors.New("no valid token of the pod yet; kubelet hands one over within two minutes")

func (i *Issuer) fetch(ctx context.Context, p *Identity) (*x509svid.SVID, error) {
	p.mu.Lock()
	token, expires := p.token, p.expires
	p.mu.Unlock()
	if token == "" || (!expires.IsZero() && !i.Clock.Now().Before(expires)) {
		return nil, ErrNoToken
	}
	own, err := svid.ReadToken(i.TokenFile)
	if err != nil {
		return nil, err
	}
	got, err := i.Requester.Request(ctx, svid.Tokens{Workload: token, Agent: own}, i.TTL, i.Clock.Now())
	if err != nil {
		return nil, err
	}
	if got.ID.String() != p.ID.String() {
		return nil, fmt.Errorf("Citadel answered a certificate for %s, the pod is %s", got.ID, p.ID)
	}
	return got, nil
}

// SetToken takes the pod's token, which kubelet renews.
func (p *Identity) SetToken(token string, expires time.Time) {
	p.mu.Lock()
	news := token != p.token
	p.token, p.expires = token, expires
	p.mu.Unlock()
	if news {
		p.Nudge()
	}
}

func (p *Identity) announce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

// Changed returns a channel that is closed when there is a new SVID. Take it before looking at the current one.
func (p *Identity) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}
