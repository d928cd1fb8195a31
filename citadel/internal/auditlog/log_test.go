package auditlog

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	testclock "k8s.io/utils/clock/testing"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

const payroll = "spiffe://cluster.local/ns/finance/sa/payroll"

type sink struct {
	events []*telemetryv1.Event
	full   bool
}

func (s *sink) Append(e *telemetryv1.Event) bool {
	if !s.full {
		s.events = append(s.events, e)
	}
	return !s.full
}

func newLog() (*Log, *sink, *testclock.FakePassiveClock) {
	s, clock := &sink{}, testclock.NewFakePassiveClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	return New(s, &telemetryv1.Workload{Pod: "bulwark-citadel-1"}, clock, prometheus.NewRegistry()), s, clock
}

func TestDecisionsAreEvents(t *testing.T) {
	l, s, clock := newLog()
	subject := &telemetryv1.Workload{Namespace: "finance", Pod: "payroll-1"}
	l.Issued(Decision{Method: CreateCertificate, Protocol: "gRPC", Identity: payroll, Subject: subject, Peer: "10.0.0.1:4711", Serial: "a1"})
	l.Refused(Decision{Method: CreateToken, Protocol: "gRPC", Peer: "10.0.0.1:4711"}, strings.Repeat("ü\xff", 2000))
	if len(s.events) != 2 {
		t.Fatalf("%d events", len(s.events))
	}
	e := s.events[0]
	if e.Kind != telemetryv1.Kind_KIND_ISSUANCE || e.Verdict != telemetryv1.Verdict_VERDICT_ALLOWED || e.SourceIdentity != payroll || e.CertificateSerial != "a1" ||
		e.Subject.Pod != "payroll-1" || e.Observer.Pod != "bulwark-citadel-1" || e.Method != "CreateCertificate" || e.Protocol != "gRPC" ||
		e.SourceAddress != "10.0.0.1:4711" || e.Policy != "" || !e.Time.AsTime().Equal(clock.Now()) {
		t.Errorf("issued: %v", e)
	}
	if e = s.events[1]; e.Verdict != telemetryv1.Verdict_VERDICT_REFUSED || len(e.Reason) > maxReason+10 || e.Method != "CreateToken" || !utf8.ValidString(e.Reason) {
		t.Errorf("refused: %v", e)
	}
}

func TestFloodOfRefusalsIsCountedNotRecorded(t *testing.T) {
	l, s, clock := newLog()
	for range 1000 {
		l.Refused(Decision{}, "no token")
	}
	strangers := len(s.events)
	if strangers == 0 || strangers > 2*strangersASecond {
		t.Fatalf("%d events of a flood", strangers)
	}
	if n := testutil.ToFloat64(l.suppressed); int(n) != 1000-strangers {
		t.Fatalf("%g suppressed", n)
	}
	if !l.Refused(Decision{Identity: payroll}, "revoked") {
		t.Fatal("strangers crowd out a workload's refusal")
	}
	clock.SetTime(clock.Now().Add(time.Second))
	if !l.Refused(Decision{}, "no token") || !strings.Contains(s.events[len(s.events)-1].Reason, "980 refusals before") {
		t.Fatalf("the next event: %v", s.events[len(s.events)-1])
	}
	if l.Refused(Decision{}, "no token"); strings.Contains(s.events[len(s.events)-1].Reason, "before this one") {
		t.Fatal("told twice")
	}
}

func TestOperatorsActionsAreEventsOfTheirOwnKind(t *testing.T) {
	l, s, _ := newLog()
	l.Admin(Action{Method: Revoke, By: "alice", Why: "lost laptop", Identity: payroll, Serial: "a1", Peer: "127.0.0.1:1"}, nil)
	l.Admin(Action{Method: RotationPrefix + "abort", Why: strings.Repeat("ü\xff", 2000)}, errors.New("no"))
	if len(s.events) != 2 {
		t.Fatalf("%d events", len(s.events))
	}
	e := s.events[0]
	if e.Kind != telemetryv1.Kind_KIND_ADMIN || e.Verdict != telemetryv1.Verdict_VERDICT_ALLOWED || e.Method != "Revoke" || e.Reason != "by alice: lost laptop" ||
		e.DestinationIdentity != payroll || e.SourceIdentity != "" || e.CertificateSerial != "a1" || e.SourceAddress != "127.0.0.1:1" || e.Observer.Pod != "bulwark-citadel-1" {
		t.Errorf("revoked: %v", e)
	}
	if e = s.events[1]; e.Verdict != telemetryv1.Verdict_VERDICT_REFUSED || len(e.Reason) > maxReason+10 || e.Method != "Rotation abort" || !utf8.ValidString(e.Reason) {
		t.Errorf("refused: %v", e)
	}
}

func TestIssuancesAreNeverSuppressed(t *testing.T) {
	l, s, _ := newLog()
	for range 1000 {
		l.Issued(Decision{Identity: payroll})
	}
	if len(s.events) != 1000 {
		t.Fatalf("%d events", len(s.events))
	}
	s.full = true
	l.Issued(Decision{Identity: payroll})
	if n := testutil.ToFloat64(l.dropped); n != 1 {
		t.Fatalf("%g dropped", n)
	}
}
