package featuretest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/redirect"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// pods is two pods of a world, each with a network, the redirection and the Envoy that it has in a cluster, joined by a link.
type pods struct {
	t              *testing.T
	pilot          *pilot
	ca             *envoytest.CA
	client, server *envoytest.Netns
}

// startPods starts the world's pods shop/client and shop/server, whose addresses are those of the world.
func startPods(t *testing.T, world string, prepare func(*envoytest.Netns)) *pods {
	t.Helper()
	events, err := fixture.Events([]byte(world))
	if err != nil {
		t.Fatal(err)
	}
	m := &pods{t: t, pilot: newPilot(t, events), ca: envoytest.NewCA(t), client: envoytest.NewNetns(t), server: envoytest.NewNetns(t)}
	m.pilot.modules = nil // these pods have no directories
	envoytest.Link(t, "eth0", m.client, m.server)
	t.Cleanup(m.pilot.stop)
	for name, network := range map[string]*envoytest.Netns{"shop/client": m.client, "shop/server": m.server} {
		prepare(network)
		m.start(name, network)
	}
	return m
}

func (m *pods) start(name string, network *envoytest.Netns) {
	m.t.Helper()
	pod := m.pilot.pod(name)
	for _, ip := range pod.IPs {
		length := 24
		if registry.FamilyOf(ip) == registry.IPv6 {
			length = 64
		}
		network.Address(m.t, "eth0", fmt.Sprintf("%s/%d", ip, length))
	}
	if err := network.Do(func() error { return redirect.Apply(redirect.Options{}) }); err != nil {
		m.t.Fatal(err)
	}
	b := translate.Bootstrap()
	probe := translate.Probe{Container: "app", Name: "readyz", HTTP: &translate.HTTPProbe{Port: 8080, URI: "/probe"}}
	translate.AnswerKubelet(b, []translate.Probe{probe}, pod.IPs[0], compile.IPv6(compile.ServiceRanges(m.pilot.registry.Snapshot())))
	node := m.pilot.node(m.t, pod.Node)
	node.Add(pod.UID, pod.ID, pod.ServiceAccount)
	id := spiffe.ID{TrustDomain: settings.TrustDomain, Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount}
	agent := &envoytest.Agent{ADS: &inItsPod{node: node.Node, pod: pod}, Leaf: m.ca.Issue(m.t, id.String()), Root: m.ca.Root}
	agent.StartIn(m.t, network, b, nodeID(pod))
}

// inItsPod is the agent for the Envoy of a pod: all comes as it is.
type inItsPod struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	node *nodexds.Node
	pod  *registry.Pod
}

func (i *inItsPod) DeltaAggregatedResources(rpc adsStream) error { return serve(i.node, i.pod, rpc) }

// seen is what the application of a pod sees of a request.
type seen struct{ Peer, Own, Client string }

// serve runs the pod's application.
func (m *pods) serve(network, address string) {
	m.t.Helper()
	l, err := m.server.Listen(network, address)
	if err != nil {
		m.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, _, _ := net.SplitHostPort(r.RemoteAddr)
		own, _, _ := net.SplitHostPort(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		_, client, _ := strings.Cut(r.Header.Get("X-Forwarded-Client-Cert"), "URI=")
		_ = json.NewEncoder(w).Encode(seen{peer, own, client})
	})}
	go func() { _ = srv.Serve(l) }()
	m.t.Cleanup(func() { _ = srv.Close() })
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// get asks, on a connection of its own, and returns the status of the answer and what the application saw, or why there was none.
func get(t *testing.T, dial dialer, url string) (status int, saw seen, failure string) {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return 0, seen{}, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, seen{}, err.Error()
	}
	if resp.StatusCode != http.StatusOK || json.Unmarshal(text, &saw) != nil {
		failure = string(text)
	}
	return resp.StatusCode, saw, failure
}

