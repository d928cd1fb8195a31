package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

var churn = flag.Duration("churn", time.Minute, "how long Services come and go in the test of that")

// Services, their ports, protocols and endpoints, and policies are made, changed and deleted in bursts, with pauses from
// none. After each burst every proxy of the mesh has what there is within three seconds; in the end STRICT, policies and a
// new Service hold.
func TestNoProxyIsStuckWhileServicesComeAndGo(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	proveFor(t, "churn", *churn+6*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		c := &comings{Scene: s, random: rand.New(rand.NewPCG(seed, 0))}
		if err := c.clear(ctx); err != nil { // of a run that was killed
			return "", err
		}
		var slowest time.Duration
		bursts := 0
		for end := time.Now().Add(*churn); time.Now().Before(end); bursts++ {
			if err := c.burst(ctx); err != nil {
				return "", fmt.Errorf("burst %d: %w", bursts, err)
			}
			took, err := allSynced(ctx)
			if err != nil {
				return "", fmt.Errorf("burst %d, after %s: %w", bursts, strings.Join(c.did, "; "), err)
			}
			slowest = max(slowest, took)
		}
		if err := c.clear(ctx); err != nil {
			return "", err
		}
		if _, err := allSynced(ctx); err != nil {
			return "", fmt.Errorf("when all had gone: %w", err)
		}
		happened, err := c.holds(ctx)
		return fmt.Sprintf("%d bursts of %d changes, all proxies synced within %s of each; then %s",
			bursts, c.changes, slowest.Round(time.Millisecond), happened), err
	})
}

// comings are objects that come and go in a scene.
type comings struct {
	*claims.Scene
	random  *rand.Rand
	did     []string // in the last burst
	changes int
}

const ofChurn = "bulwark-test=churn"

func (c *comings) labels() map[string]string { return map[string]string{"bulwark-test": "churn"} }

// clear deletes whatever has come.
func (c *comings) clear(ctx context.Context) error {
	services := c.CoreV1().Services(c.Namespace)
	list, err := services.List(ctx, metav1.ListOptions{LabelSelector: ofChurn})
	if err != nil {
		return err
	}
	for _, svc := range list.Items {
		err = errors.Join(err, gone(services.Delete(ctx, svc.Name, metav1.DeleteOptions{})))
	}
	err = errors.Join(err, c.DiscoveryV1().EndpointSlices(c.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: ofChurn}))
	for n := range names {
		err = errors.Join(err, c.Delete(ctx, c.policy(n, 22000)), c.Delete(ctx, c.mode(n, "STRICT")))
	}
	return err
}

// gone drops the error that there is no such object.
func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

const names = 4 // of each kind, so that they meet

// burst makes some changes, with pauses from none.
func (c *comings) burst(ctx context.Context) error {
	c.did = nil
	for range 1 + c.random.IntN(8) {
		n := c.random.IntN(names)
		what, do := c.change(ctx, n)
		c.did = append(c.did, fmt.Sprintf("%s %d", what, n))
		c.changes++
		if err := do(); err != nil {
			return fmt.Errorf("%s %d: %w", what, n, err)
		}
		if pause := c.random.IntN(200) - 100; pause > 0 { // half of the time none
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(pause) * time.Millisecond): // chance decides where it meets what Pilot does
			}
		}
	}
	return nil
}

func (c *comings) change(ctx context.Context, n int) (string, func() error) {
	services := c.CoreV1().Services(c.Namespace)
	remove := func() error { return gone(services.Delete(ctx, serviceName(n), metav1.DeleteOptions{})) }
	switch c.random.IntN(10) {
	case 0, 1, 2:
		return "make or change Service", func() error { return c.service(ctx, n) }
	case 3, 4:
		return "delete Service", remove
	case 5, 6:
		return "make and delete Service", func() error {
			if err := errors.Join(remove(), c.service(ctx, n)); err != nil {
				return err
			}
			return remove()
		}
	case 7:
		return "endpoints", func() error { return c.endpoints(ctx, n) }
	case 8:
		manifest := c.policy(n, 22000+c.random.IntN(100))
		if c.random.IntN(2) == 0 {
			return "delete policy", func() error { return c.Delete(ctx, manifest) }
		}
		return "policy", func() error { return c.Apply(ctx, manifest) }
	default:
		manifest := c.mode(n, []string{"STRICT", "PERMISSIVE", "DISABLE"}[c.random.IntN(3)])
		if c.random.IntN(2) == 0 {
			return "delete mode", func() error { return c.Delete(ctx, manifest) }
		}
		return "mode", func() error { return c.Apply(ctx, manifest) }
	}
}

