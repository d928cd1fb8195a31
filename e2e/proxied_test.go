package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	corev1 "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// proxiedWorld is a server that is behind load balancers at three of its four ports, and takes plaintext; a client of the mesh; and outside of it a load balancer and a stranger.
// The server admits partners by their addresses, the load balancer itself, and its own namespace, and denies some clients whatever else admits them. NS, OUT and BALANCER are to be replaced.
const proxiedWorld = `
{apiVersion: v1, kind: Namespace, metadata: {name: NS, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: OUT}}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: NS}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82, targetPort: 8082}, {name: http-plain, port: 83, targetPort: 8083}]}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: barred, namespace: NS}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {remoteIpBlocks: [198.51.100.0/24, "2001:db8:bad::/48"]}}]}]
---
`

const proxiedAdmitted = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: partners, namespace: NS}
spec:
  selector: {matchLabels: {app: server}}
  rules:
  - when: [{key: remote.ip, values: [203.0.113.0/24, 198.51.0.0/16, "2001:db8::/32"]}]
  - from: [{source: {remoteIpBlocks: [BALANCERS]}}]
  - from: [{source: {principals: [cluster.local/ns/NS/sa/default]}}]
  - to: [{operation: {ports: ["8083"]}}]
`

// proxiedScene is proxiedWorld as it runs.
type proxiedScene struct {
	t                                  *testing.T
	ns, out                            string
	server, client, balancer, stranger *corev1.Pod
}

func deployProxied(ctx context.Context, t *testing.T) *proxiedScene {
	t.Helper()
	s := &proxiedScene{t: t, ns: "e2e-proxied", out: "e2e-proxied-outside"}
	cleanUp(t, s.ns, s.out)
	// kubelet asks the port that load balancers call, and what it hears once is enough.
	server := strings.NewReplacer("metadata: {labels: {app: server}}", `metadata: {labels: {app: server}, annotations: {bulwark.dev/proxy-protocol: "8080,8081,8082"}}`,
		"readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}", "readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, failureThreshold: 1}, livenessProbe: {tcpSocket: {port: 8082}, periodSeconds: 1}").
		Replace(anything(s.ns, "server"))
	if err := cluster.Apply(ctx, s.local(proxiedWorld)+server+anything(s.ns, "client")+anything(s.out, "balancer")+anything(s.out, "stranger")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{s.ns, s.out} {
		if err := reachable(ctx, n, 3*time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	for app, at := range map[string]**corev1.Pod{"server": &s.server, "client": &s.client, "balancer": &s.balancer, "stranger": &s.stranger} {
		namespace := s.out
		if app == "server" || app == "client" {
			namespace = s.ns
		}
		var err error
		if *at, err = cluster.Pod(ctx, namespace, app); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.Apply(ctx, strings.ReplaceAll(s.local(proxiedAdmitted), "BALANCERS", s.balancers())); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *proxiedScene) local(manifest string) string {
	return strings.NewReplacer("NS", s.ns, "OUT", s.out).Replace(manifest)
}

// balancers are the load balancer's addresses, as a list in braces has them.
func (s *proxiedScene) balancers() string {
	var out []string
	for _, a := range s.balancer.Status.PodIPs {
		out = append(out, fmt.Sprintf("%q", a.IP))
	}
	return strings.Join(out, ", ")
}

// header is a header of the PROXY protocol that names a client, in hexadecimal; TLVs are for version 2 alone.
func header(t *testing.T, version byte, client, destination string, more ...proxyproto.TLV) string {
	t.Helper()
	from, to := netip.MustParseAddrPort(client), netip.MustParseAddrPort(destination)
	h := proxyproto.Header{Version: version, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv4, SourceAddr: net.TCPAddrFromAddrPort(from), DestinationAddr: net.TCPAddrFromAddrPort(to)}
	if from.Addr().Is6() {
		h.TransportProtocol = proxyproto.TCPv6
	}
	err := h.SetTLVs(more)
	var out []byte
	if err == nil {
		out, err = h.Format()
	}
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(out)
}

// Headers that name nobody.
var (
	saysUnknown = hex.EncodeToString([]byte("PROXY UNKNOWN\r\n"))
	saysLocal   = hex.EncodeToString([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"))
	// What AWS's network load balancers send with their health checks: the family of IPv4 without addresses, and what is added at once, a checksum and padding.
	saysLocalOfAWS = hex.EncodeToString([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x11\x00\x54\x03\x00\x04\xbc\xe5\x95\x1f\x04\x00\x4a" + strings.Repeat("\x00", 74)))
)

// What becomes of a call.
const (
	answered  = "answered"
	forbidden = "403"
	malformed = "400"
	echoed    = "taken for the application's"
	cut       = "cut" // without an answer
	notOK     = "refused in some way"
)

func became(o wire.Outcome) string {
	switch {
	case o.OK:
		return answered
	case strings.HasPrefix(o.Error, forbidden), strings.Contains(o.Error, ": "+forbidden):
		return forbidden
	case strings.HasPrefix(o.Error, malformed), strings.Contains(o.Error, ": "+malformed):
		return malformed
	case strings.Contains(o.Error, `heard "PROXY `):
		return echoed
	}
	return cut
}

