package issue

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/citadel/internal/podwatch"
)

const lookupTimeout = 5 * time.Second

// Presence knows whether a caller's pod and service account are still those of its token or certificate. The watch
// answers, also while the API server is away. What it has not seen may be new: then the API server is asked, and if it
// cannot say, nobody gets anything.
type Presence struct {
	Watch *podwatch.Watch
	Live  typedcorev1.CoreV1Interface
	Clock clock.PassiveClock
}

// Check returns nil if the caller is there, else a gRPC status: PermissionDenied, or Unavailable if nobody can say.
func (p *Presence) Check(ctx context.Context, c Caller) error {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	pod, err := p.pod(ctx, c)
	if err != nil {
		return err
	}
	if err := judge(pod, c, p.Clock.Now()); err != nil {
		return err
	}
	return p.account(ctx, c)
}

func (p *Presence) pod(ctx context.Context, c Caller) (podwatch.Pod, error) {
	if pod, ok := p.Watch.Get(c.Namespace, c.PodName); ok && pod.UID == c.PodUID && pod.Node != "" {
		return pod, nil
	}
	live, err := p.Live.Pods(c.Namespace).Get(ctx, c.PodName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return podwatch.Pod{}, status.Errorf(codes.PermissionDenied, "pod %s/%s does not exist", c.Namespace, c.PodName)
	case err != nil:
		return podwatch.Pod{}, status.Errorf(codes.Unavailable, "looking up pod %s/%s: %v", c.Namespace, c.PodName, err)
	}
	return podwatch.Of(live), nil
}

// judge decides by what is known of the pod of the caller's name.
func judge(pod podwatch.Pod, c Caller, now time.Time) error {
	refuse := func(format string, args ...any) error { return status.Errorf(codes.PermissionDenied, format, args...) }
	switch {
	case pod.UID != c.PodUID:
		return refuse("pod %s/%s was replaced by another of its name", c.Namespace, c.PodName)
	case pod.Node != c.NodeName:
		return refuse("pod %s/%s is bound to node %s, the caller to %s", c.Namespace, c.PodName, pod.Node, c.NodeName)
	case pod.ServiceAccount != c.ServiceAccount:
		return refuse("pod %s/%s runs as %s, the caller is %s", c.Namespace, c.PodName, pod.ServiceAccount, c.ServiceAccount)
	case pod.Ended:
		return refuse("pod %s/%s has ended", c.Namespace, c.PodName)
	case !pod.DeletedAt.IsZero() && now.After(pod.DeletedAt):
		// Until then it drains, for which it may need a certificate.
		return refuse("pod %s/%s was deleted, and its grace is over", c.Namespace, c.PodName)
	}
	return nil
}

func (p *Presence) account(ctx context.Context, c Caller) error {
	same := func(uid string) bool { return c.AccountUID == "" || uid == c.AccountUID }
	if uid, ok := p.Watch.Account(c.Namespace, c.ServiceAccount); ok && same(uid) {
		return nil
	}
	live, err := p.Live.ServiceAccounts(c.Namespace).Get(ctx, c.ServiceAccount, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return status.Errorf(codes.PermissionDenied, "service account %s/%s does not exist", c.Namespace, c.ServiceAccount)
	case err != nil:
		return status.Errorf(codes.Unavailable, "looking up service account %s/%s: %v", c.Namespace, c.ServiceAccount, err)
	case !same(string(live.UID)):
		return status.Errorf(codes.PermissionDenied, "service account %s/%s was replaced by another of its name", c.Namespace, c.ServiceAccount)
	}
	return nil
}
