package translate_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// onTrialPolicy is a policy that is tried out.
func onTrialPolicy(t *testing.T, name, spec string) authz.Policy {
	t.Helper()
	p := policyOf(t, name, spec)
	p.DryRun = true
	return p
}

// TestWhatPoliciesOnTrialWouldChangeIsLogged asks servers with policies on trial, alone and beside those that are enforced, of HTTP/1.1, gRPC and TCP. What they would
// decide otherwise is logged, and nothing that is allowed and stays so.
func TestWhatPoliciesOnTrialWouldChangeIsLogged(t *testing.T) {
	envoytest.Find(t)
	ports, ca := envoytest.FreePorts(t, 7), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Permissive, ca: ca, leaf: ca.Issue(t, sceneClient), loggers: "envoy.access_loggers.open_telemetry"}
	leaf := ca.Issue(t, scenePeer)
	web, echo := webApplication(t), startApplication(t, false)
	const friends, strangers = `{"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/friend"]}}]}]}`, `{"rules": [{"from": [{"source": {"namespaces": ["nowhere"]}}]}]}`
	alone, beside, aloneTCP, besideTCP, deniedTCP, friendsTCP, many := ports[0], ports[1], ports[2], ports[3], ports[4], ports[5], ports[6]
	s.inbound(alone, web, protocol.HTTP, "alone",
		policyOf(t, "secret", `{"action": "DENY", "rules": [{"to": [{"operation": {"hosts": ["secret"]}}]}]}`),
		onTrialPolicy(t, "closing", `{"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/closed", "/shop.Closed/Tell"]}}]}]}`),
		onTrialPolicy(t, "narrow", `{"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/friend"]}}], "to": [{"operation": {"paths": ["/200", "/closed", "/shop.Open/Tell", "/shop.Closed/Tell"]}}]}]}`))
	s.inbound(beside, web, protocol.HTTP, "beside",
		policyOf(t, "enforced", `{"rules": [{"to": [{"operation": {"paths": ["/200"]}}]}]}`),
		onTrialPolicy(t, "closing", `{"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/wider/closed"]}}]}]}`),
		onTrialPolicy(t, "wider", `{"rules": [{"to": [{"operation": {"paths": ["/wider/*"]}}]}]}`))
	s.inbound(aloneTCP, echo.port, protocol.TCP, "alone-tcp", onTrialPolicy(t, "narrow", friends))
	s.inbound(besideTCP, echo.port, protocol.TCP, "beside-tcp", policyOf(t, "enforced", strangers), onTrialPolicy(t, "wider", friends))
	s.inbound(deniedTCP, echo.port, protocol.TCP, "denied-tcp", onTrialPolicy(t, "closing", `{"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["shop"]}}], "to": [{"operation": {"methods": ["GET"]}}]}]}`))
	s.inbound(friendsTCP, echo.port, protocol.TCP, "friends-tcp", policyOf(t, "enforced", friends), onTrialPolicy(t, "other", strangers))
	peers := `"cluster.local/ns/shop/sa/friend"`
	for i := range 30 {
		peers += fmt.Sprintf(`, "cluster.local/ns/shop/sa/a%d"`, i)
	}
	byPeer := []authz.Policy{onTrialPolicy(t, "many", `{"rules": [{"from": [{"source": {"principals": [`+peers+`]}}], "to": [{"operation": {"paths": ["/200"]}}]}]}`)}
	if authz.ByPeer(byPeer, authz.Allow) == nil {
		t.Fatal("the policies are in no parts")
	}
	s.inbound(many, web, protocol.HTTP, "many", byPeer...)
	l := newLogger(append(ports, web, echo.port)...)
	s.start(func(srv *grpc.Server) { srv.RegisterService(&logService, l) })

	friend := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: presenting(&leaf, "istio"), DisableKeepAlives: true}}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	caller := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Protocols: protocols, DisableKeepAlives: true, // HTTP/2 within the TLS of proxies, where none is negotiated
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return (&tls.Dialer{Config: presenting(&leaf, "istio")}).DialContext(ctx, network, address)
		}}}
	stranger := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(client *http.Client, scheme string, port uint32, path string, header http.Header, want int) {
		t.Helper()
		if status := post(t, client, fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, port, path), header); status != want {
			t.Errorf("%s at %d: %d, want %d", path, port, status, want)
		}
	}
	call := http.Header{"Content-Type": {"application/grpc"}}
	get(friend, "https", alone, "/200", nil, 200) // and stays so: not logged
	get(friend, "https", alone, "/closed", nil, 200)
	get(friend, "https", alone, "/204", nil, 204)
	get(friend, "https", alone, "/200;a", nil, 200) // ambiguous
	get(stranger, "http", alone, "/200", nil, 200)
	get(caller, "http", alone, "/shop.Open/Tell", call, 200) // and stays so
	get(caller, "http", alone, "/shop.Closed/Tell", call, 200)
	get(friend, "https", beside, "/200", nil, 200)          // and stays so
	get(friend, "https", beside, "/wider/open", nil, 403)   // and would be allowed
	get(friend, "https", beside, "/wider/closed", nil, 403) // and stays so
	get(friend, "https", beside, "/other", nil, 403)        // and stays so
	get(friend, "https", many, "/200", nil, 200)            // and stays so
	get(friend, "https", many, "/204", nil, 204)
	get(stranger, "http", many, "/200", nil, 200)
	opaque := presenting(&leaf, "istio-opaque")
	for _, port := range []uint32{aloneTCP, besideTCP, deniedTCP, friendsTCP} {
		knock(t, port, opaque)
	}
	knock(t, aloneTCP, nil)
	l.compare(t, trialEntries)
}

