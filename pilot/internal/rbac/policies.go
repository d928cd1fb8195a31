// Package rbac makes the rules by which Envoy's RBAC filters decide: those of policies, of modes and of revocations. In which filters they
// are is package translate's to say.
package rbac

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	mtlsprincipal "github.com/envoyproxy/go-control-plane/envoy/extensions/rbac/principals/mtls_authenticated/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Requests renders policies of one action, as they hold for requests, as one RBAC configuration, and those on trial (dry run)
// as another. Either is nil when there is no such policy; an ALLOW configuration without rules denies all. What is ambiguous
// depends on all policies of the workload, whichever of them are rendered.
//
// What is on trial denies, and names a rule, only where that is another verdict than what is enforced: see trial.
func Requests(all, rendered []authz.Policy, action authz.Action) (enforced, shadow *rbac.RBAC) {
	enforced, shadow = rules(rendered, action)
	for _, a := range authz.Ambiguities {
		target := &shadow
		switch {
		case ambiguityHolds(all, action, a):
			target = &enforced
		case !ambiguityOnTrial(all, action, a):
			continue
		}
		if *target == nil {
			*target = &rbac.RBAC{Action: actions[action], Policies: map[string]*rbac.Policy{}}
		}
		(*target).Policies[a.Rule] = ambiguous(a)
	}
	return enforced, trial(enforced, shadow)
}

// Speaks says whether a configuration for requests, of the policies of an action, may say anything: enforced, or on trial. One that does not has neither.
func Speaks(policies []authz.Policy, action authz.Action) bool {
	suspicions, only := Suspicions(policies, action)
	return !only || len(suspicions) > 0
}

// Suspicions are the texts that such a configuration looks for as ambiguous. Only is true if it has nothing to say about requests without any.
func Suspicions(policies []authz.Policy, action authz.Action) (suspicions []authz.Ambiguity, only bool) {
	for _, a := range authz.Ambiguities {
		if ambiguityHolds(policies, action, a) || ambiguityOnTrial(policies, action, a) {
			suspicions = append(suspicions, a)
		}
	}
	return suspicions, !slices.ContainsFunc(policies, func(p authz.Policy) bool { return p.Action == action && !p.Ignored })
}

// Connections renders them as they hold for connections that are not HTTP.
func Connections(policies []authz.Policy, action authz.Action) (enforced, shadow *rbac.RBAC) {
	tcp := make([]authz.Policy, 0, len(policies))
	for _, p := range policies {
		tcp = append(tcp, p.TCP())
	}
	enforced, shadow = rules(tcp, action)
	return enforced, trial(enforced, shadow)
}

// trial makes of the rules on trial what they would change. Beside ALLOW policies that are enforced, more of them admit more and deny nothing: rules that log
// match and never deny, and what none matches is as it was.
func trial(enforced, shadow *rbac.RBAC) *rbac.RBAC {
	if enforced != nil && shadow != nil && shadow.GetAction() == rbac.RBAC_ALLOW {
		shadow.Action = rbac.RBAC_LOG
	}
	return shadow
}

// ambiguityHolds reports whether the filter of an action looks for an ambiguity: the one that denies does if it concerns any policy that decides, the one that
// audits if it concerns one that audits.
func ambiguityHolds(policies []authz.Policy, action authz.Action, a authz.Ambiguity) bool {
	return action != authz.Allow && slices.ContainsFunc(policies, func(p authz.Policy) bool {
		return !p.Ignored && !p.DryRun && (p.Action == authz.Audit) == (action == authz.Audit) && a.Concerns(p)
	})
}

// ambiguityOnTrial reports whether the filter that denies would look for an ambiguity if the policies on trial were enforced, and does not as it is.
func ambiguityOnTrial(policies []authz.Policy, action authz.Action, a authz.Ambiguity) bool {
	return action == authz.Deny && !ambiguityHolds(policies, action, a) && slices.ContainsFunc(policies, func(p authz.Policy) bool {
		return !p.Ignored && p.DryRun && a.Concerns(p)
	})
}

func rules(policies []authz.Policy, action authz.Action) (enforced, shadow *rbac.RBAC) {
	for _, p := range policies {
		if p.Action != action || p.Ignored {
			continue
		}
		target := &enforced
		if p.DryRun && action != authz.Audit {
			target = &shadow
		}
		if *target == nil {
			*target = &rbac.RBAC{Action: actions[action], Policies: map[string]*rbac.Policy{}}
		}
		for _, r := range p.Rules {
			if !r.Never {
				(*target).Policies[p.RuleID(r)] = rule(r)
			}
		}
	}
	return enforced, shadow
}

var actions = map[authz.Action]rbac.RBAC_Action{authz.Allow: rbac.RBAC_ALLOW, authz.Deny: rbac.RBAC_DENY, authz.Audit: rbac.RBAC_LOG}

// Prefix tells the results of the filters of one action from those of others in dynamic metadata: "<prefix>enforced_effective_policy_id".
func Prefix(action authz.Action) string { return prefixes[action] }

