package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiwatch "k8s.io/apimachinery/pkg/watch"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

const (
	failOverLimit = 5 * time.Second
	manyAccounts  = 300
)

// Of two Citadels the one that leads is killed: the other writes Secrets within five seconds. It is killed again in the
// middle of hundreds of new accounts, of which each has its Secret in the end, written once. Then the two rotate the root.
func TestAnotherCitadelLeadsWithinFiveSeconds(t *testing.T) {
	proveFor(t, "leader", rotationLimit+5*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			if err := s.Scale(ctx, mesh.CitadelAccount, 1); err != nil {
				t.Error(err)
			}
		})
		if err := s.Scale(ctx, mesh.CitadelAccount, 2); err != nil {
			return "", err
		}
		first, err := leader(ctx)
		if err != nil {
			return "", err
		}
		killed := time.Now()
		if err := killLeader(ctx, first); err != nil {
			return "", err
		}
		if err := newAccount(ctx, s, "after-the-kill"); err != nil {
			return "", err
		}
		err = lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error { return s.SecretIsSound(ctx, s.Namespace, "after-the-kill") })
		took := time.Since(killed)
		if err == nil && took > failOverLimit {
			err = fmt.Errorf("a Secret was written %s after the Citadel that leads was killed, want %s at most", took, failOverLimit)
		}
		if err != nil {
			return "", err
		}
		if err := eachIsWrittenOnce(ctx, s); err != nil {
			return "", err
		}
		before, err := caStatus(ctx)
		if err != nil {
			return "", err
		}
		if err := startRotation(ctx); err != nil {
			return "", err
		}
		began := time.Now()
		if _, err := rotated(ctx, before); err != nil {
			return "", err
		}
		return fmt.Sprintf("a Secret %.1f s after the kill; %d accounts, each with its Secret, written once; a new root after %s",
			took.Seconds(), manyAccounts, time.Since(began).Round(time.Second)), nil
	})
}

// eachIsWrittenOnce makes many accounts, and kills the Citadel that leads when some of their Secrets are there.
func eachIsWrittenOnce(ctx context.Context, s *claims.Scene) error {
	secrets, err := s.CoreV1().Secrets(s.Namespace).Watch(ctx, metav1.ListOptions{FieldSelector: "type=" + mesh.SecretType})
	if err != nil {
		return err
	}
	defer secrets.Stop()
	made := make(chan error, 1)
	go func() {
		for i := range manyAccounts {
			if err := newAccount(ctx, s, fmt.Sprint("many-", i)); err != nil {
				made <- err
				return
			}
		}
		made <- nil
	}()
	versions := map[string]string{}
	for written := 0; written < manyAccounts; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d accounts have their Secret: %w", written, manyAccounts, ctx.Err())
		case err := <-made:
			if err != nil {
				return err
			}
			made = nil
		case event, open := <-secrets.ResultChan():
			secret, ok := event.Object.(*corev1.Secret)
			if !open || !ok {
				return errors.New("the watch of Secrets ended")
			}
			if !strings.HasPrefix(secret.Name, mesh.SecretPrefix+"many-") {
				continue
			}
			if before := versions[secret.Name]; event.Type != apiwatch.Added || before != "" {
				return fmt.Errorf("Secret %s was written again (%s)", secret.Name, event.Type)
			}
			versions[secret.Name] = secret.ResourceVersion
			if written++; written == manyAccounts/6 || written == manyAccounts/2 {
				now, err := leader(ctx)
				if err != nil {
					return err
				}
				if err := killLeader(ctx, now); err != nil {
					return err
				}
			}
		}
	}
	for name, version := range versions {
		secret, err := s.CoreV1().Secrets(s.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if secret.ResourceVersion != version {
			return fmt.Errorf("Secret %s was written again", name)
		}
		if err := s.SecretIsSound(ctx, s.Namespace, strings.TrimPrefix(name, mesh.SecretPrefix)); err != nil {
			return err
		}
	}
	return nil
}

func newAccount(ctx context.Context, s *claims.Scene, name string) error {
	_, err := s.CoreV1().ServiceAccounts(s.Namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

// leader returns the pod of the Citadel that leads.
func leader(ctx context.Context) (string, error) {
	var pod string
	return pod, lab.PollFor(ctx, 15*time.Second, func(ctx context.Context) error {
		lease, err := cluster.CoordinationV1().Leases(mesh.Namespace).Get(ctx, mesh.CitadelAccount, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
			return errors.New("no Citadel leads")
		}
		pod, _, _ = strings.Cut(*lease.Spec.HolderIdentity, "_")
		_, err = cluster.CoreV1().Pods(mesh.Namespace).Get(ctx, pod, metav1.GetOptions{})
		return err
	})
}

// killLeader gives it no chance to hand the Lease over, or, on a cluster whose nodes are elsewhere, hardly one.
func killLeader(ctx context.Context, name string) error {
	pods := cluster.CoreV1().Pods(mesh.Namespace)
	pod, err := pods.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := cluster.KillContainer(pod, "citadel"); !errors.Is(err, lab.ErrElsewhere) {
		return err
	}
	return pods.Delete(ctx, name, *metav1.NewDeleteOptions(0))
}
