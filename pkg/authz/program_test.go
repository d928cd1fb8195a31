package authz

import (
	"fmt"
	"strings"
	"testing"
)

// benchmarked are as many policies of one workload, each of which admits an account to some paths by some methods, but the last, which denies. The one in the middle is
// the auditor's.
func benchmarked(tb testing.TB, n int) []Policy {
	tb.Helper()
	var specs []string
	for i := range n - 1 {
		account, under := fmt.Sprintf("other-%d", i), fmt.Sprintf("/accounts/%d/*", i)
		if i == n/2 {
			account, under = "auditor", "/accounts/*"
		}
		specs = append(specs, fmt.Sprintf(`{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/finance/sa/%s"]}}],"to":[{"operation":{"methods":["GET","POST"],"paths":[%q]}}]}]}`, account, under))
	}
	return good(tb, append(specs, `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin*"]}}]}]}`)...)
}

func TestAuthorityIsWhatTheProxiesTakeForOne(t *testing.T) {
	const alphabet = "aZ0.-_:[]@, %\xc3"
	for text := range textsOf(alphabet, 5) {
		if got, want := IsAuthority(string(text)), authority.Match(text); got != want {
			t.Fatalf("%q is an authority: %v, and %v by the expression that the proxies have", text, got, want)
		}
	}
}

// Many identities are found in a program in no other way than few.
func TestManyValuesMatchAsEachOfThem(t *testing.T) {
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprintf("%q", fmt.Sprintf("cluster.local/ns/finance/sa/a%d", i)))
	}
	spec := func(names ...string) string {
		return `{"rules":[{"from":[{"source":{"principals":[` + strings.Join(names, ",") + `],"notPrincipals":["*/sa/a7"]}}],"to":[{"operation":{"notPaths":["/a","/b/*","*/c"]}}]}]}`
	}
	many := Compile(good(t, spec(names...)))
	for _, account := range []string{"a0", "a7", "a99", "a100", ""} {
		for _, path := range []string{"/a", "/b/x", "/x/c", "/d"} {
			var one Decision
			for _, name := range names {
				if d := Evaluate(good(t, spec(name)), request(account, "GET", path)); d.Allowed {
					one = d
				}
			}
			if got := many.Decide(request(account, "GET", path)); got.Allowed != one.Allowed {
				t.Errorf("%s, %s: %+v, by one name each %+v", account, path, got, one)
			}
		}
	}
}

// BenchmarkDecide is of 20 policies, of which the one in the middle admits.
func BenchmarkDecide(b *testing.B) {
	program, req := Compile(benchmarked(b, 20)), request("auditor", "GET", "/accounts/42?x=1")
	b.ReportAllocs()
	for b.Loop() {
		if !program.Decide(req).Allowed {
			b.Fatal("denied")
		}
	}
}
