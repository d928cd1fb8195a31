package translate_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// authority is an external authorizer that allows what has the word "yes" in a header or in its path, and counts what it is asked.
type authorityServer struct {
	authv3.UnimplementedAuthorizationServer
	asked  atomic.Int32
	closed atomic.Bool // it denies connections
	last   atomic.Pointer[authv3.CheckRequest]
}

func (a *authorityServer) Check(_ context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.asked.Add(1)
	a.last.Store(r)
	h := r.GetAttributes().GetRequest().GetHttp()
	if h == nil && a.closed.Load() {
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}}, nil
	}
	if h == nil || h.GetHeaders()["x-answer"] == "yes" {
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.OK)}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
			Headers: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x-said", Value: "by grpc"}}}}}}, nil
	}
	return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode_PaymentRequired}, Body: "pay first"}}}, nil
}

func (a *authorityServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.asked.Add(1)
	w.Header().Set("X-Said", "by http")
	w.Header().Set("X-Secret", "not for anybody")
	if r.Header.Get("X-Answer") != "yes" || r.Header.Get("X-Of") != "bulwark" || !strings.HasPrefix(r.URL.Path, "/check/") {
		http.Error(w, "no", http.StatusTeapot)
	}
}

// authorizerAt is the cluster of an authorizer's Service, at a port of this machine.
func authorizerAt(t *testing.T, p authorizer.Provider, port uint32) *cluster.Cluster {
	t.Helper()
	c := staticCluster(fmt.Sprintf("outbound|%d||%s", p.Port, compile.HostOf(p.Service)), port)
	if p.GRPC {
		c.TypedExtensionProtocolOptions = translate.OutboundCluster(&compile.ServicePort{Service: &registry.Service{}, Protocol: protocol.HTTP2}, delivery.ByAgent).GetTypedExtensionProtocolOptions()
	}
	return c
}

func serveAuthority(t *testing.T, l net.Listener, a *authorityServer) {
	t.Helper()
	srv := grpc.NewServer()
	authv3.RegisterAuthorizationServer(srv, a)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
}

// Of connections each authorizer that speaks gRPC is asked, up to four; what more would be asked is denied, and one that speaks HTTP has no word.
func TestExternalAuthorizersAreAskedAboutConnections(t *testing.T) {
	envoytest.Find(t)
	ca, ports, echo := envoytest.NewCA(t), envoytest.FreePorts(t, 7), startApplication(t, false)
	s := &scene{t: t, ca: ca, leaf: ca.Issue(t, sceneClient), mode: authz.Permissive}
	one, two := &authorityServer{}, &authorityServer{}
	providers := map[string]authorizer.Provider{}
	for name, at := range map[string]*authorityServer{"down": nil, "grpc": one, "grpc-ns": one, "open": two, "http": nil, "silent": one, "whole": one} {
		text := fmt.Sprintf(`[{"name": %q, "envoyExtAuthzGrpc": {"service": "%s.opa.svc.cluster.local", "port": 1, "timeout": "0.5s"}}]`, name, name)
		if name == "http" {
			text = strings.ReplaceAll(text, "Grpc", "Http")
		}
		list, err := authorizer.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		port := uint32(1) // where nobody is
		if at != nil {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serveAuthority(t, l, at)
			port = uint32(l.Addr().(*net.TCPAddr).Port)
		}
		providers[name] = list[0]
		s.clusters = append(s.clusters, authorizerAt(t, list[0], port))
	}
	cases := []struct {
		of     []string
		passes bool // where both answer that it may
		asked  [2]int32
	}{
		{[]string{"grpc"}, true, [2]int32{1, 0}}, {[]string{"down"}, false, [2]int32{}}, {[]string{"down", "grpc"}, false, [2]int32{}}, {[]string{"grpc", "http"}, true, [2]int32{1, 0}},
		{[]string{"grpc", "grpc-ns", "open"}, true, [2]int32{2, 1}}, {[]string{"grpc", "grpc-ns", "open", "silent"}, true, [2]int32{3, 1}}, {[]string{"grpc", "grpc-ns", "open", "silent", "whole"}, false, [2]int32{}},
	}
	for i, c := range cases {
		var policies []authz.Policy
		s.authorizers = nil
		for _, name := range c.of {
			s.authorizers = append(s.authorizers, providers[name])
			policies = append(policies, policyOf(t, name, fmt.Sprintf(`{"action": "CUSTOM", "provider": {"name": %q}, "rules": [{}]}`, name)))
		}
		s.inbound(ports[i], echo.port, protocol.TCP, "store", policies...)
	}
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: envoytest.FreePorts(t, 1)[0]}
	b.StaticResources.Listeners, b.StaticResources.Clusters = append(b.StaticResources.Listeners, s.listeners...), append(b.StaticResources.Clusters, s.clusters...)
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	knock := func(port uint32) (answered bool, asked [2]int32) {
		one.asked.Store(0)
		two.asked.Store(0)
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, "knock")
		n, _ := io.ReadFull(conn, make([]byte, 5))
		return n == 5, [2]int32{one.asked.Load(), two.asked.Load()}
	}
	for i, c := range cases {
		if passes, asked := knock(ports[i]); passes != c.passes || asked != c.asked {
			t.Errorf("%v: passes is %v, and they were asked %v times", c.of, passes, asked)
		}
		for who, authority := range []*authorityServer{one, two} { // who is asked can deny, whatever others say
			authority.closed.Store(true)
			if passes, _ := knock(ports[i]); passes && c.asked[who] > 0 {
				t.Errorf("%v: a connection passes that one of them denies", c.of)
			}
			authority.closed.Store(false)
		}
	}
}

