package als

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// maxText bounds every string that a client of the workload chose.
const maxText = 4 << 10

// httpEvent reads an HTTP entry by what Pilot's configuration of the log promises.
func httpEvent(entry *data.HTTPAccessLogEntry) *telemetryv1.Event {
	common, req, resp := entry.GetCommonProperties(), entry.GetRequest(), entry.GetResponse()
	e := commonEvent(common)
	e.Protocol = httpVersion(entry.GetProtocolVersion())
	e.Method = req.GetRequestMethod().String()
	if req.GetRequestMethod() == core.RequestMethod_METHOD_UNSPECIFIED {
		e.Method = ""
	}
	e.Path, e.Authority, e.RequestId = clip(req.GetPath()), clip(req.GetAuthority()), clip(req.GetRequestId())
	e.ResponseCode = resp.GetResponseCode().GetValue()
	decide(e, common, resp.GetResponseCodeDetails())
	return e
}

// tcpEvent reads an entry about a connection.
func tcpEvent(entry *data.TCPAccessLogEntry) *telemetryv1.Event {
	common := entry.GetCommonProperties()
	e := commonEvent(common)
	e.Protocol = "TCP"
	decide(e, common, common.GetConnectionTerminationDetails())
	return e
}

func commonEvent(c *data.AccessLogCommon) *telemetryv1.Event {
	e := &telemetryv1.Event{
		Time:               c.GetStartTime(),
		Reporter:           telemetryv1.Reporter_REPORTER_DESTINATION,
		SourceAddress:      address(c.GetDownstreamDirectRemoteAddress()),
		DestinationAddress: address(c.GetDownstreamLocalAddress()),
		DestinationService: clip(tag(c, "destination_service")),
		TlsVersion:         tag(c, "tls_version"),
		ResponseFlags:      flags(c.GetResponseFlags()),
	}
	if e.Time == nil {
		e.Time = timestamppb.Now()
	}
	if tag(c, "direction") == "outbound" {
		e.Reporter = telemetryv1.Reporter_REPORTER_SOURCE
		e.DestinationIdentity = clip(tag(c, "destination_principal"))
		if server := address(c.GetUpstreamRemoteAddress()); server != "" {
			e.DestinationAddress = server // whoever was behind the service's address
		}
	} else {
		e.SourceIdentity = clip(tag(c, "source_principal"))
	}
	return e
}

// matched finds the rule in what Envoy's RBAC says of a refusal.
var matched = regexp.MustCompile(`^rbac_access_denied_matched_policy\[(.*)\]`)

// decide fills in the verdict, who decided, and why.
func decide(e *telemetryv1.Event, c *data.AccessLogCommon, details string) {
	if m := matched.FindStringSubmatch(details); m != nil {
		e.Verdict = telemetryv1.Verdict_VERDICT_DENIED
		if m[1] == "none" {
			e.Reason = "no ALLOW policy matched"
			return
		}
		e.Policy = Policy(firstOf(tag(c, "deny_policy"), m[1]))
		e.Reason = "a DENY policy matched"
		return
	}
	upstream, downstream := c.GetUpstreamTransportFailureReason(), c.GetDownstreamTransportFailureReason()
	switch {
	case tag(c, "direction") == "outbound" && upstream != "":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, clip("server's identity or certificate refused: "+upstream)
	case downstream != "":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, clip("TLS handshake failed: "+downstream)
	case tag(c, "kind") == "refused":
		e.Verdict, e.Reason = telemetryv1.Verdict_VERDICT_REFUSED, "no mutual TLS where it is required"
	default:
		e.Verdict = telemetryv1.Verdict_VERDICT_ALLOWED
		e.Policy = Policy(tag(c, "allow_policy"))
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

func tag(c *data.AccessLogCommon, name string) string {
	if v := c.GetCustomTags()["bulwark."+name]; v != "-" {
		return v
	}
	return ""
}

func address(a *core.Address) string {
	s := a.GetSocketAddress()
	if s == nil {
		return ""
	}
	return net.JoinHostPort(s.GetAddress(), strconv.FormatUint(uint64(s.GetPortValue()), 10))
}

func httpVersion(v data.HTTPAccessLogEntry_HTTPVersion) string {
	switch v {
	case data.HTTPAccessLogEntry_HTTP10:
		return "HTTP/1.0"
	case data.HTTPAccessLogEntry_HTTP11:
		return "HTTP/1.1"
	case data.HTTPAccessLogEntry_HTTP2:
		return "HTTP/2"
	case data.HTTPAccessLogEntry_HTTP3:
		return "HTTP/3"
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

// flags writes Envoy's response flags in their short form.
func flags(f *data.ResponseFlags) string {
	if f == nil {
		return ""
	}
	var out []string
	for _, x := range []struct {
		set  bool
		name string
	}{
		{f.GetFailedLocalHealthcheck(), "LH"}, {f.GetNoHealthyUpstream(), "UH"}, {f.GetUpstreamRequestTimeout(), "UT"},
		{f.GetLocalReset(), "LR"}, {f.GetUpstreamRemoteReset(), "UR"}, {f.GetUpstreamConnectionFailure(), "UF"},
		{f.GetUpstreamConnectionTermination(), "UC"}, {f.GetUpstreamOverflow(), "UO"}, {f.GetNoRouteFound(), "NR"},
		{f.GetDelayInjected(), "DI"}, {f.GetFaultInjected(), "FI"}, {f.GetRateLimited(), "RL"}, {f.GetUnauthorizedDetails() != nil, "UAEX"},
		{f.GetRateLimitServiceError(), "RLSE"}, {f.GetDownstreamConnectionTermination(), "DC"}, {f.GetUpstreamRetryLimitExceeded(), "URX"},
		{f.GetStreamIdleTimeout(), "SI"}, {f.GetInvalidEnvoyRequestHeaders(), "IH"}, {f.GetDownstreamProtocolError(), "DPE"},
		{f.GetUpstreamProtocolError(), "UPE"}, {f.GetNoClusterFound(), "NC"}, {f.GetNoFilterConfigFound(), "NFCF"},
		{f.GetDurationTimeout(), "DT"}, {f.GetOverloadManager(), "OM"}, {f.GetDnsResolutionFailure(), "DF"},
	} {
		if x.set {
			out = append(out, x.name)
		}
	}
	return strings.Join(out, ",")
}
