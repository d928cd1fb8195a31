package claims

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// auditLimit is how long a decision may take into the trail when all components run.
const auditLimit = 20 * time.Second

// Event is a line of `meshctl audit tail -o json`.
type Event struct {
	Time                time.Time
	Reporter            string
	SourceIdentity      string
	DestinationIdentity string
	ClaimedSource       string
	ClaimedDestination  string
	SourceAddress       string
	RemoteAddress       string
	DestinationAddress  string
	DestinationService  string
	Protocol            string
	Method              string
	Path                string
	ResponseCode        int
	Verdict             string
	Policy              string
	Reason              string
	TlsVersion          string
	Kind                string
	CertificateSerial   string
	Subject             struct{ Pod, PodUid string }
	Trial               *struct{ Verdict, Policy, Reason string }
}

// events reads the scene's audit trail from a moment on, as a user does.
func (s *Scene) events(ctx context.Context, since time.Time) ([]Event, error) {
	const slack = 2 * time.Second // the nodes' clocks and this one
	out, err := s.Meshctl(ctx, "audit", "tail", "-n", s.Namespace, "--last=0", "--since="+(time.Since(since)+slack).String(), "-o", "json")
	if err != nil {
		return nil, err
	}
	var events []Event
	for line := range bytes.Lines(out) {
		var record struct{ Event Event }
		if err := json.Unmarshal(line, &record); err != nil {
			return nil, fmt.Errorf("audit line %q: %w", line, err)
		}
		events = append(events, record.Event)
	}
	return events, nil
}

// Events reads the scene's audit trail from a moment on, as a user does.
func (s *Scene) Events(ctx context.Context, since time.Time) ([]Event, error) {
	return s.events(ctx, since)
}

// Audited waits until an event since a moment, of a reporter (source or destination), that matches is in the trail.
func (s *Scene) Audited(ctx context.Context, since time.Time, reporter string, match func(*Event) bool) error {
	return lab.PollFor(ctx, auditLimit, func(ctx context.Context) error {
		events, err := s.events(ctx, since)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Reporter == "REPORTER_"+strings.ToUpper(reporter) && match(&e) {
				return nil
			}
		}
		return fmt.Errorf("not among the %d events of namespace %s", len(events), s.Namespace)
	})
}

func host(address string) string {
	h, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return h
}

// TheAuditTrailIsComplete is claim 8. Nothing else may need Mixer while it runs.
func TheAuditTrailIsComplete(ctx context.Context, s *Scene) (string, error) {
	if err := s.decisionsAreAudited(ctx); err != nil {
		return "", err
	}
	sent, err := s.mixerAway(ctx, 20*time.Second)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("who, what, verdict and policy of each; Mixer away for 20 s: %d of %d events, none twice", sent, sent), nil
}

func (s *Scene) decisionsAreAudited(ctx context.Context) error {
	began := time.Now()
	mark := fmt.Sprintf("/accounts/mark-%d", time.Now().UnixNano())
	policy := s.Namespace + "/payroll-readers"
	// What a policy could admit is judged by the server's proxy. The web, whom none can, has payroll out of its reach, as its own proxy says.
	requests := []struct {
		account, method, path, verdict, policy, reporter, server string
		code                                                     int
	}{
		{"account-auditor", "GET", mark, "ALLOWED", policy, "destination", s.ID("payroll"), 200},
		{"account-auditor", "POST", mark, "DENIED", "", "destination", s.ID("payroll"), 403},
		{"web", "GET", mark, "DENIED", "", "source", "", 403},
	}
	for _, r := range requests {
		got, err := s.Get(ctx, r.account, s.URL(r.path), "--method="+r.method)
		if err != nil {
			return err
		}
		if got.Status != r.code {
			return fmt.Errorf("%s %s as %s: %+v, want %d", r.method, r.path, r.account, got, r.code)
		}
	}
	for _, account := range []string{"account-auditor", "web"} {
		if _, err := s.Exec(ctx, s.Namespace, account, "client", "sample", "tcp", "payroll."+s.Namespace+":9000"); err != nil {
			return err
		}
	}
	for _, r := range requests {
		err := s.Audited(ctx, began, r.reporter, func(e *Event) bool {
			return e.SourceIdentity == s.ID(r.account) && e.DestinationIdentity == r.server && e.Method == r.method && e.Path == r.path &&
				e.ResponseCode == r.code && e.Verdict == "VERDICT_"+r.verdict && strings.HasPrefix(e.Policy, r.policy) && (r.policy != "" || e.Reason != "")
		})
		if err != nil {
			return fmt.Errorf("audit event of %s %s as %s (%s): %w", r.method, r.path, r.account, r.verdict, err)
		}
	}
	for _, c := range []struct{ account, verdict, reporter, server string }{
		{"account-auditor", "VERDICT_ALLOWED", "destination", s.ID("payroll")},
		{"web", "VERDICT_DENIED", "source", ""},
	} {
		err := s.Audited(ctx, began, c.reporter, func(e *Event) bool {
			return e.Protocol == "TCP" && e.SourceIdentity == s.ID(c.account) && e.DestinationIdentity == c.server && e.Verdict == c.verdict
		})
		if err != nil {
			return fmt.Errorf("audit event of the TCP connection as %s: %w", c.account, err)
		}
	}
	return nil
}

