package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// task is a section of the cookbook: what is applied, and what is asked then.
type task struct {
	title, manifest string
	asks            []question
}

type question struct{ who, what, gets string }

var (
	yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")
	row       = regexp.MustCompile(`(?m)^\| ([a-z-]+) \| (.+) \| ([^|]+) \|$`)
)

// tasksOf reads the cookbook.
func tasksOf(text string) (out []task) {
	for _, section := range strings.Split(text, "\n## ")[1:] {
		title, rest, _ := strings.Cut(section, "\n")
		t := task{title: title}
		for _, block := range yamlBlock.FindAllStringSubmatch(rest, -1) {
			t.manifest += block[1] + "\n---\n"
		}
		for _, r := range row.FindAllStringSubmatch(rest, -1) {
			if r[1] != "who" && r[1] != "---" {
				t.asks = append(t.asks, question{r[1], r[2], strings.TrimSpace(r[3])})
			}
		}
		out = append(out, t)
	}
	return out
}

// Each task of the cookbook does what it says.
func TestCookbook(t *testing.T) {
	text, err := os.ReadFile("../docs/cookbook.md")
	if err != nil {
		t.Fatal(err)
	}
	tasks := tasksOf(string(text))
	if len(tasks) != 12 {
		t.Fatalf("%d tasks", len(tasks))
	}
	proveFor(t, "cookbook", 10*time.Minute, func(ctx context.Context, s *claims.Scene) (string, error) {
		issuer, err := s.Issuer(ctx)
		if err != nil {
			return "", err
		}
		defer issuer.Close()
		if err := s.Delete(ctx, s.Local(`
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: payroll-readers, namespace: finance}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: ledger-readers, namespace: finance}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: default, namespace: finance}}`)); err != nil {
			return "", err
		}
		asked := 0
		for _, task := range tasks {
			if task.manifest == "" || len(task.asks) == 0 {
				return "", fmt.Errorf("%s: nothing is applied, or nothing asked", task.title)
			}
			if err := s.Apply(ctx, s.Local(task.manifest)); err != nil {
				return "", fmt.Errorf("%s: %w", task.title, err)
			}
			for _, q := range task.asks {
				err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
					got, err := answerTo(ctx, s, issuer, q)
					if err == nil && got != q.gets {
						err = fmt.Errorf("%s asks %s and gets %s, want %s", q.who, q.what, got, q.gets)
					}
					return err
				})
				if err != nil {
					return "", fmt.Errorf("%s: %w", task.title, err)
				}
				asked++
			}
			if err := s.Delete(ctx, s.Local(task.manifest)); err != nil {
				return "", fmt.Errorf("%s: %w", task.title, err)
			}
			// What follows begins without it.
			if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
				for _, who := range []string{"web", "stranger"} {
					if got, err := answerTo(ctx, s, issuer, question{who, "`GET /accounts/1`", ""}); err != nil || got != "200" {
						return fmt.Errorf("%s still gets %s, %w", who, got, err)
					}
				}
				return nil
			}); err != nil {
				return "", fmt.Errorf("after %s: %w", task.title, err)
			}
		}
		return fmt.Sprintf("%d tasks, %d questions", len(tasks), asked), nil
	})
}

var quoted = regexp.MustCompile("`([^`]+)`")

// answerTo is what somebody gets who asks as the cookbook has it.
func answerTo(ctx context.Context, s *claims.Scene, issuer *claims.Issuer, q question) (string, error) {
	namespace := s.Namespace
	if q.who == "stranger" {
		namespace = s.Outside
	}
	parts := quoted.FindAllStringSubmatch(q.what, -1)
	if len(parts) == 0 {
		return "", fmt.Errorf("%q is no question", q.what)
	}
	server := "payroll." + s.Namespace
	switch verb, object, _ := strings.Cut(parts[0][1], " "); verb {
	case "TCP":
		got, err := lab.ExecJSON[sample.TCPResult](ctx, s.Lab, namespace, q.who, "client", "sample", "tcp", server+":"+object)
		if got.Error != "" || err != nil {
			return "nothing", err
		}
		return "an answer", nil
	case "gRPC":
		got, err := lab.ExecJSON[sample.RPCResult](ctx, s.Lab, namespace, q.who, "client", "sample", "rpc", server+":7000")
		return got.Code, err
	default:
		args := []string{"sample", "get", "http://" + server + object, "-X", verb}
		if strings.Contains(q.what, "with a token of") && len(parts) > 1 {
			set := map[string]any{}
			if err := json.Unmarshal([]byte(parts[1][1]), &set); err != nil {
				return "", fmt.Errorf("the claims %s: %w", parts[1][1], err)
			}
			token, err := issuer.Token(ctx, set)
			if err != nil {
				return "", err
			}
			args = append(args, "-H", "Authorization: Bearer "+token)
		}
		got, err := lab.ExecJSON[sample.Response](ctx, s.Lab, namespace, q.who, "client", args...)
		if got.Status == 0 {
			return "nothing", err
		}
		return strconv.Itoa(got.Status), err
	}
}
