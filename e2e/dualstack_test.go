package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/utils/net"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// dualStack skips a test where Services have no addresses of IPv6.
func dualStack(ctx context.Context, t *testing.T) {
	t.Helper()
	list, err := cluster.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Items {
		if slices.ContainsFunc(c.Spec.CIDRs, utilnet.IsIPv6CIDRString) {
			return
		}
	}
	t.Skip("Services of this cluster have no addresses of IPv6: make e2e-dual has a cluster where they do")
}

// families are the Services of a workload that differ by the families of their addresses.
func families(namespace, name string) string {
	const ports = "ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: tcp, port: 82, targetPort: 8082}, {name: http-denied, port: 83, targetPort: 8083}]"
	const direct = "ports: [{name: http, port: 8080}, {name: any, port: 8081}, {name: tcp, port: 8082}]"
	var b strings.Builder
	for of, spec := range map[string]string{
		"preferred": "ipFamilyPolicy: PreferDualStack, " + ports, "required": "ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4], " + ports,
		"four": "ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], " + ports, "six": "ipFamilyPolicy: SingleStack, ipFamilies: [IPv6], " + ports,
		"direct": "clusterIP: None, ipFamilyPolicy: RequireDualStack, " + direct,
	} {
		fmt.Fprintf(&b, "{apiVersion: v1, kind: Service, metadata: {name: %s-%s, namespace: %s}, spec: {selector: {app: %[1]s}, %[4]s}}\n---\n", name, of, namespace, spec)
	}
	return b.String()
}

// dualScene is a STRICT server with Services of all families, a client, one that keeps IPv6 from its proxy, and a stranger.
type dualScene struct {
	t                                   *testing.T
	ns, out                             string
	server, client, excluding, stranger *corev1.Pod
}

func deployDual(ctx context.Context, t *testing.T, ns string) *dualScene {
	t.Helper()
	s := &dualScene{t: t, ns: ns, out: ns + "-outside"}
	cleanUp(t, s.ns, s.out)
	excluding := strings.Replace(anything(ns, "excluding"), "metadata: {labels: {app: excluding}}",
		`metadata: {labels: {app: excluding}, annotations: {traffic.sidecar.istio.io/excludeOutboundIPRanges: "fd00::/8"}}`, 1)
	objects := fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: %[2]s}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: %[1]s}, spec: {mtls: {mode: STRICT}}}