const dualWorld = `
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, "fd00:10:96::/112"]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: mesh, namespace: bulwark-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: addresses, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules:
  - {from: [{source: {ipBlocks: [10.0.0.10]}}], to: [{operation: {ports: ["8080"], paths: [/not-from-four]}}]}
  - {from: [{source: {ipBlocks: ["fd00:1::/64"]}}], to: [{operation: {ports: ["8080"], paths: [/not-from-six]}}]}
  - {from: [{source: {notIpBlocks: [10.0.0.0/8, "fd00::/8"]}}], to: [{operation: {ports: ["8080"], paths: [/from-nowhere]}}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.96.0.10, "fd00:10:96::10"], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: http-four, port: 84, targetPort: 8084},
  {name: http-six, port: 86, targetPort: 8086}, {name: tcp, port: 90, targetPort: 8090}, {name: any, port: 91, targetPort: 8091}]}
---
apiVersion: v1
kind: Service
metadata: {name: six, namespace: shop}
spec: {clusterIPs: ["FD00:10:96:0::0016"], selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: direct, namespace: shop}
spec: {clusterIPs: [None], selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: client, containers: [{name: app, image: x}]}
status: {phase: Running, podIP: 10.0.0.10, podIPs: [{ip: 10.0.0.10}, {ip: "fd00:1::10"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: web, containers: [{name: app, image: x}]}
status: {phase: Running, podIP: "fd00:1::20", podIPs: [{ip: "fd00:1::20"}, {ip: 10.0.0.20}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: http-four, port: 8084}, {name: http-six, port: 8086}, {name: tcp, port: 8090}, {name: any, port: 8091}]
endpoints: [{addresses: [10.0.0.20]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}, {name: http-four, port: 8084}, {name: http-six, port: 8086}, {name: tcp, port: 8090}, {name: any, port: 8091}]
endpoints: [{addresses: ["fd00:1:0:0::20"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: six-6, namespace: shop, labels: {kubernetes.io/service-name: six}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ["fd00:1::20"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: direct-4, namespace: shop, labels: {kubernetes.io/service-name: direct}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.20]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: direct-6, namespace: shop, labels: {kubernetes.io/service-name: direct}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ["fd00:1::20"]}]
`

// As the application sees its proxy, and itself, in each family.
var (
	byFour = seen{Peer: "127.0.0.6", Own: "10.0.0.20", Client: "spiffe://cluster.local/ns/shop/sa/client"}
	bySix  = seen{Peer: "::6", Own: "fd00:1::20", Client: "spiffe://cluster.local/ns/shop/sa/client"}
)

