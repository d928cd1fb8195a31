package analyze

import (
	"fmt"
	"iter"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// value is a value of a policy, as it is written.
type value struct {
	field   string
	of      string // the name of the field or of the condition's key, without "not"
	text    string
	rule    int
	negated bool
}

// values are all of a policy.
func values(spec *security.AuthorizationPolicy) iter.Seq[value] {
	return func(yield func(value) bool) {
		for i, rule := range spec.GetRules() {
			list := func(at, of string, texts []string, negated bool) bool {
				for j, text := range texts {
					name := of
					if negated {
						name = "not" + strings.ToUpper(of[:1]) + of[1:]
					}
					if !yield(value{fmt.Sprintf("%s.%s[%d]", at, name, j), of, text, i, negated}) {
						return false
					}
				}
				return true
			}
			for j, from := range rule.GetFrom() {
				s, at := from.GetSource(), fmt.Sprintf("spec.rules[%d].from[%d].source", i, j)
				if !list(at, "principals", s.GetPrincipals(), false) || !list(at, "principals", s.GetNotPrincipals(), true) ||
					!list(at, "namespaces", s.GetNamespaces(), false) || !list(at, "namespaces", s.GetNotNamespaces(), true) ||
					!list(at, "serviceAccounts", s.GetServiceAccounts(), false) || !list(at, "serviceAccounts", s.GetNotServiceAccounts(), true) ||
					!list(at, "requestPrincipals", s.GetRequestPrincipals(), false) || !list(at, "requestPrincipals", s.GetNotRequestPrincipals(), true) {
					return
				}
			}
			for j, to := range rule.GetTo() {
				o, at := to.GetOperation(), fmt.Sprintf("spec.rules[%d].to[%d].operation", i, j)
				if !list(at, "ports", o.GetPorts(), false) || !list(at, "ports", o.GetNotPorts(), true) {
					return
				}
			}
			for j, when := range rule.GetWhen() {
				at := fmt.Sprintf("spec.rules[%d].when[%d]", i, j)
				for k, text := range when.GetValues() {
					if !yield(value{fmt.Sprintf("%s.values[%d]", at, k), when.GetKey(), text, i, false}) {
						return
					}
				}
				for k, text := range when.GetNotValues() {
					if !yield(value{fmt.Sprintf("%s.notValues[%d]", at, k), when.GetKey(), text, i, true}) {
						return
					}
				}
			}
		}
	}
}

// member is whom a value names exactly: an account, or a namespace; false if it names nobody of the mesh, or others too.
func (v value) member(w *world, namespace string) (authz.Member, bool) {
	if strings.Contains(v.text, "*") {
		return authz.Member{}, false
	}
	switch v.of {
	case "namespaces", "source.namespace":
		return authz.Member{Namespace: v.text}, true
	case "serviceAccounts", "source.serviceAccount":
		ns, sa, both := strings.Cut(v.text, "/")
		if !both {
			ns, sa = namespace, v.text
		}
		return authz.Member{Namespace: ns, Account: sa}, true
	case "principals", "source.principal":
		parts := strings.Split(v.text, "/")
		if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" || !w.ownDomain(parts[0]) {
			return authz.Member{}, false
		}
		return authz.Member{Namespace: parts[2], Account: parts[4]}, true
	}
	return authz.Member{}, false
}

// aboutTokens reports whether it is a token that is looked at.
func (v value) aboutTokens() bool {
	return v.of == "requestPrincipals" || strings.HasPrefix(v.of, "request.auth.")
}

// aboutPorts reports whether it is a port that is looked at.
func (v value) aboutPorts() bool { return v.of == "ports" || v.of == "destination.port" }
