package authz

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
)

// faults are one for every place of a rule that can hold something Bulwark cannot enforce.
var faults = map[string]string{
	"an empty source":        `"from":[{"source":{}}]`,
	"no source":              `"from":[{}]`,
	"an empty operation":     `"to":[{"operation":{}}]`,
	"no operation":           `"to":[{}]`,
	"a condition's key":      `"when":[{"key":"nonsense","values":["x"]}]`,
	"a condition's values":   `"when":[{"key":"source.ip"}]`,
	"a claim":                `"when":[{"key":"request.auth.claims[a]b","values":["b"]}]`,
	"remote.ip":              `"when":[{"key":"remote.ip","notValues":["10.0.0.0/99"]}]`,
	"a header's name":        `"when":[{"key":"request.headers[a b]","values":["b"]}]`,
	"an issuer alone":        `"from":[{"source":{"requestPrincipals":["https://issuer.example*"]}}]`,
	"accounts and principal": `"from":[{"source":{"serviceAccounts":["a"],"principals":["*"]}}]`,
	"one of two sources":     `"from":[{"source":{"namespaces":["shop"]}},{"source":{}}]`,
}

func init() {
	for _, field := range []string{"principals", "namespaces", "serviceAccounts", "trustDomains", "ipBlocks", "requestPrincipals", "remoteIpBlocks"} {
		for _, f := range []string{field, "not" + strings.ToUpper(field[:1]) + field[1:]} {
			faults[f] = fmt.Sprintf(`"from":[{"source":{%q:[""]}}]`, f)
		}
	}
	for _, field := range []string{"hosts", "methods", "paths", "ports"} {
		for _, f := range []string{field, "not" + strings.ToUpper(field[:1]) + field[1:]} {
			faults[f] = fmt.Sprintf(`"to":[{"operation":{%q:[""]}}]`, f)
		}
	}
	for _, key := range []string{"request.headers[x]", "source.ip", "source.namespace", "source.principal", "source.serviceAccount",
		"source.trustDomain", "destination.ip", "destination.port", "connection.sni", "remote.ip", "request.auth.principal", "request.auth.claims[a][b]",
		"request.auth.audiences", "request.auth.presenter"} {
		for _, f := range []string{"values", "notValues"} {
			faults[key+" "+f] = fmt.Sprintf(`"when":[{"key":%q,%q:[""]}]`, key, f)
		}
	}
}

// A rule that cannot be enforced as it is written matches nothing if it allows, and more than it asked if it denies:
// whatever the field, whatever else is wrong with the policy, and however much.
func TestRuleWithAProblemFailsClosed(t *testing.T) {
	for name, bad := range faults {
		for _, before := range []int{0, 1, maxProblems, maxProblems + 5} {
			for other, worse := range map[string]string{"requestPrincipals": faults["requestPrincipals"], "an empty source": faults["an empty source"], name: bad} {
				rules := make([]string, 0, before+2)
				for range before {
					rules = append(rules, "{"+worse+"}")
				}
				rules = append(rules, "{"+bad+"}", `{"from":[{"source":{"namespaces":["nowhere"]}}]}`)
				for _, action := range []string{"ALLOW", "DENY", "AUDIT", "CUSTOM"} {
					var spec security.AuthorizationPolicy
					if err := protojson.Unmarshal([]byte(`{"action":"`+action+`","rules":[`+strings.Join(rules, ",")+`]}`), &spec); err != nil {
						t.Fatal(err)
					}
					p, problems := FromAuthorizationPolicy(Meta{Namespace: "finance", Name: "p"}, &spec, options)
					if len(problems) == 0 {
						t.Fatalf("%s: no problem is told", name)
					}
					r := p.Rules[before]
					for _, req := range []Request{request("a", "GET", "/x"), request("", "GET", "/x"), {}} {
						matches := r.predicate()(seenOf(req))
						switch {
						case action == "ALLOW" && (!r.Never || matches):
							t.Fatalf("%s after %d rules with %s: the ALLOW rule is %+v", name, before, other, r)
						case action != "ALLOW" && !matches && name != "accounts and principal":
							t.Fatalf("%s after %d rules with %s: the %s rule does not match %+v: %+v", name, before, other, action, req, r)
						}
					}
					if last := p.Rules[before+1]; last.Never {
						t.Fatalf("%s after %d rules with %s: a good rule after it matches nothing", name, before, other)
					}
				}
			}
		}
	}
}

// A fault in one field of a rule makes all of it fail closed, whatever is in its other fields: what the other field alone
// denies is denied still, and nothing is allowed.
func TestFaultBesideAnotherFieldFailsClosed(t *testing.T) {
	parse := func(text string) *security.Rule {
		var r security.Rule
		if err := protojson.Unmarshal([]byte("{"+text+"}"), &r); err != nil {
			t.Fatal(err)
		}
		return &r
	}
	others := map[string]string{
		"from": `"from":[{"source":{"namespaces":["finance"],"ipBlocks":["10.0.0.0/8"]}}]`, "to": `"to":[{"operation":{"methods":["GET"],"notPaths":["/y"]}}]`,
		"when": `"when":[{"key":"request.headers[x]","notValues":["y"]},{"key":"source.principal","values":["*/sa/a"]}]`,
	}
	for name, fault := range faults {
		for other, text := range others {
			for _, merge := range []func(bad, good *security.Rule) *security.Rule{
				func(bad, good *security.Rule) *security.Rule { proto.Merge(good, bad); return good },
				func(bad, good *security.Rule) *security.Rule { // in the same source and operation, where there is one
					if len(bad.GetFrom()) > 0 && len(good.GetFrom()) > 0 {
						proto.Merge(good.From[0], bad.From[0])
						bad.From = nil
					}
					if len(bad.GetTo()) > 0 && len(good.GetTo()) > 0 {
						proto.Merge(good.To[0], bad.To[0])
						bad.To = nil
					}
					proto.Merge(good, bad)
					return good
				},
			} {
				rule := merge(parse(fault), parse(text))
				compiled := func(action security.AuthorizationPolicy_Action) (Policy, []Problem) {
					spec := &security.AuthorizationPolicy{Action: action, Rules: []*security.Rule{rule}}
					return FromAuthorizationPolicy(Meta{Namespace: "finance", Name: "p"}, spec, options)
				}
				// What had no field has one, if the other field came into the same place.
				if p, problems := compiled(security.AuthorizationPolicy_ALLOW); len(problems) > 0 && !p.Rules[0].Never {
					t.Errorf("%s beside %s: the ALLOW rule is %+v", name, other, p.Rules[0])
				}
				p, _ := compiled(security.AuthorizationPolicy_DENY)
				if Evaluate([]Policy{p}, request("a", "GET", "/x")).Allowed && name != "accounts and principal" {
					t.Errorf("%s beside %s: the DENY rule lets through what it denies without the fault: %+v", name, other, p.Rules[0])
				}
			}
		}
	}
}
