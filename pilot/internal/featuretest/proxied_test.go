package featuretest

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pkg/proxyprotocol"
)

// proxiedWorld is the world of two families with a workload that is behind load balancers at two of its ports, and takes plaintext.
func proxiedWorld() string {
	out := strings.Replace(dualWorld, "mode: STRICT", "mode: PERMISSIVE", 1)
	out = strings.Replace(out, "metadata: {name: server, namespace: shop, ", `metadata: {name: server, namespace: shop, annotations: {bulwark.dev/proxy-protocol: "8080,8090"}, `, 1)
	return out + `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: remote, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: web}}
  rules:
  - {from: [{source: {remoteIpBlocks: [198.51.100.0/24, "2001:db8:bad::/48"]}}], to: [{operation: {ports: ["8080", "8090"]}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ports, namespace: shop}
spec: {action: DENY, selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: ["8080"], paths: [/closed]}}]}]}
`
}

// Headers of the PROXY protocol, versions 1 and 2, that name a client and a destination.
func versionOne(client, destination string) string {
	c, d := netip.MustParseAddrPort(client), netip.MustParseAddrPort(destination)
	family := "TCP4"
	if c.Addr().Is6() {
		family = "TCP6"
	}
	return fmt.Sprintf("PROXY %s %s %s %d %d\r\n", family, c.Addr(), d.Addr(), c.Port(), d.Port())
}

const signature = "\r\n\r\n\x00\r\nQUIT\n"

func versionTwo(client, destination string, more ...byte) string {
	c, d := netip.MustParseAddrPort(client), netip.MustParseAddrPort(destination)
	family := byte(0x11)
	if c.Addr().Is6() {
		family = 0x21
	}
	body := append(c.Addr().AsSlice(), d.Addr().AsSlice()...)
	body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(body, c.Port()), d.Port())
	body = append(body, more...)
	return signature + string(append(binary.BigEndian.AppendUint16([]byte{0x21, family}, uint16(len(body))), body...))
}

