package open_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/open"
	"github.com/bulwark-mesh/bulwark/pilot/internal/open/opentest"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

const (
	client = "spiffe://cluster.local/ns/shop/sa/client"
	other  = "spiffe://cluster.local/ns/shop/sa/other"
)

func connection(of string) opentest.Open {
	return opentest.Open{Properties: map[string]string{"xds.filter_chain_name": "tls-tcp", "connection.uri_san_peer_certificate": of,
		"destination.port": string(binary.LittleEndian.AppendUint64(nil, 80)), "filter_state.bulwark.peer_serial": "0a"}}
}

func request(of string, lines ...[2]string) opentest.Open {
	o := connection(of)
	delete(o.Properties, "xds.filter_chain_name")
	o.Head = append([][2]string{{":method", "GET"}, {":path", "/x"}}, lines...)
	return o
}

// rulesOf are those of a workload that believes issuers.
func rulesOf(policies []authz.Policy, issuers ...string) []byte {
	w := &compile.Workload{Other: compile.InboundPort{Mode: authz.Permissive}, Policies: policies}
	for _, i := range issuers {
		w.Issuers = append(w.Issuers, compile.Issuer{Rule: jwt.Rule{Issuer: i}})
	}
	return open.Rules(w)
}

func denying(clauses ...authz.Clause) []authz.Policy {
	return []authz.Policy{{Action: authz.Deny, Rules: []authz.Rule{{When: clauses}}}}
}

func deny(clauses ...authz.Clause) []byte { return rulesOf(denying(clauses...)) }

func of(a authz.Attribute, key, value string) authz.Clause {
	return authz.Clause{Attribute: a, Key: key, Values: []authz.Match{{Kind: authz.Exact, Value: value}}}
}

var allowAll = rulesOf(nil)

// Rules that come back after others end what was opened meanwhile, whether the host configures them anew, or has still had them and drops the others.
func TestRulesThatComeBackEndWhatWasOpenedMeanwhile(t *testing.T) {
	for name, anew := range map[string]bool{"configured anew": true, "kept": false} {
		t.Run(name, func(t *testing.T) {
			box := opentest.New(t)
			first := box.Configure(deny(of(authz.Principal, "", client)))
			box.Look(first)
			between := box.Configure(allowAll)
			if anew {
				box.Gone(first)
			}
			mine, others := box.Open(connection(client)), box.Open(connection(other))
			if ended := box.Look(between); len(ended) > 0 {
				t.Fatalf("%v ended while all was allowed", ended)
			}
			root := first
			if anew {
				root = box.Configure(deny(of(authz.Principal, "", client)))
			}
			box.Gone(between)
			if ended := box.Look(root); !ended[mine] || ended[others] {
				t.Errorf("%v ended, want %d and not %d", ended, mine, others)
			}
		})
	}
}

// What is opened after rules came is judged, too, as filters may have let it pass by others; what is in its handshake, when that is done.
func TestWhatComesSoonAfterRulesIsJudged(t *testing.T) {
	box := opentest.New(t)
	root := box.Configure(deny(of(authz.Principal, "", client)))
	box.Look(root)
	o := connection(client)
	delete(o.Properties, "connection.uri_san_peer_certificate")
	mine := box.Open(o)
	if ended := box.Look(root); len(ended) > 0 {
		t.Fatalf("%v ended in its handshake", ended)
	}
	o.Properties["connection.uri_san_peer_certificate"] = client
	if ended := box.Look(root); !ended[mine] {
		t.Error("a connection goes on whose client is forbidden")
	}
}

// Who is revoked is ended whatever policies say, and policies that change do not undo it; nor does another certificate count.
func TestRevokedAreEndedWhateverPoliciesSay(t *testing.T) {
	box := opentest.New(t)
	box.Configure(allowAll)
	set := compile.Settings{TrustDomain: "cluster.local"}
	mine, others, asked := box.Open(connection(client)), box.Open(connection(other)), box.Open(request(client))
	root := box.Configure(open.Revoked(set, []revocation.Revocation{{Identity: client, Serial: "b"}, {Identity: other, Serial: "a0a"}}))
	if ended := box.Look(root); len(ended) > 0 {
		t.Errorf("%v ended, of other certificates", ended)
	}
	root = box.Configure(open.Revoked(set, []revocation.Revocation{{Identity: client, Serial: "a"}}))
	if ended := box.Look(root); !ended[mine] || !ended[asked] || ended[others] {
		t.Errorf("%v ended, want %d and %d of the certificate", ended, mine, asked)
	}
	root = box.Configure(allowAll)
	again := box.Open(connection(client))
	if ended := box.Look(root); !ended[again] {
		t.Error("a change of policies lets a revoked one in")
	}
}

