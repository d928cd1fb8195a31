package translate_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// TestEnvoyAndEvaluatorAgree runs random requests against random policies through Envoy's RBAC and through the evaluator.
func TestEnvoyAndEvaluatorAgree(t *testing.T) {
	const sets, requests = 60, 60
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g := &generator{rand.New(rand.NewPCG(seed, 1))}
	ports := envoytest.FreePorts(t, sets+1)
	ca := envoytest.NewCA(t)
	b := translate.Bootstrap()
	b.DynamicResources, b.StatsSinks = nil, nil
	b.Admin.Address.GetSocketAddress().PortSpecifier = &core.SocketAddress_PortValue{PortValue: ports[sets]}
	server := ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")
	policies := make([][]authz.Policy, sets)
	for i := range sets {
		policies[i] = g.policies(ports[i])
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, workloadListener(t, policies[i], ports[i], ca, server))
	}
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	clients := map[spiffe.ID]envoytest.Leaf{}
	for _, id := range identities {
		clients[id] = ca.Issue(t, id.String())
	}
	denied := 0
	for i := range sets {
		for range requests {
			req := g.request(ports[i])
			want := authz.Evaluate(policies[i], req)
			status := send(t, ports[i], req, clients)
			if status == 400 { // Envoy would not even read it, which lets nothing through
				continue
			}
			if got := status == 200; got != want.Allowed {
				t.Errorf("Envoy answers %d, the evaluator says allowed=%v by %q (%s)\nrequest %+v\npolicies %+v", status, want.Allowed, want.Policy, want.Reason, req, policies[i])
				return
			}
			if !want.Allowed {
				denied++
			}
		}
	}
	if denied < sets*requests/20 || denied > sets*requests*19/20 {
		t.Errorf("%d of %d requests were denied: the test does not test much", denied, sets*requests)
	}
}

// workloadListener is the inbound listener as Pilot makes it, with certificates in place of SDS and an answer in place of
// the application.
func workloadListener(t *testing.T, policies []authz.Policy, port uint32, ca *envoytest.CA, leaf envoytest.Leaf, revoked ...*registry.Revocation) *listener.Listener {
	t.Helper()
	w := &compile.Workload{
		Class: compile.Class{Namespace: "finance"}, Policies: policies, Other: compile.InboundPort{Mode: authz.Strict, Protocol: registry.TCP},
		Ports: []compile.InboundPort{{Number: port, Protocol: registry.HTTP, Mode: authz.Permissive}},
	}
	l := inboundOn(t, w, port, revoked...)
	for _, c := range l.GetFilterChains() {
		if c.GetTransportSocket() != nil {
			staticCertificates(t, c, ca, leaf)
		}
		if last(c).GetName() == "envoy.filters.network.http_connection_manager" {
			answer(t, c)
		}
	}
	return l
}

func last(c *listener.FilterChain) *listener.Filter { return c.GetFilters()[len(c.GetFilters())-1] }

func repack(t *testing.T, packed *anypb.Any, change func(any)) {
	t.Helper()
	msg, err := packed.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	change(msg)
	if err := packed.MarshalFrom(msg); err != nil {
		t.Fatal(err)
	}
}

func inlineBytes(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

func staticCertificates(t *testing.T, c *listener.FilterChain, ca *envoytest.CA, leaf envoytest.Leaf) {
	repack(t, c.GetTransportSocket().GetTypedConfig(), func(m any) {
		common := m.(*tlsv3.DownstreamTlsContext).GetCommonTlsContext()
		common.TlsCertificateSdsSecretConfigs = nil
		common.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: inlineBytes(leaf.Cert), PrivateKey: inlineBytes(leaf.Key)}}
		validation := common.GetCombinedValidationContext().GetDefaultValidationContext()
		validation.TrustedCa = inlineBytes(ca.Root)
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	})
}

