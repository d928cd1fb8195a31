// Package telemetry makes the loggers of a proxy: what it tells the agent for the audit trail, and what it counts. Which listener has which
// of them is package translate's to say.
package telemetry

import (
	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	data "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	stats "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stats/v3"
	stream "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Where a function asks for a service and for its server, these are names or format strings of Envoy: the service's host, and where the
// server's workload is found (ServerOf, ChosenServer). Either is empty where nobody knows it.

// InboundRequests audit requests to a server that a policy denied or selected, or that one on trial would deny, and count all of them. Mutual says whether they come over
// mutual TLS.
func InboundRequests(mutual bool) []*accesslog.AccessLog {
	return []*accesslog.AccessLog{audit(either(audited(), triedOut(httpPolicies), deniedByAuthorizer(), deniedByPolicy()), inboundRequest()), requestMetrics(byServer(httpService, mutual)), unread("server")}
}

// InboundConnections do the same with connections that are not HTTP.
func InboundConnections(mutual bool) []*accesslog.AccessLog {
	return append([]*accesslog.AccessLog{audit(atEnd(either(audited(), triedOut(tcpPolicies), deniedByAuthorizer(), when(deniedConnection))), inboundConnection(mutual))},
		connectionMetrics(byServer(tcpService, mutual))...)
}

// InboundRefused audits connections to a server that no filter saw.
func InboundRefused() *accesslog.AccessLog { return audit(when(refusedInbound), refusedConnection()) }

// OutboundRequests counts what clients ask of a service.
func OutboundRequests(service, server string) []*accesslog.AccessLog {
	return []*accesslog.AccessLog{requestMetrics(byClient(service, server)), unread("client")}
}

// unread has the proxy's own log say what it could not read. By says whose proxy it is.
func unread(by string) *accesslog.AccessLog {
	return &accesslog.AccessLog{Name: "envoy.access_loggers.stderr", Filter: either(UnreadAnswer(), unreadRequest()),
		ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: envoy.Typed(&stream.StderrAccessLog{AccessLogFormat: &stream.StderrAccessLog_LogFormat{
			LogFormat: envoy.JSON(map[string]string{
				"time": "%START_TIME%", "level": "warning", "msg": "HTTP that the proxy does not read", "reporter": by, "peer": "%DOWNSTREAM_PEER_URI_SAN%", "source": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "local": "%DOWNSTREAM_LOCAL_ADDRESS%", "upstream": "%UPSTREAM_HOST%",
				"method": "%REQ(:METHOD):64%", "authority": "%REQ(:AUTHORITY):256%", "path": "%REQ(:PATH):256%", "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%", "details": "%RESPONSE_CODE_DETAILS%"})}})}}
}

// OutboundAttempts audits, of the attempts to have a request answered, those at a server that is not one of the service's identities, also when
// another one answers in the end.
func OutboundAttempts(service string) *accesslog.AccessLog {
	return audit(impostor(), outboundEntry("http", service, request()...))
}

// OutboundConnections audit a server that is not one of the service's identities, and count all connections to the service.
func OutboundConnections(service, server string) []*accesslog.AccessLog {
	return append([]*accesslog.AccessLog{audit(atEnd(impostor()), outboundEntry("tcp", service))}, connectionMetrics(byClient(service, server))...)
}

// OutsideRequests are OutboundRequests to a host outside of the mesh, whose certificate names nobody of the mesh, whatever it says.
func OutsideRequests(host string) []*accesslog.AccessLog {
	return []*accesslog.AccessLog{requestMetrics(byStranger(host)), unread("client")}
}

// OutsideConnections are OutboundConnections to one.
func OutsideConnections(host string) []*accesslog.AccessLog {
	return append([]*accesslog.AccessLog{audit(atEnd(impostor()), outboundEntry("tcp", host))}, connectionMetrics(byStranger(host))...)
}

// PassedThrough count connections that are no service's, under a name for all of them.
func PassedThrough(name string) []*accesslog.AccessLog {
	return connectionMetrics(byClient(name, ""))
}

// OutOfReachRequests audits requests to what is out of a client's reach; which says what those are, where others are logged at the same place.
func OutOfReachRequests(which *accesslog.AccessLogFilter) *accesslog.AccessLog {
	return audit(which, outOfReach("http", append(request(), attribute{"protocol", "%PROTOCOL%"})...))
}

// OutOfReachConnections audits connections to it that are not HTTP.
func OutOfReachConnections() *accesslog.AccessLog {
	return audit(logType(data.AccessLogType_TcpConnectionEnd), outOfReach("tcp"))
}

// Probes tells the agent whose proxy this is, with each probe of kubelet's, and so before the application has asked for anything.
func Probes() *accesslog.AccessLog {
	own := []tag{{mesh.FoldedProxyName, env(EnvCanonical)}, {mesh.FoldedProxyRevision, env(EnvRevision)}, {mesh.FoldedProxyCluster, env(EnvCluster)}}
	return statsLogger(nil, &stats.Config{Counters: []*stats.Config_Counter{{Stat: stat(mesh.FoldedProxy, own), ValueFixed: wrapperspb.UInt64(1)}}})
}
