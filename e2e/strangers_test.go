package e2e

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// Strangers write into the audit trail, by what their certificates and requests say. Nothing of it is taken for proven, and
// nothing of it leaves its place where it is read.
func TestWordsOfStrangersAreQuotedAndNeverProven(t *testing.T) {
	prove(t, "strangers", wordsOfStrangers)
}

func wordsOfStrangers(ctx context.Context, s *claims.Scene) (string, error) {
	pod, err := s.Pod(ctx, s.Namespace, "payroll")
	if err != nil {
		return "", err
	}
	stranger, err := s.Pod(ctx, s.Outside, "stranger")
	if err != nil {
		return "", err
	}
	began := time.Now()
	forged := s.ID("payroll") + `\r\n19:00:00.000  allowed   forged row\x1b[2K\x1b[1A\u202egnp\u009b31m`
	attempts := [][]string{
		{"--forge=" + forged},                     // no name at all
		{"--forge=" + s.ID("payroll")},            // a member's name
		{"--steal=" + pod.Status.PodIP + ":8080"}, // a member's certificate, without its key
		{"--forge=spiffe://elsewhere/ns/" + s.Namespace + "/sa/payroll"},
	}
	address := pod.Status.PodIP + ":8080"
	for _, flags := range attempts {
		got, err := lab.ExecJSON[sample.TLSResult](ctx, s.Lab, s.Outside, "stranger", "client", append([]string{"sample", "tls", address}, flags...)...)
		if err != nil {
			return "", err
		}
		if !got.Refused {
			return "", fmt.Errorf("%q: %+v, want a refusal", flags, got)
		}
	}
	// A member may choose what it asks for.
	odd := s.URL("/accounts/42?%0d%0a%1b[2K")
	if _, err := s.Get(ctx, "web", odd); err != nil {
		return "", err
	}
	err = lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		events, err := s.Events(ctx, began)
		if err != nil {
			return err
		}
		claimed := 0
		for _, e := range events {
			if host, _, _ := strings.Cut(e.SourceAddress, ":"); host != stranger.Status.PodIP {
				continue
			}
			if e.SourceIdentity != "" {
				return lab.Stop(fmt.Errorf("the stranger appears as %q: %+v", e.SourceIdentity, e))
			}
			if e.Verdict != "VERDICT_REFUSED" {
				return lab.Stop(fmt.Errorf("the stranger was not refused: %+v", e))
			}
			if e.ClaimedSource != "" {
				claimed++
			}
		}
		if claimed < len(attempts) {
			return fmt.Errorf("%d claims in the trail, want %d", claimed, len(attempts))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"audit", "tail", "--last=0", "-n", s.Namespace}, {"audit", "tail", "--last=0", "-n", s.Namespace, "-o", "json"},
		{"audit", "tail", "--last=0", "--identity", "forged row"}, {"status"}, {"identity", "list"},
	} {
		out, err := s.Meshctl(ctx, args...)
		if err != nil && len(out) == 0 {
			return "", err
		}
		if i := bytes.IndexFunc(out, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
			return "", fmt.Errorf("meshctl %s shows %q", strings.Join(args, " "), out[max(0, i-40):min(len(out), i+40)])
		}
		for line := range bytes.Lines(out) {
			if bytes.HasPrefix(line, []byte("19:00:00.000  allowed   forged")) {
				return "", fmt.Errorf("meshctl %s has a forged row:\n%s", strings.Join(args, " "), line)
			}
		}
		if args[len(args)-1] == "forged row" && bytes.Count(out, []byte(`claims spiffe://`)) == 0 {
			return "", fmt.Errorf("the claim is not shown as one:\n%s", out)
		}
	}
	return fmt.Sprintf("%d strangers' names are claims in the trail, quoted in every table", len(attempts)), nil
}