// tries are policies, of which random sets are partly enforced and partly on trial.
var tries = []string{
	`{"rules": [{"to": [{"operation": {"paths": ["/a"]}}]}]}`,
	`{"rules": [{"to": [{"operation": {"methods": ["GET"], "paths": ["/a/*", "/c"]}}]}, {"when": [{"key": "request.headers[x-test]", "values": ["yes"]}]}]}`,
	`{"rules": [{"to": [{"operation": {"methods": ["GET", "POST"]}}]}]}`,
	`{"rules": [{}]}`, `{}`,
	`{"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/a/*"]}}]}]}`,
	`{"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["POST"]}}]}, {"to": [{"operation": {"paths": ["/c"]}}]}]}`,
	`{"action": "DENY", "rules": [{"when": [{"key": "request.headers[x-test]", "values": ["yes"]}]}]}`,
	`{"action": "AUDIT", "rules": [{"to": [{"operation": {"paths": ["/audited"]}}]}]}`,
}

// TestTrialsAgreeWithTheEvaluator asks an Envoy with random policies, of which some are on trial, and expects in its log what the evaluator says of each request: what is
// denied, what an AUDIT policy selects, what would be decided otherwise and by which rule, and nothing else.
func TestTrialsAgreeWithTheEvaluator(t *testing.T) {
	envoytest.Find(t)
	const sets = 24
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	ports, ca := envoytest.FreePorts(t, sets), envoytest.NewCA(t)
	s := &scene{t: t, mode: authz.Permissive, ca: ca, leaf: ca.Issue(t, sceneClient), loggers: "envoy.access_loggers.open_telemetry"}
	web := webApplication(t)
	policies := make([][]authz.Policy, sets)
	for i, port := range ports {
		for n := range 1 + random.IntN(4) {
			p := policyOf(t, fmt.Sprint("p", n), tries[random.IntN(len(tries))])
			p.DryRun = p.Action != authz.Audit && random.IntN(2) == 0
			policies[i] = append(policies[i], p)
		}
		if i%4 == 0 { // something is enforced that allows, and something on trial, so that some requests would be admitted
			policies[i] = append(policies[i], policyOf(t, "some", tries[0]), onTrialPolicy(t, "more", tries[1+random.IntN(2)]))
		}
		s.inbound(port, web, protocol.HTTP, "tried", policies[i]...)
	}
	l := newLogger(ports...)
	s.start(func(srv *grpc.Server) { srv.RegisterService(&logService, l) })

	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	want, denials, admissions := map[string]bool{}, 0, 0
	for i, port := range ports {
		for _, method := range []string{"GET", "POST", "get"} {
			for _, path := range []string{"/a", "/a/b", "/c", "/d", "/d;e", "/audited"} {
				for _, test := range []string{"yes", "no"} {
					at := fmt.Sprintf("%s?%s", path, test)
					req, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("http://127.0.0.1:%d%s", port, at), http.NoBody)
					if err != nil {
						t.Fatal(err)
					}
					req.Header.Set("X-Test", test)
					resp, err := client.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					resp.Body.Close()
					e := authz.Explain(policies[i], authz.Request{HTTP: true, Method: method, Path: at, Host: fmt.Sprintf("127.0.0.1:%d", port), Headers: map[string][]string{"x-test": {test}},
						SourceIP: netip.MustParseAddr("127.0.0.1"), DestinationIP: netip.MustParseAddr("127.0.0.1"), DestinationPort: port})
					if (resp.StatusCode == 200) != e.Allowed {
						t.Fatalf("%s %s: %d, the evaluator says %+v of %+v", method, at, resp.StatusCode, e.Decision, policies[i])
					}
					would := ""
					if d := e.DryRun; d != nil && d.Allowed != e.Allowed {
						would = fmt.Sprintf("%v by %s", d.Allowed, d.Policy)
						denials, admissions = denials+one(!d.Allowed), admissions+one(d.Allowed)
					}
					if !e.Allowed || would != "" || len(e.Audited) > 0 {
						want[fmt.Sprintf("%d %s %s: %v, would be %q", i, method, at, e.Allowed, would)] = true
					}
				}
			}
		}
	}
	var got map[string]bool
	for end := time.Now().Add(30 * time.Second); len(got) < len(want) && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		got = l.decisions(t)
	}
	for said := range got {
		if !want[said] {
			t.Errorf("logged and not expected: %s", said)
		}
	}
	for said := range want {
		if !got[said] {
			t.Errorf("not logged: %s", said)
		}
	}
	if t.Failed() {
		t.Logf("policies: %+v", policies)
	}
	if denials < 20 || admissions < 10 {
		t.Errorf("%d requests would be denied, %d admitted: too few to be of use", denials, admissions)
	}
}

func one(is bool) int {
	if is {
		return 1
	}
	return 0
}

// decisions reads what was logged: by which server (as its number), what was decided, and what would have been.
func (l *logger) decisions(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for line := range strings.Lines(l.text()) {
		text := map[string]string{}
		if err := json.Unmarshal([]byte(line), &text); err != nil {
			t.Fatal(err)
		}
		for key, value := range text {
			if value == "-" {
				text[key] = ""
			}
		}
		details := text["response_code_details"]
		allowed, denied, admitted := !strings.HasPrefix(details, "rbac_access_denied"), text["bulwark.trial_deny_policy"], text["bulwark.trial_allow_policy"]
		would := ""
		switch {
		case allowed && (denied != "" || text["bulwark.trial_allow"] == "denied"):
			would = "false by " + denied
		case strings.HasSuffix(details, "[none]") && denied == "" && admitted != "":
			would = "true by " + admitted
		}
		var server int
		if _, err := fmt.Sscanf(text["local_address"], "10.0.0.1:%d", &server); err != nil {
			t.Fatal(err)
		}
		out[fmt.Sprintf("%d %s %s: %v, would be %q", server-1000, text["method"], text["path"], allowed, would)] = true
	}
	return out
}
