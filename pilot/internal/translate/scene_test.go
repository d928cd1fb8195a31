package translate_test

import (
	"cmp"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/telemetry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

var update = flag.Bool("update", false, "write what proxies push and log, which the agent's tests read")

// scene is one Envoy that stands for the proxies of a client and of a server, and what it is to be asked.
type scene struct {
	t           *testing.T
	ca          *envoytest.CA
	leaf        envoytest.Leaf        // of both
	loggers     string                // that are kept, of each listener
	mode        authz.TLSMode         // of the next inbound ports
	idle        time.Duration         // after which the workload wants what is silent to end
	sticky      bool                  // the next services are
	normalizes  bool                  // the next workloads have their proxies normalise paths
	issuers     []compile.Issuer      // of the next inbound ports
	authorizers []authorizer.Provider // that these have asked
	admin       uint32                // port, when it has started
	listeners   []*listener.Listener
	clusters    []*cluster.Cluster
}

const (
	sceneClient = "spiffe://cluster.local/ns/shop/sa/checkout"
	scenePeer   = "spiffe://cluster.local/ns/shop/sa/friend"
)

// inbound puts a server's side of a port before an application.
func (s *scene) inbound(port, app uint32, p protocol.Protocol, name string, policies ...authz.Policy) {
	w := &compile.Workload{Class: compile.Class{Namespace: "shop", IdleTimeout: s.idle, NormalizePaths: s.normalizes}, Identity: sceneClient, Policies: policies, Issuers: s.issuers, Authorizers: s.authorizers,
		Other: compile.InboundPort{Mode: authz.Strict, Protocol: p},
		Ports: []compile.InboundPort{{Number: port, Protocol: p, Mode: s.mode, ServiceName: name}}}
	as := translate.InboundListener(settings, w)
	logs := map[string][]*accesslog.AccessLog{}
	for _, c := range as.GetFilterChains() {
		logs[c.GetName()] = s.logsOf(c)
	}
	l := inboundOn(s.t, w, port)
	l.AccessLog = s.kept(as.GetAccessLog())
	for _, c := range l.GetFilterChains() {
		if c.GetTransportSocket() != nil {
			staticCertificates(s.t, c, s.ca, s.leaf)
		}
		s.setLogs(c, logs[c.GetName()])
	}
	behind := staticCluster(applicationBehind(port), app)
	behind.TypedExtensionProtocolOptions, behind.CircuitBreakers = translate.Inbound(false).GetTypedExtensionProtocolOptions(), translate.Inbound(false).GetCircuitBreakers()
	s.listeners, s.clusters = append(s.listeners, l), append(s.clusters, behind)
}

// outbound is a client's side of a service port, at an address of this machine, with these endpoints.
func (s *scene) outbound(at uint32, p protocol.Protocol, name string, pod *compile.Endpoint, endpoints ...compile.Endpoint) {
	sp := &compile.ServicePort{Service: &registry.Service{Name: name, Namespace: "finance"}, Host: name + ".finance.svc.cluster.local", Number: at,
		Protocol: p, Sticky: s.sticky, Mutual: true, Identities: []string{sceneClient}}
	c := translate.OutboundCluster(sp, delivery.ByAgent)
	if pod == nil {
		c.ClusterDiscoveryType, c.EdsClusterConfig = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}, nil
		c.LoadAssignment = translate.Endpoints(c.GetName(), endpoints)
	}
	repack(s.t, c.GetTransportSocket().GetTypedConfig(), func(m any) {
		common := m.(*tlsv3.UpstreamTlsContext).GetCommonTlsContext()
		common.TlsCertificateSdsSecretConfigs = nil
		common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: inlineBytes(s.leaf.Cert), PrivateKey: inlineBytes(s.leaf.Key)}}
		validation := common.GetCombinedValidationContext().GetDefaultValidationContext()
		validation.TrustedCa = inlineBytes(s.ca.Root)
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	})
	l := translate.ServiceListener(&compile.Frontend{Address: compile.Address{IP: "127.0.0.1", Port: at}, Service: *sp, Pod: pod})
	inlineShared(l)
	s.listen(l, at)
	s.clusters = append(s.clusters, c)
}

