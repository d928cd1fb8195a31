package als

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	otlp "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

const (
	allowed = telemetryv1.Verdict_VERDICT_ALLOWED
	denied  = telemetryv1.Verdict_VERDICT_DENIED
	refused = telemetryv1.Verdict_VERDICT_REFUSED
)

// wire is a batch of one record as Envoy sends it.
func wire(t testing.TB, nanos uint64, text map[string]string) []byte {
	t.Helper()
	r := &logspb.LogRecord{TimeUnixNano: nanos}
	for k, v := range text {
		r.Attributes = append(r.Attributes, &otlp.KeyValue{Key: k, Value: &otlp.AnyValue{Value: &otlp.AnyValue_StringValue{StringValue: v}}})
	}
	b, err := proto.Marshal(&collector.ExportLogsServiceRequest{ResourceLogs: []*logspb.ResourceLogs{{
		ScopeLogs: []*logspb.ScopeLogs{{LogRecords: []*logspb.LogRecord{r}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func one(t testing.TB, request []byte) *telemetryv1.Event {
	t.Helper()
	got, err := records(request)
	if err != nil || len(got) != 1 {
		t.Fatalf("%d records, %v", len(got), err)
	}
	return got[0].event()
}

func TestWholeHTTPEntry(t *testing.T) {
	got := one(t, wire(t, 1_000_000_007, map[string]string{
		"bulwark.direction": "inbound", "bulwark.kind": "http", "bulwark.source_principal": "spiffe://cluster.local/ns/finance/sa/account-auditor",
		"bulwark.tls_version": "TLSv1.3", "bulwark.allow_policy": "ns[finance]-policy[payroll-read]-rule[0]", "bulwark.deny_policy": "-",
		"source_address": "10.0.0.7:4711", "local_address": "[fd00::1]:80", "upstream_address": "127.0.0.1:80", "protocol": "HTTP/2", "method": "GET",
		"path": "/accounts/7", "authority": "payroll", "request_id": "r1", "response_code": "200", "response_code_details": "via_upstream",
		"response_flags": "UF,DC", "upstream_failure": "-", "downstream_failure": "-", "termination_details": "-",
	}))
	want := &telemetryv1.Event{
		Time: &timestamppb.Timestamp{Seconds: 1, Nanos: 7}, Reporter: telemetryv1.Reporter_REPORTER_DESTINATION,
		SourceIdentity: "spiffe://cluster.local/ns/finance/sa/account-auditor", SourceAddress: "10.0.0.7:4711", DestinationAddress: "[fd00::1]:80",
		Protocol: "HTTP/2", Method: "GET", Path: "/accounts/7", Authority: "payroll", ResponseCode: 200, ResponseFlags: "UF,DC",
		Verdict: allowed, Policy: "finance/payroll-read rule 0", TlsVersion: "TLSv1.3", RequestId: "r1",
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
}

func TestWholeTCPEntryOfAClient(t *testing.T) {
	got := one(t, wire(t, 1_000_000_000, map[string]string{
		"bulwark.direction": "outbound", "bulwark.kind": "tcp", "bulwark.destination_principal": "spiffe://cluster.local/ns/a/sa/b",
		"bulwark.destination_service": "db.a.svc.cluster.local", "bulwark.tls_version": "-", "source_address": "10.0.0.7:4711",
		"local_address": "10.96.0.1:5432", "upstream_address": "10.0.0.9:5432", "protocol": "-", "response_code": "0", "response_flags": "UF",
		"upstream_failure": "TLS_error:CERTIFICATE_VERIFY_FAILED",
	}))
	want := &telemetryv1.Event{
		Time: &timestamppb.Timestamp{Seconds: 1}, Reporter: telemetryv1.Reporter_REPORTER_SOURCE, Protocol: "TCP", ResponseFlags: "UF",
		SourceAddress: "10.0.0.7:4711", DestinationAddress: "10.0.0.9:5432", ClaimedDestination: "spiffe://cluster.local/ns/a/sa/b",
		DestinationService: "db.a.svc.cluster.local", Verdict: refused, Reason: "server's identity or certificate refused: TLS_error:CERTIFICATE_VERIFY_FAILED",
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
}

// A client's proxy has refused what its workload may not reach. It stands behind a socket there, which is not the client.
// The client for whom a load balancer or proxy connects is told apart from it, and nobody is his own client.
func TestTheRemoteAddressIsThatOfAnother(t *testing.T) {
	for remote, want := range map[string]string{"203.0.113.9:1111": "203.0.113.9:1111", "203.0.113.9:0": "203.0.113.9:0", "[2001:db8::9]:1": "[2001:db8::9]:1", "10.0.0.7:4711": "", "-": "", "": ""} {
		for _, kind := range []string{"http", "tcp"} {
			got := one(t, wire(t, 1, map[string]string{"bulwark.direction": "inbound", "bulwark.kind": kind, "source_address": "10.0.0.7:4711", "bulwark.remote_address": remote}))
			if got.GetRemoteAddress() != want || got.GetSourceAddress() != "10.0.0.7:4711" {
				t.Errorf("%s, remote address %q: %v", kind, remote, got)
			}
		}
	}
}

func TestOutOfReachIsDeniedByTheClientsProxy(t *testing.T) {
	for _, kind := range []string{"http", "tcp"} {
		e := one(t, wire(t, 1_000_000_000, map[string]string{
			"bulwark.direction": "outbound", "bulwark.kind": kind, "bulwark.out_of_reach": "true", "bulwark.source_address": "10.0.0.7:4711", "source_address": "@",
			"local_address": "10.96.0.11:80", "response_code": "403", "response_code_details": "rbac_access_denied_matched_policy[none]", "authority": "ledger.finance",
		}))
		if e.GetVerdict() != telemetryv1.Verdict_VERDICT_DENIED || e.GetReporter() != telemetryv1.Reporter_REPORTER_SOURCE || !strings.HasPrefix(e.GetReason(), "out of reach") ||
			e.GetSourceAddress() != "10.0.0.7:4711" || e.GetDestinationAddress() != "10.96.0.11:80" {
			t.Errorf("%s: %v", kind, e)
		}
	}
}

func TestVerdicts(t *testing.T) {
	const matchedRule = "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[2]]"
	const none = "rbac_access_denied_matched_policy[none]"
	for name, c := range map[string]struct {
		kind    string
		text    map[string]string
		verdict telemetryv1.Verdict
		policy  string
		reason  string
	}{
		"no ALLOW policy matched":   {"http", map[string]string{"response_code_details": none}, denied, "", "no ALLOW"},
		"a TCP connection denied":   {"tcp", map[string]string{"termination_details": none, "response_code_details": "-"}, denied, "", "no ALLOW"},
		"a DENY policy matched":     {"http", map[string]string{"bulwark.deny_policy": "ns[a]-policy[b]-rule[2]", "response_code_details": matchedRule}, denied, "a/b rule 2", "DENY"},
		"the tag is missing":        {"http", map[string]string{"response_code_details": matchedRule}, denied, "a/b rule 2", "DENY"},
		"audited only":              {"http", map[string]string{"bulwark.audit_policy": "ns[a]-policy[log]-rule[0]", "response_code_details": "via_upstream"}, allowed, "", "no enforced ALLOW"},
		"a connection audited":      {"tcp", map[string]string{"bulwark.received": "5"}, allowed, "", ""},
		"allow beats audit":         {"http", map[string]string{"bulwark.audit_policy": "ns[a]-policy[log]-rule[0]", "bulwark.allow_policy": "ns[a]-policy[ok]-rule[1]"}, allowed, "a/ok rule 1", ""},
		"plaintext under STRICT":    {"refused", nil, refused, "", "no mutual TLS"},
		"handshake failed":          {"refused", map[string]string{"downstream_failure": "TLS_error: PEER_DID_NOT_RETURN"}, refused, "", "PEER_DID_NOT_RETURN"},
		"an expired token":          {"http", map[string]string{"response_code_details": "jwt_authn_access_denied{Jwt_is_expired}"}, denied, "", "token is refused: Jwt is expired"},
		"an impostor":               {"http", map[string]string{"bulwark.direction": "outbound", "upstream_failure": "CERTIFICATE_VERIFY_FAILED verify SAN list", "response_code_details": "upstream_reset"}, refused, "", "verify SAN list"},
		"a client that pretends":    {"http", map[string]string{"response_code_details": "via_upstream " + none}, allowed, "", ""},
		"pretends in another field": {"http", map[string]string{"path": none, "termination_details": none, "response_code_details": "via_upstream"}, allowed, "", ""},
	} {
		text := map[string]string{"bulwark.direction": "inbound", "bulwark.kind": c.kind}
		maps.Copy(text, c.text)
		e := record{time: time.Unix(1, 0), text: text}.event()
		if e.Verdict != c.verdict || e.Policy != c.policy || !strings.Contains(e.Reason, c.reason) || e.Policy != "" && strings.Contains(e.Reason, "no enforced") {
			t.Errorf("%s: %s %q %q", name, e.Verdict, e.Policy, e.Reason)
		}
	}
}

func TestTokensOfUnknownKeysAreNoted(t *testing.T) {
	var noted []string
	counter := func() prometheus.Counter { return prometheus.NewCounter(prometheus.CounterOpts{Name: "c"}) }
	s := &server{observer: &telemetryv1.Workload{PodUid: "u"}, sink: nowhere{}, hears: Hears{UnknownKey: func(uid string) { noted = append(noted, uid) }}, received: counter(), dropped: counter()}
	for details, want := range map[string]int{
		"jwt_authn_access_denied{Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt}": 1, "jwt_authn_access_denied{Jwt_verification_fails}": 1,
		"jwt_authn_access_denied{Jwt_is_expired}": 0, "rbac_access_denied_matched_policy[none]": 0, "via_upstream": 0,
	} {
		noted = nil
		batch := wire(t, 1, map[string]string{"bulwark.direction": "inbound", "bulwark.kind": "http", "response_code_details": details, "bulwark.request_principal": "-/-",
			"path": "/x?access_token=eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.c2ln&y=1"})
		if _, err := s.export(batch); err != nil || len(noted) != want {
			t.Errorf("%s: noted %v, %v, want %d", details, noted, err, want)
		}
		if e := one(t, batch); e.GetPath() != "/x?access_token=<token>&y=1" || e.GetRequestPrincipal() != "" {
			t.Errorf("path %q, request principal %q", e.GetPath(), e.GetRequestPrincipal())
		}
	}
}

type nowhere struct{}

func (nowhere) Append(*telemetryv1.Event) bool { return true }

// A stranger's certificate may say anything, and a member's may be copied: neither is ever shown as proven.
func TestAnUnprovenNameIsAClaim(t *testing.T) {
	const member, none = "spiffe://cluster.local/ns/finance/sa/payroll", "rbac_access_denied_matched_policy[none]"
	in := func(kind string, more ...string) map[string]string {
		out := map[string]string{"bulwark.direction": "inbound", "bulwark.kind": kind, "bulwark.source_principal": member}
		for i := 0; i < len(more); i += 2 {
			out[more[i]] = more[i+1]
		}
		return out
	}
	out := func(more ...string) map[string]string {
		m := map[string]string{"bulwark.direction": "outbound", "bulwark.kind": "http", "bulwark.destination_principal": member}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	for name, c := range map[string]struct {
		text            map[string]string
		proven, claimed string
	}{
		"a request":                            {in("http"), member, ""},
		"a connection with data":               {in("tcp", "bulwark.received", "7"), member, ""},
		"a connection denied at its data":      {in("tcp", "bulwark.received", "0", "termination_details", none), member, ""},
		"a connection without data":            {in("tcp", "bulwark.received", "0"), "", member},
		"a handshake that failed":              {in("refused", "downstream_failure", "CERTIFICATE_VERIFY_FAILED"), "", member},
		"a handshake that failed at a filter":  {in("tcp", "bulwark.received", "7", "downstream_failure", "BAD_SIGNATURE"), "", member},
		"refused for no reason that was given": {in("refused"), "", member},
		"no kind":                              {in(""), "", member},
		"line breaks":                          {in("http", "bulwark.source_principal", member+"\r\nforged"), "", member + "\r\nforged"},
		"two names":                            {in("http", "bulwark.source_principal", member+","+member), "", member + "," + member},
		"another form":                         {in("http", "bulwark.source_principal", "spiffe://cluster.local/x/ns/a/sa/b"), "", "spiffe://cluster.local/x/ns/a/sa/b"},
		"a server":                             {out(), member, ""},
		"an impostor":                          {out("upstream_failure", "CERTIFICATE_VERIFY_FAILED verify SAN list"), "", member},
	} {
		e := record{time: time.Unix(1, 0), text: c.text}.event()
		proven, claimed := e.GetSourceIdentity()+e.GetDestinationIdentity(), e.GetClaimedSource()+e.GetClaimedDestination()
		if proven != c.proven || claimed != c.claimed {
			t.Errorf("%s: proven %q, claimed %q", name, proven, claimed)
		}
	}
}

func TestWhatAClientChoseIsBoundedAndValid(t *testing.T) {
	request := wire(t, 1, map[string]string{"bulwark.kind": "http", "path": strings.Repeat("/x", 1<<20), "authority": "a@@b"})
	// protobuf for Go does not write what is no UTF-8; Envoy does.
	e := one(t, []byte(strings.Replace(string(request), "a@@b", "a\xff\xfeb", 1)))
	if len(e.Path) > maxText || e.Authority != "a\uFFFDb" {
		t.Fatalf("path of %d bytes, authority %q", len(e.Path), e.Authority)
	}
	if _, err := proto.Marshal(e); err != nil {
		t.Fatal(err)
	}
}

// The audit trail takes 64 KiB of an event, as JSON in which control bytes are escapes.
func TestAnEventFitsIntoTheTrailWhateverStrangersChoose(t *testing.T) {
	for _, filler := range []string{"/", "\x1b", "\u009b", "\u202e", "\U000e0041", "\xff\x00"} {
		text := map[string]string{"bulwark.kind": "http", "bulwark.direction": "inbound"}
		for _, key := range []string{"method", "path", "authority", "request_id", "downstream_failure", "upstream_failure", "response_flags", "protocol",
			"source_address", "local_address", "bulwark.source_principal", "bulwark.allow_policy", "bulwark.tls_version", "bulwark.destination_service"} {
			text[key] = strings.Repeat(filler, 8<<10)
		}
		text["method"], text["request_id"] = text["method"][:256], text["request_id"][:256] // as Pilot has Envoy cut them off
		for _, key := range []string{"response_flags", "protocol", "source_address", "local_address", "bulwark.tls_version", "bulwark.destination_service"} {
			text[key] = "Envoy's own word"
		}
		e := record{time: time.Unix(1, 0), text: text}.event()
		raw, err := protojson.Marshal(&telemetryv1.Record{Event: e})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(printable.JSON(raw)); n > 48<<10 {
			t.Errorf("%q: %d bytes", filler, n)
		}
	}
}

func TestEmptyEntriesAreTaken(t *testing.T) {
	if e := one(t, wire(t, 0, nil)); e.Time.AsTime().Year() < 2000 {
		t.Fatal("no time", e)
	}
	if got, err := records(nil); err != nil || len(got) != 0 {
		t.Fatal(got, err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(wire(f, 1, map[string]string{"bulwark.kind": "http", "response_code_details": "rbac_access_denied_matched_policy[none]"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := records(b)
		if err != nil {
			return
		}
		for _, r := range got {
			if _, err := proto.Marshal(r.event()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Who denied is told of external authorizers, too, whatever their names look like, and by which policy they were asked.
func TestExternalAuthorizersAreNamed(t *testing.T) {
	for _, c := range []struct{ kind, details, rule, policy, reason string }{
		{"http", "ext_authz_denied", "istio-ext-authz-opa-ns[finance]-policy[asks]-rule[1]", "finance/asks rule 1", "external authorizer opa has denied it"},
		{"http", "ext_authz_error", "istio-ext-authz-opa-ns-2-ns[finance]-policy[asks]-rule[0]", "finance/asks rule 0", "external authorizer opa-ns-2 has not answered, and had to be asked"},
		{"tcp", "ext_authz_denied", "istio-ext-authz-opa-ns[a]-policy[b]-rule[0]", "a/b rule 0", "external authorizer opa has denied it"},
		{"tcp", "ext_authz_denied", "-", "", "external authorizer of unknown name has denied it"},
	} {
		e := one(t, wire(t, 1, map[string]string{"bulwark.direction": "inbound", "bulwark.kind": c.kind, "response_code_details": c.details, "termination_details": "-", "bulwark.custom_policy": c.rule,
			"bulwark.source_principal": "spiffe://cluster.local/ns/shop/sa/web", "bulwark.received": "0"}))
		if e.GetVerdict() != denied || e.GetPolicy() != c.policy || e.GetReason() != c.reason || !strings.HasPrefix(e.GetReason(), telemetryv1.ReasonAuthorizer) || e.GetSourceIdentity() == "" {
			t.Errorf("%+v: %v", c, e)
		}
	}
}
