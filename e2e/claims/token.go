package claims

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

// issuerWorkload issues tokens, outside of the mesh as identity providers are. tokenPolicies have payroll take its tokens, and demand one of a role where salaries are.
const issuerWorkload = `
apiVersion: v1
kind: Service
metadata: {name: issuer, namespace: finance-outside}
spec:
  selector: {app: issuer}
  ports: [{name: http, port: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: issuer, namespace: finance-outside}
spec:
  selector: {matchLabels: {app: issuer}}
  template:
    metadata: {labels: {app: issuer}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: issuer
          image: docker.io/bulwark/sample:dev
          imagePullPolicy: IfNotPresent
          args: [issuer, --name=http://issuer.finance-outside.svc.cluster.local:8080]
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

const tokenPolicies = `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: people, namespace: finance}
spec:
  selector: {matchLabels: {app: payroll}}
  jwtRules: [{issuer: "http://issuer.finance-outside.svc.cluster.local:8080", audiences: [payroll]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: people-may-read, namespace: finance}
spec:
  selector: {matchLabels: {app: payroll}}
  rules:
    - from: [{source: {namespaces: [finance], requestPrincipals: ["http://issuer.finance-outside.svc.cluster.local:8080/*"]}}]
      to: [{operation: {methods: [GET], paths: ["/people/*"]}}]
      when: [{key: "request.auth.claims[realm][roles]", values: [clerk]}]
`

// ATokenIsDemanded is claim 9.
func ATokenIsDemanded(ctx context.Context, s *Scene) (_ string, err error) {
	issuer, err := s.IdentityProvider(ctx)
	if err != nil {
		return "", err
	}
	defer issuer.Close()
	if err := s.Apply(ctx, s.Local(tokenPolicies)); err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, s.Delete(context.WithoutCancel(ctx), s.Local(tokenPolicies+"---"+issuerWorkload)))
	}()
	clerk := map[string]any{"sub": "ann", "aud": "payroll", "realm": map[string]any{"roles": []string{"clerk", "reader"}}}
	with := func(name string, value any) map[string]any {
		out := map[string]any{}
		for k, v := range clerk {
			out[k] = v
		}
		out[name] = value
		return out
	}
	tried := 0
	for _, c := range []struct {
		what   string
		claims map[string]any // nil: no token
		spoil  bool
		status int
	}{
		{"a clerk's token", clerk, false, 200},
		{"no token", nil, false, 403},
		{"the token of one who is no clerk", with("realm", map[string]any{"roles": []string{"reader"}}), false, 403},
		{"a token for another audience", with("aud", "others"), false, 403},
		{"an expired token", with("exp", time.Now().Add(-time.Hour).Unix()), false, 401},
		{"a token of another issuer", with("iss", "http://elsewhere.example"), false, 401},
		{"a token that was changed", clerk, true, 401},
	} {
		var flags []string
		if c.claims != nil {
			token, err := issuer.Token(ctx, c.claims)
			if err != nil {
				return "", err
			}
			if c.spoil {
				parts := strings.Split(token, ".")
				token = parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2]))
			}
			flags = []string{"-H", "Authorization: Bearer " + token}
		}
		if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
			r, err := s.Get(ctx, "web", s.URL("/people/1"), flags...)
			if err == nil && r.Status != c.status {
				err = fmt.Errorf("with %s: %d %s, want %d", c.what, r.Status, r.Error, c.status)
			}
			return err
		}); err != nil {
			return "", err
		}
		tried++
	}
	return fmt.Sprintf("200 for a clerk's token, 401 and 403 for none and %d others; keys found by discovery", tried-2), nil
}

// Control is how a test tells a server of its own what to do, by HTTP.
type Control struct{ url string }

// ControlAt is that of a server at an address of this machine.
func ControlAt(address string) Control { return Control{"http://" + address} }

// Post asks for something, and returns what is answered.
func (c Control) Post(ctx context.Context, path, body string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("asking for %s: %w", path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("asking for %s: the answer is %s: %s", path, resp.Status, text)
	}
	return string(text), err
}

// IdentityProvider is one of the scene, which signs what it is told to (sample.Issuer).
type IdentityProvider struct {
	Control
	stop func()
}

// IdentityProvider deploys it.
func (s *Scene) IdentityProvider(ctx context.Context) (*IdentityProvider, error) {
	if err := s.Apply(ctx, s.Local(issuerWorkload)); err != nil {
		return nil, err
	}
	if err := s.Ready(ctx, s.Outside, readyLimit); err != nil {
		return nil, err
	}
	pod, err := s.Pod(ctx, s.Outside, "issuer")
	if err != nil {
		return nil, err
	}
	at, stop, err := s.Forward(ctx, pod, 8080)
	if err != nil {
		return nil, err
	}
	return &IdentityProvider{ControlAt(at), stop}, nil
}

// Close ends the way to it.
func (p *IdentityProvider) Close() { p.stop() }

// Token returns one with claims.
func (p *IdentityProvider) Token(ctx context.Context, claims map[string]any) (string, error) {
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	return p.Post(ctx, "/token", string(body))
}
