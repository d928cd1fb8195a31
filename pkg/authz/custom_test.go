package authz

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
)

// Of an external authorizer it is known whether it is asked, by which rule, and that it can only deny.
func TestWhetherAnAuthorizerIsAsked(t *testing.T) {
	with := options
	with.Authorizers = []authorizer.Provider{{Name: "one"}, {Name: "two"}}
	var policies []Policy
	for i, spec := range []string{
		`{"action":"CUSTOM","provider":{"name":"one"},"rules":[{"to":[{"operation":{"paths":["/a/*"]}}]},{"to":[{"operation":{"methods":["POST"]}}]}]}`,
		`{"action":"CUSTOM","provider":{"name":"two"},"rules":[{"from":[{"source":{"principals":["cluster.local/ns/finance/sa/a"]}}]}]}`,
		`{"action":"CUSTOM","provider":{"name":"none"},"rules":[{"to":[{"operation":{"paths":["/none"]}}]}]}`,
		`{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/a/closed"]}}]}]}`,
	} {
		var s security.AuthorizationPolicy
		if err := protojson.Unmarshal([]byte(spec), &s); err != nil {
			t.Fatal(err)
		}
		p, problems := FromAuthorizationPolicy(Meta{Namespace: "finance", Name: fmt.Sprint(i)}, &s, with)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		policies = append(policies, p)
	}
	const one, other, two = "ns[finance]-policy[0]-rule[0]", "ns[finance]-policy[0]-rule[1]", "ns[finance]-policy[1]-rule[0]"
	for _, c := range []struct {
		account, method, path string
		allowed               bool
		asked                 []string
	}{
		{"b", "GET", "/x", true, nil},
		{"b", "GET", "/a/x", true, []string{one}},
		{"b", "POST", "/a/x", true, []string{one}},
		{"b", "POST", "/x", true, []string{other}},
		{"a", "GET", "/a/x", true, []string{one, two}},
		{"a", "GET", "/a/closed", false, []string{one, two}},
		{"b", "GET", "/none", false, nil},
	} {
		if d := Evaluate(policies, request(c.account, c.method, c.path)); d.Allowed != c.allowed || fmt.Sprint(d.Asked) != fmt.Sprint(c.asked) {
			t.Errorf("%+v: %+v", c, d)
		}
	}
	connection := request("b", "", "")
	connection.HTTP = false
	if d := Evaluate(policies[:2], connection); fmt.Sprint(d.Asked) != fmt.Sprint([]string{one}) {
		t.Errorf("of a connection, a rule about requests asks about all: %+v", d)
	}
	if ByIdentity(policies[:1]) || !AdmitsTCP(policies[:2], 80) {
		t.Error("an authorizer decides by identity alone, or admits nothing")
	}
}
