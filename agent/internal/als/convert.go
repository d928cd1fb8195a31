package als

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// maxText bounds every string that a client of the workload chose, and maxName one that is to be a name. So an event is far
// below the 64 KiB that the audit trail takes, also where every byte is an escape of JSON there.
const (
	maxText = 4 << 10
	maxName = 2 << 10
)

// record is one entry of the log.
type record struct {
	time time.Time
	text map[string]string
}

// get returns an attribute, or nothing for what Envoy did not know.
func (r record) get(name string) string {
	if v := r.text[name]; v != "-" {
		return clip(v, maxText)
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
	if address := r.tag("source_address"); address != "" {
		e.SourceAddress = address // of the connection that was handed on to who wrote the entry
	}
	if remote := r.tag("remote_address"); remote != e.GetSourceAddress() {
		e.RemoteAddress = clip(remote, maxName)
	}
	if r.tag("direction") == "outbound" {
		e.Reporter = telemetryv1.Reporter_REPORTER_SOURCE
		e.DestinationIdentity, e.ClaimedDestination = r.peer("destination_principal")
		if server := r.get("upstream_address"); server != "" {
			e.DestinationAddress = server // whoever was behind the service's address
		}
	} else {
		e.SourceIdentity, e.ClaimedSource = r.peer("source_principal")
	}
	details := firstOf(r.get("termination_details"), r.get("response_code_details"))
	if r.tag("kind") == "http" {
		e.Protocol, e.Method, e.Path, e.Authority = r.get("protocol"), r.get("method"), withoutTokens(r.get("path")), r.get("authority")
		e.RequestId, e.ResponseCode = r.get("request_id"), uint32(number(r.get("response_code")))
		details = r.get("response_code_details")
		if principal := r.tag("request_principal"); !strings.HasPrefix(principal, "-/") {
			e.RequestPrincipal = clip(principal, maxName)
		}
	}
	decide(e, r, details)
	e.Trial = trial(e, r)
	return e
}

// token is a JSON Web Token, whose header begins with {" in base64url (RFC 7515, section 3.1).
var token = regexp.MustCompile(`eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*`)

// withoutTokens leaves out of a path, which has its query, what whoever reads the trail could show as a bearer.
func withoutTokens(path string) string { return token.ReplaceAllString(path, "<token>") }

// peer returns what the certificate of the other side says: as proven, or as claimed. Envoy knows the name as soon as it has
// seen the certificate, which anybody may make or copy. It is proven when the handshake has come to its end, by which the
// peer has shown that it has the key of a certificate of this mesh.
func (r record) peer(tag string) (proven, claimed string) {
	name := clip(r.tag(tag), maxName)
	if name == "" {
		return "", ""
	}
	id, err := spiffe.Parse(name)
	if err != nil || !r.handshaken() {
		return "", name
	}
	return id.String(), ""
}

// handshaken reports whether the TLS handshake of the entry's connection came to its end. Envoy does not say so of a
// connection whose client leaves in the middle, so that something else must show it: a request, data that a filter has seen,
// or bytes that came.
func (r record) handshaken() bool {
	if r.tag("direction") == "outbound" {
		return r.get("upstream_failure") == ""
	}
	if r.get("downstream_failure") != "" {
		return false
	}
	switch r.tag("kind") {
	case "http":
		return true
	case "tcp":
		return matched.MatchString(r.get("termination_details")) || authorizers[r.get("response_code_details")] != "" || number(r.tag("received")) > 0
	default:
		return false
	}
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0 // there was no response, or nothing came
	}
	return n
}

// matched finds the rule in what Envoy's RBAC says of a refusal.
var matched = regexp.MustCompile(`^rbac_access_denied_matched_policy\[(.*)\]`)

// authorizers are Envoy's words of what an external authorizer has answered, and asked finds who it was, and by which rule it was asked.
var (
	authorizers = map[string]string{"ext_authz_denied": "has denied it", "ext_authz_error": "has not answered, and had to be asked"}
	asked       = regexp.MustCompile("^" + istiocompat.CustomRules + `(.*?)-(ns\[.*)$`)
)

