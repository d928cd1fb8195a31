package translate

import (
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// forward is TCP between a client and a cluster.
func forward(cluster, statPrefix string, logs []*accesslog.AccessLog) *tcpproxy.TcpProxy {
	return &tcpproxy.TcpProxy{
		StatPrefix: statPrefix, ClusterSpecifier: &tcpproxy.TcpProxy_Cluster{Cluster: cluster}, AccessLog: logs,
		IdleTimeout: envoy.Seconds(0), MaxConnectAttempts: envoy.U32(3),
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