// listen has a listener take connections at a port of this machine, and keeps some of its loggers.
func (s *scene) listen(l *listener.Listener, at uint32) {
	l.BindToPort = nil
	l.Address = &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: at}}}}
	for _, c := range l.GetFilterChains() {
		s.setLogs(c, s.logsOf(c))
	}
	s.listeners = append(s.listeners, l)
}

func (s *scene) kept(logs []*accesslog.AccessLog) []*accesslog.AccessLog {
	return slices.DeleteFunc(slices.Clone(logs), func(l *accesslog.AccessLog) bool { return l.GetName() != s.loggers })
}

// logsOf are the loggers of a chain.
func (s *scene) logsOf(c *listener.FilterChain) (out []*accesslog.AccessLog) {
	s.t.Helper()
	repack(s.t, last(c).GetTypedConfig(), func(m any) {
		switch f := m.(type) {
		case *tcpproxy.TcpProxy:
			out = s.kept(f.GetAccessLog())
		case *hcm.HttpConnectionManager:
			out = s.kept(f.GetAccessLog())
		}
	})
	return out
}

func (s *scene) setLogs(c *listener.FilterChain, logs []*accesslog.AccessLog) {
	s.t.Helper()
	repack(s.t, last(c).GetTypedConfig(), func(m any) {
		switch f := m.(type) {
		case *tcpproxy.TcpProxy:
			f.AccessLog = logs
		case *hcm.HttpConnectionManager:
			f.AccessLog = logs
			for _, filters := range requestFilters(f) {
				for _, h := range *filters {
					if h.GetName() == "envoy.filters.http.router" {
						repack(s.t, h.GetTypedConfig(), func(m any) { r := m.(*router.Router); r.UpstreamLog = s.kept(r.GetUpstreamLog()) })
					}
				}
			}
		}
	})
}

// start runs the Envoy, whose agent is what register adds to a server, and returns the file that has what it says.
func (s *scene) start(register func(*grpc.Server)) string {
	t := s.t
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
	register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	b := translate.Bootstrap()
	b.DynamicResources = nil
	b.StatsFlushInterval.Seconds = 1
	s.admin = envoytest.FreePorts(t, 1)[0]
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: s.admin}
	agent := b.GetStaticResources().GetClusters()[0].GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint()
	agent.Address = &core.Address{Address: &core.Address_Pipe{Pipe: &core.Pipe{Path: socket}}}
	b.StaticResources.Listeners = append(b.StaticResources.Listeners, s.listeners...)
	b.StaticResources.Clusters = append(b.StaticResources.Clusters, s.clusters...)
	for name, value := range map[string]string{telemetry.EnvWorkload: "checkout", telemetry.EnvNamespace: "shop", telemetry.EnvCanonical: "checkout",
		telemetry.EnvRevision: "v2", telemetry.EnvPrincipal: sceneClient, telemetry.EnvCluster: "Kubernetes"} {
		t.Setenv(name, value)
	}
	return envoytest.Start(t, b, "sidecar~127.0.0.1~checkout-1.shop~shop.svc.cluster.local")
}

// webApplication answers with the status of the request's path, and calls of gRPC with the status in it.
func webApplication(t *testing.T) uint32 {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(strings.Trim(r.URL.Path, "/"))
		if r.Header.Get("Content-Type") == "application/grpc" {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = io.WriteString(w, "\x00\x00\x00\x00\x00")
			w.Header().Set("Grpc-Status", strconv.Itoa(n))
			return
		}
		w.WriteHeader(cmp.Or(n, 200))
	}))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return uint32(srv.Listener.Addr().(*net.TCPAddr).Port)
}

func port(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// post makes a request without a body, and returns the status of the answer when all of that has come.
func post(t *testing.T, client *http.Client, url string, header http.Header) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}
