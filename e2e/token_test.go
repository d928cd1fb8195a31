package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// A request without the token that a policy demands is denied, and so is one with a token that is not good.
func TestATokenIsDemandedAndVerified(t *testing.T) {
	proveFor(t, "token", 5*time.Minute, claims.ATokenIsDemanded)
}

// Keys change, their server goes away and comes back, Pilot starts again meanwhile: who has a good token is served, and who has none of a key that
// the issuer has published is not.
func TestKeysAreFollowed(t *testing.T) {
	proveFor(t, "keys", 6*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		issuer, err := s.Issuer(ctx)
		if err != nil {
			return "", err
		}
		defer issuer.Close()
		if _, err := issuer.Post(ctx, "/down?for=10m", ""); err != nil {
			return "", err
		}
		name := "http://issuer." + s.Outside + ".svc.cluster.local:8080"
		if err := s.Apply(ctx, s.Local(fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: people, namespace: finance}
spec:
  selector: {matchLabels: {app: payroll}}
  jwtRules: [{issuer: %q, jwksUri: %q, forwardOriginalToken: true}]
---`, name, name+"/keys")+policyOf(s, "people", "ALLOW", `{from: [{source: {requestPrincipals: ["*"]}}]}`, ""))); err != nil {
			return "", err
		}
		ask := func(token string, want int) error {
			return lab.PollFor(ctx, 60*time.Second, func(ctx context.Context) error {
				r, err := s.Get(ctx, "web", s.URL("/people/1"), "-H", "Authorization: Bearer "+token)
				if err == nil && r.Status != want {
					err = fmt.Errorf("%d %s, want %d", r.Status, r.Error+r.Body, want)
				}
				return err
			})
		}
		first, err := issuer.Token(ctx, map[string]any{"sub": "ann"})
		if err != nil {
			return "", err
		}
		if err := ask(first, http.StatusUnauthorized); err != nil {
			return "", fmt.Errorf("no key has ever been seen: %w", err)
		}
		if err := keysAreMissed(ctx, s); err != nil {
			return "", err
		}
		if _, err := issuer.Post(ctx, "/down?for=0s", ""); err != nil {
			return "", err
		}
		if err := ask(first, http.StatusOK); err != nil {
			return "", fmt.Errorf("the key server is there now: %w", err)
		}
		if _, err := issuer.Post(ctx, "/rotate", ""); err != nil {
			return "", err
		}
		second, err := issuer.Token(ctx, map[string]any{"sub": "ann"})
		if err != nil {
			return "", err
		}
		began := time.Now()
		if err := ask(second, http.StatusOK); err != nil {
			return "", fmt.Errorf("of a key that proxies have not seen: %w", err)
		}
		took := time.Since(began)
		if err := ask(first, http.StatusOK); err != nil {
			return "", fmt.Errorf("of the former key, which is still published: %w", err)
		}
		if _, err := issuer.Post(ctx, "/down?for=10m", ""); err != nil {
			return "", err
		}
		if err := errors.Join(s.Scale(ctx, mesh.PilotAccount, 0), s.Scale(context.WithoutCancel(ctx), mesh.PilotAccount, 1)); err != nil {
			return "", err
		}
		if _, err := claims.AChangedPolicyIsEnforced(ctx, s); err != nil { // so proxies follow the new Pilot
			return "", err
		}
		if r, err := s.Get(ctx, "web", s.URL("/people/1"), "-H", "Authorization: Bearer "+second); err != nil || r.Status != http.StatusOK {
			return "", fmt.Errorf("Pilot has started again while the key server is away: %d %s, %w", r.Status, r.Body, err)
		}
		text, err := issuer.Post(ctx, "/asked", "")
		if err != nil {
			return "", err
		}
		asked, err := strconv.Atoi(text)
		if err == nil && asked > 20 {
			err = fmt.Errorf("the key server was asked %d times", asked)
		}
		return fmt.Sprintf("401 without keys, 200 with them; a new key after %.1f s; the key server was asked %d times", took.Seconds(), asked), err
	})
}

// keysAreMissed waits until the policy's author is told that its keys cannot be had.
func keysAreMissed(ctx context.Context, s *claims.Scene) error {
	return lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		events, err := s.EventsV1().Events(s.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Regarding.Kind == "RequestAuthentication" && e.Regarding.Name == "people" && e.Reason == "KeysNotFetched" && strings.Contains(e.Note, "503") {
				return nil
			}
		}
		return fmt.Errorf("no Event says that the keys cannot be had")
	})
}
