package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

// analysed is what of meshctl's answer is looked at.
type analysed struct {
	Findings []struct {
		Code, Severity, Basis, Field, Message string
		Object                                struct{ Kind, Namespace, Name string }
	}
}

// codes are what was found in a namespace, without infos, each with the name of its object and what it rests on.
func (a analysed) codes() (out []string) {
	for _, f := range a.Findings {
		if f.Severity != "info" {
			out = append(out, f.Code+" "+f.Object.Name+" "+f.Basis)
		}
	}
	slices.Sort(out)
	return out
}

// analyse asks meshctl. That it exits with 1 for what it found is no failure.
func analyse(ctx context.Context, args ...string) (out analysed, err error) {
	text, runErr := cluster.Meshctl(ctx, append([]string{"analyze", "-o", "json"}, args...)...)
	if err := json.Unmarshal(text, &out); err != nil {
		return out, fmt.Errorf("meshctl analyze %s: %w, %w", strings.Join(args, " "), runErr, err)
	}
	return out, nil
}

// Nothing is said of the sample, whose policies do what they say. What is planted beside it is found, by its code and no other; and callers whom files
// would have STRICT refuse are known from what proxies have counted.
func TestAnalyzeFindsNothingInTheSampleAndWhatIsPlanted(t *testing.T) {
	proveFor(t, "analyze", 5*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		found, err := analyse(ctx, "-n", s.Namespace)
		if err != nil {
			return "", err
		}
		if len(found.Findings) > 0 {
			return "", fmt.Errorf("of the sample: %+v", found.Findings)
		}
		planted := s.Local(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: selects-nothing, namespace: finance}
spec: {selector: {matchLabels: {app: payrol}}, action: DENY, rules: [{from: [{source: {notNamespaces: [finance]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never, namespace: finance}
spec: {selector: {matchLabels: {app: payroll}}, rules: [{from: [{source: {namespaces: [finance]}}], to: [{operation: {paths: [/a/b], notPaths: [/a/*]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-such-account, namespace: finance}
spec: {selector: {matchLabels: {app: payroll}}, rules: [{from: [{source: {serviceAccounts: [auditor]}}], to: [{operation: {ports: ["80"]}}]}]}
`)
		if err := s.Apply(ctx, planted); err != nil {
			return "", err
		}
		if found, err = analyse(ctx, "-n", s.Namespace); err != nil {
			return "", err
		}
		want := []string{"BW0101 selects-nothing configuration", "BW0104 no-such-account configuration", "BW0106 never configuration", "BW0111 no-such-account configuration"}
		if got := found.codes(); !slices.Equal(got, want) {
			return "", fmt.Errorf("of what is planted: %q, want %q", got, want)
		}
		counted, err := plaintextIsCounted(ctx, t, s)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("nothing in the sample, %d findings of what is planted; %s", len(want), counted), nil
	})
}

// plaintextIsCounted has payroll take plaintext, and a stranger call it so: files that make it STRICT again are then said to refuse somebody.
func plaintextIsCounted(ctx context.Context, t *testing.T, s *claims.Scene) (string, error) {
	strict := s.Local("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: finance}\nspec: {mtls: {mode: STRICT}}\n")
	if err := s.Apply(ctx, strings.Replace(strict, "STRICT", "PERMISSIVE", 1)); err != nil {
		return "", err
	}
	file := filepath.Join(t.TempDir(), "strict.yaml")
	if err := os.WriteFile(file, []byte(strict), 0o600); err != nil {
		return "", err
	}
	message := ""
	err := lab.PollFor(ctx, 90*time.Second, func(ctx context.Context) error {
		if _, err := s.Exec(ctx, s.Outside, "stranger", "client", "sample", "get", "http://payroll."+s.Namespace+"/accounts/1"); err != nil {
			return err
		}
		found, err := analyse(ctx, "-n", s.Namespace, "-f", file)
		if err != nil {
			return err
		}
		for _, f := range found.Findings {
			if f.Code == "BW0116" && f.Basis == "traffic" && f.Severity == "error" && strings.Contains(f.Message, s.Namespace+"/payroll") {
				message = f.Message
				return nil
			}
		}
		return fmt.Errorf("no caller is known whom STRICT would refuse: %+v", found.Findings)
	})
	return message, err
}
