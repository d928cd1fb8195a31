// Package auditlog makes Citadel's decisions, and what operators have it do, events of the audit trail.
package auditlog

import (
	"cmp"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/utils/clock"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// Refusals cost their caller nothing, so that what is recorded of them is bounded: those of callers who have proven no
// identity more tightly, and apart, so that strangers cannot crowd out what a workload of the mesh has tried.
const (
	strangersASecond = 10
	knownASecond     = 100
	maxReason        = 1024 // bytes; a reason may quote what the caller has sent
)

// Methods of decisions.
const (
	CreateCertificate = "CreateCertificate"
	CreateToken       = "CreateToken"
	WriteSecret       = "WriteSecret" // by the Secret controller, whom nobody asked
	WatchBundle       = "WatchBundle" // by a component; there are events of refusals only
)

// Methods of operators' actions.
const (
	Revoke         = "Revoke"
	Restore        = "Restore"
	RotationPrefix = "Rotation " // and what was said to the rotation
)

// Action is what an operator wants of Citadel. Whoever may call has shown the token of one account that all operators
// share: who it was is what the caller says, and the API server's own audit log says who made the token.
type Action struct {
	Method   string
	By       string
	Why      string // in the operator's words, or what is changed
	Identity string // SPIFFE ID that it is about; empty if it is about none
	Serial   string // hexadecimal, of the certificate that it is about
	Peer     string // address of the caller
}

// Decision is an answer to a request for a certificate, a token or the stream of trust bundles.
type Decision struct {
	Method   string
	Protocol string                // gRPC, or Kubernetes for Secrets
	Identity string                // the SPIFFE ID that was asked for; empty if the caller has proven none
	Subject  *telemetryv1.Workload // the pod it is for; nil if that is not known
	Peer     string                // address of the caller; empty if nobody called
	Serial   string                // hexadecimal, of the certificate that was issued; for renewals that are refused, the caller's
}

// Sink takes events without waiting for Mixer: the spool.
type Sink interface {
	Append(*telemetryv1.Event) bool
}

// Log is safe for concurrent use.
type Log struct {
	sink       Sink
	observer   *telemetryv1.Workload
	clock      clock.PassiveClock
	dropped    prometheus.Counter
	suppressed prometheus.Counter

	mu               sync.Mutex
	strangers, known bounded
}

// bounded is a limit, and how many it has held back since the last that passed.
type bounded struct {
	limit *rate.Limiter
	held  uint64
}

// New returns a log whose events name the observer, Citadel's own pod.
func New(sink Sink, observer *telemetryv1.Workload, c clock.PassiveClock, reg prometheus.Registerer) *Log {
	l := &Log{
		sink: sink, observer: observer, clock: c,
		dropped:    prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_citadel_audit_dropped_total", Help: "Audit events that could not be spooled."}),
		suppressed: prometheus.NewCounter(prometheus.CounterOpts{Name: "bulwark_citadel_audit_suppressed_total", Help: "Refusals that were counted in another's audit event, because there were too many."}),
		strangers:  bounded{limit: rate.NewLimiter(strangersASecond, 2*strangersASecond)},
		known:      bounded{limit: rate.NewLimiter(knownASecond, 2*knownASecond)},
	}
	reg.MustRegister(l.dropped, l.suppressed)
	return l
}

// Issued records that the answer was yes.
func (l *Log) Issued(d Decision) { l.append(d, telemetryv1.Verdict_VERDICT_ALLOWED, "") }

// Refused records that the answer was no. It reports whether there is an event of it; otherwise the next event of a
// refusal says how many there were.
func (l *Log) Refused(d Decision, reason string) bool {
	reason = printable(reason)
	held, ok := l.pass(d)
	if !ok {
		l.suppressed.Inc()
		return false
	}
	if held > 0 {
		reason += fmt.Sprintf(" (%d refusals before this one have no event of their own)", held)
	}
	l.append(d, telemetryv1.Verdict_VERDICT_REFUSED, reason)
	return true
}

// Admin records what an operator had Citadel do, or was refused: failed is why.
func (l *Log) Admin(a Action, failed error) {
	reason, verdict := "by "+cmp.Or(a.By, "unknown"), telemetryv1.Verdict_VERDICT_ALLOWED
	if a.Why != "" {
		reason += ": " + a.Why
	}
	if failed != nil {
		reason, verdict = reason+": "+failed.Error(), telemetryv1.Verdict_VERDICT_REFUSED
	}
	l.put(&telemetryv1.Event{
		Time: timestamppb.New(l.clock.Now()), Kind: telemetryv1.Kind_KIND_ADMIN, Observer: l.observer, Verdict: verdict, Reason: printable(reason),
		DestinationIdentity: a.Identity, CertificateSerial: a.Serial, SourceAddress: a.Peer, Protocol: "HTTPS", Method: a.Method,
	})
}

// printable bounds a text that may quote what somebody has sent. What is not UTF-8 could not be marshalled.
func printable(reason string) string {
	if len(reason) > maxReason {
		reason = reason[:maxReason] + "…"
	}
	return strings.ToValidUTF8(reason, "?")
}

func (l *Log) pass(d Decision) (held uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := &l.known
	if d.Identity == "" {
		b = &l.strangers
	}
	if !b.limit.AllowN(l.clock.Now(), 1) {
		b.held++
		return 0, false
	}
	held, b.held = b.held, 0
	return held, true
}

func (l *Log) append(d Decision, v telemetryv1.Verdict, reason string) {
	l.put(event(d, l.observer, v, reason, l.clock.Now()))
}

func (l *Log) put(e *telemetryv1.Event) {
	if !l.sink.Append(e) {
		l.dropped.Inc() // the spool says so in the trail, when it can again
	}
}

func event(d Decision, observer *telemetryv1.Workload, v telemetryv1.Verdict, reason string, now time.Time) *telemetryv1.Event {
	return &telemetryv1.Event{
		Time: timestamppb.New(now), Kind: telemetryv1.Kind_KIND_ISSUANCE, Observer: observer, Verdict: v, Reason: reason,
		SourceIdentity: d.Identity, Subject: d.Subject, CertificateSerial: d.Serial,
		SourceAddress: d.Peer, Protocol: d.Protocol, Method: d.Method,
	}
}