// Two pods of a dual-stack cluster, of which one has IPv6 first, with real redirection and real Envoys: each address of a service leads to endpoints of its family,
// as kube-proxy would, and whatever holds in one family holds in the other.
func TestBothFamiliesAreServedAndProtected(t *testing.T) {
	m := startPods(t, dualWorld, func(*envoytest.Netns) {})
	for _, port := range []string{":8080", ":8090", ":8091"} {
		m.serve("tcp", port)
	}
	m.serve("tcp4", ":8084")
	m.serve("tcp6", ":8086")
	own := func(s seen) seen { s.Client = "spiffe://cluster.local/ns/shop/sa/web"; return s }
	for _, c := range []struct {
		what, url string
		by        dialer
		status    int
		saw       seen
		says      string // of an answer that is not the application's, or why there is none
	}{
		{what: "a service's address of IPv4", url: "http://10.96.0.10/", status: 200, saw: byFour},
		{what: "a service's address of IPv6", url: "http://[fd00:10:96::10]/", status: 200, saw: bySix},
		{what: "IPv4, declared TCP", url: "http://10.96.0.10:90/", status: 200, saw: seen{Peer: byFour.Peer, Own: byFour.Own}},
		{what: "IPv6, declared TCP", url: "http://[fd00:10:96::10]:90/", status: 200, saw: seen{Peer: bySix.Peer, Own: bySix.Own}},
		{what: "IPv6, not declared", url: "http://[fd00:10:96::10]:91/", status: 200, saw: bySix},
		{what: "a service of IPv6 alone", url: "http://[fd00:10:96::16]/", status: 200, saw: bySix},
		{what: "a pod of a headless service, IPv4", url: "http://10.0.0.20:8080/", status: 200, saw: byFour},
		{what: "a pod of a headless service, IPv6", url: "http://[fd00:1::20]:8080/", status: 200, saw: bySix},
		{what: "an application of IPv4 alone, IPv4", url: "http://10.96.0.10:84/", status: 200, saw: byFour},
		{what: "an application of IPv4 alone, IPv6", url: "http://[fd00:10:96::10]:84/", status: 503},
		{what: "an application of IPv6 alone, IPv6", url: "http://[fd00:10:96::10]:86/", status: 200, saw: bySix},
		{what: "an application of IPv6 alone, IPv4", url: "http://10.96.0.10:86/", status: 503},
		{what: "the pod's own service, IPv4", url: "http://10.96.0.10/", by: m.server.Dial, status: 200, saw: own(byFour)},
		{what: "the pod's own service, IPv6", url: "http://[fd00:10:96::10]/", by: m.server.Dial, status: 200, saw: own(bySix)},
		{what: "denied to an address of IPv4", url: "http://10.96.0.10/not-from-four", status: 403, says: "RBAC"},
		{what: "denied to an address of IPv4, IPv6", url: "http://[fd00:10:96::10]/not-from-four", status: 200, saw: bySix},
		{what: "denied to a network of IPv6", url: "http://[fd00:10:96::10]/not-from-six", status: 403, says: "RBAC"},
		{what: "denied to a network of IPv6, IPv4", url: "http://10.96.0.10/not-from-six", status: 200, saw: byFour},
		{what: "denied to addresses of neither network, IPv4", url: "http://10.96.0.10/from-nowhere", status: 200, saw: byFour},
		{what: "denied to addresses of neither network, IPv6", url: "http://[fd00:10:96::10]/from-nowhere", status: 200, saw: bySix},
		{what: "nobody's address of IPv4", url: "http://10.96.0.99/", status: 403, says: "is out of reach of"},
		{what: "nobody's address of IPv6", url: "http://[fd00:10:96::99]/", status: 403, says: "is out of reach of"},
		{what: "plaintext to a STRICT pod, IPv4", url: "http://10.0.0.20:8080/", by: m.client.DialUnredirected, says: "EOF|reset"},
		{what: "plaintext to a STRICT pod, IPv6", url: "http://[fd00:1::20]:8080/", by: m.client.DialUnredirected, says: "EOF|reset"},
		{what: "plaintext to an undeclared port, IPv6", url: "http://[fd00:1::20]:8099/", by: m.client.DialUnredirected, says: "EOF|reset"},
		{what: "the proxy's readiness, IPv4", url: "http://10.0.0.20:15021/healthz/ready", by: m.client.DialUnredirected, status: 200, says: "LIVE"},
		{what: "the proxy's readiness, IPv6", url: "http://[fd00:1::20]:15021/healthz/ready", by: m.client.DialUnredirected, status: 200, says: "LIVE"},
		{what: "a probe, IPv4", url: "http://10.0.0.20:15021/app-health/app/readyz", by: m.client.DialUnredirected, status: 200, saw: seen{Peer: "::6", Own: "fd00:1::20"}},
		{what: "a probe, IPv6", url: "http://[fd00:1::20]:15021/app-health/app/readyz", by: m.client.DialUnredirected, status: 200, saw: seen{Peer: "::6", Own: "fd00:1::20"}},
		{what: "metrics, IPv4", url: "http://10.0.0.20:15090/stats/prometheus", by: m.client.DialUnredirected, status: 200, says: "envoy_server"},
		{what: "metrics, IPv6", url: "http://[fd00:1::20]:15090/stats/prometheus", by: m.client.DialUnredirected, status: 200, says: "envoy_server"},
	} {
		by := c.by
		if by == nil {
			by = m.client.Dial
		}
		status, saw, says := get(t, by, c.url)
		said := c.says == "" || slices.ContainsFunc(strings.Split(c.says, "|"), func(s string) bool { return strings.Contains(says, s) })
		if status != c.status || saw != c.saw || !said {
			t.Errorf("%s: %d, %+v %.300q, want %d, %+v %s", c.what, status, saw, says, c.status, c.saw, c.says)
		}
	}
	if r := refusals(m.pilot); len(r) > 0 {
		t.Errorf("an Envoy refuses %s", r)
	}
}

