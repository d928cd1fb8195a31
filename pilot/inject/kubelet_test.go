package inject

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// kubelet asks as the real one does (pkg/probe and pkg/kubelet/lifecycle of Kubernetes 1.36), and returns what became of it: success, warning or
// failure, and the text of its event.
type kubelet struct {
	address string
	health  uint32 // stands for the proxy's health port
}

const (
	success = "success"
	warning = "warning"
	failure = "failure"
)

func (k kubelet) port(c *core.Container, port intstr.IntOrString) string {
	if port.IntVal == 15021 {
		return fmt.Sprint(k.health)
	}
	return fmt.Sprint(portNumber(c, port))
}

func (k kubelet) request(c *core.Container, get *core.HTTPGetAction, purpose string) *http.Request {
	u, err := url.Parse(get.Path)
	if err != nil {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme, u.Host = strings.ToLower(string(get.Scheme)), net.JoinHostPort(k.address, k.port(c, get.Port))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		panic(err)
	}
	for _, h := range get.HTTPHeaders {
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", "kube-"+purpose+"/1.36")
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if req.Header.Get("Accept") == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req
}

func sameHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

func (k kubelet) probe(c *core.Container, p *core.Probe) (string, string) {
	timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	switch {
	case p.HTTPGet != nil:
		client := http.Client{Timeout: timeout, CheckRedirect: sameHost, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, DisableCompression: true, ForceAttemptHTTP2: true}}
		resp, err := client.Do(k.request(c, p.HTTPGet, "probe"))
		if err != nil {
			return failure, err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 10<<10))
		switch {
		case err != nil:
			return failure, err.Error()
		case resp.StatusCode >= 300 && resp.StatusCode < 400:
			return warning, "Probe terminated redirects, Response body: " + string(body)
		case resp.StatusCode >= 200 && resp.StatusCode < 300:
			return success, string(body)
		}
		return failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)
	case p.TCPSocket != nil:
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(k.address, k.port(c, p.TCPSocket.Port)), timeout)
		if err != nil {
			return failure, err.Error()
		}
		_ = conn.Close()
		return success, ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	addr := net.JoinHostPort(k.address, k.port(c, intstr.FromInt32(p.GRPC.Port)))
	conn, err := grpc.NewClient(addr, grpc.WithUserAgent("kube-probe/1.36"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	service := ""
	if p.GRPC.Service != nil {
		service = *p.GRPC.Service
	}
	resp, err := health.NewHealthClient(conn).Check(ctx, &health.HealthCheckRequest{Service: service})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return failure, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + status.Convert(err).Message()
	case status.Code(err) == codes.DeadlineExceeded:
		return failure, fmt.Sprintf("timeout: health rpc did not complete within %v", timeout)
	case err != nil:
		return failure, fmt.Sprintf("error: health rpc probe failed: %+v", err)
	case resp.GetStatus() != health.HealthCheckResponse_SERVING:
		return failure, fmt.Sprintf("service unhealthy (responded with %q)", resp.GetStatus())
	}
	return success, ""
}

func (k kubelet) hook(c *core.Container, h *core.LifecycleHandler) (string, string) {
	client := http.Client{CheckRedirect: sameHost, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	req := k.request(c, h.HTTPGet, "lifecycle")
	resp, err := client.Do(req)
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		req = req.Clone(req.Context())
		req.URL.Scheme = "http"
		req.Header.Del("Authorization")
		resp, err = client.Do(req)
	}
	if err != nil {
		return failure, err.Error()
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 10<<10))
	resp.Body.Close()
	return success, ""
}

// application notes what arrives at its ports: each connection, and each request on it with its lines in order of the alphabet, which is the
// one thing in which clients are free.
type application struct {
	mu       sync.Mutex
	seen     []string
	accepted int
	open     sync.WaitGroup
}

func (a *application) note(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = append(a.seen, fmt.Sprintf(format, args...))
}

