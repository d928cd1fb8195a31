package translate_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

var (
	firstSeed = flag.Uint64("seed", 0, "of what is made at random, as a failure names it; 0 chooses one")
	sets      = flag.Int("sets", 200, "how many sets of policies an Envoy has at once")
	lasting   = flag.Duration("lasting", 0, "for how long further sets follow")
)

// unanswered is an external authorizer that is not there, and in whose place all is allowed: what is compared is of what it is asked.
var unanswered = authorizer.Provider{Name: "open", GRPC: true, Service: "finance/nobody", Port: 1, Timeout: time.Second, FailOpen: true, StatusOnError: 403}

// newSeed is the one that was asked for, or a new one.
func newSeed() uint64 {
	if *firstSeed != 0 {
		return *firstSeed
	}
	return rand.Uint64()
}

// requestsEach are made of each set of policies, of which some are connections that are not HTTP.
const requestsEach = 50

// TestEnvoyAndEvaluatorAgree runs random requests and connections against random policies, through Envoy's RBAC and through the evaluator: the verdict, the rule by
// which it came, whether it is audited and by which rule an external authorizer is asked, and what policies on trial would
// change have to be the same.
func TestEnvoyAndEvaluatorAgree(t *testing.T) {
	envoytest.Find(t)
	seed := newSeed()
	for end := time.Now().Add(*lasting); ; seed += uint64(*sets) {
		t.Run(fmt.Sprintf("seeds from %d", seed), func(t *testing.T) { compareFrom(t, seed) })
		if t.Failed() || time.Now().After(end) {
			return
		}
	}
}

// compareFrom has one Envoy for as many sets of policies, the first of which is a seed's.
func compareFrom(t *testing.T, seed uint64) {
	c := newComparison(t)
	var all []*set
	for i := range *sets {
		all = append(all, c.newSet(seed+uint64(i), i))
	}
	c.scene.start(func(srv *grpc.Server) { srv.RegisterService(&logService, c.verdicts) })
	t.Run("sets", func(t *testing.T) {
		for _, s := range all {
			t.Run(fmt.Sprint(s.seed), func(t *testing.T) {
				t.Parallel()
				if !c.t.Failed() { // one set is enough to look at
					c.compare(t, s)
				}
			})
		}
	})
	for _, s := range all {
		if !t.Failed() {
			c.compareLogged(t, s)
		}
	}
	if t.Failed() || *sets < 20 {
		return
	}
	denied, read, tcp, apart, audited, of := c.denied.Load(), c.read.Load(), c.tcp.Load(), c.apart.Load(), c.audited.Load(), c.asked.Load()
	t.Logf("%d requests and %d connections, of which %d were denied and %d audited, and %d had an authorizer asked; of %d what is tried out would change the verdict; %d filters differ by peer", read-tcp, tcp, denied, audited, of, c.trials.Load(), apart)
	if asked := int64(*sets * requestsEach); denied < read/20 || denied > read*19/20 || read < asked/2 || tcp < asked/20 || apart < int64(*sets/10) || audited < read/50 || of < read/100 || c.trials.Load() == 0 {
		t.Error("the test does not test much")
	}
}

// comparison is what the sets have in common: one mesh, one issuer of tokens, one application, and one Envoy.
type comparison struct {
	t         *testing.T
	scene     *scene
	http, raw uint32 // ports of each workload, for requests and for connections that are none
	issuer    *issuer
	issuers   []compile.Issuer
	clients   map[spiffe.ID]envoytest.Leaf
	verdicts  *verdicts

	denied, read, tcp, apart, audited, asked, trials atomic.Int64
}

func newComparison(t *testing.T) *comparison {
	ca, ports := envoytest.NewCA(t), envoytest.FreePorts(t, 2)
	c := &comparison{t: t, http: ports[0], raw: ports[1], issuer: newIssuer(t, "https://issuer.example/a"), clients: map[spiffe.ID]envoytest.Leaf{}, verdicts: newVerdicts(),
		scene: &scene{t: t, ca: ca, leaf: ca.Issue(t, "spiffe://cluster.local/ns/finance/sa/payroll")}}
	c.issuers = []compile.Issuer{{Rule: ruleOf(c.issuer, nil), KeySet: c.issuer.published(t)}}
	c.scene.clusters = append(c.scene.clusters, staticCluster(applicationBehind(c.http), startApplication(t, false).port))
	c.scene.clusters = append(c.scene.clusters, authorizerAt(t, unanswered, 1))
	for _, id := range identities {
		c.clients[id] = ca.Issue(t, id.String())
	}
	return c
}

