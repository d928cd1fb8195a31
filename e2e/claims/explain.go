package claims

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

// removeExplained removes the policies that were printed and applied, by the names that such have.
func (s *Scene) removeExplained(ctx context.Context) error {
	all, err := s.List(ctx, schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"})
	if apierrors.IsNotFound(err) {
		return nil // no mesh has been here yet
	}
	for _, p := range all {
		if p.GetNamespace() == s.Namespace && (strings.HasPrefix(p.GetName(), "allow-web-to-payroll-") || strings.HasPrefix(p.GetName(), "allow-account-auditor-to-payroll-")) {
			err = errors.Join(err, s.Delete(ctx, fmt.Sprintf("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: %s, namespace: %s}}", p.GetName(), p.GetNamespace())))
		}
	}
	return err
}

// ADenialIsExplained is claim 10. It has two requests denied, by the server's proxy and by the client's own, has the records of the audit trail explained, and applies what is printed: exactly these
// requests are admitted then.
func ADenialIsExplained(ctx context.Context, s *Scene) (_ string, err error) {
	defer func() { err = errors.Join(err, s.removeExplained(context.WithoutCancel(ctx))) }()
	longest := time.Duration(0)
	for _, c := range []struct {
		account, method, path, reporter, says string
	}{
		{"account-auditor", "POST", "/accounts/42", "DESTINATION", "rules[0].to[0].operation.methods"},
		{"web", "GET", "/accounts/42", "SOURCE", "rules[0].from[0].source.principals"},
	} {
		began := time.Now()
		if err := s.hears(ctx, c.account, c.method, c.path, 403); err != nil {
			return "", err
		}
		index, err := s.index(ctx, began, c.reporter, s.ID(c.account), c.method)
		if err != nil {
			return "", err
		}
		asked := time.Now()
		out, err := s.Meshctl(ctx, "authz", "explain", "--event", strconv.FormatUint(index, 10))
		longest = max(longest, time.Since(asked))
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			return "", fmt.Errorf("explaining a denial ends with %w, want the status 1\n%s", err, out)
		}
		_, change, found := bytes.Cut(out, []byte("\n---\n"))
		if !found || !strings.Contains(string(out), c.says) {
			return "", fmt.Errorf("the explanation has no change, or does not say %q:\n%s", c.says, out)
		}
		if err := s.Apply(ctx, string(change)); err != nil {
			return "", fmt.Errorf("applying the change that is proposed: %w\n%s", err, change)
		}
		if err := lab.PollFor(ctx, 10*time.Second, func(ctx context.Context) error { return s.hears(ctx, c.account, c.method, c.path, 200) }); err != nil {
			return "", fmt.Errorf("with the change: %w", err)
		}
		if err := s.hears(ctx, c.account, c.method, "/salaries", 403); err != nil {
			return "", fmt.Errorf("with the change, and another path: %w", err)
		}
		if out, err := s.Meshctl(ctx, "authz", "explain", "-n", s.Namespace, "--from", c.account, "--to", "deploy/payroll", "--port", "8080", "-X", c.method, "--path", c.path); err != nil {
			return "", fmt.Errorf("with the change: %w\n%s", err, out)
		}
	}
	// The live Envoys hold what was applied.
	if out, err := s.Meshctl(ctx, "authz", "check", "-n", s.Namespace, "deploy/payroll"); err != nil || !strings.Contains(string(out), "allow-web-to-payroll") {
		return "", fmt.Errorf("what the server's Envoy holds: %w\n%s", err, out)
	}
	return fmt.Sprintf("two denials explained by their records, each within %s, and admitted by what was printed", longest.Round(time.Millisecond)), nil
}

func (s *Scene) hears(ctx context.Context, account, method, path string, want int) error {
	got, err := s.Get(ctx, account, s.URL(path), "--method="+method)
	if err == nil && got.Status != want {
		err = fmt.Errorf("%s %s as %s: %+v, want %d", method, path, account, got, want)
	}
	return err
}

// index waits for the record of a denial, and returns its index.
func (s *Scene) index(ctx context.Context, since time.Time, reporter, identity, method string) (index uint64, err error) {
	err = lab.PollFor(ctx, auditLimit, func(ctx context.Context) error {
		out, err := s.Meshctl(ctx, "audit", "tail", "-n", s.Namespace, "--last=0", "--verdict=denied", "--since="+(time.Since(since)+2*time.Second).String(), "-o", "json")
		if err != nil {
			return err
		}
		for line := range bytes.Lines(out) {
			var record struct {
				Index uint64 `json:",string"`
				Event Event
			}
			if err := json.Unmarshal(line, &record); err != nil {
				return fmt.Errorf("audit line %q: %w", line, err)
			}
			if e := record.Event; e.Reporter == "REPORTER_"+reporter && e.SourceIdentity == identity && (e.Method == method || e.Method == "") {
				index = record.Index
				return nil
			}
		}
		return fmt.Errorf("no denial by the %s's proxy in the trail: %s", strings.ToLower(reporter), out)
	})
	return index, err
}
