package inject

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	xdsbootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	xdscore "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	xdslistener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	lua "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	core "k8s.io/api/core/v1"
)

// listener is an application that notes each request.
type listener struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func listens(t *testing.T, answer http.HandlerFunc) *listener {
	l := &listener{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		l.seen = append(l.seen, fmt.Sprint(r.Method, " ", r.Host, r.RequestURI, " ", r.ContentLength, r.Header))
		l.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(l.Close)
	return l
}

func (l *listener) port() int32 { return int32(l.Listener.Addr().(*net.TCPAddr).Port) }

func (l *listener) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.seen = nil }()
	return strings.Join(l.seen, "\n")
}

func injectedWith(t *testing.T, containers ...core.Container) *core.Pod {
	t.Helper()
	var pod core.Pod
	pod.Name = "x"
	pod.Spec.Containers = containers
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	var out core.Pod
	if err := json.Unmarshal(admit(t, text, enabled), &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

// The health port answers everybody. Whoever asks can have the application asked what its author has declared, and nothing else.
func TestStrangersChooseNothingOfWhatIsAsked(t *testing.T) {
	other := listens(t, func(http.ResponseWriter, *http.Request) {})
	app := listens(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "http://"+r.Host+"/secret", http.StatusFound) // as servers do that believe the Host
		}
	})
	port := app.port()
	probe := func(h core.ProbeHandler) *core.Probe { return &core.Probe{ProbeHandler: h} }
	service := "declared"
	pod := injectedWith(t, core.Container{Name: "a",
		ReadinessProbe: probe(core.ProbeHandler{HTTPGet: get("/ready?x=1", port, "X-Declared", "yes")}),
		LivenessProbe:  probe(core.ProbeHandler{HTTPGet: get("/redirect", port)}),
		Lifecycle:      &core.Lifecycle{PreStop: &core.LifecycleHandler{HTTPGet: get("/quit", port)}},
		StartupProbe:   probe(core.ProbeHandler{GRPC: &core.GRPCAction{Port: port, Service: &service}})})
	health := startProxy(t, pod)
	asked := fmt.Sprintf("GET 127.0.0.1:%d/ready?x=1 0 map[Accept:[*/*] Connection:[close]", port)
	forged := fmt.Sprintf("127.0.0.1:%d", other.port())
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		want                     string // of what the application sees
	}{
		{"what is declared", "GET", "/app-health/a/readyz", "", []string{"Accept", "*/*", "X-Declared", "yes"}, 200, asked + " X-Declared:[yes]]"},
		{"other headers", "GET", "/app-health/a/readyz", "", []string{"Accept", "*/*", "X-Original-Url", "/secret", "X-Declared", "no", "User-Agent", "${jndi:x}", "Referer", "x", "Connection", "X-Foo",
			"X-Envoy-Original-Url", "http://" + forged + "/secret", "X-Envoy-Original-Dst-Host", forged, "X-Forwarded-Host", forged, "Cookie", "a=b"}, 200, asked + "]"},
		{"a query", "GET", "/app-health/a/readyz?y=2", "", []string{"Accept", "*/*"}, 200, asked + "]"},
		{"another Host", "GET", "/app-health/a/readyz", "", []string{"Accept", "*/*", "Host", forged}, 200, asked + "]"},
		{"another Host, for the application to redirect to", "GET", "/app-health/a/livez", "", []string{"Accept", "*/*", "Host", forged}, 200, fmt.Sprintf(
			"GET 127.0.0.1:%[1]d/redirect 0 map[Accept:[*/*] Connection:[close]]\nGET 127.0.0.1:%[1]d/secret 0 map[Accept:[*/*] Connection:[close] Referer:[http://127.0.0.1:%[1]d/redirect]]", port)},
		{"another method", "POST", "/app-health/a/readyz", "", nil, 404, ""},
		{"a body", "GET", "/app-health/a/readyz", "x=y", nil, 404, ""},
		{"a path of the application's", "GET", "/secret", "", nil, 404, ""},
		{"a path of the application's, as if redirected to", "GET", "/secret", "", []string{"X-Envoy-Original-Url", "http://x/app-health/a/livez", "X-Envoy-Original-Dst-Host", forged}, 404, ""},
		{"a path below a probe's", "GET", "/app-health/a/readyz/../../../secret", "", nil, 404, ""},
		{"what the proxy itself is asked", "GET", "/config_dump", "", nil, 404, ""},
		{"a hook", "GET", "/app-health/a/prestop", "", nil, 404, ""},
		{"no gRPC", "POST", "/grpc.health.v1.Health/Check", "x", []string{"X-Envoy-Original-Dst-Host", forged}, 404, ""},
		{"another method of gRPC", "POST", "/grpc.health.v1.Health/Watch", "x", nil, 404, ""},
	} {
		req, err := http.NewRequest(c.method, fmt.Sprintf("http://127.0.0.1:%d", health), strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.body == "" {
			req.Body, req.ContentLength = nil, 0
		}
		req.URL.Opaque = c.path
		req.Header.Set("User-Agent", "")
		for i := 0; i < len(c.headers); i += 2 {
			req.Header.Set(c.headers[i], c.headers[i+1])
		}
		req.Host = req.Header.Get("Host")
		resp, err := (&http.Transport{DisableCompression: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := app.take(); resp.StatusCode != c.status || got != c.want {
			t.Errorf("%s: %d, the application sees %q; want %d, %q", c.name, resp.StatusCode, got, c.status, c.want)
		}
	}
	k := kubelet{"127.0.0.1", health}
	if result, text := k.probe(&core.Container{}, &core.Probe{ProbeHandler: core.ProbeHandler{GRPC: &core.GRPCAction{Port: 15021, Service: &service}}}); result != failure || app.take() != "" {
		t.Errorf("a service by its own name: %s %s", result, text)
	}
	if got := other.take(); got != "" {
		t.Errorf("reached another server: %s", got)
	}
}

// If the script fails there is no address to go to, whatever the headers say.
func TestWithoutTheScriptNobodyIsAsked(t *testing.T) {
	app := listens(t, func(http.ResponseWriter, *http.Request) {})
	pod := injectedWith(t, core.Container{Name: "a", ReadinessProbe: &core.Probe{ProbeHandler: core.ProbeHandler{HTTPGet: get("/ready", app.port())}}})
	health := startProxy(t, pod, func(b *xdsbootstrap.Bootstrap) {
		filter := b.StaticResources.Listeners[0].FilterChains[0].Filters[0]
		m, script := &hcm.HttpConnectionManager{}, &lua.Lua{}
		if err := filter.GetTypedConfig().UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		if err := m.HttpFilters[0].GetTypedConfig().UnmarshalTo(script); err != nil {
			t.Fatal(err)
		}
		broken := strings.Replace(script.GetDefaultSourceCode().GetInlineString(), "handle:filterContext()", `error("broken")`, 1)
		if broken == script.GetDefaultSourceCode().GetInlineString() {
			t.Fatal("the script is another")
		}
		script.DefaultSourceCode.Specifier = &xdscore.DataSource_InlineString{InlineString: broken}
		var err error
		if m.HttpFilters[0].ConfigType.(*hcm.HttpFilter_TypedConfig).TypedConfig, err = anypb.New(script); err != nil {
			t.Fatal(err)
		}
		if filter.ConfigType.(*xdslistener.Filter_TypedConfig).TypedConfig, err = anypb.New(m); err != nil {
			t.Fatal(err)
		}
	})
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/app-health/a/readyz", health), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Envoy-Original-Dst-Host", app.Listener.Addr().String())
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := app.take(); resp.StatusCode != http.StatusServiceUnavailable || got != "" {
		t.Errorf("%d, the application sees %q", resp.StatusCode, got)
	}
}