// decide fills in the verdict, who decided, and why.
func decide(e *telemetryv1.Event, r record, details string) {
	if r.tag("out_of_reach") != "" {
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_DENIED, "out of reach: no policy admits this identity to the service"
		return
	}
	if m := matched.FindStringSubmatch(details); m != nil {
		e.Verdict = telemetryv1.Verdict_VERDICT_DENIED
		if m[1] == "none" {
			e.Reason = telemetryv1.ReasonNoAllow
			return
		}
		e.Policy = Policy(firstOf(r.tag("deny_policy"), m[1]))
		e.Reason = "a DENY policy matched"
		return
	}
	if answer, ok := authorizers[details]; ok {
		m := asked.FindStringSubmatch(r.tag("custom_policy"))
		if m == nil {
			m = []string{"", "of unknown name", ""}
		}
		e.Verdict, e.Policy, e.Reason = telemetryv1.Verdict_VERDICT_DENIED, Policy(m[2]), telemetryv1.ReasonAuthorizer+clip(m[1], maxName)+" "+answer
		return
	}
	if why, ok := strings.CutPrefix(details, "jwt_authn_access_denied{"); ok {
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_DENIED, telemetryv1.ReasonTokenRefused+clip(strings.ReplaceAll(strings.TrimSuffix(why, "}"), "_", " "), maxName)
		return
	}
	upstream, downstream := r.get("upstream_failure"), r.get("downstream_failure")
	switch {
	case r.tag("direction") == "outbound" && upstream != "":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, clip("server's identity or certificate refused: "+upstream, maxName)
	case r.tag("kind") == "refused" && e.GetResponseFlags() == "NR": // no chain takes it, whatever Envoy made of its first bytes
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, telemetryv1.ReasonPlaintext
	case downstream != "":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, clip("TLS handshake failed: "+downstream, maxName)
	case e.GetClaimedSource() != "" && r.tag("kind") == "tcp":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, "the client left before its identity was proven"
	case r.tag("kind") == "refused":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, telemetryv1.ReasonPlaintext
	default:
		e.Verdict = telemetryv1.Verdict_VERDICT_ALLOWED
		if e.Policy = Policy(r.tag("allow_policy")); e.Policy == "" && r.tag("kind") == "http" {
			e.Reason = "no enforced ALLOW policy selects the workload" // of a connection, Envoy does not always say
		}
	}
}

// ofUnknownKey reports whether a token was refused that may be good by a newer set of keys: no key has its ID, or, if it names none, none verifies it. The texts are Envoy's.
func ofUnknownKey(e *telemetryv1.Event) bool {
	why, ok := strings.CutPrefix(e.GetReason(), telemetryv1.ReasonTokenRefused)
	return ok && (strings.HasPrefix(why, "Jwks doesn't have key to match") || strings.HasPrefix(why, "Jwt verification fails"))
}

// rule is how Pilot names a rule of a policy in Envoy's configuration. Envoy writes odd characters as underscores.
var rule = regexp.MustCompile(`^ns\[([^\]]*)\]-policy\[([^\]]*)\]-rule\[(\d+)\]$`)

// Policy turns a rule's name in Envoy into the form people read: <namespace>/<name> rule <n>.
func Policy(name string) string {
	if m := rule.FindStringSubmatch(name); m != nil {
		return fmt.Sprintf("%s/%s rule %s", m[1], m[2], m[3])
	}
	return clip(name, maxName)
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// clip shortens what a client could have made as long as it liked, and drops what is no UTF-8 (protobuf would refuse it). What
// has no shape of its own counts as what it takes in the audit trail, which has escapes in its place.
func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	size := 0
	for i, r := range s {
		if size += utf8.RuneLen(r); !unicode.IsPrint(r) {
			size += 2 * len(`\u0000`)
		}
		if size > 2*most {
			return s[:i]
		}
	}
	return s
}