// A connection that carries requests goes on, whoever its client is, as each request is decided for itself; but where so many are open and forbidden that they would
// not end in time, those that are forbidden whatever they carry take them with them.
func TestConnectionsThatCarryRequestsEndWhereTooManyAreForbidden(t *testing.T) {
	for requests, crowded := range map[int]bool{1: false, 400: false, 600: true} {
		for what, rules := range map[string][]byte{"the client": deny(of(authz.Principal, "", client)), "the path": deny(of(authz.Path, "", "/x"))} {
			box := opentest.New(t)
			box.Configure(allowAll)
			over := connection(client)
			over.Properties["xds.filter_chain_name"] = "tls-http"
			carrier := box.Open(over)
			for range requests {
				box.Open(request(client))
			}
			ended := box.Look(box.Configure(rules))
			if want := crowded && what == "the client"; ended[carrier] != want {
				t.Errorf("%d requests, denied is %s: the connection ended: %v, want %v", requests, what, ended[carrier], want)
			}
			if delete(ended, carrier); len(ended) != requests {
				t.Errorf("%d requests, denied is %s: %d ended", requests, what, len(ended))
			}
		}
	}
}

// What policies say of tokens is decided of a stream as the evaluator decides of its request, whatever a claim is: a text that looks like a number is none, and the other way round.
func TestClaimsOfStreamsAreWhatTheEvaluatorTakesThemFor(t *testing.T) {
	number := math.Float64frombits(binary.LittleEndian.Uint64([]byte("engineer"))) // which in memory is as this text
	one := []any{"", "a", "ab", "b", "engineer", number, "\x00\x00\x00\x00\x00\x00E@", 42.0, "42", -7.0, 0.0, math.Copysign(0, -1), 1e300, 0.1, "0.1", true, false, "true", "false", "\x01", "\x00",
		nil, map[string]any{}, map[string]any{"x": "a"}, map[string]any{"": "a", "y": "a"}, "é", strings.Repeat("a", 300),
		"\n\x08\n\x01b\x12\x03\x1a\x01a"} // the last is what a claim b within it would be, as a message
	values := slices.Concat(one, []any{[]any{}, []any{one}, one, []any{nil, []any{"a"}, "ab"}, []any{map[string]any{"x": "a"}}})
	matches := []authz.Match{{Kind: authz.Present}}
	for _, v := range []string{"", "a", "b", "ab", "42", "4.2e1", "42.0", "0", "-0", "-7", "0.1", "1e300", "true", "false", "engineer", "E@", "é", fmt.Sprint(number), "\x01", "\x00", "x"} {
		for _, k := range []authz.Kind{authz.Exact, authz.Prefix, authz.Suffix} {
			matches = append(matches, authz.Match{Kind: k, Value: v})
		}
	}
	all := []map[string]any{{"iss": "another", "a": "a"}, {"iss": "issuer", "a": slices.Repeat([]any{"x"}, 20000)}} // a long one
	for _, v := range values {
		all = append(all, map[string]any{"iss": "issuer", "a": v}, map[string]any{"iss": "b/me", "x": v, "a": map[string]any{"b": v, "a": map[string]any{"": 1, "b": v}}})
	}
	for _, v := range one {
		all = append(all, map[string]any{"iss": "issuer", "sub": v}, map[string]any{"iss": []any{"issuer"}, "sub": "a"}, map[string]any{"sub": "a"}, nil)
	}
	var clauses []authz.Clause
	for _, m := range matches {
		for _, key := range []string{"[a]", "[a][b]", "[a][a][b]", "[a][x]", "[nothing]"} {
			clauses = append(clauses, authz.Clause{Attribute: authz.Claim, Key: key, Values: []authz.Match{m}}, authz.Clause{Attribute: authz.Claim, Key: key, Not: []authz.Match{m}})
		}
	}
	for _, v := range []string{"issuer/a", "issuer/", "/a", "b/me/x", "b", "a", "x/a", "issuer/42", "iss", ""} {
		for _, k := range []authz.Kind{authz.Exact, authz.Prefix, authz.Suffix, authz.Present} {
			m := []authz.Match{{Kind: k, Value: v}}
			clauses = append(clauses, authz.Clause{Attribute: authz.RequestPrincipal, Values: m}, authz.Clause{Attribute: authz.RequestPrincipal, Not: m})
		}
	}
	box := opentest.New(t)
	streams, ids := make([]opentest.Open, len(all)), make([]uint32, len(all))
	for i, claims := range all {
		streams[i] = request(client)
		streams[i].Properties["metadata"] = opentest.Metadata(t, claims)
		ids[i] = box.Open(streams[i])
	}
	for _, c := range clauses {
		policies := denying(c)
		program, root := authz.Compile(policies), box.Configure(rulesOf(policies, "issuer", "b/me"))
		ended := box.Look(root)
		for i, id := range ids {
			claims := all[i]
			if iss := claims["iss"]; iss != "issuer" && iss != "b/me" {
				claims = nil // of an issuer that is not believed
			}
			if d := program.Decide(authz.Request{HTTP: true, Host: "h", Method: "GET", Path: "/x", Claims: claims}); ended[id] == d.Allowed {
				t.Errorf("%+v ended %.80v: %v", c, all[i], ended[id])
			}
			if ended[id] {
				box.Gone(id)
				ids[i] = box.Open(streams[i])
			}
		}
		box.Gone(root)
	}
	if pages := box.Pages(); pages > 200 {
		t.Errorf("%d pages of memory: tokens are not given back", pages)
	}
}