// expected is a call and what is to become of it.
type expected struct {
	wire.Call
	want string
	peer string // whom the application is told of
}

// heard makes calls from a pod and compares.
func heard(ctx context.Context, from *corev1.Pod, calls []expected) error {
	var list []wire.Call
	for _, c := range calls {
		list = append(list, c.Call)
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	outcomes, err := lab.ExecInJSON[[]wire.Outcome](ctx, cluster, from, "app", "sample", "calls", string(text))
	if err != nil {
		return err
	}
	var wrong []error
	for i, o := range outcomes {
		c := calls[i]
		if got := became(o); got != c.want && (c.want != notOK || got == answered) {
			wrong = append(wrong, fmt.Errorf("%s: %s, want %s: %s", c.Label, got, c.want, o))
		} else if o.Heard != nil && o.Heard.Peer != c.peer {
			wrong = append(wrong, fmt.Errorf("%s: the application is told of %q, want %q: %s", c.Label, o.Heard.Peer, c.peer, o))
		}
	}
	return errors.Join(wrong...)
}

// at is a call to a port of the server's, at its address of a family.
func (s *proxiedScene) at(six bool, port string) string {
	return net.JoinHostPort(ip(s.server, six), port)
}

// clients are calls of the load balancer for clients whom it names, by both versions and in each protocol.
func (s *proxiedScene) clients(six bool) (out []expected) {
	good, barred, other := "203.0.113.9:1111", "198.51.100.7:1111", "192.0.2.55:1111"
	if six {
		good, barred, other = "[2001:db8::9]:1111", "[2001:db8:bad::9]:1111", "[2001:dead::9]:1111"
	}
	add := func(kind wire.Kind, port, first, want, label string, halting bool) {
		out = append(out, expected{Call: wire.Call{Kind: kind, Address: s.at(six, port), First: first, Halting: halting, Label: label}, want: want})
	}
	for _, version := range []byte{1, 2} {
		for port, kinds := range map[string][]wire.Kind{"8080": requestKinds, "8081": allKinds, "8082": allKinds} {
			for _, kind := range kinds {
				refusal := map[string]string{"8080": forbidden, "8081": notOK, "8082": cut}[port]
				if kind == wire.GRPC { // which has a status of its own
					refusal = notOK
				}
				named := func(client string) string { return header(s.t, version, client, s.at(six, port)) }
				label := fmt.Sprintf("version %d at port %s", version, port)
				add(kind, port, named(good), answered, label+", a partner", false)
				add(kind, port, named(barred), refusal, label+", one who is barred", false)
				add(kind, port, named(other), refusal, label+", one whom nothing admits", false)
			}
		}
		for _, halting := range []bool{false, true} {
			add(wire.HTTP11, "8080", header(s.t, version, good, s.at(six, "8080")), answered, "a byte at a time", halting)
			add(wire.HTTP11, "8080", header(s.t, version, barred, s.at(six, "8080")), forbidden, "a byte at a time, barred", halting)
		}
		// Whom a load balancer connects to it knows by an address of its own.
		add(wire.HTTP11, "8080", header(s.t, version, good, map[bool]string{false: "192.0.2.1:443", true: "[2001:db8:1::1]:443"}[six]), answered, "another destination", false)
		add(wire.HTTP11, "8083", header(s.t, version, good, s.at(six, "8083")), malformed, "a port that does not ask for it", false)
	}
	for label, tlv := range map[string]proxyproto.TLV{"the endpoint that AWS adds": {Type: 0xEA, Value: []byte("\x01vpce-08d2bf15fac5001c9")}, "padding": {Type: proxyproto.PP2_TYPE_NOOP, Value: make([]byte, 400)}} {
		add(wire.HTTP11, "8080", header(s.t, 2, good, s.at(six, "8080"), tlv), answered, label, false)
		add(wire.TCP, "8082", header(s.t, 2, barred, s.at(six, "8082"), tlv), cut, label+", barred", false)
	}
	return out
}

// itself are calls of the load balancer for nobody but itself, as its health checks are.
func (s *proxiedScene) itself(six bool) (out []expected) {
	for _, first := range []string{"", saysUnknown, saysLocal, saysLocalOfAWS} {
		for port, kind := range map[string]wire.Kind{"8080": wire.HTTP11, "8081": wire.HTTP2, "8082": wire.TCP} {
			out = append(out, expected{Call: wire.Call{Kind: kind, Address: s.at(six, port), First: first, Label: "the load balancer itself"}, want: answered})
		}
	}
	return out
}

// strangers are calls of who is no load balancer: what names a client is cut off, and else the policies decide of the stranger.
func (s *proxiedScene) strangers(six bool) (out []expected) {
	partner := map[bool]string{false: "203.0.113.9:1111", true: "[2001:db8::9]:1111"}[six]
	for _, version := range []byte{1, 2} {
		for port, kinds := range map[string][]wire.Kind{"8080": requestKinds, "8081": allKinds, "8082": allKinds} {
			for _, kind := range kinds {
				for _, client := range []string{partner, net.JoinHostPort(ip(s.balancer, six), "1111")} {
					out = append(out, expected{Call: wire.Call{Kind: kind, Address: s.at(six, port), First: header(s.t, version, client, s.at(six, port)), Label: "a stranger who names another"}, want: cut})
				}
			}
		}
	}
	for _, first := range []string{"", saysUnknown, saysLocal} {
		out = append(out, expected{Call: wire.Call{Kind: wire.HTTP11, Address: s.at(six, "8080"), First: first, Label: "a stranger as himself"}, want: forbidden},
			expected{Call: wire.Call{Kind: wire.TCP, Address: s.at(six, "8082"), First: first, Label: "a stranger as himself"}, want: cut})
	}
	return append(out, expected{Call: wire.Call{Kind: wire.HTTP11, Address: s.at(six, "8083"), Label: "a stranger at a port that is open to all"}, want: answered})
}

// ofTheMesh are calls with mutual TLS to the same ports. What their clients say is their server's, whatever it looks like.
func (s *proxiedScene) ofTheMesh() (out []expected) {
	me := "spiffe://cluster.local/ns/" + s.ns + "/sa/default"
	for _, c := range reach("a client of the mesh", "server", 80) {
		e := expected{Call: c, want: answered, peer: me}
		if c.Address == "server:82" {
			e.peer = "" // the server's proxy sets no headers
		}
		out = append(out, e)
	}
	return append(out, expected{Call: wire.Call{Kind: wire.TCP, Address: "server:82", First: hex.EncodeToString([]byte("PROXY TCP4 203.0.113.9 10.0.0.1 1 2\r\n")), Label: "a client whose words look like a header"}, want: echoed})
}

// TestLoadBalancersSayForWhomTheyConnect has a load balancer outside of the mesh connect to a server for clients whom it names by the PROXY protocol. Policies decide of these. Nobody else is
// believed, and what goes on at the same ports without a header goes on: clients of the mesh, kubelet's probes, the load balancer's own checks. What the installation lists as load balancers is
// in force at pods that run, soon after it is changed.
func TestLoadBalancersSayForWhomTheyConnect(t *testing.T) { // not in parallel, as it changes the installation
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	s := deployProxied(ctx, t)
	partner := []expected{{Call: wire.Call{Kind: wire.HTTP11, Address: s.at(false, "8080"), First: header(t, 1, "203.0.113.9:1111", s.at(false, "8080")), Label: "a partner"}, want: malformed}}
	soon := func(what string, from *corev1.Pod, calls []expected) {
		t.Helper()
		if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error { return heard(ctx, from, calls) }); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	soon("before there are load balancers", s.balancer, partner)
	install := func(ctx context.Context, set ...string) {
		t.Helper()
		var log bytes.Buffer
		if err := cluster.Install(ctx, &log, set...); err != nil {
			t.Fatalf("installing with %q: %v\n%s", set, err, &log)
		}
	}
	put := false
	t.Cleanup(func() {
		if !put {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			install(ctx)
		}
	})
	install(ctx, "loadBalancers={"+strings.NewReplacer(`"`, "", " ", "").Replace(s.balancers())+"}")
	partner[0].want = answered
	soon("with a load balancer", s.balancer, partner)

	began := time.Now()
	families := []bool{false}
	if len(s.server.Status.PodIPs) == 2 {
		families = append(families, true)
	}
	n := 0
	for _, six := range families {
		for _, c := range []struct {
			from  *corev1.Pod
			calls []expected
		}{{s.balancer, s.clients(six)}, {s.balancer, s.itself(six)}, {s.stranger, s.strangers(six)}} {
			n += len(c.calls)
			if err := heard(ctx, c.from, c.calls); err != nil {
				t.Error(err)
			}
		}
	}
	if err := heard(ctx, s.client, s.ofTheMesh()); err != nil {
		t.Error(err)
	}
	// A client of another family than the connection cannot be told from one that lies about where it is.
	if err := heard(ctx, s.balancer, []expected{{Call: wire.Call{Kind: wire.HTTP11, Address: s.at(false, "8080"), First: header(t, 2, "[2001:db8::9]:1111", "[2001:db8:1::1]:443"), Label: "another family"}, want: cut}}); err != nil {
		t.Error(err)
	}
	t.Logf("%d calls", n+len(s.ofTheMesh())+1)
	s.audited(ctx, began)
	s.undisturbed(ctx)

	// Who is connected stays so while the installation changes.
	calls := []wire.Call{}
	for _, kind := range []wire.Kind{wire.HTTP11, wire.HTTP2, wire.WebSocket} {
		calls = append(calls, wire.Call{Kind: kind, Address: "server:80"})
	}
	list, err := json.Marshal(append(calls, wire.Call{Kind: wire.TCP, Address: "server:82"}))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range hold(ctx, t, s.ns, "client", string(list), 20*time.Second, func() { put = true; install(ctx) }) {
		if !o.OK {
			t.Errorf("while the load balancers were taken from the installation: %s", o)
		}
	}
	partner[0].want = malformed
	soon("without load balancers again", s.balancer, partner)
}

// audited expects what was denied in the trail: with the load balancer as the peer, the client whom it named, and the policy; and what was refused with who was, by whatever name.
// What is told of the record of a client whom nothing admits admits that client, and no other one by the load balancer.
func (s *proxiedScene) audited(ctx context.Context, began time.Time) {
	s.t.Helper()
	balancer, server := ip(s.balancer, false), ip(s.server, false)
	by := func(e *claims.Event, protocol, client string) bool {
		return e.Verdict == "VERDICT_DENIED" && e.Protocol == protocol && hostIs(e.SourceAddress, balancer) && hostIs(e.RemoteAddress, client)
	}
	barred := s.ns + "/barred rule 0"
	indices := map[string]uint64{}
	for what, match := range map[string]func(*claims.Event) bool{
		"a request of a client who is barred":    func(e *claims.Event) bool { return by(e, "HTTP/1.1", "198.51.100.7") && e.Policy == barred },
		"a connection of a client who is barred": func(e *claims.Event) bool { return by(e, "TCP", "198.51.100.7") && e.Policy == barred },
		"a request of a client whom nothing admits": func(e *claims.Event) bool { // what is proposed is for its port alone
			return by(e, "HTTP/1.1", "192.0.2.55") && e.Policy == "" && e.DestinationAddress == s.at(false, "8080")
		},
		"a header of a stranger": func(e *claims.Event) bool {
			return e.Verdict == "VERDICT_REFUSED" && hostIs(e.SourceAddress, ip(s.stranger, false)) && hostIs(e.DestinationAddress, server) && e.RemoteAddress == ""
		},
		"a stranger as himself": func(e *claims.Event) bool {
			return e.Verdict == "VERDICT_DENIED" && hostIs(e.SourceAddress, ip(s.stranger, false)) && e.RemoteAddress == ""
		},
	} {
		index, err := s.recorded(ctx, began, match)
		if err != nil {
			s.t.Errorf("%s: %v", what, err)
		}
		indices[what] = index
	}
	if s.t.Failed() {
		return
	}
	explain := func(what, says string) string {
		out, err := cluster.Meshctl(ctx, "authz", "explain", "--event", strconv.FormatUint(indices[what], 10))
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), says) {
			s.t.Errorf("explaining %s: %v, want the status 1 and %q\n%s", what, err, says, out)
		}
		return string(out)
	}
	explain("a request of a client who is barred", "DENIED by "+barred)
	explain("a connection of a client who is barred", "from 198.51.100.7 by "+balancer)
	_, change, _ := strings.Cut(explain("a request of a client whom nothing admits", "192.0.2.55"), "\n---\n")
	if err := cluster.Apply(ctx, change); err != nil {
		s.t.Fatalf("applying what is proposed: %v\n%s", err, change)
	}
	asks := func(client, want string) expected {
		return expected{Call: wire.Call{Kind: wire.HTTP11, Address: s.at(false, "8080"), First: header(s.t, 2, client, s.at(false, "8080")), Label: "with what was proposed"}, want: want}
	}
	if err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
		return heard(ctx, s.balancer, []expected{asks("192.0.2.55:2222", answered), asks("192.0.2.56:1111", forbidden)})
	}); err != nil {
		s.t.Errorf("%v\n%s", err, change)
	}
}