// take returns what was noted since it was called last. It waits for that many connections and for the end of all that there are.
func (a *application) take(t *testing.T, connections int) []string {
	there := func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.accepted >= connections
	}
	for end := time.Now().Add(10 * time.Second); !there(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections of %d", a.accepted, connections)
		}
	}
	a.open.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.seen, a.accepted = nil, 0 }()
	slices.Sort(a.seen) // connections end in any order
	return a.seen
}

// tapped is a connection whose bytes are noted as they were read.
type tapped struct {
	net.Conn
	app  *application
	once sync.Once
	read []byte
}

func (c *tapped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read = append(c.read, b[:n]...)
	return n, err
}

func (c *tapped) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		if len(c.read) > 0 && c.read[0] == 0x16 { // TLS has other bytes each time; its requests are noted by their handler
			c.app.note("TLS")
		} else {
			requests := strings.Split(strings.TrimSuffix(string(c.read), "\r\n\r\n"), "\r\n\r\n") // those of hooks may share a connection
			for _, r := range requests {
				lines := strings.Split(r, "\r\n")
				slices.Sort(lines[1:])
				c.app.note("%s", strings.Join(lines, "\n"))
			}
		}
		c.app.open.Done()
	})
	return err
}

type tap struct {
	net.Listener
	app *application
}

func (l tap) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.app.mu.Lock()
	defer l.app.mu.Unlock()
	l.app.open.Add(1)
	l.app.accepted++
	return &tapped{Conn: c, app: l.app}, nil
}

// listen opens a port.
func (a *application) listen(t *testing.T) (net.Listener, int32) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return tap{l, a}, int32(l.Addr().(*net.TCPAddr).Port)
}

func (a *application) handler(plain, secure func() int32) http.Handler {
	answer := func(w http.ResponseWriter, r *http.Request) {
		to := func(format string, args ...any) {
			w.Header().Set("Location", fmt.Sprintf(format, args...))
			w.WriteHeader(http.StatusFound)
			fmt.Fprint(w, "away")
		}
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		switch r.URL.Path {
		case "/status":
			w.WriteHeader(n)
		case "/headers":
			for i := range n {
				w.Header().Set(fmt.Sprintf("X-Header-%d", i), strings.Repeat("v", 100))
			}
		case "/slow":
			time.Sleep(time.Duration(n) * time.Millisecond) // what is tried
		case "/large":
			_, _ = w.Write(make([]byte, n))
		case "/absolute-path":
			to("/status?n=200")
		case "/relative/here":
			to("../relative/./there?x=%%2F#fragment")
		case "/relative/there":
			fmt.Fprint(w, "there")
		case "/query":
			if r.URL.RawQuery == "" {
				to("?x=1")
			}
		case "/host":
			to("http://%s/status?n=200", r.Host)
		case "/scheme-relative":
			to("//%s/status?n=200", r.Host)
		case "/to-https":
			to("HTTPS://127.0.0.1:%d/status?n=204", secure())
		case "/to-http":
			to("http://127.0.0.1:%d/status?n=204", plain())
		case "/to-failure":
			to("/status?n=500")
		case "/to-nothing":
			to("http://127.0.0.1:1/")
		case "/to-the-proxy":
			to("http://127.0.0.1:15021/app-health/c0/readyz")
		case "/elsewhere":
			to("https://shop.example.com/")
		case "/loop":
			to("/loop?n=%d", n+1)
		case "/other-scheme":
			to("ftp://127.0.0.1/")
		case "/no-url":
			to("/%%zz")
		case "/no-location":
			w.WriteHeader(http.StatusFound)
		case "/hang-up":
			panic(http.ErrAbortHandler)
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			var lines []string
			for name, values := range r.Header {
				lines = append(lines, fmt.Sprint(name, values))
			}
			slices.Sort(lines)
			a.note("%s %s %s %s sni=%q %q", r.Method, r.RequestURI, r.Proto, r.Host, r.TLS.ServerName, lines)
		}
		answer(w, r)
	})
}

type healthServer struct {
	health.UnimplementedHealthServer
	app *application
}

