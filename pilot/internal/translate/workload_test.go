package translate_test

import (
	"net/netip"
	"testing"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// workloadListener is the inbound listener as Pilot makes it, with certificates in place of SDS and an answer in place of
// the application.
func workloadListener(t *testing.T, policies []authz.Policy, normalizePaths bool, port uint32, ca *envoytest.CA, leaf envoytest.Leaf, revoked ...revocation.Revocation) *listener.Listener {
	t.Helper()
	w := &compile.Workload{
		Class: compile.Class{Namespace: "finance", NormalizePaths: normalizePaths}, Policies: policies, Other: compile.InboundPort{Mode: authz.Strict, Protocol: protocol.TCP},
		Ports: []compile.InboundPort{{Number: port, Protocol: protocol.HTTP, Mode: authz.Permissive}},
	}
	l := inboundOn(t, w, port, revoked...)
	for _, c := range l.GetFilterChains() {
		if c.GetTransportSocket() != nil {
			staticCertificates(t, c, ca, leaf)
		}
		if last(c).GetName() == "envoy.filters.network.http_connection_manager" {
			answer(t, c)
		}
	}
	return l
}

func last(c *listener.FilterChain) *listener.Filter { return c.GetFilters()[len(c.GetFilters())-1] }

func repack(t *testing.T, packed *anypb.Any, change func(any)) {
	t.Helper()
	msg, err := packed.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	change(msg)
	if err := packed.MarshalFrom(msg); err != nil {
		t.Fatal(err)
	}
}

func inlineBytes(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

func staticCertificates(t *testing.T, c *listener.FilterChain, ca *envoytest.CA, leaf envoytest.Leaf) {
	repack(t, c.GetTransportSocket().GetTypedConfig(), func(m any) {
		common := m.(*tlsv3.DownstreamTlsContext).GetCommonTlsContext()
		common.TlsCertificateSdsSecretConfigs = nil
		common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: inlineBytes(leaf.Cert), PrivateKey: inlineBytes(leaf.Key)}}
		validation := common.GetCombinedValidationContext().GetDefaultValidationContext()
		validation.TrustedCa = inlineBytes(ca.Root)
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	})
}

// answer has the chain's routes answer 200 in place of the application, and answers say what was decided.
func answer(t *testing.T, c *listener.FilterChain) {
	told := []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x-audited", Value: "%DYNAMIC_METADATA(envoy.common:access_log_hint)%"}}}
	for key, of := range map[string]string{"x-asked": rbac.AskedKey, "x-trial-deny": rbac.TrialPrefix(authz.Deny) + "shadow_effective_policy_id",
		"x-trial-allow": rbac.TrialPrefix(authz.Allow) + "shadow_effective_policy_id", "x-trial-verdict": rbac.TrialPrefix(authz.Allow) + "shadow_engine_result"} {
		told = append(told, &core.HeaderValueOption{Header: &core.HeaderValue{Key: key, Value: "%DYNAMIC_METADATA(envoy.filters.http.rbac:" + of + ")%"}})
	}
	repack(t, last(c).GetTypedConfig(), func(m any) {
		manager := m.(*hcm.HttpConnectionManager)
		vh := manager.GetRouteConfig().GetVirtualHosts()[0]
		for _, r := range vh.GetRoutes() {
			if r.GetRoute() != nil {
				r.Action = &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 200}}
			}
		}
		vh.ResponseHeadersToAdd = append([]*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x-path", Value: "%REQ(:PATH)%"}},
			{Header: &core.HeaderValue{Key: "x-rule", Value: "%DYNAMIC_METADATA(envoy.filters.http.rbac:allow_enforced_effective_policy_id)%"}}}, told...)
		manager.LocalReplyConfig = &hcm.LocalReplyConfig{Mappers: []*hcm.ResponseMapper{{Filter: statusIs(403),
			HeadersToAdd: append([]*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x-rule", Value: "%RESPONSE_CODE_DETAILS%"}}}, told...)}}}
	})
}

func addressOf(at netip.Addr, port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{Address: at.String(), PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}
}

func statusIs(code uint32) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslog.StatusCodeFilter{
		Comparison: &accesslog.ComparisonFilter{Op: accesslog.ComparisonFilter_EQ, Value: &core.RuntimeUInt32{DefaultValue: code, RuntimeKey: "unused"}}}}}
}