func answer(t *testing.T, c *listener.FilterChain) {
	repack(t, last(c).GetTypedConfig(), func(m any) {
		manager := m.(*hcm.HttpConnectionManager)
		manager.GetRouteConfig().GetVirtualHosts()[0].GetRoutes()[0].Action = &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 200}}
	})
}

func send(t *testing.T, port uint32, req authz.Request, clients map[spiffe.ID]envoytest.Leaf) int {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if !req.Source.IsZero() {
		conn = tls.Client(conn, &tls.Config{ //nolint:gosec // the server's name is not what is tested
			Certificates: []tls.Certificate{clients[req.Source].TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"},
			ServerName: req.SNI, MinVersion: tls.VersionTLS13})
	}
	var sb strings.Builder
	fmt.Fprintf(&sb, "%s %s HTTP/1.1\r\nHost: %s\r\n", req.Method, req.Path, req.Host)
	for name, values := range req.Headers {
		for _, v := range values {
			fmt.Fprintf(&sb, "%s: %s\r\n", name, v)
		}
	}
	if _, err := io.WriteString(conn, sb.String()+"Connection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatalf("no answer to %+v: %v", req, err)
	}
	var status int
	if _, err := fmt.Sscanf(line, "HTTP/1.1 %d", &status); err != nil {
		t.Fatalf("answer %q: %v", line, err)
	}
	return status
}

// generator makes policies and requests from a small vocabulary, so that they meet.
type generator struct{ *rand.Rand }

var identities = []spiffe.ID{
	{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "a.b"},
	{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "axb"},
	{TrustDomain: "cluster.local", Namespace: "finance-prod", ServiceAccount: "auditor"},
	{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "auditor"},
}

var vocabulary = map[string][]string{
	"principals":      {"cluster.local/ns/finance/sa/a.b", "cluster.local/ns/finance*", "*/sa/auditor", "*", "*auditor", "other.domain/ns/shop/sa/auditor"},
	"namespaces":      {"finance", "fin*", "*-prod", "*", "shop", "*p"},
	"serviceAccounts": {"a.b", "auditor", "shop/auditor", "finance/axb"},
	"trustDomains":    {"cluster.local", "cluster*", "*.local", "*", "other"},
	"ipBlocks":        {"127.0.0.0/8", "127.0.0.1", "10.0.0.0/8", "::/0", "0.0.0.0/0"},
	"hosts":           {"payroll", "PAYROLL.finance", "*.finance", "pay*", "*", "payroll:8080", "payroll.finance:*"},
	"methods":         {"GET", "P*", "*T", "*", "DELETE"},
	"paths":           {"/admin", "/admin/*", "*/x", "*", "/a/{*}/c", "/a/{**}", "/{**}/c", "/", "/acc.ounts", "/a/{*}"},
	"headers":         {"bad", "ba*", "*ad", "*", "ok", "a.b", "ok,bad"},
	"sni":             {"outbound_.80_._.payroll", "outbound*", "*payroll", "*"},
}

func (g *generator) pick(of string) []string {
	var out []string
	for range g.IntN(2) + g.IntN(2) + g.IntN(2) {
		out = append(out, vocabulary[of][g.IntN(len(vocabulary[of]))])
	}
	return out
}

func (g *generator) maybe() bool { return g.IntN(3) == 0 }

func (g *generator) ports(port uint32) []string {
	if g.IntN(2) == 0 {
		return []string{fmt.Sprint(port)}
	}
	return []string{"1", "2"}
}

func (g *generator) policies(port uint32) []authz.Policy {
	var out []authz.Policy
	for i := range 1 + g.IntN(3) {
		spec := &security.AuthorizationPolicy{Action: []security.AuthorizationPolicy_Action{0, 0, 1, 2}[g.IntN(4)]}
		for range g.IntN(3) {
			spec.Rules = append(spec.Rules, g.rule(port))
		}
		p, _ := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: fmt.Sprint(i)}, spec,
			authz.Options{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"})
		out = append(out, p)
	}
	return out
}

func (g *generator) rule(port uint32) *security.Rule {
	r := &security.Rule{}
	for range g.IntN(3) {
		s := &security.Source{}
		if g.maybe() {
			s.Principals = g.pick("principals")
		}
		if g.maybe() {
			s.NotPrincipals = g.pick("principals")
		}
		if g.maybe() {
			s.Namespaces, s.NotNamespaces = g.pick("namespaces"), g.pick("namespaces")
		}
		if g.maybe() {
			s.IpBlocks = g.pick("ipBlocks")
		}
		if g.maybe() {
			s.TrustDomains = g.pick("trustDomains")
		}
		if len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces) == 0 && g.maybe() {
			s.ServiceAccounts, s.NotServiceAccounts = g.pick("serviceAccounts"), g.pick("serviceAccounts")
		}
		r.From = append(r.From, &security.Rule_From{Source: s})
	}
	for range g.IntN(3) {
		o := &security.Operation{}
		if g.maybe() {
			o.Hosts, o.NotHosts = g.pick("hosts"), g.pick("hosts")
		}
		if g.maybe() {
			o.Methods, o.NotMethods = g.pick("methods"), g.pick("methods")
		}
		if g.maybe() {
			o.Paths, o.NotPaths = g.pick("paths"), g.pick("paths")
		}
		if g.maybe() {
			o.Ports = g.ports(port)
		}
		r.To = append(r.To, &security.Rule_To{Operation: o})
	}
	for _, key := range []string{"request.headers[x-test]", "connection.sni", "source.namespace", "destination.port", "source.ip", "destination.ip"} {
		if g.IntN(6) != 0 {
			continue
		}
		list := map[string]string{"request.headers[x-test]": "headers", "connection.sni": "sni", "source.namespace": "namespaces", "source.ip": "ipBlocks", "destination.ip": "ipBlocks"}[key]
		c := &security.Condition{Key: key}
		if list == "" {
			c.Values = g.ports(port)
		} else {
			c.Values, c.NotValues = g.pick(list), g.pick(list)
		}
		r.When = append(r.When, c)
	}
	return r
}

