package als

import (
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

const (
	allowed = telemetryv1.Verdict_VERDICT_ALLOWED
	denied  = telemetryv1.Verdict_VERDICT_DENIED
	refused = telemetryv1.Verdict_VERDICT_REFUSED
)

func common(tags ...string) *data.AccessLogCommon {
	c := &data.AccessLogCommon{StartTime: &timestamppb.Timestamp{Seconds: 1}, CustomTags: map[string]string{}}
	for i := 0; i < len(tags); i += 2 {
		c.CustomTags["bulwark."+tags[i]] = tags[i+1]
	}
	return c
}

func TestWholeHTTPEntry(t *testing.T) {
	c := common("direction", "inbound", "kind", "http", "source_principal", "spiffe://cluster.local/ns/finance/sa/account-auditor",
		"tls_version", "TLSv1.3", "allow_policy", "ns[finance]-policy[payroll-read]-rule[0]", "deny_policy", "-")
	c.DownstreamDirectRemoteAddress = &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: "10.0.0.7", PortSpecifier: &core.SocketAddress_PortValue{PortValue: 4711}}}}
	c.DownstreamLocalAddress = &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: "fd00::1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: 80}}}}
	c.ResponseFlags = &data.ResponseFlags{UpstreamConnectionFailure: true, DownstreamConnectionTermination: true}
	got := httpEvent(&data.HTTPAccessLogEntry{
		CommonProperties: c, ProtocolVersion: data.HTTPAccessLogEntry_HTTP2,
		Request:  &data.HTTPRequestProperties{RequestMethod: core.RequestMethod_GET, Path: "/accounts/7", Authority: "payroll", RequestId: "r1"},
		Response: &data.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(200), ResponseCodeDetails: "via_upstream"},
	})
	want := &telemetryv1.Event{
		Time: &timestamppb.Timestamp{Seconds: 1}, Reporter: telemetryv1.Reporter_REPORTER_DESTINATION,
		SourceIdentity: "spiffe://cluster.local/ns/finance/sa/account-auditor", SourceAddress: "10.0.0.7:4711", DestinationAddress: "[fd00::1]:80",
		Protocol: "HTTP/2", Method: "GET", Path: "/accounts/7", Authority: "payroll", ResponseCode: 200, ResponseFlags: "UF,DC",
		Verdict: allowed, Policy: "finance/payroll-read rule 0", TlsVersion: "TLSv1.3", RequestId: "r1",
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
}

func TestVerdicts(t *testing.T) {
	in := []string{"direction", "inbound"}
	with := func(c *data.AccessLogCommon, set func(*data.AccessLogCommon)) *data.AccessLogCommon { set(c); return c }
	for name, c := range map[string]struct {
		common  *data.AccessLogCommon
		details string
		verdict telemetryv1.Verdict
		policy  string
		reason  string
	}{
		"no ALLOW policy matched": {common(in...), "rbac_access_denied_matched_policy[none]", denied, "", "no ALLOW"},
		"a DENY policy matched":   {common(append(in, "deny_policy", "ns[a]-policy[b]-rule[2]")...), "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[2]]", denied, "a/b rule 2", "DENY"},
		"the tag is missing":      {common(in...), "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[2]]", denied, "a/b rule 2", "DENY"},
		"audited only":            {common(append(in, "audit_policy", "ns[a]-policy[log]-rule[0]")...), "via_upstream", allowed, "", ""},
		"allow beats audit":       {common(append(in, "audit_policy", "ns[a]-policy[log]-rule[0]", "allow_policy", "ns[a]-policy[ok]-rule[1]")...), "", allowed, "a/ok rule 1", ""},
		"plaintext under STRICT":  {common(append(in, "kind", "refused")...), "", refused, "", "no mutual TLS"},
		"handshake failed": {with(common(append(in, "kind", "refused")...), func(c *data.AccessLogCommon) { c.DownstreamTransportFailureReason = "TLS_error: PEER_DID_NOT_RETURN" }),
			"", refused, "", "PEER_DID_NOT_RETURN"},
		"an impostor behind a service": {with(common("direction", "outbound", "kind", "http"), func(c *data.AccessLogCommon) {
			c.UpstreamTransportFailureReason = "CERTIFICATE_VERIFY_FAILED verify SAN list"
		}), "upstream_reset", refused, "", "verify SAN list"},
		"a client that pretends in its path": {common(in...), "via_upstream rbac_access_denied_matched_policy[none]", allowed, "", ""},
	} {
		e := commonEvent(c.common)
		decide(e, c.common, c.details)
		if e.Verdict != c.verdict || e.Policy != c.policy || !strings.Contains(e.Reason, c.reason) {
			t.Errorf("%s: %s %q %q", name, e.Verdict, e.Policy, e.Reason)
		}
	}
}

func TestWhatAClientChoseIsBoundedAndValid(t *testing.T) {
	e := httpEvent(&data.HTTPAccessLogEntry{
		CommonProperties: common("direction", "inbound"),
		Request:          &data.HTTPRequestProperties{Path: strings.Repeat("/x", 1<<20), Authority: "a\xff\xfeb"},
	})
	if len(e.Path) > maxText || e.Authority != "a\uFFFDb" {
		t.Fatalf("path of %d bytes, authority %q", len(e.Path), e.Authority)
	}
	if _, err := proto.Marshal(e); err != nil {
		t.Fatal(err)
	}
}

func TestEmptyEntriesAreTaken(t *testing.T) {
	for _, e := range []*telemetryv1.Event{httpEvent(&data.HTTPAccessLogEntry{}), tcpEvent(&data.TCPAccessLogEntry{}), httpEvent(nil), tcpEvent(nil)} {
		if e.Time == nil {
			t.Fatal("no time")
		}
	}
}

func FuzzHTTPEntry(f *testing.F) {
	seed, err := proto.Marshal(&data.HTTPAccessLogEntry{CommonProperties: common("direction", "inbound"), Response: &data.HTTPResponseProperties{ResponseCodeDetails: "rbac_access_denied_matched_policy[none]"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		var entry data.HTTPAccessLogEntry
		if proto.Unmarshal(b, &entry) != nil {
			return
		}
		if _, err := proto.Marshal(httpEvent(&entry)); err != nil {
			t.Fatal(err)
		}
	})
}