func TestExternalAuthorizersAreAsked(t *testing.T) {
	v := newVerifying(t, 6)
	overGRPC, overHTTP := &authorityServer{}, &authorityServer{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveAuthority(t, l, overGRPC)
	web := httptest.NewServer(overHTTP)
	t.Cleanup(web.Close)
	grpcPort := uint32(l.Addr().(*net.TCPAddr).Port)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // where nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	providers := map[string]authorizer.Provider{}
	for _, text := range []string{
		`{"name": "grpc", "envoyExtAuthzGrpc": {"service": "opa.opa.svc.cluster.local", "port": 1}}`,
		`{"name": "http", "envoyExtAuthzHttp": {"service": "web.opa.svc.cluster.local", "port": 2, "pathPrefix": "/check", "includeRequestHeadersInCheck": ["x-answer"],
			"includeAdditionalHeadersInCheck": {"x-of": "bulwark"}, "headersToUpstreamOnAllow": ["x-said"], "headersToDownstreamOnDeny": ["x-said"]}}`,
		`{"name": "down", "envoyExtAuthzGrpc": {"service": "down.opa.svc.cluster.local", "port": 3, "timeout": "0.5s", "statusOnError": "503"}}`,
		`{"name": "grpc-ns", "envoyExtAuthzGrpc": {"service": "down.opa.svc.cluster.local", "port": 3, "timeout": "0.5s", "statusOnError": "503"}}`,
		`{"name": "silent", "envoyExtAuthzHttp": {"service": "silent.opa.svc.cluster.local", "port": 4, "timeout": "0.2s", "statusOnError": "503"}}`,
		`{"name": "open", "envoyExtAuthzGrpc": {"service": "down.opa.svc.cluster.local", "port": 3, "timeout": "0.5s", "failOpen": true}}`,
	} {
		list, err := authorizer.Parse("[" + text + "]")
		if err != nil {
			t.Fatal(err)
		}
		providers[list[0].Name] = list[0]
	}
	v.scene.clusters = append(v.scene.clusters, authorizerAt(t, providers["grpc"], grpcPort), authorizerAt(t, providers["http"], portOf(t, web.URL)), authorizerAt(t, providers["down"], 1),
		authorizerAt(t, providers["silent"], uint32(silent.Addr().(*net.TCPAddr).Port)))
	with := func(names ...string) uint32 {
		v.scene.authorizers = nil
		var policies []authz.Policy
		for _, n := range names {
			v.scene.authorizers = append(v.scene.authorizers, providers[n])
			policies = append(policies, policyOf(t, n, fmt.Sprintf(`{"action": "CUSTOM", "provider": {"name": %q}, "rules": [{"to": [{"operation": {"paths": ["/%s/*"]}}]}]}`, n, n)))
		}
		policies = append(policies, policyOf(t, "closed", `{"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["*/closed"]}}]}]}`))
		return v.workload(nil, policies...)
	}
	both, failing, alike, mute := with("grpc", "http"), with("down", "open"), with("grpc", "grpc-ns"), with("silent")
	v.start()
	for _, c := range []struct {
		port         uint32
		path, answer string
		status       int
		grpc, http   int32 // how often they are asked
		said         string
	}{
		{both, "/elsewhere", "", 200, 0, 0, ""},
		{both, "/grpc/x", "yes", 200, 1, 0, "by grpc"},
		{both, "/grpc/x", "no", 402, 1, 0, ""},
		{both, "/grpc/closed", "yes", 403, 1, 0, ""},
		{both, "/http/x", "yes", 200, 0, 1, "by http"},
		{both, "/http/x", "no", 418, 0, 1, ""},
		{failing, "/down/x", "yes", 503, 0, 0, ""},
		{failing, "/open/x", "yes", 200, 0, 0, ""},
		{alike, "/grpc/x", "yes", 200, 1, 0, "by grpc"},
		{alike, "/grpc-ns/x", "yes", 503, 0, 0, ""}, // the name of the other one begins so
		{mute, "/silent/x", "yes", 503, 0, 0, ""},
		{failing, "/open/closed", "yes", 403, 0, 0, ""},
	} {
		overGRPC.asked.Store(0)
		overHTTP.asked.Store(0)
		resp, body, arrived := v.ask(c.port, "GET", c.path, "x-answer: "+c.answer, "x-said: by the client")
		if resp.StatusCode != c.status || overGRPC.asked.Load() != c.grpc || overHTTP.asked.Load() != c.http || (arrived != nil) != (c.status == 200) {
			t.Errorf("%s %q: %d %q, asked %d and %d times, want %+v", c.path, c.answer, resp.StatusCode, body, overGRPC.asked.Load(), overHTTP.asked.Load(), c)
		}
		if arrived != nil && c.said != "" && arrived.Header.Get("X-Said") != c.said {
			t.Errorf("%s: the application hears %q, want %q", c.path, arrived.Header.Values("X-Said"), c.said)
		}
		if resp.Header.Get("X-Secret") != "" || arrived != nil && arrived.Header.Get("X-Secret") != "" {
			t.Errorf("%s: what nobody is to hear is told", c.path)
		}
	}
	// A call of gRPC that is denied is answered with 200 and a status of its own; that it fails shows that nothing has arrived.
	if _, _, arrived := v.ask(mute, "POST", "/silent/Service/Method", "content-type: application/grpc", "te: trailers"); arrived != nil {
		t.Error("a call of gRPC passes whose authorizer, which speaks HTTP, does not answer")
	}
}

// TestAuthorizersAreShownBodies: up to what the provider says, whatever else a proxy keeps of a connection. A longer one is refused, or shown in part.
func TestAuthorizersAreShownBodies(t *testing.T) {
	v := newVerifying(t, 3)
	asked := &authorityServer{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveAuthority(t, l, asked)
	ports := map[bool]uint32{}
	for _, partial := range []bool{false, true} {
		providers, err := authorizer.Parse(fmt.Sprintf(`[{"name": "whole", "envoyExtAuthzGrpc": {"service": "opa.opa.svc.cluster.local", "port": 1,
			"includeRequestBodyInCheck": {"maxRequestBytes": 1048576, "allowPartialMessage": %v, "packAsBytes": true}}}]`, partial))
		if err != nil {
			t.Fatal(err)
		}
		v.scene.authorizers = providers
		ports[partial] = v.workload(nil, policyOf(t, "body", `{"action": "CUSTOM", "provider": {"name": "whole"}, "rules": [{"to": [{"operation": {"paths": ["/*"]}}]}]}`))
		if !partial {
			v.scene.clusters = append(v.scene.clusters, authorizerAt(t, providers[0], uint32(l.Addr().(*net.TCPAddr).Port)))
		}
	}
	v.start()
	for _, c := range []struct {
		partial             bool
		sent, status, shown int
	}{
		{false, 10, 200, 10}, {false, 100_000, 200, 100_000}, {false, 1_000_000, 200, 1_000_000}, {false, 1_100_000, http.StatusRequestEntityTooLarge, 0},
		{true, 100_000, 200, 100_000}, {true, 3_000_000, 200, 1 << 20},
	} {
		asked.last.Store(nil)
		conn := connect(t, ports[c.partial], authz.Request{}, nil)
		go func() { // a request that is refused is not read to its end
			_, _ = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: payroll\r\nX-Answer: yes\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", c.sent, strings.Repeat("a", c.sent))
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		resp.Body.Close()
		conn.Close()
		shown := len(asked.last.Load().GetAttributes().GetRequest().GetHttp().GetRawBody())
		if resp.StatusCode != c.status || shown != c.shown {
			t.Errorf("%+v: %d, and the authorizer is shown %d bytes", c, resp.StatusCode, shown)
		}
	}
}
