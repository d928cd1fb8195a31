package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/printer"
	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
)

// written is what a function prints, without the blanks that fill columns.
func written(write func(*printer.Printer)) string {
	var out bytes.Buffer
	write(printer.New(&out))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return strings.Join(lines, "\n")
}

func TestReachSaysWhatAWorkloadMayCallAndWhy(t *testing.T) {
	http := []operatorv1.Port{{Number: 80, Protocol: "HTTP"}, {Number: 9000, Protocol: "HTTP2"}}
	hidden := make([]string, 12)
	for i := range hidden {
		hidden[i] = fmt.Sprint("bank/s", i)
	}
	for _, c := range []struct {
		reach operatorv1.Reach
		want  string
	}{
		{operatorv1.Reach{Pod: "bank/p", Proxied: true, Sidecar: "bank/default", Hidden: hidden, NotExported: []string{"shop/private"}, Services: []operatorv1.Reachable{
			{Service: "shop/web", Ports: http, By: []string{"shop/bank", "shop/tellers"}},
			{Service: "shop/open", Ports: http[:1], Open: "pod shop/x has no proxy", Everyone: true},
			{Service: "shop/some", Ports: http[:1], Open: "no ALLOW policy holds for pod shop/y"},
		}}, `SERVICE PORTS BY
shop/web 80 HTTP, 9000 HTTP2 shop/bank, shop/tellers
shop/open 80 HTTP everyone: pod shop/x has no proxy
shop/some 80 HTTP exported to its namespace: no ALLOW policy holds for pod shop/y
Sidecar bank/default hides what it could reach otherwise: bank/s0, bank/s1, bank/s2, bank/s3, bank/s4, bank/s5, bank/s6, bank/s7, bank/s8, bank/s9, and 2 more
What it could reach is not exported to its namespace: shop/private`},
		{operatorv1.Reach{Pod: "bank/p", Proxied: true, Sidecar: "bank/default"}, `Pod bank/p may call no service.
Sidecar bank/default holds for it, and hides nothing that it could reach otherwise.`},
		{operatorv1.Reach{Pod: "bank/p", Proxied: true, Sidecar: "bank/default", Confined: true}, `Pod bank/p may call no service.
Sidecar bank/default holds for it, and hides nothing that it could reach otherwise.
Sidecar bank/default keeps it from everything else (outboundTrafficPolicy).`},
		{operatorv1.Reach{Pod: "bank/p", Proxied: true, Outside: []operatorv1.External{
			{Host: "api.example.com", Port: operatorv1.Port{Number: 80, Protocol: "HTTP"}, ServiceEntry: "bank/api", Rule: "bank/api", TLS: "SIMPLE"},
			{Host: "api.example.com", Port: operatorv1.Port{Number: 443, Protocol: "TLS"}, ServiceEntry: "bank/api"},
			{Host: "b.example.com", Port: operatorv1.Port{Number: 80, Protocol: "HTTP"}, ServiceEntry: "bulwark-system/b", Rule: "bank/b", Closed: true},
			{Host: "c.example.com", Port: operatorv1.Port{Number: 80, Protocol: "HTTP"}, ServiceEntry: "bulwark-system/c", Rule: "bank/c"},
			{Host: "d.example.com", Port: operatorv1.Port{Number: 80, Protocol: "HTTP"}, ServiceEntry: "bank/d", TLS: "ISTIO_MUTUAL"},
		}}, `Pod bank/p may call no service.
OUTSIDE PORT SERVICEENTRY HOW
api.example.com 80 HTTP bank/api TLS (SIMPLE) by DestinationRule bank/api
api.example.com 443 TLS bank/api as clients speak
b.example.com 80 HTTP bulwark-system/b not at all: by DestinationRule bank/b, which cannot be enforced
c.example.com 80 HTTP bulwark-system/c as clients speak, by DestinationRule bank/c
d.example.com 80 HTTP bank/d mutual TLS of the mesh`},
		{operatorv1.Reach{Pod: "bank/p"}, "Pod bank/p has no proxy: nothing keeps it from sending to any address. It has no identity either, so the proxies of others decide without one."},
	} {
		if got := written(func(out *printer.Printer) { showReach(out, c.reach) }); got != c.want {
			t.Errorf("it says\n%s\nwant\n%s", got, c.want)
		}
	}
}

func TestReachSaysWhoMayCallAServiceAndWhy(t *testing.T) {
	for _, c := range []struct {
		audience operatorv1.Audience
		want     string
	}{
		{operatorv1.Audience{Service: "shop/web", Members: []operatorv1.Member{
			{Namespace: "bank", By: []string{"shop/bank"}}, {Namespace: "bank", ServiceAccount: "teller", By: []string{"shop/bank", "shop/tellers"}}},
			Hidden: []operatorv1.Hidden{{Sidecar: "bank/default", Pods: 3}}}, `WHO BY
bank/* shop/bank
bank/teller shop/bank, shop/tellers
Sidecar bank/default hides it from 3 pods that could reach it otherwise.`},
		{operatorv1.Audience{Service: "shop/web", Open: "pod shop/x has no proxy", ExportTo: []string{".", "bank"},
			Members: []operatorv1.Member{{Namespace: "bank"}, {Namespace: "shop"}}}, `WHO BY
bank/* everyone of the namespace: pod shop/x has no proxy
shop/* everyone of the namespace: pod shop/x has no proxy
It is exported to: ., bank`},
		{operatorv1.Audience{Service: "shop/web", Everyone: true, Open: "pod shop/x has no proxy"}, "Everyone may call shop/web: pod shop/x has no proxy."},
		{operatorv1.Audience{Service: "shop/web"}, "Nobody may call shop/web: no policy admits anybody to whom it is exported."},
		{operatorv1.Audience{Service: "shop/web", Open: "pod shop/x has no proxy", ExportTo: []string{"~"}}, `Nobody may call shop/web: it is exported to no namespace.
It is exported to: ~`},
	} {
		if got := written(func(out *printer.Printer) { showAudience(out, c.audience) }); got != c.want {
			t.Errorf("it says\n%s\nwant\n%s", got, c.want)
		}
	}
}

func TestReachIsOfAWorkloadOrToAService(t *testing.T) {
	for line, ok := range map[string]bool{
		"pod-1": true, "deploy/web -n shop": true, "--to web": true, "--to shop/web -o json": true,
		"": false, "-n shop": false, "a b": false, "a --to b": false,
	} {
		cmd := (&app{}).reach()
		if err := cmd.ParseFlags(strings.Fields(line)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.ValidateArgs(cmd.Flags().Args()); (err == nil) != ok {
			t.Errorf("meshctl reach %s: %v", line, err)
		}
	}
}

func TestServiceIsNamedWithOrWithoutItsNamespace(t *testing.T) {
	for _, c := range []struct {
		namespace string
		given     bool
		name      string
		want      string
	}{
		{"default", false, "web", "default/web"}, {"default", false, "shop/web", "shop/web"}, {"shop", true, "web", "shop/web"},
		{"shop", true, "bank/web", ""}, {"default", false, "a/b/c", ""}, {"default", false, "", ""}, {"", true, "web", ""}, {"default", false, "/web", ""},
	} {
		if got, err := serviceID(c.namespace, c.given, c.name); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