func serviceName(n int) string { return fmt.Sprintf("churn-%d", n) }

// service makes a Service, or changes its ports and whom it selects.
func (c *comings) service(ctx context.Context, n int) error {
	single := corev1.IPFamilyPolicySingleStack
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: serviceName(n), Labels: c.labels()}, Spec: corev1.ServiceSpec{IPFamilyPolicy: &single},
	}
	if app := []string{"payroll", "web", "account-auditor", "nobody", ""}[c.random.IntN(5)]; app != "" {
		svc.Spec.Selector = map[string]string{"app": app}
	}
	for i := range 1 + c.random.IntN(10) {
		protocol := []string{"http", "http2", "grpc", "tcp", "https", "tls", "odd"}[c.random.IntN(7)]
		target := []int32{8080, 9000, 7000, 1}[c.random.IntN(4)]
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{
			Name: fmt.Sprintf("%s-%d", protocol, i), Port: int32(21000 + i), TargetPort: intstr.FromInt32(target)})
	}
	services := c.CoreV1().Services(c.Namespace)
	old, err := services.Get(ctx, svc.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		if c.random.IntN(4) == 0 {
			svc.Spec.ClusterIP = corev1.ClusterIPNone
		}
		_, err = services.Create(ctx, svc, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	old.Spec.Ports, old.Spec.Selector = svc.Spec.Ports, svc.Spec.Selector
	_, err = services.Update(ctx, old, metav1.UpdateOptions{})
	return err
}

// endpoints gives a Service addresses of our own beside those that its selector brings, or other ones.
func (c *comings) endpoints(ctx context.Context, n int) error {
	slices := c.DiscoveryV1().EndpointSlices(c.Namespace)
	labels := c.labels()
	labels[discoveryv1.LabelServiceName] = serviceName(n)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: serviceName(n), Labels: labels}, AddressType: discoveryv1.AddressTypeIPv4,
	}
	for range c.random.IntN(4) {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("192.0.2.%d", 1+c.random.IntN(200))}})
	}
	for i := range 1 + c.random.IntN(3) {
		name, port := fmt.Sprintf("http-%d", i), int32(8080)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port})
	}
	if err := gone(slices.Delete(ctx, slice.Name, metav1.DeleteOptions{})); err != nil || c.random.IntN(3) == 0 {
		return err
	}
	_, err := slices.Create(ctx, slice, metav1.CreateOptions{})
	return err
}

// policy denies what nobody asks for.
func (c *comings) policy(n, port int) string {
	return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: churn-%d, namespace: %s}
spec: {selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {ports: ["%d"]}}]}]}
`, n, c.Namespace, port)
}

// mode is of the web, to which nobody speaks.
func (c *comings) mode(n int, mode string) string {
	return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: churn-%d, namespace: %s}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: %s}}
`, n, c.Namespace, mode)
}

// allSynced returns how long it took until Pilot said of every proxy that it has everything. It is asked from a second on,
// when it has seen what was changed.
func allSynced(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	seen := began.Add(time.Second)
	err := lab.PollFor(ctx, 3*time.Second, func(ctx context.Context) error {
		if early := time.Until(seen); early > 0 {
			return errors.New("it was not asked within a second")
		}
		behind, err := unsynced(ctx)
		if err == nil && behind != "" {
			err = fmt.Errorf("these have not what is due: %s", behind)
		}
		return err
	})
	return time.Since(began), err
}