// Load balancers say by the PROXY protocol for whom they connect, with real redirection and a real Envoy: rules about remote addresses hold for these. Nobody else is believed, the
// destination is what it is, and what is no such header lets nobody in.
func TestOnlyLoadBalancersSayForWhomTheyConnect(t *testing.T) {
	before, was := fixture.Options, settings
	t.Cleanup(func() { fixture.Options, settings = before, was })
	balancers, err := proxyprotocol.Networks([]string{"10.0.0.30", "fd00:1::30"})
	if err != nil {
		t.Fatal(err)
	}
	fixture.Options.LoadBalancers = balancers
	settings = compile.SettingsOf(fixture.Options)
	m := startPods(t, proxiedWorld(), func(*envoytest.Netns) {})
	for _, ip := range []string{"10.0.0.30/24", "fd00:1::30/64"} {
		m.client.Run(t, "ip", "addr", "add", ip, "dev", "eth0", "nodad")
	}
	for _, port := range []string{":8080", ":8090", ":8091"} {
		m.serve("tcp", port)
	}
	const four, six, good, bad = "10.0.0.20:8080", "[fd00:1::20]:8080", "203.0.113.9:1111", "198.51.100.7:1111"
	const goodSix, badSix, lb, lbSix, stranger, strangerSix = "[2001:db8::9]:1111", "[2001:db8:bad::9]:1111", "10.0.0.30", "fd00:1::30", "10.0.0.10", "fd00:1::10"
	unix := signature + "\x21\x31\x00\xd8" + strings.Repeat("a", 216)
	for _, c := range []struct {
		what, from, to, header string
		path, forwarded        string
		secured, late          bool
		status                 int // 0: no answer
	}{
		{what: "no header", from: lb, to: four, status: 200},
		{what: "version 1", from: lb, to: four, header: versionOne(good, four), status: 200},
		{what: "version 1, denied", from: lb, to: four, header: versionOne(bad, four), status: 403},
		{what: "version 2", from: lb, to: four, header: versionTwo(good, four), status: 200},
		{what: "version 2, denied", from: lb, to: four, header: versionTwo(bad, four), status: 403},
		{what: "version 2 with what it adds, denied", from: lb, to: four, header: versionTwo(bad, four, 0x04, 0, 3, 1, 2, 3, 0xea, 0, 1, 'x'), status: 403},
		{what: "version 1, IPv6", from: lbSix, to: six, header: versionOne(goodSix, six), status: 200},
		{what: "version 1, IPv6, denied", from: lbSix, to: six, header: versionOne(badSix, six), status: 403},
		{what: "version 2, IPv6, denied", from: lbSix, to: six, header: versionTwo(badSix, six), status: 403},
		{what: "UNKNOWN", from: lb, to: four, header: "PROXY UNKNOWN\r\n", status: 200},
		{what: "UNKNOWN with addresses", from: lb, to: four, header: "PROXY UNKNOWN 198.51.100.7 10.0.0.20 1 8080\r\n", status: 200},
		{what: "LOCAL", from: lb, to: four, header: signature + "\x20\x00\x00\x00", status: 200},
		{what: "LOCAL with addresses", from: lb, to: four, header: strings.Replace(versionTwo(bad, four), "\x21\x11", "\x20\x11", 1), status: 200},
		{what: "over mutual TLS", from: lb, to: four, header: versionTwo(good, four), secured: true, status: 200},
		{what: "over mutual TLS, denied", from: lb, to: four, header: versionTwo(bad, four), secured: true, status: 403},
		{what: "a port that is not HTTP", from: lb, to: "10.0.0.20:8090", header: versionTwo(good, four), status: 200},
		{what: "a port that is not HTTP, denied", from: lb, to: "10.0.0.20:8090", header: versionTwo(bad, four)},
		{what: "X-Forwarded-For does not count", from: lb, to: four, header: versionTwo(bad, four), forwarded: "203.0.113.9", status: 403},
		{what: "X-Forwarded-For does not count, either", from: lb, to: four, header: versionTwo(good, four), forwarded: "198.51.100.7", status: 200},
		{what: "another destination: the balancer's own", from: lb, to: four, header: versionTwo(good, "192.0.2.1:443"), status: 200},
		{what: "another destination, whose rules do not hold", from: lb, to: four, header: versionTwo(good, "10.0.0.20:8091"), path: "/closed", status: 403},
		{what: "another destination: the proxy's admin", from: lb, to: four, header: versionTwo(good, "127.0.0.1:15000"), path: "/config_dump", status: 200},
		{what: "a client of another family than the connection", from: lb, to: four, header: versionTwo(goodSix, six)},
		{what: "a client of another family, and the proxy's admin", from: lb, to: four, header: versionTwo(goodSix, "[::1]:15000")},
		{what: "a client of another family, IPv6", from: lbSix, to: six, header: versionOne(good, four)},
		{what: "a port that does not ask for it", from: lb, to: "10.0.0.20:8091", header: versionOne(good, four), status: 400},
		{what: "a stranger without a header", from: stranger, to: four, status: 200},
		{what: "a stranger's header, version 1", from: stranger, to: four, header: versionOne(good, four)},
		{what: "a stranger's header, version 2", from: stranger, to: four, header: versionTwo(good, four)},
		{what: "a stranger's header, IPv6", from: strangerSix, to: six, header: versionTwo(goodSix, six)},
		{what: "a stranger's header, of a balancer", from: stranger, to: four, header: versionTwo("10.0.0.30:1", four)},
		{what: "a stranger's header, of another family", from: stranger, to: four, header: versionTwo(goodSix, six)},
		{what: "a stranger's header before mutual TLS", from: stranger, to: four, header: versionTwo(good, four), secured: true},
		{what: "a stranger's header to a port that is not HTTP", from: stranger, to: "10.0.0.20:8090", header: versionTwo(good, four)},
		{what: "a stranger's UNKNOWN, which names nobody", from: stranger, to: four, header: "PROXY UNKNOWN\r\n", status: 200},
		{what: "a stranger over mutual TLS", from: stranger, to: four, secured: true, status: 200},
		{what: "version 1, too long", from: lb, to: four, header: "PROXY TCP4 " + strings.Repeat("1", 200) + "\r\n"},
		{what: "version 1, no address", from: lb, to: four, header: "PROXY TCP4 localhost 10.0.0.20 1 2\r\n"},
		{what: "version 1, a port too high", from: lb, to: four, header: "PROXY TCP4 203.0.113.9 10.0.0.20 65536 2\r\n"},
		{what: "version 1, addresses of the other family", from: lb, to: four, header: "PROXY TCP4 2001:db8::9 fd00:1::20 1 2\r\n"},
		{what: "version 2, of Unix sockets", from: lb, to: four, header: unix},
		{what: "version 2, addresses cut short", from: lb, to: four, header: signature + "\x21\x11\x00\x04\x01\x02\x03\x04"},
		{what: "version 2, additions cut short", from: lb, to: four, header: versionTwo(good, four, 0x04, 0xff, 0xff)},
		{what: "version 2, another version", from: lb, to: four, header: strings.Replace(versionTwo(good, four), "\x21", "\x31", 1)},
		{what: "version 2, a broadcast address", from: lb, to: four, header: versionTwo("255.255.255.255:1", four)},
		{what: "a header after filters have waited for it", from: lb, to: four, header: versionOne(good, four), late: true, status: 400},
		{what: "a stranger's header after filters have waited for it", from: stranger, to: four, header: versionOne(good, four), late: true, status: 400},
		{what: "a stranger who is silent before he asks", from: stranger, to: four, late: true, status: 200},
		{what: "a header in two parts, of which one is late", from: lb, to: four, header: versionTwo(good, four)[:20], late: true, status: 400},
		{what: "two headers", from: lb, to: four, header: versionTwo(good, four) + versionTwo(good, four), status: 400},
	} {
		if got := m.ask(t, c.from, c.to, c.header, c.path, c.forwarded, c.secured, c.late); got != c.status {
			t.Errorf("%s: status %d, want %d", c.what, got, c.status)
		}
	}
	for _, url := range []string{"http://10.96.0.10/", "http://[fd00:10:96::10]/", "http://10.96.0.10:90/"} {
		if status, _, says := get(t, m.client.Dial, url); status != 200 {
			t.Errorf("a client of the mesh: %s: %d %s", url, status, says)
		}
	}
	if r := refusals(m.pilot); len(r) > 0 {
		t.Errorf("an Envoy refuses %s", r)
	}
}

// ask makes a request behind a header, and returns the status of the answer; 0 if there is none.
func (m *pods) ask(t *testing.T, from, to, header, path, forwarded string, secured, late bool) int {
	t.Helper()
	c, err := m.client.DialFrom(t.Context(), from, "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if late {
		time.Sleep(1200 * time.Millisecond) // longer than the proxy waits for a first byte
	}
	if _, err := io.WriteString(c, header); err != nil {
		return 0
	}
	var conn net.Conn = c
	if secured {
		conn = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"istio"}, MinVersion: tls.VersionTLS13, //nolint:gosec // the server's name is not what is tested
			Certificates: []tls.Certificate{m.leaf(t).TLS}})
	}
	if path == "" {
		path = "/"
	}
	if forwarded != "" {
		forwarded = "X-Forwarded-For: " + forwarded + "\r\n"
	}
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: web\r\n"+forwarded+"Connection: close\r\n\r\n"); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// leaf is a certificate of the client's.
func (m *pods) leaf(t *testing.T) envoytest.Leaf {
	t.Helper()
	return m.ca.Issue(t, "spiffe://cluster.local/ns/shop/sa/client")
}
