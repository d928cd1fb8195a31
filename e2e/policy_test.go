package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

// A policy does what it says, or is refused when it is applied, with the field and the reason.
func TestPolicyDoesWhatItSaysOrIsRefused(t *testing.T) {
	proveFor(t, "policies", 6*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		refused, err := neverMatchingIsRefused(ctx, s)
		if err != nil {
			return "", err
		}
		denied, err := spellingsAreDenied(ctx, s)
		return fmt.Sprintf("%d policies refused, %d spellings denied", refused, denied), err
	})
}

// policyOf is a policy for payroll.
func policyOf(s *claims.Scene, name, action, rule, annotations string) string {
	return fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: %s, annotations: {%s}}
spec: {selector: {matchLabels: {app: payroll}}, action: %s, rules: [%s]}
`, name, s.Namespace, annotations, action, rule)
}

func neverMatchingIsRefused(ctx context.Context, s *claims.Scene) (int, error) {
	refusals := []struct{ rule, field, reason string }{
		{`{to: [{operation: {paths: ["/reports%2Fyearly"]}}]}`, "spec.rules[0].to[0].operation.paths[0]", `write "/reports/yearly"`},
		{`{to: [{operation: {paths: ["/ok", "//reports"]}}]}`, "spec.rules[0].to[0].operation.paths[1]", "slashes are merged"},
		{`{to: [{operation: {notPaths: ["/%7Eauditor/*"]}}]}`, "spec.rules[0].to[0].operation.notPaths[0]", `write "/~auditor/*"`},
		{`{to: [{operation: {paths: ["/gehälter"]}}]}`, "spec.rules[0].to[0].operation.paths[0]", `write "/geh%C3%A4lter"`},
		{`{to: [{operation: {paths: ["/pay roll"]}}]}`, "spec.rules[0].to[0].operation.paths[0]", `write "/pay%20roll"`},
		{`{from: [{source: {principals: ["cluster.local/ns/*/sa/web"]}}]}`, "spec.rules[0].from[0].source.principals[0]", "with one * at"},
		{`{from: [{source: {principals: ["web"]}}]}`, "spec.rules[0].from[0].source.principals[0]", "a principal is"},
		{`{from: [{source: {namespaces: ["fin*ce"]}}]}`, "spec.rules[0].from[0].source.namespaces[0]", "only one *"},
		{`{to: [{operation: {methods: ["get"]}}]}`, "spec.rules[0].to[0].operation.methods[0]", `write "GET"`},
		{`{to: [{operation: {methods: ["PUT, POST"]}}]}`, "spec.rules[0].to[0].operation.methods[0]", "write a list"},
		{`{to: [{operation: {hosts: ["http://payroll"]}}]}`, "spec.rules[0].to[0].operation.hosts[0]", "neither scheme nor path"},
		{`{to: [{operation: {hosts: ["pay*roll"]}}]}`, "spec.rules[0].to[0].operation.hosts[0]", "only one *"},
		{`{when: [{key: "request.headers[host]", values: ["payroll"]}]}`, "spec.rules[0].when[0].key", "use to.operation.hosts"},
	}
	for i, c := range refusals {
		for _, action := range []string{"ALLOW", "DENY"} {
			if err := mustBeRefused(ctx, s, policyOf(s, fmt.Sprintf("refused-%d", i), action, c.rule, ""), c.field, c.reason); err != nil {
				return 0, err
			}
		}
	}
	dry := policyOf(s, "dry", "DENY", "{}", `istio.io/dry-run: "yes"`)
	if err := mustBeRefused(ctx, s, dry, "metadata.annotations[istio.io/dry-run]", "neither true nor false"); err != nil {
		return 0, err
	}
	peer := fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: dry, namespace: %s, annotations: {istio.io/dry-run: "true"}}
`, s.Namespace)
	return 2*len(refusals) + 2, mustBeRefused(ctx, s, peer, "metadata.annotations[istio.io/dry-run]", "only an AuthorizationPolicy")
}

func mustBeRefused(ctx context.Context, s *claims.Scene, manifest string, words ...string) error {
	err := s.Apply(ctx, manifest)
	if err == nil {
		return fmt.Errorf("applied without an error: %s", manifest)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			return fmt.Errorf("refused with %q, which does not say %q: %s", err, w, manifest)
		}
	}
	return nil
}

// spellingsAreDenied applies DENY policies and has what they deny asked for in other spellings, which an application could
// take for the same.
func spellingsAreDenied(ctx context.Context, s *claims.Scene) (int, error) {
	manifest := policyOf(s, "everyone", "ALLOW", "{}", "") + "---" +
		policyOf(s, "no-delete", "DENY", `{to: [{operation: {methods: [DELETE]}}]}`, "") + "---" +
		policyOf(s, "no-me", "DENY", `{to: [{operation: {paths: ["/users/@me", "/geh%C3%A4lter", "/service/*health", "/reports/yearly"]}}]}`, "") + "---" +
		policyOf(s, "tried-out", "DENY", `{to: [{operation: {paths: ["/tried-out"]}}]}`, `istio.io/dry-run: "true"`)
	if err := s.Apply(ctx, manifest); err != nil {
		return 0, err
	}
	type ask struct {
		method, path string
		status       int
	}
	asks := []ask{
		{"GET", "/accounts/1", http.StatusOK},
		{"GET", "/service/x-health", http.StatusOK}, // a * in the middle is none
		{"GET", "/tried-out", http.StatusOK},
		{"DELETE", "/accounts/1", http.StatusForbidden},
		{"delete", "/accounts/1", http.StatusForbidden},
		{"Delete", "/accounts/1", http.StatusForbidden},
		{"GET", "/users/@me", http.StatusForbidden},
		{"GET", "/users/%40me", http.StatusForbidden},
		{"GET", "/users//%40me", http.StatusForbidden},
		{"GET", "/geh%c3%a4lter", http.StatusForbidden},
		{"GET", "/service/*health", http.StatusForbidden},
		{"GET", "/service/%2Ahealth", http.StatusForbidden},
		{"GET", "/reports%2Fyearly", http.StatusForbidden},
		{"GET", "/x/..%2freports/yearly", http.StatusForbidden},
		{"GET", "/accounts/1;x", http.StatusForbidden},
	}
	denied := 0
	for _, a := range asks {
		if err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
			r, err := s.Get(ctx, "web", s.URL(a.path), "--http2", "-X", a.method)
			if err == nil && r.Status != a.status {
				err = fmt.Errorf("%s %s: %d %s, want %d", a.method, a.path, r.Status, r.Error, a.status)
			}
			return err
		}); err != nil {
			return 0, err
		}
		if a.status == http.StatusForbidden {
			denied++
		}
	}
	return denied, nil
}