---
`, s.ns, s.out) + anything(s.ns, "server") + families(s.ns, "server") + anything(s.ns, "client") + excluding + anything(s.out, "stranger")
	if err := cluster.Apply(ctx, objects); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{s.ns, s.out} {
		if err := reachable(ctx, n, 3*time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	for app, at := range map[string]**corev1.Pod{"server": &s.server, "client": &s.client, "excluding": &s.excluding} {
		*at = s.pod(ctx, s.ns, app)
	}
	s.stranger = s.pod(ctx, s.out, "stranger")
	return s
}

func (s *dualScene) pod(ctx context.Context, namespace, app string) *corev1.Pod {
	s.t.Helper()
	pod, err := cluster.Pod(ctx, namespace, app)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(pod.Status.PodIPs) != 2 {
		s.t.Fatalf("pod %s has the addresses %v", app, pod.Status.PodIPs)
	}
	return pod
}

// ip is a pod's address of a family.
func ip(pod *corev1.Pod, six bool) string {
	for _, a := range pod.Status.PodIPs {
		if utilnet.IsIPv6String(a.IP) == six {
			return a.IP
		}
	}
	return ""
}

// addresses are those of a Service.
func (s *dualScene) addresses(ctx context.Context, service string) []string {
	s.t.Helper()
	found, err := cluster.CoreV1().Services(s.ns).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return found.Spec.ClusterIPs
}

// calls are all that a client may make: by each address of each Service, by each name in each family, and to the pod of a headless Service.
func (s *dualScene) calls(ctx context.Context) (out []wire.Call) {
	s.t.Helper()
	for of, want := range map[string]int{"preferred": 2, "required": 2, "four": 1, "six": 1} {
		all := s.addresses(ctx, "server-"+of)
		if len(all) != want {
			s.t.Fatalf("Service server-%s has the addresses %v", of, all)
		}
		for _, a := range all {
			network := "tcp4"
			if utilnet.IsIPv6String(a) {
				network = "tcp6"
			}
			out = append(out, reach(of, a, 80)...)
			for _, c := range reach(of+", by name", "server-"+of, 80) {
				c.Network = network
				out = append(out, c)
			}
		}
	}
	for _, network := range []string{"tcp4", "tcp6"} {
		out = append(out, reach("direct, by IP", ip(s.server, network == "tcp6"), 8080)...)
		for _, c := range reach("direct, by name", "server-direct", 8080) {
			c.Network = network
			out = append(out, c)
		}
	}
	return out
}

// six reports whether a call is by an address of IPv6.
func six(c wire.Call) bool {
	host, _, _ := net.SplitHostPort(c.Address)
	return c.Network == "tcp6" || utilnet.IsIPv6String(host)
}

// TestDualStackServicesAreReachedInBothFamilies calls a STRICT server in every way, in each family and protocol. The server's proxy knows the client, and the application is called
// at its address of the family that the client called.
func TestDualStackServicesAreReachedInBothFamilies(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	dualStack(ctx, t)
	s := deployDual(ctx, t, "e2e-dual-calls")
	outcomes := settled(ctx, t, s.ns, s.calls(ctx))
	for _, o := range outcomes {
		_, port, _ := net.SplitHostPort(o.Address)
		from := map[bool]string{false: "127.0.0.6", true: "::6"}[six(o.Call)]
		switch {
		case !o.OK:
			t.Errorf("it failed: %s", o)
		case o.Heard == nil || strings.HasSuffix(port, "2"): // declared to be TCP: the server's proxy sets no headers
		case o.Heard.Peer != "spiffe://cluster.local/ns/"+s.ns+"/sa/default":
			t.Errorf("the server does not see its client: %s", o)
		case o.Heard.At != "" && (o.Heard.At != ip(s.server, six(o.Call)) || o.Heard.From != from):
			t.Errorf("not by the family that was called: %s", o)
		}
	}
	t.Logf("%d calls", len(outcomes))
	for _, app := range []*corev1.Pod{s.server, s.excluding} { // a server that calls itself, and a client that keeps IPv6 from its proxy
		for _, a := range s.addresses(ctx, "server-preferred") {
			got, err := lab.ExecInJSON[sample.Response](ctx, cluster, app, "app", "sample", "get", "http://"+net.JoinHostPort(a, "80")+"/")
			past := app == s.excluding && utilnet.IsIPv6String(a) // its plaintext comes to a STRICT pod
			if err != nil || (got.Status == 200) == past {
				t.Errorf("%s calls %s: %+v, %v", app.Name, a, got, err)
			}
		}
	}
}

// TestDualStackStrangersAreRefusedInBothFamilies has a stranger call a STRICT server in plaintext by each of its addresses, and those of its Services: nothing gets through in either
// family, and the audit trail has the stranger's address of the family, as it is. A policy that names an address of one family says nothing of the other.
func TestDualStackStrangersAreRefusedInBothFamilies(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	dualStack(ctx, t)
	s := deployDual(ctx, t, "e2e-dual-refused")
	get := func(pod *corev1.Pod, host, port, path string) sample.Response {
		got, err := lab.ExecInJSON[sample.Response](ctx, cluster, pod, "app", "sample", "get", "http://"+net.JoinHostPort(host, port)+path)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	began := time.Now()
	targets := []string{}
	for _, of := range []string{"preferred", "required", "four", "six"} {
		for _, a := range s.addresses(ctx, "server-"+of) {
			targets = append(targets, net.JoinHostPort(a, "80"), net.JoinHostPort(a, "82"))
		}
	}
	for _, isSix := range []bool{false, true} {
		for _, port := range []string{"8080", "8081", "8082", "9999"} {
			targets = append(targets, net.JoinHostPort(ip(s.server, isSix), port))
		}
	}
	for _, target := range targets {
		host, port, _ := net.SplitHostPort(target)
		if got := get(s.stranger, host, port, "/"); got.Status != 0 || got.Error == "" {
			t.Errorf("a stranger's plaintext to %s: %+v", target, got)
		}
	}
	for _, isSix := range []bool{false, true} {
		scene := claims.Scene{Lab: cluster, Namespace: s.ns}
		source, at := ip(s.stranger, isSix), ip(s.server, isSix)
		if err := scene.Audited(ctx, began, "destination", func(e *claims.Event) bool {
			host, _, _ := net.SplitHostPort(e.SourceAddress)
			own, _, _ := net.SplitHostPort(e.DestinationAddress)
			return e.Verdict == "VERDICT_REFUSED" && host == source && own == at
		}); err != nil {
			t.Errorf("a refusal of %s at %s: %v", source, at, err)
		}
		for _, url := range [][2]string{{"15021", "/healthz/ready"}, {"15090", "/stats/prometheus"}, {"15021", "/app-health/app/readyz"}} {
			if got := get(s.stranger, at, url[0], url[1]); got.Status/100 != 2 { // a probe of TCP has no content
				t.Errorf("%s:%s%s: %d %s", at, url[0], url[1], got.Status, got.Error)
			}
		}
	}
	// By their addresses of IPv6 clients are refused, and then by those of IPv4 alone.
	for _, isSix := range []bool{true, false} {
		err := cluster.Apply(ctx, fmt.Sprintf(`
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: by-address, namespace: %s}, spec: {selector: {matchLabels: {app: server}}, action: DENY,
  rules: [{from: [{source: {ipBlocks: [%q]}}], to: [{operation: {ports: ["8083"]}}]}]}}
`, s.ns, ip(s.client, isSix)))
		if err != nil {
			t.Fatal(err)
		}
		err = lab.PollFor(ctx, 20*time.Second, func(context.Context) error {
			for _, a := range s.addresses(ctx, "server-preferred") {
				want := 200
				if utilnet.IsIPv6String(a) == isSix {
					want = 403
				}
				if got := get(s.client, a, "83", "/"); got.Status != want {
					return fmt.Errorf("a call by %s where clients of IPv6 (%v) are denied: %+v, want %d", a, isSix, got, want)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
