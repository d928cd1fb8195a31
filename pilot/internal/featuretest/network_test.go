package featuretest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// greeter is a server that speaks first, and says a word. It returns its port.
func greeter(t *testing.T, ip, word string) int {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, word)
			_ = conn.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// greeting is what a client hears at an address to which a listener's connection was going, without a word of its own.
func greeting(t *testing.T, listener, ip string, port int) string {
	t.Helper()
	conn := dial(t, listener)
	if _, err := fmt.Fprintf(conn, "PROXY TCP4 10.0.0.1 %s 40000 %d\r\n", ip, port); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(conn) // who resets says nothing, too
	return string(got)
}

// elsewhere is an address of this machine by which others reach it.
func elsewhere(t *testing.T) netip.Addr {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr()
		}
	}
	t.Skip("this machine has no address of IPv4 but loopback's")
	return netip.Addr{}
}

// A connection to an address in a network goes to the servers of whose the narrowest network is, without waiting for the client's first bytes; what is the mesh's own
// in it does not, and is what it would be without.
func TestNetworksAreThoseOfTheNarrowest(t *testing.T) {
	here := elsewhere(t)
	around := netip.PrefixFrom(here, 30).Masked()
	o := newOutside(t)
	port := greeter(t, here.String(), "a pod")
	tcp := fmt.Sprintf("number: %d, name: tcp, protocol: TCP", port)
	o.entry(t, "wide.example", tcp, fmt.Sprintf(", addresses: [198.51.0.0/16, 10.0.0.0/8, 100.0.0.0/8, %s]", around), greeter(t, "127.0.0.1", "wide"))
	o.entry(t, "narrow.example", tcp, ", addresses: [198.51.100.0/24]", greeter(t, "127.0.0.1", "narrow"))
	o.entry(t, "one.example", tcp, ", addresses: [198.51.100.7/32]", greeter(t, "127.0.0.1", "one"))
	o.entry(t, "younger.example", tcp, ", addresses: [198.51.100.0/24]", greeter(t, "127.0.0.1", "younger"))
	services := o.add(t, "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: services, namespace: finance}\n"+
		"spec: {hosts: [services.example], addresses: [10.96.0.0/16, 10.96.128.0/17], ports: [{"+tcp+"}]}")
	if e := services[0].Object.(*registry.ServiceEntry); len(e.Problems) > 0 {
		t.Fatal(e.Problems)
	}
	p := newPilot(t, o.events)
	at := listenerAt(t, start(t, p, "finance/payroll-1", true), fmt.Sprintf("0.0.0.0_%d", port))
	for ip, want := range map[string]string{"198.51.1.1": "wide", "198.51.100.1": "narrow", "198.51.101.1": "wide", "10.200.0.1": "wide", "100.1.1.1": "wide",
		"10.96.0.77": "", "10.96.200.1": ""} {
		if got := greeting(t, at, ip, port); got != want {
			t.Errorf("at %s: %q, want %q", ip, got, want)
		}
	}
	if got := greeting(t, at, here.String(), port); got != "wide" {
		t.Errorf("at %s, which is in a network: %q", here, got)
	}
	p.apply(t, o.add(t, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: old}\nspec: {serviceAccountName: x, nodeName: elsewhere}\nstatus: {phase: Running, podIP: %s, podIPs: [{ip: %s}]}", here, here)))
	got := ""
	for end := time.Now().Add(20 * time.Second); got != "a pod" && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		got = greeting(t, at, here.String(), port)
	}
	if got != "a pod" {
		t.Errorf("at a pod's address in a network: %q", got)
	}
	if one := listenerAt(t, start(t, p, "finance/payroll-1", true), fmt.Sprintf("198.51.100.7_%d", port)); one == "" {
		t.Error("a network of one address has no listener")
	}
}

// With resolution NONE, a connection to a network goes on to where its client has opened it, at the servers' port. Requests in a network are its host's, whatever Host they
// name, and elsewhere that of their Host.
func TestNetworksWithoutServersAreTheirOwn(t *testing.T) {
	here := elsewhere(t)
	o := newOutside(t)
	events := o.add(t, fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: none, namespace: finance}\n"+
		"spec: {hosts: [none.example], addresses: [%s], ports: [{number: 5432, name: tcp, protocol: TCP, targetPort: %d}]}", netip.PrefixFrom(here, 29).Masked(), greeter(t, here.String(), "there")))
	if e := events[0].Object.(*registry.ServiceEntry); len(e.Problems) > 0 {
		t.Fatal(e.Problems)
	}
	simple := "mode: SIMPLE, caCertificates: " + o.roots
	for _, host := range []string{"network.example", "named.example"} {
		more := ""
		if host == "network.example" {
			more = ", addresses: [198.51.100.0/24]"
		}
		o.entry(t, host, "number: 80, name: http, protocol: HTTP", more, o.server(t, o.ca, nil, host))
		o.add(t, rule(host, simple))
	}
	admin := start(t, newPilot(t, o.events), "finance/payroll-1", true)
	if got := greeting(t, listenerAt(t, admin, "0.0.0.0_5432"), here.String(), 5432); got != "there" {
		t.Errorf("at %s: %q", here, got)
	}
	for ip, want := range map[string]string{"198.51.100.9": "network.example", "203.0.113.99": "named.example"} {
		conn := dial(t, listenerAt(t, admin, "0.0.0.0_80"))
		if _, err := fmt.Fprintf(conn, "PROXY TCP4 10.0.0.1 %s 40000 80\r\nGET /pay HTTP/1.1\r\nHost: named.example\r\nConnection: close\r\n\r\n", ip); err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(conn)
		if !strings.HasPrefix(string(got), fmt.Sprintf("HTTP/1.1 %d", http.StatusOK)) || !strings.Contains(string(got), "for named.example, asked for as "+want) {
			t.Errorf("a request for named.example to %s: %s, want %s", ip, got, want)
		}
	}
}
