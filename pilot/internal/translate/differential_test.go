package translate_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/types/known/anypb"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
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
	tokens := newIssuer(t, "https://issuer.example/a")
	issuers := []compile.Issuer{{Rule: ruleOf(tokens, nil), KeySet: tokens.published(t)}}
	policies, apart := make([][]authz.Policy, sets), 0
	for i := range sets {
		policies[i] = g.policies(ports[i])
		for _, action := range []authz.Action{authz.Allow, authz.Deny} {
			if authz.ByPeer(policies[i], action) != nil {
				apart++
			}
		}
		b.StaticResources.Listeners = append(b.StaticResources.Listeners, workloadVerifying(t, policies[i], issuers, i%2 == 0, ports[i], ca, server))
	}
	envoytest.Start(t, b, "sidecar~127.0.0.1~a.b~b.svc.cluster.local")
	clients := map[spiffe.ID]envoytest.Leaf{}
	for _, id := range identities {
		clients[id] = ca.Issue(t, id.String())
	}
	denied, read := 0, 0
	for i := range sets {
		for range requests {
			req := g.request(ports[i])
			req.NormalizesPaths = i%2 == 0
			http2 := g.IntN(2) == 0 && (!closesSlowly(req) || g.IntN(50) == 0)
			want := authz.Evaluate(policies[i], req)
			sent := req
			if req.Claims != nil {
				sent.Headers = maps.Clone(req.Headers)
				written := maps.Clone(req.Claims)
				if written["scope"] != nil {
					written["scope"] = "reader writer"
				}
				sent.Headers["authorization"] = []string{"Bearer " + tokens.token(t, jose.ES256, written)}
			}
			status, rule := send(t, ports[i], sent, clients, http2)
			switch {
			case status == 200 && !want.Allowed, status == 403 && want.Allowed, status == 403 && malformed(req), status != 200 && status != 403 && !unread(req, http2):
				t.Errorf("Envoy answers %d, the evaluator says allowed=%v by %q (%s)\nHTTP/2 %v, request %+v\npolicies %+v",
					status, want.Allowed, want.Policy, want.Reason, http2, req, policies[i])
				return
			case (status == 200 || status == 403) && rule != want.Policy:
				t.Errorf("Envoy answers %d by %q (%v), the evaluator by %q\nHTTP/2 %v, request %+v\npolicies %+v", status, rule, authz.ByPeer(policies[i], authz.Deny) != nil, want.Policy, http2, req, policies[i])
				return
			case status == 403:
				denied, read = denied+1, read+1
			case status == 200:
				read++
			}
		}
	}
	if denied < read/20 || denied > read*19/20 || read < sets*requests/2 || apart < sets/10 {
		t.Errorf("%d of %d requests were denied, %d were read, %d filters differ by peer: the test does not test much", denied, sets*requests, read, apart)
	}
}

// malformed says what the evaluator does of requests that are answered with 400, whatever the policies.
func malformed(req authz.Request) bool {
	return authz.Evaluate(nil, req).Policy == "" && !authz.Evaluate(nil, req).Allowed
}

// unread reports whether Envoy may refuse to read a request, which lets nothing through.
func unread(req authz.Request, http2 bool) bool {
	known := slices.Contains([]string{"CONNECT", "GET", "POST", "PUT", "DELETE", "PATCH", "PROPFIND", "PURGE"}, req.Method)
	if http2 {
		return malformed(req) || req.Host == "" || !token.MatchString(req.Method)
	}
	return req.Method == "CONNECT" && !authority.MatchString(req.Host) || malformed(req) || !known || !ascii(req.Path)
}

// authority is what a request by CONNECT in HTTP/1.1 has to have.
var authority = regexp.MustCompile(`^[^.].*:[1-9][0-9]*$`)

var token = regexp.MustCompile("^[0-9A-Za-z!#$%&'*+.^_`|~-]+$")