// unsynced says which proxies do not have what is due, as `meshctl status` does.
func unsynced(ctx context.Context) (string, error) {
	out, err := cluster.Meshctl(ctx, "status", "-o", "json")
	if err != nil {
		return "", err
	}
	var proxies []struct {
		Proxy string
		Types map[string]deltaxds.Status
	}
	if err := json.Unmarshal(out, &proxies); err != nil {
		return "", err
	}
	if len(proxies) == 0 {
		return "", errors.New("no proxy is connected")
	}
	var behind []string
	for _, p := range proxies {
		for kind, st := range p.Types {
			if st.Pending || st.Error != "" {
				behind = append(behind, fmt.Sprintf("%s %s %+v", p.Proxy, kind, st))
			}
		}
	}
	return strings.Join(behind, "; "), nil
}

// holds tries that what comes now is known and enforced everywhere.
func (c *comings) holds(ctx context.Context) (string, error) {
	err := c.Apply(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: churn-0, namespace: %s, labels: {bulwark-test: churn}}
spec: {selector: {app: payroll}, ports: [{name: http, port: 80, targetPort: 8080}]}
`, c.Namespace))
	if err != nil {
		return "", err
	}
	err = lab.PollFor(ctx, 10*time.Second, func(ctx context.Context) error {
		r, err := c.Get(ctx, "account-auditor", "http://churn-0."+c.Namespace+"/accounts/42")
		if err == nil && r.Status != 200 {
			err = fmt.Errorf("a new Service answers %d", r.Status)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	strict, err := claims.StrangersAreRefused(ctx, c.Scene)
	if err != nil {
		return "", fmt.Errorf("STRICT: %w", err)
	}
	policy, err := claims.AChangedPolicyIsEnforced(ctx, c.Scene)
	return strict + "; " + policy, err
}

// A proxy that is stopped does not take a new policy: it is not said to have it, and the pod's Events tell. When it goes on,
// it takes it.
func TestProxyThatHangsIsTold(t *testing.T) {
	proveFor(t, "hanging", 6*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		pod, err := s.Pod(ctx, s.Namespace, "web")
		if err != nil {
			return "", err
		}
		resume, err := s.PauseContainer(pod, mesh.ProxyContainer)
		if errors.Is(err, lab.ErrElsewhere) {
			t.Skip(err)
		}
		if err != nil {
			return "", err
		}
		began := time.Now()
		policy := (&comings{Scene: s}).policy(0, 22000)
		if err := s.Apply(ctx, policy); err != nil {
			return "", errors.Join(err, resume())
		}
		said := ""
		err = lab.PollFor(ctx, 90*time.Second, func(ctx context.Context) error {
			events, err := s.EventsV1().Events(s.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=ProxyNotUpdated"})
			if err != nil {
				return err
			}
			for _, e := range events.Items {
				if e.Regarding.Name == pod.Name && e.Regarding.UID == pod.UID {
					said = e.Note
					return nil
				}
			}
			return errors.New("no Event on the pod")
		})
		told := time.Since(began)
		if err == nil && told < deltaxds.StallLimit {
			err = fmt.Errorf("told after %s", told)
		}
		if err == nil { // its stream begins anew at this time, and for a moment it has none
			err = lab.PollFor(ctx, 10*time.Second, func(ctx context.Context) error {
				behind, err := unsynced(ctx)
				if err == nil && !strings.Contains(behind, pod.Name) {
					err = fmt.Errorf("status does not say it: %q", behind)
				}
				return err
			})
		}
		if err := errors.Join(err, resume()); err != nil {
			return "", err
		}
		resumed := time.Now()
		err = lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
			behind, err := unsynced(ctx)
			if err == nil && behind != "" {
				err = errors.New(behind)
			}
			return err
		})
		return fmt.Sprintf("an Event after %s: %s; synced %s after it went on", told.Round(time.Second), said, time.Since(resumed).Round(time.Millisecond)), err
	})
}