// A request costs nothing for its token: the host is asked for it when rules come that are about tokens, and once.
func TestTokensAreAskedForByRulesAboutThem(t *testing.T) {
	box := opentest.New(t)
	box.Configure(rulesOf(nil, "issuer"))
	for i := range 10 {
		o := request(client)
		o.Properties["metadata"] = opentest.Metadata(t, map[string]any{"iss": "issuer", "a": float64(i)})
		box.Open(o)
	}
	if asked := box.Asked(); len(asked) > 0 {
		t.Errorf("for ten requests %v was asked for", asked)
	}
	box.Look(box.Configure(rulesOf(denying(of(authz.Path, "", "/y")), "issuer")))
	if asked := box.Asked(); asked["metadata"] > 0 || asked["destination.port"] != 10 {
		t.Errorf("for rules that are not about tokens %v was asked for", asked)
	}
	box.Look(box.Configure(rulesOf(denying(of(authz.Claim, "[a]", "x"), of(authz.Claim, "[b]", "x")), "another", "issuer")))
	if asked := box.Asked(); asked["metadata"] != 10 {
		t.Errorf("for rules that are about tokens %v was asked for", asked)
	}
}

// Of a request whose head was too long to be kept nobody knows what it asked for: it ends where rules may forbid it, and only there.
func TestLongHeadsEndWhereTheyMayBeForbidden(t *testing.T) {
	box := opentest.New(t)
	root := box.Configure(allowAll)
	for size, kept := range map[int]bool{20 << 10: true, 40 << 10: false, 100 << 10: false} {
		long := box.Open(request(client, [2]string{"x-long", strings.Repeat("x", size)}))
		if ended := box.Look(root); len(ended) > 0 {
			t.Errorf("%d bytes: %v ended for nothing", size, ended)
		}
		box.Gone(root)
		root = box.Configure(deny(of(authz.Path, "", "/y")))
		if ended := box.Look(root); ended[long] == kept {
			t.Errorf("%d bytes: ended is %v by a rule about another path", size, ended[long])
		}
		box.Gone(root)
		root = box.Configure(allowAll)
		box.Gone(long)
	}
}

// Requests and connections come and go in any order by the thousand, and rules with them: each that is there is found, each that is forbidden ends, and what is
// given back is used again.
func TestManyComeAndGo(t *testing.T) {
	box := opentest.New(t)
	rng := rand.New(rand.NewPCG(1, 1))
	there := map[uint32]bool{} // whether it is forbidden
	root, pages := box.Configure(deny(of(authz.Header, "x-a", "bad"))), uint32(0)
	for round := range 40 {
		for range 500 {
			forbidden := rng.IntN(3) == 0
			lines := [][2]string{{"x-other", strings.Repeat("x", rng.IntN(3000))}, {"x-a", "good"}}
			if forbidden {
				lines = append(lines, [2]string{"x-a", "bad"})
			}
			there[box.Open(request(client, lines...))] = forbidden
			if rng.IntN(4) == 0 {
				over := connection(client)
				over.Properties["xds.filter_chain_name"] = "tls-http"
				there[box.Open(over)] = false
			}
		}
		if round%4 == 3 {
			box.Gone(root)
			root = box.Configure(append(deny(of(authz.Header, "x-a", "bad")), fmt.Sprint(round)...)) // what follows is not read
		}
		if round%2 == 1 {
			ended := box.Look(root)
			for id, forbidden := range there {
				if ended[id] != forbidden {
					t.Fatalf("round %d: %d is forbidden: %v, and ended: %v", round, id, forbidden, ended[id])
				}
				if forbidden || rng.IntN(3) > 0 {
					box.Gone(id)
					delete(there, id)
				}
			}
		}
		if round == 19 {
			pages = box.Pages()
		}
	}
	if now := box.Pages(); now > pages+pages/4 {
		t.Errorf("%d pages of memory, %d half the way", now, pages)
	}
}