// closesSlowly reports whether Envoy waits a second before it closes an HTTP/2 connection on which it does not read the request.
func closesSlowly(req authz.Request) bool {
	bad := func(r rune) bool { return r <= ' ' || r == 0x7f }
	odd := func(r rune) bool { return bad(r) || r >= 0x80 || strings.ContainsRune("\"#/<>?\\^`{|}", r) }
	return !token.MatchString(req.Method) || !strings.HasPrefix(req.Path, "/") && req.Method != "CONNECT" || strings.ContainsFunc(req.Path, bad) ||
		strings.Contains(req.Path, "#") || req.Host == "" || strings.ContainsFunc(req.Host, odd)
}

// workloadListener is the inbound listener as Pilot makes it, with certificates in place of SDS and an answer in place of
// the application.
func workloadListener(t *testing.T, policies []authz.Policy, normalizePaths bool, port uint32, ca *envoytest.CA, leaf envoytest.Leaf, revoked ...revocation.Revocation) *listener.Listener {
	t.Helper()
	return workloadVerifying(t, policies, nil, normalizePaths, port, ca, leaf, revoked...)
}

func workloadVerifying(t *testing.T, policies []authz.Policy, issuers []compile.Issuer, normalizePaths bool, port uint32, ca *envoytest.CA, leaf envoytest.Leaf,
	revoked ...revocation.Revocation) *listener.Listener {
	t.Helper()
	w := &compile.Workload{
		Issuers: issuers,
		Class:   compile.Class{Namespace: "finance", NormalizePaths: normalizePaths}, Policies: policies, Other: compile.InboundPort{Mode: authz.Strict, Protocol: protocol.TCP},
		Ports: []compile.InboundPort{{Number: port, Protocol: protocol.HTTP, Mode: authz.Permissive}},
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
		vh := manager.GetRouteConfig().GetVirtualHosts()[0]
		for _, r := range vh.GetRoutes() {
			if r.GetRoute() != nil {
				r.Action = &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 200}}
			}
		}
		vh.ResponseHeadersToAdd = []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x-path", Value: "%REQ(:PATH)%"}},
			{Header: &core.HeaderValue{Key: "x-rule", Value: "%DYNAMIC_METADATA(envoy.filters.http.rbac:allow_enforced_effective_policy_id)%"}}}
		manager.LocalReplyConfig = &hcm.LocalReplyConfig{Mappers: []*hcm.ResponseMapper{{Filter: statusIs(403), HeadersToAdd: []*core.HeaderValueOption{
			{Header: &core.HeaderValue{Key: "x-rule", Value: "%RESPONSE_CODE_DETAILS%"}}}}}}
	})
}

func statusIs(code uint32) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_StatusCodeFilter{StatusCodeFilter: &accesslog.StatusCodeFilter{
		Comparison: &accesslog.ComparisonFilter{Op: accesslog.ComparisonFilter_EQ, Value: &core.RuntimeUInt32{DefaultValue: code, RuntimeKey: "unused"}}}}}
}

// connect opens a connection as a mesh client of an identity, or in plaintext without one.
func connect(t *testing.T, port uint32, req authz.Request, clients map[spiffe.ID]envoytest.Leaf) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if req.Source.IsZero() {
		return conn
	}
	return tls.Client(conn, &tls.Config{ //nolint:gosec // the server's name is not what is tested
		Certificates: []tls.Certificate{clients[req.Source].TLS}, InsecureSkipVerify: true, NextProtos: []string{"istio"},
		ServerName: req.SNI, MinVersion: tls.VersionTLS13})
}