// set is a workload, at an address of its own, and the policies of a seed that hold there.
type set struct {
	*generator
	seed     uint64
	at       netip.Addr
	policies []authz.Policy
	program  *authz.Program
	together *authz.Program // with those that are tried out
	callers  []caller
	open     map[caller]asking

	connections []tried
}

// tried is a connection that was made.
type tried struct {
	req   authz.Request
	want  authz.Decision
	conn  connection
	heard bool // what the client said, by the application
}

func (c *comparison) newSet(seed uint64, i int) *set {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 1))}
	s := &set{generator: g, seed: seed, at: netip.AddrFrom4([4]byte{127, 0, 1 + byte(i/250), 1 + byte(i%250)}), open: map[caller]asking{}}
	g.normalizes = g.IntN(2) == 0
	s.policies = g.policies(c.http, c.raw)
	s.program, s.together = authz.Compile(s.policies), authz.Compile(enforced(s.policies))
	for range 6 {
		s.callers = append(s.callers, g.caller())
	}
	for _, action := range []authz.Action{authz.Allow, authz.Deny} {
		if authz.ByPeer(s.policies, action) != nil {
			c.apart.Add(1)
		}
	}
	c.scene.listeners = append(c.scene.listeners, c.listener(s))
	return s
}

// listener is the workload's: as Pilot makes it, for both ports, with an answer in place of the application where requests come, and all connections logged.
func (c *comparison) listener(s *set) *listener.Listener {
	w := &compile.Workload{
		Issuers: c.issuers, Class: compile.Class{Namespace: "finance", NormalizePaths: s.normalizes, ProxyProtocol: []uint32{c.http, c.raw}}, Policies: s.policies,
		Other: compile.InboundPort{Mode: authz.Strict, Protocol: protocol.TCP},
		Ports: []compile.InboundPort{{Number: c.http, Protocol: protocol.HTTP, Mode: authz.Permissive},
			{Number: c.raw, Protocol: protocol.TCP, Mode: authz.Permissive, ServerFirst: s.IntN(4) == 0}},
	}
	if slices.ContainsFunc(s.policies, func(p authz.Policy) bool { return p.Action == authz.Custom }) {
		w.Authorizers = []authorizer.Provider{unanswered}
	}
	l := inboundOn(c.t, w, c.http)
	l.Name = "inbound-" + s.at.String()
	l.Address.GetSocketAddress().Address = s.at.String()
	l.AdditionalAddresses = []*listener.AdditionalAddress{{Address: addressOf(s.at, c.raw)}}
	for _, chain := range l.GetFilterChains() {
		if chain.GetTransportSocket() != nil {
			staticCertificates(c.t, chain, c.scene.ca, c.scene.leaf)
		}
		if last(chain).GetName() == "envoy.filters.network.http_connection_manager" {
			answer(c.t, chain)
		} else {
			tellVerdicts(c.t, chain)
		}
	}
	return l
}

// tell says how a failure can be seen again.
func (s *set) tell(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Logf("to see it again: -run TestEnvoyAndEvaluatorAgree -seed %d -sets 1; policies:\n%s", s.seed, strings.Join(s.specs, "\n"))
	}
}

// compare makes the requests and the connections of a set.
func (c *comparison) compare(t *testing.T, s *set) {
	defer s.tell(t)
	for range requestsEach {
		if s.IntN(5) == 0 {
			to, by := netip.AddrPortFrom(s.at, uint16(c.raw)), s.anyOf(s.callers)
			req := s.connection(to, by)
			conn, heard := hearsKnock(t, by, to, c.clients)
			s.connections = append(s.connections, tried{req, s.program.Decide(req), conn, heard})
			continue
		}
		c.request(t, s)
		if t.Failed() {
			return
		}
	}
}

