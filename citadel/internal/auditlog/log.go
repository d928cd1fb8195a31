// Package auditlog makes Citadel's decisions events of the audit trail.
package auditlog

import (
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
)

// Decision is an answer to a request for a certificate or token.
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
	if len(reason) > maxReason {
		reason = reason[:maxReason] + "…"
	}
	reason = strings.ToValidUTF8(reason, "?") // what is not UTF-8 could not be marshalled
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
	if !l.sink.Append(event(d, l.observer, v, reason, l.clock.Now())) {
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