func (s healthServer) Check(ctx context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	agent := strings.Join(md["user-agent"], ",")
	_, timed := ctx.Deadline()
	delete(md, "user-agent")
	s.app.note("gRPC %q %q timed=%v %v", r.Service, strings.Fields(agent), timed, md)
	switch r.Service {
	case "slow", "too slow":
		time.Sleep(map[string]time.Duration{"slow": 1200, "too slow": 2000}[r.Service] * time.Millisecond) // what is tried
	case "down":
		return &health.HealthCheckResponse{Status: health.HealthCheckResponse_NOT_SERVING}, nil
	case "unknown":
		return nil, status.Error(codes.NotFound, "unknown service")
	case "unimplemented":
		return nil, status.Error(codes.Unimplemented, "no health here")
	}
	return &health.HealthCheckResponse{Status: health.HealthCheckResponse_SERVING}, nil
}

func get(path string, port int32, headers ...string) *core.HTTPGetAction {
	out := &core.HTTPGetAction{Path: path, Port: intstr.FromInt32(port)}
	for i := 0; i < len(headers); i += 2 {
		out.HTTPHeaders = append(out.HTTPHeaders, core.HTTPHeader{Name: headers[i], Value: headers[i+1]})
	}
	return out
}

func secured(g *core.HTTPGetAction) *core.HTTPGetAction {
	g.Scheme = core.URISchemeHTTPS
	return g
}

