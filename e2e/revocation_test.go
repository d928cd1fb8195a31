package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/util/retry"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// enforcedWithin is how long a revocation may take from the API server to the verdict of a request.
const enforcedWithin = time.Second

func revokedIsDenied(ctx context.Context, s *claims.Scene) (string, error) {
	one, two, err := twoAuditors(ctx, s)
	if err != nil {
		return "", err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = changeRevocations(ctx, func(list revocation.List) revocation.List { return others(list, s.ID("account-auditor")) })
	}()
	identity, err := identityIsRevoked(ctx, s)
	if err != nil {
		return "", fmt.Errorf("an identity that is revoked: %w", err)
	}
	if one, err = anew(ctx, s, one, two); err != nil {
		return "", err
	}
	certificate, err := certificateIsRevoked(ctx, s, one, two)
	if err != nil {
		return "", fmt.Errorf("a certificate that is revoked: %w", err)
	}
	return identity + "; " + certificate, nil
}

// twoAuditors scales the auditor to two pods and returns them.
func twoAuditors(ctx context.Context, s *claims.Scene) (one, two *corev1.Pod, err error) {
	deployments := s.AppsV1().Deployments(s.Namespace)
	scale, err := deployments.GetScale(ctx, "account-auditor", metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	scale.Spec.Replicas = 2
	if _, err := deployments.UpdateScale(ctx, "account-auditor", scale, metav1.UpdateOptions{}); err != nil {
		return nil, nil, err
	}
	if err := s.Ready(ctx, s.Namespace, time.Minute); err != nil {
		return nil, nil, err
	}
	pods, err := s.CoreV1().Pods(s.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=account-auditor"})
	if err != nil {
		return nil, nil, err
	}
	if len(pods.Items) != 2 {
		return nil, nil, fmt.Errorf("the auditor has %d pods, want 2", len(pods.Items))
	}
	return &pods.Items[0], &pods.Items[1], nil
}

// anew replaces the one of two pods, and returns the new one. It has no connections from before, which its proxy has made with another
// certificate than the one that it holds now.
func anew(ctx context.Context, s *claims.Scene, one, two *corev1.Pod) (*corev1.Pod, error) {
	if err := s.CoreV1().Pods(s.Namespace).Delete(ctx, one.Name, metav1.DeleteOptions{}); err != nil {
		return nil, err
	}
	var found *corev1.Pod
	err := lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		pods, err := s.CoreV1().Pods(s.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=account-auditor"})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.Name != one.Name && p.Name != two.Name {
				found = &p
			}
		}
		if found == nil {
			return errors.New("the auditor's new pod is not there")
		}
		return s.Ready(ctx, s.Namespace, time.Minute)
	})
	return found, err
}

