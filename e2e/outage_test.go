package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// A certificate of a minute is renewed when 33 to 27 seconds of it are left. What is done when between soonDue and soonest
// are left has the renewal before it.
const (
	soonDue = 40 * time.Second
	soonest = 35 * time.Second
)

// untilSoonDue waits for the moment before payroll's certificate is renewed, and returns the certificate.
func untilSoonDue(ctx context.Context, s *claims.Scene) (claims.Held, error) {
	var held claims.Held
	return held, lab.PollFor(ctx, 90*time.Second, func(ctx context.Context) error {
		var err error
		if held, err = s.Held(ctx, "payroll"); err != nil {
			return err
		}
		if left := time.Until(held.NotAfter); left > soonDue || left < soonest {
			return fmt.Errorf("payroll's certificate has %s left", left)
		}
		return nil
	})
}

func TestTrafficGoesOnAndIdentitiesRecoverWhenCitadelWasAway(t *testing.T) {
	prove(t, "citadel-away", func(ctx context.Context, s *claims.Scene) (string, error) {
		before, err := untilSoonDue(ctx, s)
		if err != nil {
			return "", err
		}
		var failing claims.Held
		requests, err := during(ctx, s, 8*time.Second, func(ctx context.Context) error {
			back := func() error { return s.Scale(context.WithoutCancel(ctx), mesh.CitadelAccount, 1) }
			if err := s.Scale(ctx, mesh.CitadelAccount, 0); err != nil {
				return errors.Join(err, back())
			}
			err := lab.PollFor(ctx, 25*time.Second, func(ctx context.Context) error {
				var err error
				if failing, err = s.Held(ctx, "payroll"); err == nil && (failing.LastError == "" || failing.State != "due") {
					err = fmt.Errorf("with Citadel away, the renewal does not fail: %+v", failing)
				}
				return err
			})
			return errors.Join(err, back())
		})
		if err != nil {
			return "", err
		}
		if failing.Serial != before.Serial {
			return "", fmt.Errorf("payroll got certificate %s from a Citadel that was away", failing.Serial)
		}
		err = lab.PollFor(ctx, time.Until(before.NotAfter), func(ctx context.Context) error {
			now, err := s.Held(ctx, "payroll")
			if err == nil && (now.State != "valid" || now.LastError != "" || now.Serial == before.Serial) {
				err = fmt.Errorf("payroll's identity has not recovered: %+v", now)
			}
			return err
		})
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%d requests, 0 failed; a new certificate with %s of the old one left", requests, time.Until(before.NotAfter).Round(time.Second)), nil
	})
}

// The API server is stopped in the middle of what it does, so that calls to it hang. Citadel verifies tokens by keys it
// has and knows the pods by its watch: certificates are renewed all the same.
func TestCertificatesAreRenewedWhileTheAPIServerIsAway(t *testing.T) {
	prove(t, "api-away", func(ctx context.Context, s *claims.Scene) (string, error) {
		const away, margin = 20 * time.Second, 3 * time.Second
		before, err := untilSoonDue(ctx, s)
		if err != nil {
			return "", err
		}
		// What is to be seen meanwhile must be under way before: kubectl exec goes through the API server.
		watch := newWatch(ctx, s, away+margin)
		if err := watch.begun(ctx); err != nil {
			return "", err
		}
		resume, err := s.PauseAPIServer()
		if errors.Is(err, lab.ErrElsewhere) {
			t.Skip(err)
		}
		if err != nil {
			return "", err
		}
		stopped := time.Now()
		outage := time.After(away)
		answered := apiServerAnswers(ctx, s)
		<-outage
		err = resume()
		resumed := time.Now()
		if err != nil {
			return "", err
		}
		requests, certs, err := watch.end()
		if err != nil {
			return "", err
		}
		if answered {
			return "", errors.New("the API server answered while it was stopped")
		}
		for _, c := range certs {
			if c.Seen.After(stopped) && c.Seen.Before(resumed) && c.Expires.After(before.NotAfter) {
				return fmt.Sprintf("a new certificate after %s of %s without an API server; %d requests, 0 failed", c.Seen.Sub(stopped).Round(time.Second), away, requests), nil
			}
		}
		return "", fmt.Errorf("payroll's proxy has shown %+v and no new one between %s and %s", certs, stopped, resumed)
	})
}

// apiServerAnswers waits two seconds for an answer.
func apiServerAnswers(ctx context.Context, s *claims.Scene) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := s.CoreV1().Namespaces().Get(ctx, s.Namespace, metav1.GetOptions{})
	return err == nil
}

// watch is what goes on in the pods during an outage: requests, and a look at the proxy's certificates.
type watch struct {
	wg       sync.WaitGroup
	mu       sync.Mutex
	began    chan struct{} // one entry for each that has begun
	parts    int
	requests int
	certs    []sample.ProxyCert
	errs     []error
}

func newWatch(ctx context.Context, s *claims.Scene, duration time.Duration) *watch {
	w := &watch{began: make(chan struct{}, 8)}
	flag := "--duration=" + duration.String()
	w.run(ctx, s, "payroll", func(out []byte) error { return json.Unmarshal(out, &w.certs) }, "sample", "certs", flag, "--rotations=8")
	for _, kept := range []bool{true, false} {
		args := []string{"sample", "load", s.URL("/accounts/42"), flag}
		if !kept {
			args = append(args, "--new-connections")
		}
		w.run(ctx, s, "account-auditor", w.took, args...)
	}
	return w
}

func (w *watch) run(ctx context.Context, s *claims.Scene, app string, took func([]byte) error, command ...string) {
	w.parts++
	w.wg.Go(func() {
		out, err := s.ExecNoted(ctx, func() { w.began <- struct{}{} }, s.Namespace, app, s.Container(app), command...)
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil {
			err = took(out)
		}
		if err != nil {
			w.errs = append(w.errs, err)
		}
	})
}

// took adds the result of a load.
func (w *watch) took(out []byte) error {
	var result sample.LoadResult
	if err := json.Unmarshal(out, &result); err != nil {
		return err
	}
	w.requests += result.Requests
	if result.Outcomes["200"] != result.Requests || result.Requests == 0 {
		return fmt.Errorf("outcomes %v of %d requests: %v", result.Outcomes, result.Requests, result.Errors)
	}
	return nil
}

// begun returns when all parts have begun.
func (w *watch) begun(ctx context.Context) error {
	for range w.parts {
		select {
		case <-w.began:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// end waits until all parts have ended.
func (w *watch) end() (requests int, certs []sample.ProxyCert, err error) {
	w.wg.Wait()
	return w.requests, w.certs, errors.Join(w.errs...)
}
