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
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// A request without the token that a policy demands is denied, and so is one with a token that is not good.
func TestATokenIsDemandedAndVerified(t *testing.T) {
	proveFor(t, "token", 5*time.Minute, claims.ATokenIsDemanded)
}

// The mesh's own tokens are verified without a key server: a pod's JWT-SVID, which it has from the Workload API, is worth what its claims say, and no other's.
func TestTokensOfTheMeshAreVerified(t *testing.T) {
	proveFor(t, "mesh-token", 5*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		if err := s.Apply(ctx, fillIn(barePod("caller", bareClient, ownSocket)+barePod("other", bareClient, ownSocket), s.Outside, s.Tag)+"---"+s.Local(`
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: mesh, namespace: finance}
spec:
  selector: {matchLabels: {app: payroll}}
  jwtRules: [{issuer: "spiffe://cluster.local", audiences: [payroll]}]
---`)+policyOf(s, "mesh", "ALLOW", fmt.Sprintf(`{from: [{source: {requestPrincipals: ["spiffe://cluster.local/spiffe://cluster.local/ns/%s/sa/caller"]}}]}`, s.Outside), "")); err != nil {
			return "", err
		}
		if err := s.Ready(ctx, s.Outside, 2*time.Minute); err != nil {
			return "", err
		}
		tokens := map[string]string{}
		for _, of := range [][2]string{{"caller", "payroll"}, {"caller", "ledger"}, {"other", "payroll"}} {
			got, err := lab.ExecJSON[sample.JWTResult](ctx, s.Lab, s.Outside, of[0], "client", "sample", "spiffe", "jwt", of[1])
			if err != nil {
				return "", err
			}
			tokens[of[0]+" for "+of[1]] = got.Token
		}
		tokens["none"], tokens["forged"], tokens["unsigned"] = "", forge(tokens["other for payroll"], "sa/other", "sa/caller"), unsigned(tokens["caller for payroll"])
		for name, want := range map[string]int{"caller for payroll": 200, "caller for ledger": 403, "other for payroll": 403, "none": 403, "forged": 401, "unsigned": 401} {
			if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
				var flags []string
				if tokens[name] != "" {
					flags = []string{"-H", "Authorization: Bearer " + tokens[name]}
				}
				r, err := s.Get(ctx, "web", s.URL("/people/1"), flags...)
				if err == nil && r.Status != want {
					err = fmt.Errorf("with the token %s: %d %s, want %d", name, r.Status, r.Error+r.Body, want)
				}
				return err
			}); err != nil {
				return "", err
			}
		}
		return fmt.Sprintf("200 for the JWT-SVID of the pod that is admitted, 401 and 403 for %d others", len(tokens)-1), nil
	})
}

// Keys change, their server goes away and comes back, Pilot starts again meanwhile: who has a good token is served, and who has none of a key that
// the issuer has published is not.
func TestKeysAreFollowed(t *testing.T) {
	proveFor(t, "keys", 6*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		issuer, err := s.IdentityProvider(ctx)
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
