package translate_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Where the agent's tests have what a proxy logs. They say what events it makes of that.
const (
	entries      = "../../../agent/internal/als/testdata/entries.jsonl"
	trialEntries = "../../../agent/internal/als/testdata/trial-entries.jsonl"
)

// logger is the agent's log service. It keeps each kind of entry once: ports and IDs of requests are no part of it.
type logger struct {
	mu    sync.Mutex
	named map[string]string // ports of the scene
	lines map[string]bool
}

// newLogger is one for a scene with these ports.
func newLogger(ports ...uint32) *logger {
	l := &logger{named: map[string]string{}, lines: map[string]bool{}}
	for i, p := range ports {
		l.named[fmt.Sprint(p)] = fmt.Sprint(1000 + i)
	}
	return l
}

var logService = grpc.ServiceDesc{
	ServiceName: "opentelemetry.proto.collector.logs.v1.LogsService", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: func(srv any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := &logs.LogsData{} // which is the request in all but its name
		if err := decode(in); err != nil {
			return nil, err
		}
		for _, r := range in.GetResourceLogs() {
			for _, s := range r.GetScopeLogs() {
				for _, e := range s.GetLogRecords() {
					srv.(interface{ keep(*logs.LogRecord) }).keep(e)
				}
			}
		}
		return &emptypb.Empty{}, nil
	}}},
}

