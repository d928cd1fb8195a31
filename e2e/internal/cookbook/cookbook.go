// Package cookbook reads docs/cookbook.md and asks what its tables ask.
package cookbook

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// Task is a section: what is applied, and what is asked then.
type Task struct {
	Title, Manifest string
	Questions       []Question
}

// Question is a row of a table: who asks, what, and what he gets.
type Question struct{ Who, What, Gets string }

var (
	yamlBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```")
	row       = regexp.MustCompile(`(?m)^\| ([a-z-]+) \| (.+) \| ([^|]+) \|$`)
	quoted    = regexp.MustCompile("`([^`]+)`")
)

// Read reads the cookbook, a file. A block that begins with a comment about values of the installation is no manifest.
func Read(file string) (out []Task, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the cookbook: %w", err)
	}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		title, rest, _ := strings.Cut(section, "\n")
		t := Task{Title: title}
		for _, block := range yamlBlock.FindAllStringSubmatch(rest, -1) {
			if !strings.HasPrefix(block[1], "extensionProviders:") {
				t.Manifest += block[1] + "\n---\n"
			}
		}
		for _, r := range row.FindAllStringSubmatch(rest, -1) {
			if r[1] != "who" && r[1] != "---" {
				t.Questions = append(t.Questions, Question{r[1], r[2], strings.TrimSpace(r[3])})
			}
		}
		if t.Manifest == "" || len(t.Questions) == 0 {
			return nil, fmt.Errorf("the cookbook's %s: nothing is applied, or nothing asked", t.Title)
		}
		out = append(out, t)
	}
	return out, nil
}

// Ask asks what a task asks, each question until it gets what it is to get, for half a minute at most.
func (t Task) Ask(ctx context.Context, s *claims.Scene, issuer *claims.IdentityProvider) error {
	for _, q := range t.Questions {
		err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
			got, err := q.Answer(ctx, s, issuer)
			if err == nil && got != q.Gets {
				err = fmt.Errorf("%s asks %s and gets %s, want %s", q.Who, q.What, got, q.Gets)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", t.Title, err)
		}
	}
	return nil
}

// nowhere is an address that nobody has. What is outside of the mesh is asked there, since its names are in no DNS: it is known by its Host.
const nowhere = "203.0.113.99"

// Answer is what somebody gets who asks, in a scene. Tokens come from the issuer, which is nil if nobody is asked with one.
func (q Question) Answer(ctx context.Context, s *claims.Scene, issuer *claims.IdentityProvider) (string, error) {
	namespace := s.Namespace
	if q.Who == "stranger" {
		namespace = s.Outside
	}
	parts := quoted.FindAllStringSubmatch(q.What, -1)
	if len(parts) == 0 {
		return "", fmt.Errorf("%q is no question", q.What)
	}
	server := "payroll." + s.Namespace
	switch verb, object, _ := strings.Cut(parts[0][1], " "); verb {
	case "TCP":
		got, err := lab.ExecJSON[sample.TCPResult](ctx, s.Lab, namespace, q.Who, "client", "sample", "tcp", server+":"+object)
		if got.Error != "" || err != nil {
			return "nothing", err
		}
		return "an answer", nil
	case "gRPC":
		got, err := lab.ExecJSON[sample.RPCResult](ctx, s.Lab, namespace, q.Who, "client", "sample", "rpc", server+":7000")
		return got.Code, err
	default:
		args := []string{"sample", "get", "http://" + server + object, "-X", verb}
		if address, outside := strings.CutPrefix(object, "http://"); outside {
			host, path, _ := strings.Cut(address, "/")
			args = []string{"sample", "get", "http://" + nowhere + "/" + path, "-X", verb, "-H", "Host: " + host}
		}
		if strings.Contains(q.What, "with a token of") && len(parts) > 1 {
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
		got, err := lab.ExecJSON[sample.Response](ctx, s.Lab, namespace, q.Who, "client", args...)
		if got.Status == 0 {
			return "nothing", err
		}
		return strconv.Itoa(got.Status), err
	}
}