// compareLogged looks at what is logged of a set's connections, which comes later.
func (c *comparison) compareLogged(t *testing.T, s *set) {
	defer s.tell(t)
	times := map[connection]int{}
	for _, l := range s.connections {
		times[l.conn]++
	}
	for _, l := range s.connections {
		if times[l.conn] > 1 {
			continue // a client has had the same port again, and Envoy's threads log each for itself: whose entry is whose cannot be told
		}
		got, err := c.verdicts.of(t, l.conn)
		switch {
		case err != nil:
			t.Fatalf("%v, of which the application hears: %v, and the evaluator says %+v: %+v", err, l.heard, l.want, l.req)
		case got.refused && !l.heard && !l.want.Allowed:
			continue
		case l.heard != l.want.Allowed || got.denied == l.want.Allowed:
			t.Fatalf("Envoy lets a connection through: %v, and logs that it is denied: %v, the evaluator says allowed=%v by %q (%s)\n%+v", l.heard, got.denied, l.want.Allowed, l.want.Policy, l.want.Reason, l.req)
		case got.rule != l.want.Policy && !(l.want.Allowed && onTrial(s.policies, authz.Allow)): // which are told in the place of those that hold
			t.Fatalf("Envoy decides about a connection by %q, the evaluator by %q\n%+v", got.rule, l.want.Policy, l.req)
		case got.asked != askedBy(l.want):
			t.Fatalf("An authorizer is asked of a connection by %q, to the evaluator by %q\n%+v", got.asked, l.want.Asked, l.req)
		case got.audited != (len(l.want.Audited) > 0):
			t.Fatalf("Envoy audits a connection: %v, the evaluator by %q\n%+v", got.audited, l.want.Audited, l.req)
		}
		c.onTrial(t, s, l.req, l.want, got.trial)
		c.count(l.want)
		c.tcp.Add(1)
	}
}

// askedBy is the rule by which the external authorizer is asked, as the filter that says so names it.
func askedBy(d authz.Decision) string {
	if len(d.Asked) == 0 {
		return ""
	}
	return istiocompat.CustomRule(unanswered.Name, d.Asked[0])
}

// onTrial reports whether policies of an action are tried out.
func onTrial(policies []authz.Policy, action authz.Action) bool {
	return slices.ContainsFunc(policies, func(p authz.Policy) bool { return p.Action == action && p.DryRun && !p.Ignored })
}

func (c *comparison) count(d authz.Decision) {
	c.read.Add(1)
	if !d.Allowed {
		c.denied.Add(1)
	}
	if len(d.Audited) > 0 {
		c.audited.Add(1)
	}
	if len(d.Asked) > 0 {
		c.asked.Add(1)
	}
}

// request makes one.
func (c *comparison) request(t *testing.T, s *set) {
	t.Helper()
	by := s.anyOf(s.callers)
	req := s.generator.request(netip.AddrPortFrom(s.at, uint16(c.http)), by)
	want := s.program.Decide(req)
	if by.http2 && closesSlowly(req) && s.IntN(50) > 0 {
		by.http2 = false
	}
	sent := req
	if req.Claims != nil {
		sent.Headers = maps.Clone(req.Headers)
		written := maps.Clone(req.Claims)
		if written["scope"] != nil {
			written["scope"] = "reader writer"
		}
		sent.Headers["authorization"] = []string{"Bearer " + c.issuer.token(t, jose.ES256, written)}
	}
	status, header, err := c.ask(t, s, by, sent)
	if err != nil && !by.http2 {
		t.Fatalf("no answer to %+v: %v", req, err)
	}
	switch rule, audited := ruleIn(header), header.Get("x-audited") == "true"; {
	case status == 200 && !want.Allowed, status == 403 && want.Allowed, status == 403 && malformed(req), status != 200 && status != 403 && !unread(req, by.http2):
		t.Fatalf("Envoy answers %d, the evaluator says allowed=%v by %q (%s)\nHTTP/2 %v, request %+v", status, want.Allowed, want.Policy, want.Reason, by.http2, req)
	case status != 200 && status != 403:
		return
	case rule != want.Policy:
		t.Fatalf("Envoy answers %d by %q (by peer: %v), the evaluator by %q\nHTTP/2 %v, request %+v", status, rule, authz.ByPeer(s.policies, authz.Deny) != nil, want.Policy, by.http2, req)
	case strings.TrimPrefix(header.Get("x-asked"), "-") != askedBy(want):
		t.Fatalf("An authorizer is asked by %q, to the evaluator by %q\nHTTP/2 %v, request %+v", header.Get("x-asked"), want.Asked, by.http2, req)
	case audited != (len(want.Audited) > 0):
		t.Fatalf("Envoy audits: %v, the evaluator by %q\nHTTP/2 %v, request %+v", audited, want.Audited, by.http2, req)
	}
	if !want.Allowed { // what the filter that denies has found is in the log alone: see TestTrialsAgreeWithTheEvaluator
		c.count(want)
		return
	}
	c.onTrial(t, s, req, want, trialOf(header.Get("x-trial-deny"), header.Get("x-trial-allow"), header.Get("x-trial-verdict")))
	c.count(want)
}