func (g *generator) one(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) request(port uint32) authz.Request {
	req := authz.Request{
		HTTP: true, SourceIP: netip.MustParseAddr("127.0.0.1"), DestinationIP: netip.MustParseAddr("127.0.0.1"), DestinationPort: port,
		Host:    g.one("payroll", "PayRoll.finance", "payroll:8080", "payroll.finance:80", "payroll.", "payroll.finance.:80", "x.finance"),
		Method:  g.one("GET", "POST", "PUT", "DELETE", "PATCH"),
		Path:    g.one("/", "/admin", "//admin", "/%61dmin", "/%2fadmin", "/%5cadmin", "/x/..//admin", "/x/%2e%2e/admin", "/admin?x=1", "/admin;a=b", "/admin/x", "/a/b/c", "/a/b", "/a/", "/a", "/a/b/d/c", "/b/c", "/acc.ounts", "/accxounts", "/%252e", "/admin/%c0%ae", "/a/é/c", "/.admin", "/..", "/admin/.", "/admin/..", "/Admin", "/a/b%20c/c", "/a/=/c", "/a//c"),
		Headers: map[string][]string{},
	}
	if g.IntN(4) != 0 {
		req.Source = identities[g.IntN(len(identities))]
		req.SNI = g.one("outbound_.80_._.payroll", "payroll", "other", "")
	}
	switch g.IntN(8) {
	case 0:
		req.Headers["x-test"] = []string{"ok", "bad"}
	case 1:
		req.Headers["x-test"] = []string{"bad , ok"}
	case 2:
		req.Headers["x-test"] = []string{"axb"}
	case 3:
		req.Headers["x-test"] = []string{"ok,\xff", "bad"}
	case 4:
		req.Headers["x-test"] = []string{""}
	case 5:
		req.Headers["x-test"] = []string{"a.b"}
	}
	return req
}