var prefixes = map[authz.Action]string{authz.Audit: "audit_", authz.Deny: "deny_", authz.Allow: "allow_"}

// TrialPrefix does so with the results of policies on trial, "<prefix>shadow_engine_result" and "<prefix>shadow_effective_policy_id", by the names that tools of the
// Istio ecosystem know. It is empty for actions of which none is tried out.
func TrialPrefix(action authz.Action) string { return trialPrefixes[action] }

var trialPrefixes = map[authz.Action]string{authz.Deny: "istio_dry_run_deny_", authz.Allow: "istio_dry_run_allow_"}

// rule renders From as principals, To as permissions, and each clause of When as whichever its attribute belongs to.
func rule(r authz.Rule) *rbac.Policy {
	var who []*rbac.Principal
	for _, from := range r.From {
		var all []*rbac.Principal
		for _, c := range from {
			all = append(all, principal(c))
		}
		who = append(who, andPrincipal(all))
	}
	var what []*rbac.Permission
	for _, op := range r.To {
		var all []*rbac.Permission
		for _, c := range op {
			all = append(all, permission(c))
		}
		what = append(what, andPermission(all))
	}
	principals, permissions := []*rbac.Principal{}, []*rbac.Permission{}
	if len(who) > 0 {
		principals = append(principals, orPrincipal(who))
	}
	if len(what) > 0 {
		permissions = append(permissions, orPermission(what))
	}
	for _, c := range r.When {
		if ofPeer(c.Attribute) {
			principals = append(principals, principal(c))
		} else {
			permissions = append(permissions, permission(c))
		}
	}
	return &rbac.Policy{Principals: []*rbac.Principal{andPrincipal(principals)}, Permissions: []*rbac.Permission{andPermission(permissions)}}
}

// ofPeer says whether an attribute is of who asks, which Envoy looks for among principals.
func ofPeer(a authz.Attribute) bool {
	return a.Identity() || a == authz.SourceIP || a == authz.RemoteIP || a == authz.RequestPrincipal || a == authz.Claim
}

func principal(c authz.Clause) *rbac.Principal {
	var all []*rbac.Principal
	if len(c.Values) > 0 {
		all = append(all, orPrincipal(peers(c, c.Values)))
	}
	if len(c.Not) > 0 {
		all = append(all, &rbac.Principal{Identifier: &rbac.Principal_NotId{NotId: orPrincipal(peers(c, c.Not))}})
	}
	return andPrincipal(all)
}

func peers(c authz.Clause, matches []authz.Match) []*rbac.Principal {
	if c.Attribute == authz.Claim {
		return []*rbac.Principal{claim(authz.ClaimPath(c.Key), anyOf(matches))}
	}
	var out []*rbac.Principal
	for _, m := range matches {
		out = append(out, peer(c.Attribute, m))
	}
	return out
}

func peer(a authz.Attribute, m authz.Match) *rbac.Principal {
	switch a {
	case authz.SourceIP:
		return &rbac.Principal{Identifier: &rbac.Principal_DirectRemoteIp{DirectRemoteIp: cidr(m.Value)}}
	case authz.RemoteIP:
		return &rbac.Principal{Identifier: &rbac.Principal_RemoteIp{RemoteIp: cidr(m.Value)}}
	case authz.RequestPrincipal:
		issuer, subject := m.IssuerSubject()
		return andPrincipal([]*rbac.Principal{claim([]string{"iss"}, text(issuer)), claim([]string{"sub"}, text(subject))})
	}
	// The certificate's URI only: the older matcher of principals looks at DNS names and the subject, too.
	return &rbac.Principal{Identifier: &rbac.Principal_Custom{Custom: envoy.Extension("envoy.rbac.principals.mtls_authenticated",
		&mtlsprincipal.Config{SanMatcher: &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_URI, Matcher: Text(m, false)}})}}
}

func permission(c authz.Clause) *rbac.Permission {
	var all []*rbac.Permission
	if len(c.Values) > 0 {
		all = append(all, orPermission(operations(c, c.Values)))
	}
	if len(c.Not) > 0 {
		all = append(all, notPermission(orPermission(operations(c, c.Not))))
	}
	return andPermission(all)
}

func operations(c authz.Clause, matches []authz.Match) []*rbac.Permission {
	var out []*rbac.Permission
	for _, m := range matches {
		out = append(out, operation(c, m))
	}
	return out
}

func operation(c authz.Clause, m authz.Match) *rbac.Permission {
	switch c.Attribute {
	case authz.DestinationIP:
		return &rbac.Permission{Rule: &rbac.Permission_DestinationIp{DestinationIp: cidr(m.Value)}}
	case authz.DestinationPort:
		n, err := strconv.ParseUint(m.Value, 10, 16)
		if err != nil {
			return never()
		}
		return &rbac.Permission{Rule: &rbac.Permission_DestinationPort{DestinationPort: uint32(n)}}
	}
	return ofRequest(c, Text(m, c.Attribute == authz.Host))
}