var (
	requestID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`)
	localPort = regexp.MustCompile(`127\.0\.0\.1:\d+`)
)

func (l *logger) keep(e *logs.LogRecord) {
	text := map[string]string{}
	for _, a := range e.GetAttributes() {
		value := requestID.ReplaceAllString(a.GetValue().GetStringValue(), "00000000-0000-4000-8000-000000000000")
		value = localPort.ReplaceAllStringFunc(value, func(at string) string {
			_, port, _ := strings.Cut(at, ":")
			if name := l.named[port]; name != "" {
				return "10.0.0.1:" + name
			}
			return "10.0.0.9:9999"
		})
		if name := l.named[value]; name != "" {
			value = name
		}
		text[a.GetKey()] = value
	}
	line, err := json.Marshal(text)
	if err != nil {
		panic(err) // a map of strings
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines[string(line)+"\n"] = true
}

func (l *logger) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for line := range l.lines {
		out = append(out, line)
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// compare waits for what a file has, and writes it if that is asked for.
func (l *logger) compare(t *testing.T, file string) {
	t.Helper()
	want, err := os.ReadFile(file)
	if err != nil && !*update {
		t.Fatal(err)
	}
	if *update { // whatever comes within some time
		time.Sleep(3 * time.Second)
		if err := os.WriteFile(file, []byte(l.text()), 0o644); err != nil { //nolint:gosec // test data
			t.Fatal(err)
		}
		return
	}
	for end := time.Now().Add(30 * time.Second); l.text() != string(want); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("logged:\n%s\nwant, in %s:\n%s", l.text(), file, want)
		}
	}
}

// knock says something to a port, over TLS if there is a configuration, and waits for an answer or the end.
func knock(t *testing.T, port uint32, config *tls.Config) {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if config != nil {
		conn = tls.Client(conn, config)
	}
	_, _ = io.WriteString(conn, "knock")
	_, _ = io.ReadFull(conn, make([]byte, 5))
}

// presenting is how somebody with a certificate connects.
func presenting(leaf *envoytest.Leaf, protocols ...string) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: protocols, //nolint:gosec // the server's name is not what is tested
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &leaf.TLS, nil }}
}

// TestWhatProxiesLogIsWhatTheAgentIsTestedWith does something of each kind that is audited, and much that is not.
func TestWhatProxiesLogIsWhatTheAgentIsTestedWith(t *testing.T) {
	envoytest.Find(t)
	ports, ca := envoytest.FreePorts(t, 11), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Permissive, ca: ca, leaf: ca.Issue(t, sceneClient), loggers: "envoy.access_loggers.open_telemetry"}
	leaf := ca.Issue(t, scenePeer)
	web, echo := webApplication(t), startApplication(t, false)
	policies := []authz.Policy{
		policyOf(t, "closed", `{"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/secret", "/shop.Secret/Tell"]}}]}]}`),
		policyOf(t, "watched", `{"action": "AUDIT", "rules": [{"to": [{"operation": {"paths": ["/watched"]}}]}]}`),
		policyOf(t, "friends", `{"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/friend"]}}]}]}`),
	}
	serverHTTP, serverTCP, closedTCP, openTCP, openHTTP, strict := ports[0], ports[1], ports[2], ports[8], ports[9], ports[10]
	tokens := newIssuer(t, "https://issuer.example")
	s.issuers = []compile.Issuer{{Rule: ruleOf(tokens, nil), KeySet: tokens.published(t)}}
	s.inbound(serverHTTP, web, protocol.HTTP, "checkout", policies...)
	s.issuers = nil
	s.inbound(serverTCP, echo.port, protocol.TCP, "store", policyOf(t, "watched", `{"action": "AUDIT", "rules": [{}]}`), policies[2])
	s.inbound(closedTCP, echo.port, protocol.TCP, "closed", policyOf(t, "friends", `{"rules": [{"from": [{"source": {"namespaces": ["nowhere"]}}]}]}`))
	s.inbound(openTCP, echo.port, protocol.TCP, "open", policyOf(t, "watched", `{"action": "AUDIT", "rules": [{}]}`))
	s.inbound(openHTTP, web, protocol.HTTP, "open")
	s.mode = authz.Strict
	s.inbound(strict, web, protocol.HTTP, "strict")
	at := func(port uint32) compile.Endpoint { return compile.Endpoint{Address: "127.0.0.1", Port: port} }
	clientHTTP, impostorHTTP, impostorTCP, empty, refusal := ports[3], ports[4], ports[5], ports[6], ports[7]
	s.outbound(clientHTTP, protocol.HTTP, "ledger", nil, at(serverHTTP))
	s.outbound(impostorHTTP, protocol.HTTP, "impostor", nil, at(web))
	s.outbound(impostorTCP, protocol.TCP, "impostor", nil, at(web))
	s.outbound(empty, protocol.HTTP, "empty", nil)
	out := translate.RefusalListenerAtSocket()
	out.ListenerFilters = out.ListenerFilters[1:] // no PROXY protocol
	s.listen(out, refusal)
	l := newLogger(append(ports, web, echo.port)...)
	s.start(func(srv *grpc.Server) { srv.RegisterService(&logService, l) })

	presented := presenting(&leaf, "istio")
	friend := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: presented, DisableKeepAlives: true}}
	stranger := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(client *http.Client, scheme string, port uint32, path string, header http.Header, want int) {
		t.Helper()
		if status := post(t, client, fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, port, path), header); status != want {
			t.Errorf("%s at %d: %d, want %d", path, port, status, want)
		}
	}
	get(friend, "https", serverHTTP, "/watched", nil, 200)
	get(friend, "https", serverHTTP, "/watched", http.Header{"Authorization": {"Bearer " + tokens.token(t, jose.ES256, nil)}}, 200)
	get(friend, "https", serverHTTP, "/200", http.Header{"Authorization": {"Bearer " + tokens.token(t, jose.ES256, claimSet{"exp": 1})}}, 401)
	get(friend, "https", serverHTTP, "/401", nil, 401) // the application's own
	get(friend, "https", serverHTTP, "/403", nil, 403) // the application's own
	get(friend, "https", serverHTTP, "/500", nil, 500)
	get(friend, "https", serverHTTP, "/secret", nil, 403)
	get(friend, "https", serverHTTP, "/shop.Secret/Tell", http.Header{"Content-Type": {"application/grpc"}}, 200) // whose status is in a header
	get(stranger, "http", serverHTTP, "/200", nil, 403)
	get(stranger, "http", openHTTP, "/200", nil, 200)
	get(stranger, "http", clientHTTP, "/200", nil, 403)
	get(stranger, "http", impostorHTTP, "/", nil, 503)
	get(stranger, "http", empty, "/", nil, 503)
	get(stranger, "http", refusal, "/", nil, 403)
	opaque := presenting(&leaf, "istio-opaque")
	knock(t, serverTCP, opaque)
	knock(t, closedTCP, opaque)
	knock(t, closedTCP, nil)
	knock(t, openTCP, nil)
	knock(t, strict, nil)
	knock(t, impostorTCP, nil)
	knock(t, refusal, nil)
	leaf = envoytest.NewCA(t).Issue(t, "spiffe://cluster.local/ns/shop/sa/claimed")
	knock(t, serverTCP, opaque)
	l.compare(t, entries)
}
