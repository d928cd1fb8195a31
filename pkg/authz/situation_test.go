package authz

import (
	"strings"
	"testing"
)

// What users of other meshes have run into: each is refused, or does what its author wanted, on the safe side.
func TestSituationsInWhichPoliciesWereEvaded(t *testing.T) {
	const inside = `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/internal/*"]}}]}]}`
	for _, c := range []struct {
		name, spec string
		refused    string // with this reason; else method, path and host are asked
		ask        []string
		allowed    bool
	}{
		{"a parameter before a dot segment", inside, "", []string{"GET", "/public/..;x=1/internal/a", "h"}, false},
		{"a parameter within the segment", inside, "", []string{"GET", "/internal;x=1/a", "h"}, false},
		{"two slashes", inside, "", []string{"GET", "//internal//a", "h"}, false},
		{"an escaped slash", inside, "", []string{"GET", "/internal%2fa", "h"}, false},
		{"an escaped backslash", inside, "", []string{"GET", "/x/..%5Cinternal/a", "h"}, false},
		{"escaped twice", inside, "", []string{"GET", "/%2569nternal/a", "h"}, false},
		{"escaped in part", inside, "", []string{"GET", "/%%369nternal/a", "h"}, false},
		{"a fragment", inside, "", []string{"GET", "/internal/a#/public", "h"}, false},
		{"a query", inside, "", []string{"GET", "/internal/a?/public", "h"}, false},
		{"a path in another case is another", inside, "", []string{"GET", "/INTERNAL/a", "h"}, true},
		{"a wildcard at both ends of a principal", `{"rules":[{"from":[{"source":{"principals":["*.ext.mesh/abc*"]}}]}]}`, "with one *", nil, false},
		{"a wildcard at both ends of a host", `{"rules":[{"to":[{"operation":{"hosts":["*.example.int","*.example.int:*"]}}]}]}`, "only one *", nil, false},
		{"a gRPC method as a method", `{"rules":[{"to":[{"operation":{"methods":["/pkg.Service/Method"]}}]}]}`, "use paths", nil, false},
		{"a host in another case", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["secret.example.com"]}}]}]}`, "", []string{"GET", "/", "SECRET.example.com"}, false},
		{"a host with a port", `{"action":"DENY","rules":[{"to":[{"operation":{"hosts":["secret.example.com"]}}]}]}`, "", []string{"GET", "/", "secret.example.com:80"}, false},
		{"all hosts but one, and a port", `{"action":"DENY","rules":[{"to":[{"operation":{"notHosts":["open.example.com"]}}]}]}`, "", []string{"GET", "/", "open.example.com:80"}, false},
		{"a host that an ALLOW names, and a port", `{"rules":[{"to":[{"operation":{"hosts":["*.example.com"]}}]}]}`, "", []string{"GET", "/", "a.example.com:443"}, false},
		{"the same, written for both", `{"rules":[{"to":[{"operation":{"hosts":["*.example.com","*.example.com:443"]}}]}]}`, "", []string{"GET", "/", "a.example.com:443"}, true},
		{"any method", `{"rules":[{"to":[{"operation":{"methods":["*"],"paths":["/api*"]}}]}]}`, "", []string{"GET", "/api/x", "h"}, true},
		{"a name of a port", `{"rules":[{"to":[{"operation":{"ports":["https"]}}]}]}`, "not a port", nil, false},
		{"another header for the host", `{"rules":[{"when":[{"key":"request.headers[Host]","values":["h"]}]}]}`, "use to.operation.hosts", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, problems := policy(t, c.spec)
			if c.refused != "" {
				if len(problems) == 0 || !strings.Contains(problems[0].Reason, c.refused) {
					t.Fatalf("problems %v, want %q", problems, c.refused)
				}
				return
			}
			req := request("a", c.ask[0], c.ask[1])
			req.Host = c.ask[2]
			if d := Evaluate([]Policy{p}, req); len(problems) > 0 || d.Allowed != c.allowed {
				t.Fatalf("%v, %+v; want allowed %v", problems, d, c.allowed)
			}
		})
	}
}
