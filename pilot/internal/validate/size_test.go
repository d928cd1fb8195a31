package validate

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Whoever may write a policy in a namespace of his own could otherwise have Pilot, or every proxy that the policy is for, spend their time and memory on it. What is too large is refused by its
// bounds before anything is made of it, and the answer is short, whatever is in it.
func TestHugePolicyIsRefusedAtOnce(t *testing.T) {
	megabyte := strings.Repeat("(a+)+", 1<<20/5)
	many := func(n int, format string) string {
		var out []string
		for i := range n {
			out = append(out, strings.ReplaceAll(format, "N", fmt.Sprint(i)))
		}
		return strings.Join(out, ",")
	}
	operation := func(of string) string { return `{"rules":[{"to":[{"operation":{` + of + `}}]}]}` }
	source := func(of string) string { return `{"rules":[{"from":[{"source":{` + of + `}}]}]}` }
	token := func(of string) string {
		return `{"jwtRules":[{"issuer":"x","jwksUri":"https://a.example/keys",` + of + `}]}`
	}
	for name, c := range map[string]struct{ kind, spec string }{
		"a path of a megabyte":             {"AuthorizationPolicy", operation(`"paths":["/` + megabyte + `"]`)},
		"a path of 10,000 brackets":        {"AuthorizationPolicy", operation(`"paths":["/` + strings.Repeat("(", 5000) + strings.Repeat(")", 5000) + `"]`)},
		"a path of 10,000 templates":       {"AuthorizationPolicy", operation(`"paths":["` + strings.Repeat("/{*}", 10000) + `"]`)},
		"a host of a megabyte":             {"AuthorizationPolicy", operation(`"hosts":["` + megabyte + `"]`)},
		"a method of a megabyte":           {"AuthorizationPolicy", operation(`"methods":["` + strings.Repeat("A", 1<<20) + `"]`)},
		"a port of a megabyte":             {"AuthorizationPolicy", operation(`"ports":["` + strings.Repeat("1", 1<<20) + `"]`)},
		"a principal of a megabyte":        {"AuthorizationPolicy", source(`"principals":["` + megabyte + `"]`)},
		"a namespace of a megabyte":        {"AuthorizationPolicy", source(`"namespaces":["` + strings.Repeat("a", 1<<20) + `"]`)},
		"an address of a megabyte":         {"AuthorizationPolicy", source(`"ipBlocks":["` + strings.Repeat("1", 1<<20) + `"]`)},
		"a subject of a megabyte":          {"AuthorizationPolicy", source(`"requestPrincipals":["https://a/` + megabyte + `"]`)},
		"a header of a megabyte":           {"AuthorizationPolicy", `{"rules":[{"when":[{"key":"request.headers[x]","values":["` + megabyte + `"]}]}]}`},
		"a key of a megabyte":              {"AuthorizationPolicy", `{"rules":[{"when":[{"key":"` + megabyte + `","values":["a"]}]}]}`},
		"a claim of a megabyte":            {"AuthorizationPolicy", `{"rules":[{"when":[{"key":"request.auth.claims[` + megabyte + `]","values":["a"]}]}]}`},
		"claims 10,000 deep":               {"AuthorizationPolicy", `{"rules":[{"when":[{"key":"request.auth.claims` + strings.Repeat("[a]", 10000) + `","values":["a"]}]}]}`},
		"a field of a megabyte":            {"AuthorizationPolicy", `{"rules":[{"` + megabyte + `":1}]}`},
		"an action of a megabyte":          {"AuthorizationPolicy", `{"action":"` + megabyte + `"}`},
		"20,000 rules":                     {"AuthorizationPolicy", `{"rules":[` + many(20_000, "{}") + `]}`},
		"10,000 paths":                     {"AuthorizationPolicy", operation(`"paths":[` + many(10_000, `"/pN/{*}"`) + `]`)},
		"10,000 paths that never are":      {"AuthorizationPolicy", operation(`"paths":[` + many(10_000, `"/%2fN"`) + `]`)},
		"10,000 principals":                {"AuthorizationPolicy", source(`"principals":[` + many(10_000, `"*/sa/pN"`) + `]`)},
		"10,000 addresses":                 {"AuthorizationPolicy", source(`"remoteIpBlocks":[` + many(10_000, `"10.0.0.0/8"`) + `]`)},
		"rules 10,000 deep":                {"AuthorizationPolicy", strings.Repeat(`{"rules":[`, 10_000)},
		"keys of a megabyte":               {"RequestAuthentication", `{"jwtRules":[{"issuer":"x","jwks":"` + strings.Repeat("[", 1<<20) + `"}]}`},
		"10,000 issuers":                   {"RequestAuthentication", `{"jwtRules":[` + many(10_000, `{"issuer":"https://N.example"}`) + `]}`},
		"10,000 audiences":                 {"RequestAuthentication", token(`"audiences":[` + many(10_000, `"N"`) + `]`)},
		"10,000 headers":                   {"RequestAuthentication", token(`"fromHeaders":[` + many(10_000, `{"name":"xN"}`) + `]`)},
		"an issuer of a megabyte":          {"RequestAuthentication", `{"jwtRules":[{"issuer":"` + megabyte + `","jwksUri":"https://a.example/keys"}]}`},
		"a URL of a megabyte":              {"RequestAuthentication", `{"jwtRules":[{"issuer":"x","jwksUri":"https://a.example/` + strings.Repeat("a", 1<<20) + `"}]}`},
		"an audience of a megabyte":        {"RequestAuthentication", token(`"audiences":["` + megabyte + `"]`)},
		"a parameter of a megabyte":        {"RequestAuthentication", token(`"fromParams":["` + strings.Repeat("a", 1<<20) + `"]`)},
		"a cookie of a megabyte":           {"RequestAuthentication", token(`"fromCookies":["` + strings.Repeat("a", 1<<20) + `"]`)},
		"a header's name of a megabyte":    {"RequestAuthentication", token(`"fromHeaders":[{"name":"` + strings.Repeat("a", 1<<20) + `"}]`)},
		"a prefix of a megabyte":           {"RequestAuthentication", token(`"fromHeaders":[{"name":"x","prefix":"` + megabyte + `"}]`)},
		"a claim's header of a megabyte":   {"RequestAuthentication", token(`"outputClaimToHeaders":[{"header":"` + strings.Repeat("a", 1<<20) + `","claim":"a"}]`)},
		"an output claim of a megabyte":    {"RequestAuthentication", token(`"outputClaimToHeaders":[{"header":"x","claim":"` + megabyte + `"}]`)},
		"a payload's header of a megabyte": {"RequestAuthentication", token(`"outputPayloadToHeader":"` + strings.Repeat("a", 1<<20) + `"`)},
		"10,000 space-delimited claims":    {"RequestAuthentication", token(`"spaceDelimitedClaims":[` + many(10_000, `"N"`) + `]`)},
		"a mode of a megabyte":             {"PeerAuthentication", `{"mtls":{"mode":"` + megabyte + `"}}`},
		"10,000 hosts":                     {"Sidecar", `{"egress":[{"hosts":[` + many(10_000, `"./aN.b.svc.cluster.local"`) + `]}]}`},
		"a Sidecar's host of a megabyte":   {"Sidecar", `{"egress":[{"hosts":["./` + megabyte + `"]}]}`},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			r := review(t, c.kind, "a", c.spec)
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if r.Allowed {
				t.Fatal("it is admitted")
			}
			if said := r.Result.Message; len(said) > 4<<10 {
				t.Fatalf("a message of %d bytes: %.300s", len(said), said)
			}
			if allocated := after.TotalAlloc - before.TotalAlloc; took > slower*500*time.Millisecond || allocated > 64<<20 {
				t.Errorf("it takes %v and %d MB", took, allocated>>20)
			}
		})
	}
}
