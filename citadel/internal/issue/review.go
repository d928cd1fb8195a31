package issue

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"sync"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedauthv1 "k8s.io/client-go/kubernetes/typed/authentication/v1"
	"k8s.io/utils/clock"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

const (
	reviewTimeout = 5 * time.Second
	// A review is believed for this long, so that an agent which starts fifty pods does not have its own token reviewed
	// fifty times. What may change faster, whether a pod still exists, is looked up at each call.
	reviewFor   = 2 * time.Second
	reviewsKept = 4096
)

// Reviewer authenticates tokens by TokenReview, which is for those that cannot be verified offline.
type Reviewer struct {
	reviews typedauthv1.TokenReviewInterface
	budget  *budget
	clock   clock.PassiveClock

	mu   sync.Mutex
	seen map[[32]byte]review
}

type review struct {
	caller Caller
	until  time.Time
}

// NewReviewer returns a reviewer that asks the API server.
func NewReviewer(reviews typedauthv1.TokenReviewInterface, c clock.PassiveClock) *Reviewer {
	return &Reviewer{reviews: reviews, budget: newBudget(), clock: c, seen: map[[32]byte]review{}}
}

// Review returns whose token it is. Its errors are gRPC statuses: Unauthenticated if the token is no good, Unavailable
// if the API server cannot say, ResourceExhausted if the caller's address has asked too often.
func (r *Reviewer) Review(ctx context.Context, token string) (Caller, error) {
	key := sha256.Sum256([]byte(token))
	now := r.clock.Now()
	r.mu.Lock()
	known, ok := r.seen[key]
	r.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.caller, nil
	}
	_, from := callerAddress(ctx)
	if err := r.budget.take(from, now); err != nil {
		return Caller{}, err
	}
	caller, err := r.ask(ctx, token)
	if err != nil {
		return Caller{}, err
	}
	until := now.Add(reviewFor)
	if exp := svid.TokenExpiry(token); !exp.IsZero() && exp.Before(until) {
		until = exp
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) >= reviewsKept {
		clear(r.seen)
	}
	r.seen[key] = review{caller, until}
	return caller, nil
}

func (r *Reviewer) ask(ctx context.Context, token string) (Caller, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	got, err := r.reviews.Create(ctx, &authv1.TokenReview{
		Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{mesh.CitadelAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return Caller{}, status.Errorf(codes.Unavailable, "the API server cannot review the token: %v", err)
	}
	st := got.Status
	if !st.Authenticated {
		return Caller{}, status.Errorf(codes.Unauthenticated, "token is not valid for the audience %s: %s", mesh.CitadelAudience, st.Error)
	}
	// An API server that knows nothing of audiences would accept a token for any.
	if !slices.Contains(st.Audiences, mesh.CitadelAudience) {
		return Caller{}, status.Errorf(codes.Unauthenticated, "token is for the audiences %v, not %s", st.Audiences, mesh.CitadelAudience)
	}
	return callerOf(st.User)
}

func callerOf(user authv1.UserInfo) (Caller, error) {
	parts := strings.Split(user.Username, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return Caller{}, status.Errorf(codes.Unauthenticated, "token belongs to %q, which is no service account", user.Username)
	}
	extra := func(key string) string {
		if v := user.Extra["authentication.kubernetes.io/"+key]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	return Caller{
		Namespace: parts[2], ServiceAccount: parts[3], AccountUID: user.UID,
		PodName: extra("pod-name"), PodUID: extra("pod-uid"), NodeName: extra("node-name"),
	}, nil
}