// Where IPv6 is switched off in the kernel, pods of a dual-stack cluster start, and have IPv4.
func TestPodsOfADualStackClusterWithIPv6SwitchedOff(t *testing.T) {
	world := strings.NewReplacer(`podIPs: [{ip: 10.0.0.10}, {ip: "fd00:1::10"}]`, `podIPs: [{ip: 10.0.0.10}]`,
		`podIP: "fd00:1::20", podIPs: [{ip: "fd00:1::20"}, {ip: 10.0.0.20}]`, `podIP: 10.0.0.20`).Replace(dualWorld)
	m := startPods(t, world, func(n *envoytest.Netns) { n.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1") })
	m.serve("tcp4", ":8080")
	if status, saw, says := get(t, m.client.Dial, "http://10.96.0.10/"); status != 200 || saw != byFour {
		t.Errorf("%d, %+v %s", status, saw, says)
	}
	if status, saw, says := get(t, m.client.DialUnredirected, "http://10.0.0.20:15021/app-health/app/readyz"); status != 200 || saw != (seen{Peer: "127.0.0.6", Own: "10.0.0.20"}) {
		t.Errorf("a probe: %d, %+v %s", status, saw, says)
	}
	if r := refusals(m.pilot); len(r) > 0 {
		t.Errorf("an Envoy refuses %s", r)
	}
}

// A cluster of IPv4 alone asks no IPv6 of its nodes' kernels: no proxy has an address of it in its configuration.
func TestAClusterOfIPv4NeedsNoIPv6OfTheKernel(t *testing.T) {
	documents := strings.Split(strings.NewReplacer(`, "fd00:10:96::/112"`, "", `, "fd00:10:96::10"`, "", `, {ip: "fd00:1::10"}`, "",
		`podIP: "fd00:1::20", podIPs: [{ip: "fd00:1::20"}, {ip: 10.0.0.20}]`, `podIP: 10.0.0.20`).Replace(dualWorld), "\n---\n")
	policies := func(d string) bool { return strings.Contains(d, "AuthorizationPolicy") } // which may name any address
	documents = slices.DeleteFunc(documents, func(d string) bool { return policies(d) || strings.Contains(strings.ToLower(d), "fd00") })
	m := startPods(t, strings.Join(documents, "\n---\n"), func(n *envoytest.Netns) { n.WithoutIPv6 = true })
	m.serve("tcp4", ":8080")
	for _, url := range []string{"http://10.96.0.10/", "http://10.0.0.20:8080/"} {
		if status, saw, says := get(t, m.client.Dial, url); status != 200 || saw != byFour {
			t.Errorf("%s: %d, %+v %s", url, status, saw, says)
		}
	}
	if r := refusals(m.pilot); len(r) > 0 {
		t.Errorf("an Envoy refuses %s", r)
	}
}

// In a cluster of IPv4 alone a pod that has addresses of IPv6 all the same is called by them in vain: nothing goes past its proxy.
func TestIPv6OfPodsInAClusterOfIPv4IsRefused(t *testing.T) {
	world := strings.Replace(dualWorld, `[10.96.0.0/16, "fd00:10:96::/112"]`, `[10.96.0.0/16]`, 1)
	m := startPods(t, world, func(*envoytest.Netns) {})
	m.serve("tcp", ":8080")
	if status, saw, says := get(t, m.client.Dial, "http://10.96.0.10/"); status != 200 || saw != byFour {
		t.Errorf("%d, %+v %s", status, saw, says)
	}
	for what, dial := range map[string]dialer{"from a client's application": m.client.Dial, "plaintext from a stranger": m.client.DialUnredirected} {
		if status, saw, says := get(t, dial, "http://[fd00:1::20]:8080/"); status != 0 || !strings.Contains(says, "refused") {
			t.Errorf("%s: %d, %+v %s", what, status, saw, says)
		}
	}
}

// A cluster that comes to have IPv6 has it in its proxies at once, and what is open goes on.
func TestAClusterThatComesToHaveIPv6(t *testing.T) {
	m := startPods(t, strings.Replace(dualWorld, `[10.96.0.0/16, "fd00:10:96::/112"]`, `[10.96.0.0/16]`, 1), func(*envoytest.Netns) {})
	for _, port := range []string{":8080", ":8090"} {
		m.serve("tcp", port)
	}
	kept := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: m.client.Dial}}
	opened := map[string]int{}
	ask := func(url string) {
		t.Helper()
		trace := &httptrace.ClientTrace{ConnectStart: func(string, string) { opened[url]++ }}
		req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := kept.Do(req)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			return
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v", url, resp.Status, err)
		}
	}
	const tcp, web = "http://10.96.0.10:90/", "http://10.96.0.10/"
	for _, url := range []string{tcp, web} {
		ask(url)
	}
	events, err := fixture.Events([]byte(strings.Split(dualWorld, "\n---\n")[0]))
	if err != nil {
		t.Fatal(err)
	}
	m.pilot.apply(t, events)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		for _, url := range []string{tcp, web} {
			ask(url)
		}
		status, saw, says := get(t, m.client.Dial, "http://[fd00:10:96::10]/")
		if status == 200 && saw == bySix {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("IPv6 is called in vain: %d, %+v %s", status, saw, says)
		}
	}
	for _, url := range []string{tcp, web} {
		ask(url)
	}
	if opened[tcp] != 1 {
		t.Errorf("the connection that was open has ended: %v", opened)
	}
	if r := refusals(m.pilot); len(r) > 0 {
		t.Errorf("an Envoy refuses %s", r)
	}
}