// ofRequest matches an attribute that is a text.
func ofRequest(c authz.Clause, m *matcher.StringMatcher) *rbac.Permission {
	switch c.Attribute {
	case authz.SNI:
		return &rbac.Permission{Rule: &rbac.Permission_RequestedServerName{RequestedServerName: m}}
	case authz.Host:
		return header(":authority", m)
	case authz.Method:
		return header(":method", m)
	case authz.Header:
		return header(c.Key, m)
	case authz.Path:
		return &rbac.Permission{Rule: &rbac.Permission_UrlPath{UrlPath: &matcher.PathMatcher{Rule: &matcher.PathMatcher_Path{Path: m}}}}
	}
	return never()
}

// header matches the lines of a header. One that is there but empty is not present, to the evaluator either.
func header(name string, m *matcher.StringMatcher) *rbac.Permission {
	return &rbac.Permission{Rule: &rbac.Permission_Header{Header: line(name, m)}}
}

func line(name string, m *matcher.StringMatcher) *route.HeaderMatcher {
	return &route.HeaderMatcher{Name: name, HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: m}}
}

// Text is a match of a text in Envoy's words.
func Text(m authz.Match, ignoreCase bool) *matcher.StringMatcher {
	var s *matcher.StringMatcher
	switch m.Kind {
	case authz.Exact:
		s = envoy.Exact(m.Value)
	case authz.Prefix:
		s = envoy.Prefix(m.Value)
	case authz.Suffix:
		s = envoy.Suffix(m.Value)
	case authz.Regexp:
		return envoy.Pattern(strings.ReplaceAll(m.Value, authz.AnyByte, anyByte))
	default:
		return envoy.Pattern(anyByte + "+")
	}
	s.IgnoreCase = ignoreCase
	return s
}

// anyByte is any byte to RE2, valid UTF-8 or not.
const anyByte = `\C`

// Suspicious matches the line of a request in which something may be ambiguous, and in few others.
func Suspicious(a authz.Ambiguity) *route.HeaderMatcher {
	out := line(map[authz.Attribute]string{authz.Path: ":path", authz.Method: ":method"}[a.Attribute], whole(a.Clear))
	out.InvertMatch = true
	return out
}

func whole(expression string) *matcher.StringMatcher {
	return Text(authz.Match{Kind: authz.Regexp, Value: expression}, false)
}

// ambiguous denies what different servers read differently. What is cheap to ask comes first.
func ambiguous(a authz.Ambiguity) *rbac.Policy {
	of := authz.Clause{Attribute: a.Attribute}
	found := []*rbac.Permission{operation(of, a.Within())}
	if a.Alphabet != "" {
		found = append(found, notPermission(ofRequest(of, whole(a.Alphabet))))
	}
	all := []*rbac.Permission{orPermission(found)}
	if a.Clear != "" {
		all = slices.Insert(all, 0, notPermission(ofRequest(of, whole(a.Clear))))
	}
	if a.Attribute == authz.Path { // CONNECT has none, and what is denied of it is denied for being that
		all = slices.Insert(all, 0, &rbac.Permission{Rule: &rbac.Permission_Header{Header: &route.HeaderMatcher{
			Name: ":path", HeaderMatchSpecifier: &route.HeaderMatcher_PresentMatch{PresentMatch: true}}}})
	}
	return &rbac.Policy{Principals: []*rbac.Principal{anyone()}, Permissions: []*rbac.Permission{andPermission(all)}}
}

func cidr(v string) *core.CidrRange {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		panic("CIDR of a checked policy: " + err.Error())
	}
	return &core.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))}
}

func anyone() *rbac.Principal { return &rbac.Principal{Identifier: &rbac.Principal_Any{Any: true}} }

func anything() *rbac.Permission { return &rbac.Permission{Rule: &rbac.Permission_Any{Any: true}} }

func never() *rbac.Permission { return notPermission(anything()) }

func notPermission(p *rbac.Permission) *rbac.Permission {
	return &rbac.Permission{Rule: &rbac.Permission_NotRule{NotRule: p}}
}

func andPrincipal(all []*rbac.Principal) *rbac.Principal {
	switch len(all) {
	case 0:
		return anyone()
	case 1:
		return all[0]
	}
	return &rbac.Principal{Identifier: &rbac.Principal_AndIds{AndIds: &rbac.Principal_Set{Ids: all}}}
}

func orPrincipal(all []*rbac.Principal) *rbac.Principal {
	if len(all) == 1 {
		return all[0]
	}
	return &rbac.Principal{Identifier: &rbac.Principal_OrIds{OrIds: &rbac.Principal_Set{Ids: all}}}
}

func andPermission(all []*rbac.Permission) *rbac.Permission {
	switch len(all) {
	case 0:
		return anything()
	case 1:
		return all[0]
	}
	return &rbac.Permission{Rule: &rbac.Permission_AndRules{AndRules: &rbac.Permission_Set{Rules: all}}}
}

func orPermission(all []*rbac.Permission) *rbac.Permission {
	if len(all) == 1 {
		return all[0]
	}
	return &rbac.Permission{Rule: &rbac.Permission_OrRules{OrRules: &rbac.Permission_Set{Rules: all}}}
}