// onTrial compares what is said of policies that are tried out with what all of them would decide.
func (c *comparison) onTrial(t *testing.T, s *set, req authz.Request, without authz.Decision, got trial) {
	t.Helper()
	want := s.together.Decide(req)
	if want.Allowed != without.Allowed {
		c.trials.Add(1)
	}
	if allowed, rule := got.with(without); allowed != want.Allowed || allowed != without.Allowed && rule != want.Policy {
		t.Fatalf("with policies on trial Envoy says allowed=%v by %q (%+v), the evaluator allowed=%v by %q (%s); without, %v by %q\n%+v", allowed, rule, got, want.Allowed, want.Policy, want.Reason,
			without.Allowed, without.Policy, req)
	}
}

// enforced are policies of which none is tried out.
func enforced(policies []authz.Policy) []authz.Policy {
	out := slices.Clone(policies)
	for i := range out {
		out[i].DryRun = false
	}
	return out
}

// ask makes a request of the set's workload, on a connection that is open if there is one; Envoy may have closed it since.
func (c *comparison) ask(t *testing.T, s *set, by caller, req authz.Request) (int, http.Header, error) {
	t.Helper()
	if open := s.open[by]; open != nil {
		if status, header, err := open.ask(req); err == nil {
			c.keep(s, by, open, req, status)
			return status, header, nil
		}
	}
	conn := by.dial(t, netip.AddrPortFrom(s.at, uint16(c.http)), c.clients)
	t.Cleanup(func() { _ = conn.Close() })
	var open asking = newHTTP1(conn)
	if by.http2 {
		var err error
		if open, err = newFrames(conn); err != nil {
			t.Fatal(err)
		}
	}
	status, header, err := open.ask(req)
	c.keep(s, by, open, req, status)
	return status, header, err
}

// keep has the next request made on the same connection, if there can be one.
func (c *comparison) keep(s *set, by caller, open asking, req authz.Request, status int) {
	delete(s.open, by)
	if (status == 200 || status == 403) && req.Method != "CONNECT" {
		s.open[by] = open
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
	return req.Method == "CONNECT" && !connects(req.Host) || malformed(req) || !known || !ascii(req.Path)
}

// connects reports whether a request by CONNECT in HTTP/1.1 may have an authority: a name, or an address that is one, and a port.
func connects(authority string) bool {
	host, port, err := net.SplitHostPort(authority)
	if err != nil || host == "" || host[0] == '.' || port == "" || port[0] == '0' {
		return false
	}
	if strings.HasPrefix(authority, "[") {
		if _, err := netip.ParseAddr(host); err != nil {
			return false
		}
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

var token = regexp.MustCompile("^[0-9A-Za-z!#$%&'*+.^_`|~-]+$")

// closesSlowly reports whether Envoy waits a second before it closes an HTTP/2 connection on which it does not read the request.
func closesSlowly(req authz.Request) bool {
	bad := func(r rune) bool { return r <= ' ' || r == 0x7f }
	odd := func(r rune) bool { return bad(r) || r >= 0x80 || strings.ContainsRune("\"#/<>?\\^`{|}", r) }
	return !token.MatchString(req.Method) || !strings.HasPrefix(req.Path, "/") && req.Method != "CONNECT" || strings.ContainsFunc(req.Path, bad) ||
		strings.Contains(req.Path, "#") || req.Host == "" || strings.ContainsFunc(req.Host, odd)
}
