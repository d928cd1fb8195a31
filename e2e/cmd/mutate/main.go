// Command mutate shows that the tests of what is claimed can fail: it switches off one protection at a time in a copy of
// the source, and expects the test of the protection to fail. For an end-to-end test it builds and installs the copy.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

const limit = 10 * time.Minute // of one mutation

func main() {
	only := flag.Int("only", 0, "number of the one claim whose protection to switch off")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *only); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only int) error {
	root, err := output(ctx, ".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bulwark-mutate-")
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	if _, err := output(ctx, root, "git", "worktree", "add", "--detach", tree, "HEAD"); err != nil {
		return err
	}
	defer func() {
		_, err := output(context.WithoutCancel(ctx), root, "git", "worktree", "remove", "--force", tree)
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			fmt.Fprintln(os.Stderr, "mutate: cleaning up:", err)
		}
	}()
	survived := 0
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tSWITCHED OFF\tTEST\tOUTCOME")
	for _, m := range mutations {
		if only != 0 && m.claim != only {
			continue
		}
		fmt.Fprintf(os.Stderr, "%d: %s\n", m.claim, m.what)
		outcome, err := m.try(ctx, tree)
		if err != nil {
			return fmt.Errorf("mutation %d (%s): %w", m.claim, m.what, err)
		}
		fmt.Fprintf(os.Stderr, "\t%s\n", outcome) // the table comes at the end, which may be never
		if !strings.HasPrefix(outcome, "failed") {
			survived++
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\n", m.claim, m.what, m.test, outcome)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if survived > 0 {
		return fmt.Errorf("%d protections were switched off without a test that failed", survived)
	}
	return nil
}

// try applies the mutation, runs the test and takes the mutation back.
func (m mutation) try(ctx context.Context, tree string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, e := range m.edits {
		file := filepath.Join(tree, e.file)
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if bytes.Count(content, []byte(e.old)) != 1 {
			return "", fmt.Errorf("%s has %q not exactly once: the mutation is out of date", e.file, e.old)
		}
		if err := os.WriteFile(file, bytes.Replace(content, []byte(e.old), []byte(e.new), 1), 0o644); err != nil {
			return "", err
		}
	}
	defer func() { _, _ = output(context.WithoutCancel(ctx), tree, "git", "checkout", "-q", "--", ".") }()
	if pkg, test, ok := strings.Cut(m.test, "."); ok {
		return outcome(ctx, tree, test, `BULWARK_ENVOY=$(go run ./tools/cmd/images envoy-path) go test -count=1 ./`+pkg+` -run "^`+test+`$"`)
	}
	if out, err := output(ctx, tree, "make", "images", "cluster"); err != nil {
		return "", fmt.Errorf("building: %w: %s", err, tail(out))
	}
	if out, err := output(ctx, tree, "sh", "-c", "bin/cluster load bin/oci/*.tar"); err != nil {
		return "", fmt.Errorf("loading: %w: %s", err, tail(out))
	}
	return outcome(ctx, tree, m.test, `cd e2e && KUBECONFIG=../.cluster/kubeconfig go test -count=1 . -run "^`+m.test+`$" -tag "$(cat ../bin/tag)"`)
}

// outcome runs the command, which runs the test, and says how that ended.
func outcome(ctx context.Context, tree, test, command string) (string, error) {
	out, err := output(ctx, tree, "sh", "-c", command)
	var exit *exec.ExitError
	switch {
	case err == nil && strings.Contains(out, "no tests to run"):
		return "", fmt.Errorf("there is no test %s", test)
	case err == nil:
		return "PASSED: the test does not see it", nil
	case errors.As(err, &exit) && strings.Contains(out, "--- FAIL: "+test):
		return "failed: " + reason(out), nil
	default:
		return "", fmt.Errorf("the test did not run: %w: %s", err, tail(out))
	}
}

// reason is the first thing a failed test said.
func reason(out string) string {
	_, after, _ := strings.Cut(out, "--- FAIL: ")
	for line := range strings.Lines(after) {
		if _, text, ok := strings.Cut(line, "_test.go:"); ok {
			_, text, _ = strings.Cut(text, ": ")
			if text = strings.TrimSpace(text); len(text) > 110 {
				text = text[:110] + "…"
			}
			return text
		}
	}
	return "without a message"
}

func tail(out string) string { return out[max(0, len(out)-2000):] }

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), err
}
