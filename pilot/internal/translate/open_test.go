package translate_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/open"
	"github.com/bulwark-mesh/bulwark/pilot/internal/open/opentest"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// opened is a request, or a connection, as Envoy shows it to the filter that ends what is forbidden.
func opened(t *testing.T, req authz.Request, chain string) opentest.Open {
	t.Helper()
	address := func(a netip.Addr) string { return netip.AddrPortFrom(a, 5000).String() }
	remote := req.SourceIP
	if req.RemoteIP.IsValid() {
		remote = req.RemoteIP
	}
	o := opentest.Open{Properties: map[string]string{
		"xds.filter_chain_name": chain, "filter_state.bulwark.source": req.SourceIP.String(), "source.address": address(remote),
		"destination.address": address(req.DestinationIP), "destination.port": string(binary.LittleEndian.AppendUint64(nil, uint64(req.DestinationPort))),
	}}
	if !req.Source.IsZero() {
		o.Properties["connection.uri_san_peer_certificate"] = req.Source.String()
	}
	if req.SNI != "" {
		o.Properties["connection.requested_server_name"] = req.SNI
	}
	if req.HTTP && chain == "" {
		path := req.Path
		if seen, ok := authz.SeenPath(req); ok && req.NormalizesPaths {
			path = seen
		}
		o.Head = [][2]string{{":authority", req.Host}, {":path", path}, {":method", req.Method}, {"x-testing", "bad"}}
		if req.Method == "CONNECT" {
			o.Head = slices.Delete(o.Head, 1, 2)
		}
		if o.Properties["metadata"] = opentest.Metadata(t, req.Claims); req.Claims == nil && req.SNI == "" {
			o.Properties["metadata"] = "" // nothing at all has been noted
		}
		for _, line := range req.Headers["x-test"] {
			o.Head = append(o.Head, [2]string{"x-test", line})
		}
	}
	return o
}

func chainOf(req authz.Request, kind string) string {
	if req.Source.IsZero() {
		return "plaintext-" + kind
	}
	return "tls-" + kind
}

// ofTokens is what policies ask of tokens, and nothing else.
func ofTokens(policies []authz.Policy) (out []authz.Policy) {
	tokens := func(clauses authz.Clauses) (out authz.Clauses) {
		for _, c := range clauses {
			if c.Attribute == authz.Claim || c.Attribute == authz.RequestPrincipal {
				out = append(out, c)
			}
		}
		return out
	}
	for _, p := range policies {
		var rules []authz.Rule
		for _, r := range p.Rules {
			var from []authz.Clauses
			for _, f := range r.From {
				if f = tokens(f); len(f) > 0 {
					from = append(from, f)
				}
			}
			r.From, r.To, r.When = from, nil, tokens(r.When)
			if len(r.From)+len(r.When) > 0 {
				rules = append(rules, r)
			}
		}
		if p.Rules = rules; len(rules) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// What is ended of requests and connections that are open is what pkg/authz says is denied by the policies that have come, for random ones of both: each of those,
// and no other. What a token said counts as long as its issuer is one that the workload believes. A connection that carries requests goes on.
func TestWhatIsEndedIsWhatTheEvaluatorDenies(t *testing.T) {
	seed := newSeed()
	ends, stays, tcp, byToken := 0, 0, 0, 0
	box := opentest.New(t)
	for i := range uint64(600) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed+i, 2))}
		g.normalizes = g.IntN(2) == 0
		policies := g.policies(8080, 9000)
		if i%2 == 0 {
			policies = ofTokens(policies)
		}
		program := authz.Compile(policies)
		w := &compile.Workload{Policies: policies, Other: compile.InboundPort{Mode: authz.Permissive}, Issuers: []compile.Issuer{{Rule: jwt.Rule{Issuer: "https://issuer.example/b"}}}}
		believed := g.IntN(4) != 0
		if believed {
			w.Issuers = append(w.Issuers, compile.Issuer{Rule: jwt.Rule{Issuer: "https://issuer.example/a"}})
		}
		type judged struct {
			req  authz.Request
			over uint32
		}
		requests, raw := map[uint32]judged{}, map[uint32]authz.Request{}
		at := netip.MustParseAddr(g.one("127.0.1.5", "10.2.3.4", "2001:db8::7"))
		for range 6 {
			by := g.caller()
			by.from = netip.MustParseAddr(g.one("127.0.0.1", "127.0.0.3", "::1", "10.0.0.9", "::ffff:10.1.2.3"))
			c := g.connection(netip.AddrPortFrom(at, 9000), by)
			raw[box.Open(opened(t, c, chainOf(c, "tcp")))] = c
			c.DestinationPort = 8080
			over := box.Open(opened(t, c, chainOf(c, "http")))
			for range 6 {
				req := g.request(netip.AddrPortFrom(at, 8080), by)
				if malformed(req) {
					continue
				}
				requests[box.Open(opened(t, req, ""))] = judged{req, over}
			}
		}
		root := box.Configure(open.Rules(w))
		ended := box.Look(root)
		tell := func(what string, req authz.Request, d authz.Decision) {
			t.Fatalf("-seed %d: %s, the evaluator says allowed=%v by %q (%s): %+v\n%v", seed+i, what, d.Allowed, d.Policy, d.Reason, req, g.specs)
		}
		for id, r := range requests {
			if !believed {
				r.req.Claims = nil
			}
			d := program.Decide(r.req)
			without := r.req
			if without.Claims = nil; program.Decide(without).Allowed != d.Allowed {
				byToken++
			}
			switch {
			case ended[id] && d.Allowed:
				tell("a request was ended", r.req, d)
			case !ended[id] && !d.Allowed:
				tell("a request goes on", r.req, d)
			case ended[r.over]:
				tell("the connection of a request was ended", r.req, d)
			}
			if ended[id] {
				ends++
			} else {
				stays++
			}
		}
		for id, c := range raw {
			if d := program.Decide(c); ended[id] == d.Allowed {
				tell(fmt.Sprintf("a connection was ended: %v", ended[id]), c, d)
			}
			if ended[id] {
				tcp++
			}
		}
		for id := range raw {
			box.Gone(id)
		}
		over := map[uint32]bool{}
		for id, r := range requests {
			box.Gone(id)
			over[r.over] = true
		}
		for id := range over {
			box.Gone(id)
		}
		box.Gone(root)
	}
	t.Logf("seed %d: of requests %d ended and %d went on, which was for the token of %d, and %d connections of another kind ended", seed, ends, stays, byToken, tcp)
	if ends < 1000 || stays < 1000 || tcp < 200 || byToken < 60 {
		t.Error("the test does not test much")
	}
}
