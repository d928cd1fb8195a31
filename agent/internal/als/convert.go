package als

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// maxText bounds every string that a client of the workload chose.
const maxText = 4 << 10

// record is one entry of the log.
type record struct {
	time time.Time
	text map[string]string
}

// get returns an attribute, or nothing for what Envoy did not know.
func (r record) get(name string) string {
	if v := r.text[name]; v != "-" {
		return clip(v)
	}
	return ""
}

func (r record) tag(name string) string { return r.get("bulwark." + name) }

// event reads an entry by what Pilot's configuration of the log promises.
func (r record) event() *telemetryv1.Event {
	e := &telemetryv1.Event{
		Time:               timestamppb.New(r.time),
		Reporter:           telemetryv1.Reporter_REPORTER_DESTINATION,
		SourceAddress:      r.get("source_address"),
		DestinationAddress: r.get("local_address"),
		DestinationService: r.tag("destination_service"),
		TlsVersion:         r.tag("tls_version"),
		ResponseFlags:      r.get("response_flags"),
		Protocol:           "TCP",
	}
	if r.time.IsZero() {
		e.Time = timestamppb.Now()
	}
	if r.tag("direction") == "outbound" {
		e.Reporter = telemetryv1.Reporter_REPORTER_SOURCE
		e.DestinationIdentity = r.tag("destination_principal")
		if server := r.get("upstream_address"); server != "" {
			e.DestinationAddress = server // whoever was behind the service's address
		}
	} else {
		e.SourceIdentity = r.tag("source_principal")
	}
	details := r.get("termination_details")
	if r.tag("kind") == "http" {
		e.Protocol, e.Method, e.Path, e.Authority = r.get("protocol"), r.get("method"), r.get("path"), r.get("authority")
		e.RequestId, e.ResponseCode = r.get("request_id"), number(r.get("response_code"))
		details = r.get("response_code_details")
	}
	decide(e, r, details)
	return e
}

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0 // there was no response
	}
	return uint32(n)
}

// matched finds the rule in what Envoy's RBAC says of a refusal.
var matched = regexp.MustCompile(`^rbac_access_denied_matched_policy\[(.*)\]`)

// decide fills in the verdict, who decided, and why.
func decide(e *telemetryv1.Event, r record, details string) {
	if m := matched.FindStringSubmatch(details); m != nil {
		e.Verdict = telemetryv1.Verdict_VERDICT_DENIED
		if m[1] == "none" {
			e.Reason = "no ALLOW policy matched"
			return
		}
		e.Policy = Policy(firstOf(r.tag("deny_policy"), m[1]))
		e.Reason = "a DENY policy matched"
		return
	}
	upstream, downstream := r.get("upstream_failure"), r.get("downstream_failure")
	switch {
	case r.tag("direction") == "outbound" && upstream != "":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, clip("server's identity or certificate refused: "+upstream)
	case downstream != "":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, clip("TLS handshake failed: "+downstream)
	case r.tag("kind") == "refused":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, "no mutual TLS where it is required"
	default:
		e.Verdict = telemetryv1.Verdict_VERDICT_ALLOWED
		e.Policy = Policy(r.tag("allow_policy"))
	}
}

// rule is how Pilot names a rule of a policy in Envoy's configuration. Envoy writes odd characters as underscores.
var rule = regexp.MustCompile(`^ns\[([^\]]*)\]-policy\[([^\]]*)\]-rule\[(\d+)\]$`)

// Policy turns a rule's name in Envoy into the form people read: <namespace>/<name> rule <n>.
func Policy(name string) string {
	if m := rule.FindStringSubmatch(name); m != nil {
		return fmt.Sprintf("%s/%s rule %s", m[1], m[2], m[3])
	}
	return clip(name)
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// clip shortens what a client could have made as long as it liked, and drops what is no UTF-8 (protobuf would refuse it).
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
