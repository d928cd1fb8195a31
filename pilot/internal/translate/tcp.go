package translate

import (
	"slices"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// forward is TCP between a client and a cluster.
func forward(cluster, statPrefix string, logs []*accesslog.AccessLog) *tcpproxy.TcpProxy {
	return &tcpproxy.TcpProxy{
		StatPrefix: statPrefix, ClusterSpecifier: &tcpproxy.TcpProxy_Cluster{Cluster: cluster}, AccessLog: logs,
		IdleTimeout: envoy.Seconds(24 * 3600), MaxConnectAttempts: envoy.U32(3),
		AccessLogOptions: &tcpproxy.TcpProxy_TcpAccessLogOptions{FlushAccessLogOnConnected: true},
	}
}

// tcpMode says when the application is connected; without any, at once.
type tcpMode func(*tcpproxy.TcpProxy) *tcpproxy.TcpProxy

// afterVerdict keeps the application out of it until the policies have spoken. Envoy's network RBAC decides at the client's
// first byte; connected before, the application could speak to a client that is denied.
func afterVerdict(p *tcpproxy.TcpProxy) *tcpproxy.TcpProxy {
	p.UpstreamConnectMode = tcpproxy.UpstreamConnectMode_ON_DOWNSTREAM_DATA
	p.MaxEarlyDataBytes = envoy.U32(64 << 10)
	return p
}

// afterHandshake keeps the application out of it until the client has proved who it is.
func afterHandshake(p *tcpproxy.TcpProxy) *tcpproxy.TcpProxy {
	p.UpstreamConnectMode = tcpproxy.UpstreamConnectMode_ON_DOWNSTREAM_TLS_HANDSHAKE
	p.MaxEarlyDataBytes = envoy.U32(64 << 10)
	return p
}

func tcpProxy(p *tcpproxy.TcpProxy) *listener.Filter {
	return envoy.NetworkFilter("envoy.filters.network.tcp_proxy", p)
}

// enforced reports whether a policy in scope can deny a connection.
func enforced(policies []authz.Policy) bool {
	for _, p := range policies {
		if !p.Ignored && !p.DryRun && p.Action != authz.Audit {
			return true
		}
	}
	return false
}

// restricted reports whether ALLOW policies say who may connect.
func restricted(policies []authz.Policy) bool {
	return slices.ContainsFunc(policies, func(p authz.Policy) bool { return p.Action == authz.Allow && !p.Ignored && !p.DryRun })
}

// admitted are the peers that the ALLOW policies could let connect, for ports whose server speaks before network RBAC can
// decide: others fail in the handshake. Everyone's, if a rule asks for no identity. What a DENY policy denies is cut off at
// its first byte, after the server's greeting.
func admitted(policies []authz.Policy, trustDomains []string) []*matcher.StringMatcher {
	var out []*matcher.StringMatcher
	for _, p := range policies {
		if p.Action != authz.Allow || p.Ignored || p.DryRun {
			continue
		}
		tcp := p.TCP()
		for _, r := range tcp.Rules {
			if r.Never {
				continue
			}
			peers, ok := peersOf(r)
			if !ok {
				return members(trustDomains)
			}
			out = append(out, peers...)
		}
	}
	switch {
	case !restricted(policies):
		return members(trustDomains)
	case len(out) == 0:
		return []*matcher.StringMatcher{envoy.Exact(nobody)}
	}
	return out
}

// peersOf are the identities outside of which a rule cannot match.
func peersOf(r authz.Rule) ([]*matcher.StringMatcher, bool) {
	if m, ok := identities(r.When); ok {
		return m, true
	}
	var out []*matcher.StringMatcher
	for _, from := range r.From {
		m, ok := identities(from)
		if !ok {
			return nil, false
		}
		out = append(out, m...)
	}
	return out, len(r.From) > 0
}

func identities(clauses authz.Clauses) ([]*matcher.StringMatcher, bool) {
	for _, c := range clauses {
		if !c.Attribute.Identity() || len(c.Values) == 0 {
			continue
		}
		var out []*matcher.StringMatcher
		for _, m := range c.Values {
			out = append(out, rbac.Text(m, false))
		}
		return out, true
	}
	return nil, false
}