// mixerAway deletes Mixer's pod for a while under traffic and counts the events that come through.
func (s *Scene) mixerAway(ctx context.Context, away time.Duration) (int, error) {
	mark := fmt.Sprintf("/accounts/away-%d-", time.Now().UnixNano())
	if err := s.Scale(ctx, mesh.MixerAccount, 0); err != nil {
		return 0, err
	}
	load, err := lab.ExecJSON[sample.LoadResult](ctx, s.Lab, s.Namespace, "account-auditor", "client",
		"sample", "load", s.URL(mark+"{n}"), "--duration="+away.String(), "--interval=20ms")
	err = errors.Join(err, s.Scale(context.WithoutCancel(ctx), mesh.MixerAccount, 1))
	if err != nil {
		return 0, err
	}
	if load.Outcomes["200"] != load.Requests || load.Requests == 0 {
		return 0, fmt.Errorf("with Mixer away, outcomes %v of %d requests: %v", load.Outcomes, load.Requests, load.Errors)
	}
	_, err = s.AuditedPaths(ctx, mark, load.Requests, 1)
	return load.Requests, err
}

// AuditedPaths waits until each of so many requests, whose paths differ after a prefix, is in the trail, at most so many
// times each. It returns how many are.
func (s *Scene) AuditedPaths(ctx context.Context, prefix string, requests, times int) (int, error) {
	began := time.Now().Add(-5 * time.Minute)
	count := 0
	err := lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		events, err := s.events(ctx, began)
		if err != nil {
			return err
		}
		seen := map[string]int{}
		for _, e := range events {
			if e.Reporter == "REPORTER_DESTINATION" && strings.HasPrefix(e.Path, prefix) {
				seen[e.Path]++
				if seen[e.Path] > times {
					return lab.Stop(fmt.Errorf("the event of %s is there %d times", e.Path, seen[e.Path]))
				}
			}
		}
		if count = len(seen); count != requests {
			return fmt.Errorf("%d of %d events are in the trail", count, requests)
		}
		return nil
	})
	return count, err
}

// Scale sets the number of pods of a component, given by its account, and waits until there are so many, ready.
func (s *Scene) Scale(ctx context.Context, account string, replicas int32) error {
	deployments := s.AppsV1().Deployments(mesh.Namespace)
	scale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: mesh.Namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: replicas}}
	if _, err := deployments.UpdateScale(ctx, account, scale, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("scaling %s to %d: %w", account, replicas, err)
	}
	selector := metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + strings.TrimPrefix(account, "bulwark-")}
	return lab.PollFor(ctx, time.Minute, func(ctx context.Context) error {
		pods, err := s.CoreV1().Pods(mesh.Namespace).List(ctx, selector)
		if err != nil {
			return err
		}
		d, err := deployments.Get(ctx, account, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(pods.Items) != int(replicas) || d.Status.ReadyReplicas != replicas {
			return fmt.Errorf("%s has %d pods, %d ready, want %d", account, len(pods.Items), d.Status.ReadyReplicas, replicas)
		}
		return nil
	})
}