// identityIsRevoked revokes the auditor's identity: first in the list itself, so that the time until it is enforced is that
// and nothing else, then as an operator does.
func identityIsRevoked(ctx context.Context, s *claims.Scene) (string, error) {
	const auditor = "account-auditor"
	began := time.Now()
	r := revocation.Revocation{Name: s.Namespace + "-identity", Identity: s.ID(auditor), Reason: "a test", Created: began, Expires: began.Add(time.Hour)}
	denied, err := s.Enforced(ctx, auditor, "200", "403", func() error {
		return changeRevocations(ctx, func(list revocation.List) revocation.List { return append(list, r) })
	})
	if err != nil {
		return "", fmt.Errorf("over a kept connection: %w", err)
	}
	tcp, err := lab.ExecJSON[sample.TCPResult](ctx, s.Lab, s.Namespace, auditor, "client", "sample", "tcp", "payroll."+s.Namespace+":9000")
	if err != nil {
		return "", err
	}
	if tcp.Answer != "" {
		return "", fmt.Errorf("a new TCP connection was answered: %+v", tcp)
	}
	err = s.Audited(ctx, began, "destination", func(e *claims.Event) bool {
		return e.SourceIdentity == s.ID(auditor) && e.Verdict == "VERDICT_DENIED" && e.ResponseCode == 403 && strings.HasPrefix(e.Policy, "bulwark[revoked]-"+r.Name)
	})
	if err != nil {
		return "", fmt.Errorf("audit event that names the revocation: %w", err)
	}
	_, err = s.Enforced(ctx, auditor, "403", "200", func() error {
		_, err := s.Meshctl(ctx, "identity", "restore", r.Name)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("restored: %w", err)
	}
	again, err := s.Enforced(ctx, auditor, "200", "403", func() error {
		r.Name += "-again"
		return changeRevocations(ctx, func(list revocation.List) revocation.List { return append(list, r) })
	}, "--new-connections")
	if err != nil {
		return "", fmt.Errorf("over new connections: %w", err)
	}
	if _, err := s.Meshctl(ctx, "identity", "restore", r.Name); err != nil {
		return "", err
	}
	if denied > enforcedWithin || again > enforcedWithin {
		return "", fmt.Errorf("denied after %s and %s", denied, again)
	}
	late, err := revocationEnds(ctx, s)
	if err != nil {
		return "", fmt.Errorf("with an end: %w", err)
	}
	return fmt.Sprintf("an identity is denied %d ms (kept connections) and %d ms (new ones) after it is on the list, and served %d ms after a revocation's end",
		denied.Milliseconds(), again.Milliseconds(), late.Milliseconds()), nil
}

// revocationEnds revokes for some seconds, and returns how long after that the auditor is served again.
func revocationEnds(ctx context.Context, s *claims.Scene) (time.Duration, error) {
	const auditor = "account-auditor"
	var r revocation.Revocation
	_, err := s.Enforced(ctx, auditor, "200", "403", func() error {
		var err error
		r, err = revoke(ctx, s, s.Namespace+"/"+auditor, "--for=5s")
		return err
	})
	if err != nil {
		return 0, err
	}
	if _, err := s.Enforced(ctx, auditor, "403", "200", func() error { return nil }, "--new-connections"); err != nil {
		return 0, err
	}
	late := time.Since(r.Expires)
	if r.Serial != "" || r.Identity != s.ID(auditor) || late < 0 || late > 3*time.Second {
		return 0, fmt.Errorf("%+v was in force until %s after its end", r, late)
	}
	return late, nil
}

// revoke revokes as an operator does, and returns what is on the list then.
func revoke(ctx context.Context, s *claims.Scene, args ...string) (revocation.Revocation, error) {
	began := time.Now().Add(-time.Second)
	if _, err := s.Meshctl(ctx, append([]string{"identity", "revoke", "--reason=a test"}, args...)...); err != nil {
		return revocation.Revocation{}, err
	}
	out, err := s.Meshctl(ctx, "identity", "revocations", "-o", "json")
	if err != nil {
		return revocation.Revocation{}, err
	}
	var list revocation.List
	if err := json.Unmarshal(out, &list); err != nil {
		return revocation.Revocation{}, fmt.Errorf("revocations %q: %w", out, err)
	}
	for _, r := range list {
		if r.Identity == s.ID("account-auditor") && r.Created.After(began) && r.Reason == "a test" && r.By != "" {
			return r, nil
		}
	}
	return revocation.Revocation{}, fmt.Errorf("not on the list: %s", out)
}

// certificateIsRevoked revokes the certificate of one pod: that one is denied and gets no other, the other goes on.
func certificateIsRevoked(ctx context.Context, s *claims.Scene, one, two *corev1.Pod) (string, error) {
	began := time.Now()
	held := func(ctx context.Context) (claims.Held, error) {
		var h claims.Held
		out, err := s.Meshctl(ctx, "identity", "-n", s.Namespace, one.Name, "-o", "json")
		if err != nil {
			return h, err
		}
		return h, json.Unmarshal(out, &h)
	}
	// Not while it is being replaced: which of the two is revoked would be a matter of luck.
	err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		h, err := held(ctx)
		if left := time.Until(h.NotAfter); err == nil && left < soonest {
			err = fmt.Errorf("the certificate has %s left", left)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	r, err := revoke(ctx, s, "-n", s.Namespace, one.Name)
	if err != nil {
		return "", err
	}
	if r.Serial == "" || r.PodUID != string(one.UID) {
		return "", fmt.Errorf("revoked is %+v, want the certificate of pod %s", r, one.Name)
	}
	get := func(pod *corev1.Pod) (sample.Response, error) {
		return lab.ExecInJSON[sample.Response](ctx, s.Lab, pod, "client", "sample", "get", s.URL("/accounts/42"))
	}
	err = lab.PollFor(ctx, 5*time.Second, func(context.Context) error {
		got, err := get(one)
		if err == nil && got.Status != 403 {
			err = fmt.Errorf("the pod got %+v, want 403", got)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	if got, err := get(two); err != nil || got.Status != 200 {
		return "", fmt.Errorf("the other pod got %+v, %v, want 200", got, err)
	}
	err = lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		h, err := held(ctx)
		if err != nil {
			return err
		}
		if h.Serial != r.Serial {
			return lab.Stop(fmt.Errorf("the pod has another certificate: %+v", h))
		}
		if !strings.Contains(h.LastError, "revoked") {
			return fmt.Errorf("its renewal is not refused: %+v", h)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if err := refusalIsAudited(ctx, s, began, one); err != nil {
		return "", err
	}
	if err := failureIsTold(ctx, one); err != nil {
		return "", err
	}
	if got, err := get(two); err != nil || got.Status != 200 {
		return "", fmt.Errorf("the other pod got %+v, %v, want 200 still", got, err)
	}
	return "a certificate is denied and not renewed, another pod of the account goes on", nil
}

// refusalIsAudited waits for Citadel's event that it did not renew the pod's certificate.
func refusalIsAudited(ctx context.Context, s *claims.Scene, began time.Time, pod *corev1.Pod) error {
	return lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
		out, err := s.Meshctl(ctx, "audit", "tail", "--identity="+s.ID("account-auditor"), "--verdict=refused", "--last=0", "--since="+time.Since(began).String(), "-o", "json")
		if err != nil {
			return err
		}
		for line := range bytes.Lines(out) {
			var record struct{ Event claims.Event }
			if err := json.Unmarshal(line, &record); err != nil {
				return fmt.Errorf("audit line %q: %w", line, err)
			}
			if e := record.Event; e.Kind == "KIND_ISSUANCE" && e.Subject.PodUid == string(pod.UID) && strings.Contains(e.Reason, "revoked") {
				return nil
			}
		}
		return errors.New("Citadel's refusal is not in the trail")
	})
}

// failureIsTold waits for the event by which the agent tells of a certificate that it cannot renew: it comes when half of
// what was left at the first attempt is over, and is looked for each half minute. The node's own event goes on from one
// test to the next, so it proves nothing here.
func failureIsTold(ctx context.Context, pod *corev1.Pod) error {
	selector := fields.Set{"reason": "IdentityRenewalFailing", "type": corev1.EventTypeWarning, "involvedObject.uid": string(pod.UID)}.AsSelector()
	return lab.PollFor(ctx, 70*time.Second, func(ctx context.Context) error {
		events, err := cluster.CoreV1().Events(pod.Namespace).List(ctx, metav1.ListOptions{FieldSelector: selector.String()})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if strings.Contains(e.Message, "revoked") {
				return nil
			}
		}
		return fmt.Errorf("%d events of pod %s, none tells that its identity is not renewed", len(events.Items), pod.Name)
	})
}

// changeRevocations edits the list of revocations.
func changeRevocations(ctx context.Context, edit func(revocation.List) revocation.List) error {
	configs := cluster.CoreV1().ConfigMaps(mesh.Namespace)
	raced := func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }
	return retry.OnError(retry.DefaultBackoff, raced, func() error {
		stored, err := configs.Get(ctx, mesh.RevocationsConfig, metav1.GetOptions{})
		missing := apierrors.IsNotFound(err)
		if missing {
			stored = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: mesh.RevocationsConfig, Labels: map[string]string{mesh.PartOfLabel: mesh.PartOfValue}}}
		} else if err != nil {
			return err
		}
		list, err := revocation.Parse(stored.Data)
		if err != nil {
			return err
		}
		if stored.Data, err = edit(list).Encode(); err != nil {
			return err
		}
		if missing {
			_, err = configs.Create(ctx, stored, metav1.CreateOptions{})
		} else {
			_, err = configs.Update(ctx, stored, metav1.UpdateOptions{})
		}
		return err
	})
}

// others is the list without the revocations of an identity.
func others(list revocation.List, identity string) revocation.List {
	return slices.DeleteFunc(list, func(r revocation.Revocation) bool { return r.Identity == identity })
}