// recorded waits for a record of the server's proxy, and returns its index.
func (s *proxiedScene) recorded(ctx context.Context, began time.Time, match func(*claims.Event) bool) (index uint64, err error) {
	err = lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
		out, err := cluster.Meshctl(ctx, "audit", "tail", "-n", s.ns, "--last=0", "--since="+(time.Since(began)+2*time.Second).String(), "-o", "json")
		if err != nil {
			return err
		}
		for line := range bytes.Lines(out) {
			var record struct {
				Index uint64 `json:",string"`
				Event claims.Event
			}
			if err := json.Unmarshal(line, &record); err != nil {
				return fmt.Errorf("audit line %q: %w", line, err)
			}
			if record.Event.Reporter == "REPORTER_DESTINATION" && match(&record.Event) {
				index = record.Index
				return nil
			}
		}
		return fmt.Errorf("not among %d records", bytes.Count(out, []byte("\n")))
	})
	return index, err
}

func hostIs(address, ip string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && host == ip
}

// undisturbed expects that the server has been ready since it was the first time, and is the one that it was.
func (s *proxiedScene) undisturbed(ctx context.Context) {
	s.t.Helper()
	now, err := cluster.Pod(ctx, s.ns, "server")
	if err != nil {
		s.t.Fatal(err)
	}
	since := func(p *corev1.Pod) (out string) {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady {
				out = fmt.Sprintf("%s since %s", c.Status, c.LastTransitionTime)
			}
		}
		for _, c := range p.Status.ContainerStatuses {
			out += fmt.Sprintf(", %s started %d times again", c.Name, c.RestartCount)
		}
		return out
	}
	if was, is := since(s.server), since(now); was != is || now.UID != s.server.UID {
		s.t.Errorf("kubelet has found the server to be %s, and then %s", was, is)
	}
}