// send returns the status of the answer, or 0 if there is none, and the rule that decided, if one did.
func send(t *testing.T, port uint32, req authz.Request, clients map[spiffe.ID]envoytest.Leaf, http2 bool) (status int, rule string) {
	t.Helper()
	conn := connect(t, port, req, clients)
	defer conn.Close()
	if http2 {
		status, header := sendHTTP2(t, conn, req)
		return status, ruleIn(header)
	}
	var sb strings.Builder
	target := req.Path
	if req.Method == "CONNECT" {
		target = req.Host
	}
	fmt.Fprintf(&sb, "%s %s HTTP/1.1\r\nHost: %s\r\n", req.Method, target, req.Host)
	for name, values := range req.Headers {
		for _, v := range values {
			fmt.Fprintf(&sb, "%s: %s\r\n", name, v)
		}
	}
	if _, err := io.WriteString(conn, sb.String()+"Connection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("no answer to %+v: %v", req, err)
	}
	resp.Body.Close()
	return resp.StatusCode, ruleIn(resp.Header)
}

// ruleIn is the rule that an answer says has decided.
func ruleIn(h http.Header) string {
	denied, ok := strings.CutPrefix(h.Get("x-rule"), "rbac_access_denied_matched_policy[")
	if rule := strings.TrimSuffix(denied, "]"); ok && rule != "none" {
		return rule
	} else if ok {
		return ""
	}
	return strings.TrimPrefix(h.Get("x-rule"), "-")
}

// sendHTTP2 writes frames by hand: no client would send some of these.
func sendHTTP2(t *testing.T, conn net.Conn, req authz.Request, more ...hpack.HeaderField) (status int, header http.Header) {
	t.Helper()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	fields := []hpack.HeaderField{{Name: ":method", Value: req.Method}, {Name: ":authority", Value: req.Host}}
	if req.Method != "CONNECT" { // RFC 9113, section 8.5
		fields = append(fields, hpack.HeaderField{Name: ":scheme", Value: "http"}, hpack.HeaderField{Name: ":path", Value: req.Path})
	}
	for name, values := range req.Headers {
		for _, v := range values {
			fields = append(fields, hpack.HeaderField{Name: name, Value: v})
		}
	}
	for _, f := range append(fields, more...) {
		if err := encoder.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(framer.WriteSettings(), framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return 0, nil
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			if status, err = strconv.Atoi(f.PseudoValue("status")); err != nil {
				t.Fatal(err)
			}
			header = http.Header{}
			for _, field := range f.RegularFields() {
				header.Add(field.Name, field.Value)
			}
			return status, header
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0, nil
		}
	}
}

// generator makes policies and requests from a small vocabulary, so that they meet.
type generator struct{ *rand.Rand }

var identities = []spiffe.ID{
	{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "a.b"},
	{TrustDomain: "cluster.local", Namespace: "finance", ServiceAccount: "axb"},
	{TrustDomain: "cluster.local", Namespace: "finance-prod", ServiceAccount: "auditor"},
	{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "auditor"},
	{TrustDomain: "old.local", Namespace: "finance", ServiceAccount: "a.b"},
	{TrustDomain: "old.local", Namespace: "shop", ServiceAccount: "auditor"},
}

var settings = compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}

// aliased is a mesh that had another trust domain once.
var aliased = compile.Settings{TrustDomain: settings.TrustDomain, RootNamespace: settings.RootNamespace, TrustDomainAliases: []string{"old.local"}, TrustedProxies: 1}

var aliasedOptions = authz.Options{TrustDomain: aliased.TrustDomain, TrustDomainAliases: aliased.TrustDomainAliases, RootNamespace: aliased.RootNamespace, TrustedProxies: 1,
	Authorizers: []authorizer.Provider{{Name: "grpc"}, {Name: "http"}, {Name: "down"}, {Name: "open"}, {Name: "grpc-ns"}, {Name: "silent"}}}

