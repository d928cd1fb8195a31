package issue

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/ca"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const (
	maxToken = 16 << 10
	// What the future may hold (nbf, iat) is the skew that the mesh bears; a token that has ended is given little more.
	tokenSkew   = ca.Backdate
	tokenLeeway = 10 * time.Second
)

// tokenAlgorithms are those of Kubernetes. A token of another, of none or of a shared secret is refused unread.
var tokenAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512}

// errUndecided says that the API server has to be asked.
var errUndecided = errors.New("token cannot be verified offline")

// Verifier authenticates service account tokens: by the API server's published keys, so that it works while the API
// server is away, and by asking it where those do not decide. Whether the pod of a token is still there is another
// question (Presence).
type Verifier struct {
	Keys     *Keys
	Reviewer *Reviewer
	Clock    clock.PassiveClock
}

// Verify returns whose token it is. Its errors are gRPC statuses: Unauthenticated if the token is no good, Unavailable if
// nobody can say, ResourceExhausted if the API server has been asked too often.
func (v *Verifier) Verify(ctx context.Context, token string) (Caller, error) {
	if len(token) > maxToken {
		return Caller{}, status.Errorf(codes.Unauthenticated, "token is longer than %d bytes", maxToken)
	}
	caller, err := v.offline(ctx, token)
	if errors.Is(err, errUndecided) {
		return v.Reviewer.Review(ctx, token)
	}
	return caller, err
}

// serviceAccountClaims are the claims of a bound token.
type serviceAccountClaims struct {
	jwt.Claims
	Kubernetes struct {
		Namespace      string    `json:"namespace"`
		ServiceAccount reference `json:"serviceaccount"`
		Pod            reference `json:"pod"`
		Node           reference `json:"node"`
	} `json:"kubernetes.io"`
}

type reference struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

func (v *Verifier) offline(ctx context.Context, token string) (Caller, error) {
	if strings.Count(token, ".") != 2 {
		return Caller{}, errUndecided // not a JWT
	}
	hash := sha256.Sum256([]byte(token))
	if c, ok := v.Keys.current().known(hash); ok {
		return c.caller(v.Clock.Now())
	}
	parsed, err := jwt.ParseSigned(token, tokenAlgorithms)
	if err != nil {
		return Caller{}, invalid("cannot be parsed: %v", err)
	}
	var claimed jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&claimed); err != nil {
		return Caller{}, invalid("has no claims: %v", err)
	}
	set, key, ok := v.Keys.find(ctx, claimed.Issuer, parsed.Headers[0].KeyID)
	if !ok {
		return Caller{}, errUndecided
	}
	if key.Algorithm != "" && key.Algorithm != parsed.Headers[0].Algorithm {
		return Caller{}, invalid("is signed with %s by a key for %s", parsed.Headers[0].Algorithm, key.Algorithm)
	}
	var c serviceAccountClaims
	if err := parsed.Claims(key.Key, &c); err != nil {
		return Caller{}, invalid("does not verify: %v", err)
	}
	set.verified.Add(hash, &c)
	return c.caller(v.Clock.Now())
}

// known returns the claims of a token that these keys have verified before.
func (s keySet) known(hash [32]byte) (*serviceAccountClaims, bool) {
	if s.verified == nil {
		return nil, false
	}
	c, ok := s.verified.Get(hash)
	if !ok {
		return nil, false
	}
	return c.(*serviceAccountClaims), true
}

// caller checks the claims of a token whose signature and issuer are good.
func (c *serviceAccountClaims) caller(now time.Time) (Caller, error) {
	k := c.Kubernetes
	switch {
	case !c.Audience.Contains(mesh.CitadelAudience):
		return Caller{}, invalid("is for the audiences %q, not %s", []string(c.Audience), mesh.CitadelAudience)
	case c.Expiry == nil:
		return Caller{}, invalid("has no end")
	case !now.Add(-tokenLeeway).Before(c.Expiry.Time()):
		return Caller{}, invalid("ended at %s", c.Expiry.Time().UTC().Format(time.RFC3339))
	case c.NotBefore != nil && now.Add(tokenSkew).Before(c.NotBefore.Time()), c.IssuedAt != nil && now.Add(tokenSkew).Before(c.IssuedAt.Time()):
		return Caller{}, invalid("is from the future; are the clocks right?")
	case k.Namespace == "" || k.ServiceAccount.Name == "" || k.ServiceAccount.UID == "":
		return Caller{}, invalid("names no service account")
	case c.Subject != "system:serviceaccount:"+k.Namespace+":"+k.ServiceAccount.Name:
		return Caller{}, invalid("is of the subject %q and of service account %s/%s", c.Subject, k.Namespace, k.ServiceAccount.Name)
	}
	return Caller{
		Namespace: k.Namespace, ServiceAccount: k.ServiceAccount.Name, AccountUID: k.ServiceAccount.UID,
		PodName: k.Pod.Name, PodUID: k.Pod.UID, NodeName: k.Node.Name,
	}, nil
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.Unauthenticated, "token "+format, args...)
}
