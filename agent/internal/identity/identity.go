// Package identity keeps the X.509-SVID of each pod of the node: its key in memory, its certificate from Citadel by the
// pod's own bound token and the agent's. It also knows what the pod's clients have taken.
package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
	Bundle      *svid.Bundle // says who signs
	TrustDomain string
	TokenFile   string // the agent's own token
	TTL         time.Duration
	Clock       clock.Clock
	Metrics     *Metrics
	Log         *slog.Logger
}

// Identity is one pod's. It implements x509svid.Source.
type Identity struct {
	*svid.Rotator
	Facts  Facts
	ID     spiffe.ID
	issuer *Issuer

	mu      sync.Mutex
	token   string
	expires time.Time
	changed chan struct{} // closed and replaced with each new SVID
	clients map[*Client]bool

	served   bool      // there has been an SVID
	restored time.Time // when this agent took the pod over from an earlier one; zero if it did not
}

// New returns the identity of a pod; it obtains its SVID when it is Run and has a token.
func (i *Issuer) New(f Facts) (*Identity, error) {
	id, err := spiffe.New(i.TrustDomain, f.Namespace, f.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", f.Namespace, f.Pod, err)
	}
	out := &Identity{Facts: f, ID: id, issuer: i, changed: make(chan struct{}), clients: map[*Client]bool{}}
	log := i.Log.With("pod", f.Namespace+"/"+f.Pod, "podUID", f.UID)
	born := i.Clock.Now()
	out.Rotator = svid.NewRotator(func(ctx context.Context) (*x509svid.SVID, error) {
		got, err := i.fetch(ctx, out)
		if err != nil && ctx.Err() == nil {
			i.Metrics.Failures.WithLabelValues(Code(err)).Inc()
		}
		return got, err
	}, i.Clock, log, func(*x509svid.SVID) {
		if out.announce() {
			i.Metrics.First.Observe(i.Clock.Now().Sub(born).Seconds())
		}
	})
	out.Follow(i.Bundle)
	return out, nil
}

// Code names why a certificate cannot be had: the code of gRPC, or NoToken.
func Code(err error) string {
	if errors.Is(err, svid.ErrNoToken) {
		return "NoToken"
	}
	if c := status.Code(err); c != codes.OK {
		return c.String()
	}
	return codes.Unknown.String()
}

func (i *Issuer) fetch(ctx context.Context, p *Identity) (*x509svid.SVID, error) {
	current, _ := p.GetX509SVID() // nil before the first
	got, err := i.Requester.Obtain(ctx, p.tokens(), current, i.TTL, i.Clock.Now())
	if errors.Is(err, svid.ErrNoToken) {
		return nil, fmt.Errorf("%w of the pod or of the agent yet; kubelet hands one over within two minutes", err)
	}
	if err != nil {
		return nil, err
	}
	i.compareClocks(got, p)
	if got.ID.String() != p.ID.String() {
		return nil, fmt.Errorf("Citadel answered a certificate for %s, the pod is %s", got.ID, p.ID)
	}
	return got, nil
}

// tokens are the pod's and the agent's, good until the first of them ends; none if one is missing.
func (p *Identity) tokens() svid.Tokens {
	own, err := svid.ReadToken(p.issuer.TokenFile)
	if err != nil {
		p.issuer.Log.Debug("the agent's own token", "error", err)
		return svid.Tokens{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := svid.Tokens{Workload: p.token, Expires: p.expires, Agent: own}
	if end := svid.TokenExpiry(own); !end.IsZero() && (out.Expires.IsZero() || end.Before(out.Expires)) {
		out.Expires = end
	}
	return out
}

// JWT returns a new JWT-SVID of the pod from Citadel.
func (p *Identity) JWT(ctx context.Context, audience []string) (string, error) {
	current, _ := p.GetX509SVID() // nil before the first
	return p.issuer.Requester.JWT(ctx, p.tokens(), current, audience, p.issuer.Clock.Now())
}

// HasToken says whether the pod's token is known.
func (p *Identity) HasToken() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.token != ""
}

// SetToken takes the pod's token, which kubelet renews, and says whether it is another than before.
func (p *Identity) SetToken(token string, expires time.Time) (news bool) {
	p.mu.Lock()
	news = token != p.token
	p.token, p.expires = token, expires
	p.mu.Unlock()
	if !news {
		return false
	}
	if st := p.Status(); st.State == svid.Pending && errors.Is(st.LastError, svid.ErrNoToken) {
		p.Nudge(0) // a pod waits for its first SVID, and the token was what it lacked
	} else {
		p.Nudge(tokenSpread)
	}
	return true
}

// tokenSpread is the time over which an agent whose pods have got new tokens asks again.
const tokenSpread = 10 * time.Second

// String names the pod. It keeps key and token out of whatever prints an Identity.
func (p *Identity) String() string { return p.Facts.Namespace + "/" + p.Facts.Pod }

// GoString does for %#v what String does.
func (p *Identity) GoString() string { return p.String() }

// announce says that there is a new SVID, and reports whether it is the first of a pod that is new on the node.
func (p *Identity) announce() (first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
	first, p.served = !p.served && p.restored.IsZero(), true
	return first
}

// Changed returns a channel that is closed when there is a new SVID. Take it before looking at the current one.
func (p *Identity) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}