var vocabulary = map[string][]string{
	"principals": {"cluster.local/ns/finance/sa/a.b", "cluster.local/ns/finance*", "*/sa/auditor", "*", "*auditor", "other.domain/ns/shop/sa/auditor",
		"old.local/ns/finance/sa/a.b", "old.local/*", "cluster.lo*", "*.local/ns/shop/sa/auditor", "cluster.local/ns/*/sa/auditor", "auditor"},
	"namespaces":        {"finance", "fin*", "*-prod", "*", "shop", "*p", "fin*ce"},
	"serviceAccounts":   {"a.b", "auditor", "shop/auditor", "finance/axb", "shop/*"},
	"trustDomains":      {"cluster.local", "cluster*", "*.local", "*", "other", "old*", "old.local"},
	"requestPrincipals": {"*", "https://issuer.example/a/alice", "https://issuer.example/a/*", "*/alice", "*bob", "https://issuer.example/a/al*", "*a/alice", "https://issuer.example/b/alice", "no*"},
	"claims":            {"reader", "*", "read*", "*er", "true", "false", "42", "4.2e1", "-7", "a b", "", "é"},
	"ipBlocks":          {"127.0.0.0/8", "127.0.0.1", "10.0.0.0/8", "::/0", "0.0.0.0/0"},
	"hosts": {"payroll", "PAYROLL.finance", "*.finance", "pay*", "*", "payroll:8080", "payroll.finance:*", "*:80", "[::1]", "[::1]:80", "payroll.",
		"*.finance:80", "payroll.finance:8*", "[:*", "*]:80", "*1]", "http://payroll", "pay*ll"},
	"methods": {"GET", "P*", "*T", "*", "DELETE", "PUT", "delete", "GET, POST"},
	"paths": {"/admin", "/admin/*", "*/x", "*", "/a/{*}/c", "/a/{**}", "/{**}/c", "/", "/acc.ounts", "/a/{*}", "/a/{**}/c", "/a*c", "/a/@*", "*@me", "/@me",
		"/%40me", "/a%20b", "/%c3%A9*", "*%C3%a9", "/a[0]", "/a%5B0%5D", "*%2A", "/.*", "*..", "/a%25", "/group%2Fproject", "//x", "/%7Euser", "/é", "/a b", "/{*}"},
	"headers": {"bad", "ba*", "*ad", "*", "ok", "a.b", "ok,bad", "b*d", "é*"},
	"sni":     {"outbound_.80_._.payroll", "outbound*", "*payroll", "*", "Payroll"},
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
	many := g.maybe()
	for i := range 1 + g.IntN(3) {
		spec := &security.AuthorizationPolicy{Action: []security.AuthorizationPolicy_Action{0, 0, 1, 2}[g.IntN(4)]}
		for range g.IntN(3) {
			spec.Rules = append(spec.Rules, g.rule(port))
		}
		for range map[bool]int{true: 8 + g.IntN(8)}[many] {
			spec.Rules = append(spec.Rules, g.naming(port))
		}
		p, _ := authz.FromAuthorizationPolicy(authz.Meta{Namespace: "finance", Name: fmt.Sprint(i), DryRun: g.IntN(10) == 0}, spec, aliasedOptions)
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
			s.RequestPrincipals, s.NotRequestPrincipals = g.pick("requestPrincipals"), g.pick("requestPrincipals")
		}
		if g.IntN(5) == 0 {
			s.RemoteIpBlocks, s.NotRemoteIpBlocks = g.pick("ipBlocks"), g.pick("ipBlocks")
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
	for _, key := range []string{"request.headers[x-test]", "connection.sni", "source.namespace", "destination.port", "source.ip", "destination.ip", "remote.ip",
		"request.auth.principal", "request.auth.audiences", "request.auth.presenter", "request.auth.claims[role]", "request.auth.claims[realm][roles]", "request.auth.claims[scope]"} {
		if g.IntN(6) != 0 {
			continue
		}
		list := map[string]string{"request.headers[x-test]": "headers", "connection.sni": "sni", "source.namespace": "namespaces", "source.ip": "ipBlocks", "destination.ip": "ipBlocks", "remote.ip": "ipBlocks",
			"request.auth.principal": "requestPrincipals"}[key]
		if list == "" && strings.HasPrefix(key, "request.auth.") {
			list = "claims"
		}
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

// claims are those of a token, as rules see them.
func (g *generator) claims() claimSet {
	value := func() any {
		switch g.IntN(9) {
		case 0:
			return g.maybe()
		case 1:
			return []float64{42, -7, 4.2, 0, 1e300}[g.IntN(5)]
		case 2:
			return []any{}
		case 3:
			return []any{"reader", true, 42.0, claimSet{"x": "reader"}}[g.IntN(2):]
		case 4:
			return map[string]any{"roles": "reader"}
		case 5:
			return nil
		}
		return g.one("reader", "writer", "a b", "", "true", "42", "é", "er")
	}
	out := claimSet{"iss": "https://issuer.example/a", "sub": g.one("alice", "bob", "alice/x", "al"), "role": value(), "aud": g.one("reader", "me"), "azp": value(), "realm": value()}
	if g.maybe() {
		out["realm"] = map[string]any{"roles": value()}
	}
	if g.maybe() {
		out["scope"] = []any{"reader", "writer"}
	}
	return out
}

// forwarded writes, or does not, whom a request is forwarded for, of which the last is to be believed.
func (g *generator) forwarded(req *authz.Request) {
	switch g.IntN(4) {
	case 0:
		req.Headers["x-forwarded-for"], req.RemoteIP = []string{"10.1.2.3"}, netip.MustParseAddr("10.1.2.3")
	case 1:
		req.Headers["x-forwarded-for"], req.RemoteIP = []string{"10.1.2.3, 127.0.0.1", "192.0.2.1"}, netip.MustParseAddr("192.0.2.1")
	case 2:
		req.Headers["x-forwarded-for"], req.RemoteIP = []string{"192.0.2.1,2001:db8::1"}, netip.MustParseAddr("2001:db8::1")
	}
}

// naming is a rule for a few peers that it names.
func (g *generator) naming(port uint32) *security.Rule {
	r := g.rule(port)
	exact := []string{"cluster.local/ns/finance/sa/a.b", "cluster.local/ns/finance/sa/axb", "old.local/ns/shop/sa/auditor", "other.domain/ns/shop/sa/auditor"}
	for range 1 + g.IntN(2) {
		r.From = append(r.From, &security.Rule_From{Source: &security.Source{Principals: []string{g.one(exact...), g.one(exact...)}, NotNamespaces: g.pick("namespaces")}})
	}
	for _, from := range r.From[:len(r.From)-1] {
		from.Source = &security.Source{Principals: []string{g.one(exact...)}, IpBlocks: from.GetSource().GetIpBlocks()}
	}
	return r
}

func (g *generator) one(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) request(port uint32) authz.Request {
	req := authz.Request{
		HTTP: true, SourceIP: netip.MustParseAddr("127.0.0.1"), DestinationIP: netip.MustParseAddr("127.0.0.1"), DestinationPort: port,
		Host: g.text(9, "payroll", "PayRoll.finance", "payroll:8080", "payroll.finance:80", "payroll.", "payroll.finance.:80", "x.finance", "[::1]", "[::1]:80",
			"payroll:080", "payroll..", "payroll.finance"),
		Method:  g.text(9, "GET", "POST", "PUT", "DELETE", "PATCH", "GET", "POST", "PROPFIND", "delete", "Delete", "PURGE"),
		Path:    g.path(),
		Headers: map[string][]string{},
	}
	if g.IntN(8) == 0 {
		req.Host = g.one("payroll:x", "payroll:80@evil", "u@payroll", "", "payroll:", "payroll,x", "payroll:80:80", "payroll:8080.", "[::1", "*")
	}
	if g.IntN(12) == 0 {
		req.Method, req.Path = "CONNECT", ""
	}
	if g.IntN(4) != 0 {
		req.Source = identities[g.IntN(len(identities))]
		req.SNI = g.one("outbound_.80_._.payroll", "payroll", "Payroll", "other", "")
	}
	if g.IntN(3) != 0 {
		req.Claims = g.claims()
	}
	g.forwarded(&req)
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
	case 6:
		req.Headers["x-test"] = []string{g.one("ok,bad", "é,x", "b*d", "bxd", "\xe9", "ba")}
	}
	return req
}