// TestKubeletFindsTheSameWithAndWithoutAProxy asks an application what kubelet asks, once as declared and once as injection has it, through an Envoy that
// starts as in a pod. What the application sees has to be the same, and what kubelet makes of the answer.
func TestKubeletFindsTheSameWithAndWithoutAProxy(t *testing.T) {
	app := &application{}
	plainListener, plain := app.listen(t)
	secureListener, secure := app.listen(t)
	linesListener, lines := app.listen(t)
	handler := app.handler(func() int32 { return plain }, func() int32 { return secure })
	web := &httptest.Server{Listener: plainListener, Config: &http.Server{Handler: handler}}
	web.Start()
	defer web.Close()
	tlsWeb := &httptest.Server{Listener: secureListener, Config: &http.Server{Handler: handler}, EnableHTTP2: true}
	tlsWeb.StartTLS()
	defer tlsWeb.Close()
	rpcListener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rpc := int32(rpcListener.Addr().(*net.TCPAddr).Port)
	server := grpc.NewServer()
	health.RegisterHealthServer(server, healthServer{app: app})
	go func() { _ = server.Serve(rpcListener) }()
	defer server.Stop()
	go func() { // greets, as a mail server does
		for {
			c, err := linesListener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "220 hello\r\n")
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	nothing := int32(1)
	http1 := func(g *core.HTTPGetAction) core.ProbeHandler { return core.ProbeHandler{HTTPGet: g} }
	rpcOf := func(port int32, service string) core.ProbeHandler {
		return core.ProbeHandler{GRPC: &core.GRPCAction{Port: port, Service: &service}}
	}
	refused := fmt.Sprintf("dial tcp 127.0.0.1:%d: connect: connection refused", nothing)
	probes := []struct {
		name    string
		handler core.ProbeHandler
		timeout int32
		result  string
		text    string // what both have in their texts, or empty: the same text
	}{
		{"a path", http1(get("/status?n=204", plain)), 1, success, ""},
		{"a query", http1(get("/any?full=1&x=/y", plain)), 1, success, ""},
		{"without a slash", http1(get("any", plain)), 1, success, ""},
		{"empty", http1(get("", plain)), 1, success, ""},
		{"encoded", http1(get("/any/%2F//x/%41/../y;p=1?a=%20b", plain)), 1, success, ""},
		{"spaces, which are encoded", http1(get("/any thing/ä", plain)), 1, success, ""},
		{"not to be parsed", http1(get("/any%zz", plain)), 1, success, ""},
		{"headers", http1(get("/any", plain, "x-probe", "a", "X-Probe", "b ", "Authorization", "Basic Zm9v", "X-Forwarded-Proto", "https", "X-Forwarded-For", "10.0.0.1", "X-Request-Id", "mine")), 1, success, ""},
		{"Host", http1(get("/any", plain, "Host", "shop.example.com", "Accept", "", "User-Agent", "probe of mine")), 1, success, ""},
		{"Accept", http1(get("/any", plain, "accept", "application/json")), 1, success, ""},
		{"a status", http1(get("/status?n=418", plain)), 1, failure, ""},
		{"a status of a proxy", http1(get("/status?n=503", plain)), 1, failure, ""},
		{"not modified", http1(get("/status?n=304", plain)), 1, warning, ""},
		{"many headers", http1(get("/headers?n=150", plain)), 1, success, ""},
		{"a large body", http1(get("/large?n=3000000", plain)), 1, success, ""},
		{"slow, but in time", http1(get("/slow?n=1200", plain)), 3, success, ""},
		{"too slow", http1(get("/slow?n=2000", plain)), 1, failure, "(Client.Timeout exceeded while awaiting headers)"},
		{"redirect to a path", http1(get("/absolute-path", plain, "X-Probe", "a")), 1, success, ""},
		{"redirect to a path, of another Host", http1(get("/absolute-path", plain, "Host", "shop.example.com")), 1, success, ""},
		{"relative redirect", http1(get("/relative/here?a=1", plain)), 1, success, ""},
		{"redirect to another query", http1(get("/query", plain)), 1, success, ""},
		{"redirect to the Host", http1(get("/host", plain)), 1, success, ""},
		{"redirect to the Host that is declared", http1(get("/host", plain, "Host", "shop.example.com")), 1, warning, ""},
		{"redirect without a scheme", http1(get("/scheme-relative", plain)), 1, success, ""},
		{"redirect to HTTPS", http1(get("/to-https", plain)), 1, success, ""},
		{"redirect from HTTPS", http1(secured(get("/to-http", secure))), 1, success, ""},
		{"redirect to a failure", http1(get("/to-failure", plain)), 1, failure, ""},
		{"redirect to where nothing listens", http1(get("/to-nothing", plain)), 1, failure, "connection refused"},
		{"redirect to a port of the proxy's, where kubelet goes by itself", http1(get("/to-the-proxy", plain)), 1, failure, `Get "http://127.0.0.1:15021/app-health/c0/readyz": dial tcp`},
		{"redirect elsewhere", http1(get("/elsewhere", plain)), 1, warning, ""},
		{"redirect for ever", http1(get("/loop", plain)), 1, failure, "stopped after 10 redirects"},
		{"redirect to another scheme", http1(get("/other-scheme", plain)), 1, failure, ""},
		{"redirect to what is no URL", http1(get("/no-url", plain)), 1, failure, "failed to parse Location header"},
		{"redirect without Location", http1(get("/no-location", plain)), 1, warning, ""},
		{"HTTPS", http1(secured(get("/any", secure, "Host", "shop.example.com"))), 1, success, ""},
		{"HTTPS, a status", http1(secured(get("/status?n=500", secure))), 1, failure, ""},
		{"HTTPS of what speaks HTTP", http1(secured(get("/any", plain))), 1, failure, "Get "},
		{"HTTP of what speaks HTTPS", http1(get("/any", secure)), 1, failure, ""},
		{"nothing listens", http1(get("/any", nothing)), 1, failure, refused},
		{"no answer", http1(get("/hang-up", plain)), 1, failure, "EOF"},
		{"TCP", core.ProbeHandler{TCPSocket: &core.TCPSocketAction{Port: intstr.FromInt32(lines)}}, 1, success, ""},
		{"TCP of what waits for a client", core.ProbeHandler{TCPSocket: &core.TCPSocketAction{Port: intstr.FromInt32(plain)}}, 1, success, ""},
		{"TCP, nothing listens", core.ProbeHandler{TCPSocket: &core.TCPSocketAction{Port: intstr.FromInt32(nothing)}}, 1, failure, refused},
		{"gRPC", core.ProbeHandler{GRPC: &core.GRPCAction{Port: rpc}}, 1, success, ""},
		{"gRPC service", rpcOf(rpc, strings.Repeat("ready", 100)), 1, success, ""},
		{"gRPC, slow, but in time", rpcOf(rpc, "slow"), 3, success, ""},
		{"gRPC, too slow", rpcOf(rpc, "too slow"), 1, failure, ""},
		{"gRPC, not serving", rpcOf(rpc, "down"), 1, failure, ""},
		{"gRPC, unknown", rpcOf(rpc, "unknown"), 1, failure, ""},
		{"gRPC, unimplemented", rpcOf(rpc, "unimplemented"), 1, failure, ""},
		{"gRPC, nothing listens", rpcOf(nothing, ""), 1, failure, "connection refused"},
	}
	hooks := []struct {
		name   string
		get    *core.HTTPGetAction
		result string
		text   string
	}{
		{"a path", get("/any?x=%2F", plain, "X-Hook", "1"), success, ""},
		{"a status, which is one", get("/status?n=500", plain), success, ""},
		{"slow", get("/slow?n=1200", plain), success, ""},
		{"nothing listens", get("/any", nothing), failure, "connection refused"},
		{"no answer", get("/hang-up", plain), failure, "EOF"},
		{"HTTPS of what speaks HTTP", secured(get("/absolute-path", plain, "Authorization", "Basic Zm9v", "X-Hook", "1")), success, ""},
		{"redirect", get("/host", plain), success, ""},
		{"redirect elsewhere", get("/elsewhere", plain), success, ""},
		{"redirect to where nothing listens", get("/to-nothing", plain), failure, "connection refused"},
	}
	var pod core.Pod
	pod.Name = "x"
	for i, p := range probes {
		pod.Spec.Containers = append(pod.Spec.Containers, core.Container{Name: fmt.Sprintf("c%d", i), ReadinessProbe: &core.Probe{ProbeHandler: p.handler, TimeoutSeconds: p.timeout}})
	}
	for i, h := range hooks {
		pod.Spec.Containers = append(pod.Spec.Containers, core.Container{Name: fmt.Sprintf("h%d", i), Lifecycle: &core.Lifecycle{PreStop: &core.LifecycleHandler{HTTPGet: h.get}}})
	}
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	var injected core.Pod
	if err := json.Unmarshal(admit(t, text, enabled), &injected); err != nil {
		t.Fatal(err)
	}
	k := kubelet{"127.0.0.1", startProxy(t, &injected)}
	compare := func(t *testing.T, result, words string, connections int, ask func(*core.Container) (string, string), as func(*core.Pod) *core.Container) {
		before, beforeText := ask(as(&pod))
		want := app.take(t, connections)
		after, afterText := ask(as(&injected))
		got := app.take(t, connections)
		if before != result || after != result {
			t.Errorf("directly %s %q, by the proxy %s %q, want %s", before, beforeText, after, afterText, result)
		}
		if words == "" && beforeText != afterText || !strings.Contains(beforeText, words) || !strings.Contains(afterText, words) {
			t.Errorf("kubelet says\n%s\nwithout the proxy\n%s", afterText, beforeText)
		}
		if !slices.Equal(got, want) {
			t.Errorf("the application sees\n%s\nwithout the proxy\n%s", strings.Join(got, "\n---\n"), strings.Join(want, "\n---\n"))
		}
	}
	for i, p := range probes {
		t.Run(p.name, func(t *testing.T) {
			connections := 0
			if p.handler.TCPSocket != nil && p.result == success {
				connections = 1 // which the kernel makes before the application knows
			}
			compare(t, p.result, p.text, connections, func(c *core.Container) (string, string) { return k.probe(c, c.ReadinessProbe) },
				func(pod *core.Pod) *core.Container { return &pod.Spec.Containers[i] })
		})
	}
	for i, h := range hooks {
		t.Run("hook: "+h.name, func(t *testing.T) {
			compare(t, h.result, h.text, 0, func(c *core.Container) (string, string) { return k.hook(c, c.Lifecycle.PreStop) },
				func(pod *core.Pod) *core.Container { return &pod.Spec.Containers[len(probes)+i] })
		})
	}
}
