package translate

import (
	"net/netip"
	"regexp"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	uritemplate "github.com/envoyproxy/go-control-plane/envoy/extensions/path/match/uri_template/v3"
	mtlsprincipal "github.com/envoyproxy/go-control-plane/envoy/extensions/rbac/principals/mtls_authenticated/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// rules renders the policies of one action as one RBAC configuration, and those on trial (dry run) as another. Either is
// nil when there is no such policy; an ALLOW configuration without rules denies all.
func rules(policies []authz.Policy, action authz.Action, trustDomain string) (enforced, shadow *rbac.RBAC) {
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
				(*target).Policies[p.RuleID(r)] = rule(r, trustDomain)
			}
		}
	}
	return enforced, shadow
}

var actions = map[authz.Action]rbac.RBAC_Action{authz.Allow: rbac.RBAC_ALLOW, authz.Deny: rbac.RBAC_DENY, authz.Audit: rbac.RBAC_LOG}

// rule puts everything among the permissions: From is of the peer and goes to the principals, the rest may be of either.
func rule(r authz.Rule, trustDomain string) *rbac.Policy {
	var who []*rbac.Principal
	for _, from := range r.From {
		var all []*rbac.Principal
		for _, c := range from {
			all = append(all, principal(c, trustDomain))
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
			principals = append(principals, principal(c, trustDomain))
		} else {
			permissions = append(permissions, permission(c))
		}
	}
	return &rbac.Policy{Principals: []*rbac.Principal{andPrincipal(principals)}, Permissions: []*rbac.Permission{andPermission(permissions)}}
}

func ofPeer(a authz.Attribute) bool { return a.Identity() || a == authz.SourceIP }

func principal(c authz.Clause, trustDomain string) *rbac.Principal {
	var all []*rbac.Principal
	if len(c.Values) > 0 {
		all = append(all, orPrincipal(peers(c.Attribute, c.Values, trustDomain)))
	}
	if len(c.Not) > 0 {
		all = append(all, &rbac.Principal{Identifier: &rbac.Principal_NotId{NotId: orPrincipal(peers(c.Attribute, c.Not, trustDomain))}})
	}
	return andPrincipal(all)
}

func peers(a authz.Attribute, matches []authz.Match, trustDomain string) []*rbac.Principal {
	var out []*rbac.Principal
	for _, m := range matches {
		if a == authz.SourceIP {
			out = append(out, &rbac.Principal{Identifier: &rbac.Principal_DirectRemoteIp{DirectRemoteIp: cidr(m.Value)}})
			continue
		}
		// The certificate's URI only: the older matcher of principals looks at DNS names and the subject, too.
		out = append(out, &rbac.Principal{Identifier: &rbac.Principal_Custom{Custom: extension("envoy.rbac.principals.mtls_authenticated",
			&mtlsprincipal.Config{SanMatcher: &tls.SubjectAltNameMatcher{SanType: tls.SubjectAltNameMatcher_URI, Matcher: identity(a, m, trustDomain)}})}})
	}
	return out
}

// identity matches the peer's URI, spiffe://<trust domain>/ns/<namespace>/sa/<account>. The handshake has made sure of the
// trust domain.
func identity(a authz.Attribute, m authz.Match, trustDomain string) *matcher.StringMatcher {
	in := "spiffe://" + trustDomain + "/ns/"
	switch a {
	case authz.Namespace:
		switch m.Kind {
		case authz.Exact:
			return prefix(in + m.Value + "/")
		case authz.Prefix:
			return prefix(in + m.Value)
		case authz.Suffix:
			return pattern(regexp.QuoteMeta(in) + "[^/]*" + regexp.QuoteMeta(m.Value) + "/.*")
		}
		return prefix(in)
	case authz.TrustDomain:
		switch m.Kind {
		case authz.Exact:
			return prefix("spiffe://" + m.Value + "/")
		case authz.Prefix:
			return prefix("spiffe://" + m.Value)
		case authz.Suffix:
			return pattern("spiffe://[^/]*" + regexp.QuoteMeta(m.Value) + "/.*")
		}
		return prefix("spiffe://")
	case authz.ServiceAccount:
		ns, sa := cutAccount(m.Value)
		return exact(in + ns + "/sa/" + sa)
	}
	if m.Kind == authz.Present {
		return prefix("spiffe://")
	}
	return text(m, false)
}

func cutAccount(v string) (string, string) {
	for i := range len(v) {
		if v[i] == '/' {
			return v[:i], v[i+1:]
		}
	}
	return "", v
}

func permission(c authz.Clause) *rbac.Permission {
	var all []*rbac.Permission
	if len(c.Values) > 0 {
		all = append(all, orPermission(operations(c, c.Values)))
	}
	if len(c.Not) > 0 {
		all = append(all, &rbac.Permission{Rule: &rbac.Permission_NotRule{NotRule: orPermission(operations(c, c.Not))}})
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
	case authz.SNI:
		return &rbac.Permission{Rule: &rbac.Permission_RequestedServerName{RequestedServerName: text(m, false)}}
	case authz.Host:
		return header(":authority", m, true)
	case authz.Method:
		return header(":method", m, false)
	case authz.Header:
		return header(c.Key, m, false)
	case authz.Path:
		if m.Kind == authz.Template {
			return &rbac.Permission{Rule: &rbac.Permission_UriTemplate{UriTemplate: extension("envoy.path.match.uri_template.uri_template_matcher",
				&uritemplate.UriTemplateMatchConfig{PathTemplate: envoyTemplate(m.Value)})}}
		}
		return &rbac.Permission{Rule: &rbac.Permission_UrlPath{UrlPath: &matcher.PathMatcher{Rule: &matcher.PathMatcher_Path{Path: text(m, false)}}}}
	}
	return never()
}

// envoyTemplate writes {*} and {**} as Envoy does, * and **.
func envoyTemplate(v string) string {
	return regexp.MustCompile(`\{(\*\*?)\}`).ReplaceAllString(v, "$1")
}

func header(name string, m authz.Match, ignoreCase bool) *rbac.Permission {
	h := &route.HeaderMatcher{Name: name}
	if m.Kind == authz.Present {
		// A header that is there but empty is not present to the evaluator either.
		h.HeaderMatchSpecifier = &route.HeaderMatcher_StringMatch{StringMatch: pattern(`(?s)\C+`)}
	} else {
		h.HeaderMatchSpecifier = &route.HeaderMatcher_StringMatch{StringMatch: text(m, ignoreCase)}
	}
	return &rbac.Permission{Rule: &rbac.Permission_Header{Header: h}}
}

// text matches a string. Literals are matched as they are; where a pattern is needed they are quoted, and \C stands for
// any byte, valid UTF-8 or not.
func text(m authz.Match, ignoreCase bool) *matcher.StringMatcher {
	q := regexp.QuoteMeta(m.Value)
	var s *matcher.StringMatcher
	switch m.Kind {
	case authz.Exact:
		s = exact(m.Value)
	case authz.Prefix:
		s = prefix(m.Value)
	case authz.Suffix:
		s = suffix(m.Value)
	case authz.HostSuffix:
		return pattern(`(?is)\C*` + q + `\.?(:[0-9]*)?`)
	case authz.ElementExact:
		return pattern(`(?s)(\C*,)?[ \t]*` + q + `[ \t]*(,\C*)?`)
	case authz.ElementPrefix:
		return pattern(`(?s)(\C*,)?[ \t]*` + q + `\C*`)
	case authz.ElementSuffix:
		return pattern(`(?s)\C*` + q + `[ \t]*(,\C*)?`)
	default:
		return pattern(`(?s)\C+`)
	}
	s.IgnoreCase = ignoreCase
	return s
}

// ambiguousPath denies what different servers read differently, where a rule looks at paths.
func ambiguousPath() *rbac.Policy {
	return &rbac.Policy{Principals: []*rbac.Principal{anyone()}, Permissions: []*rbac.Permission{{Rule: &rbac.Permission_UrlPath{
		UrlPath: &matcher.PathMatcher{Rule: &matcher.PathMatcher_Path{Path: pattern(`\C*` + authz.AmbiguousPath + `\C*`)}}}}}}
}

func cidr(v string) *core.CidrRange {
	p, err := netip.ParsePrefix(v)
	if err != nil {
		panic("CIDR of a checked policy: " + err.Error())
	}
	return &core.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: u32(uint32(p.Bits()))}
}

func anyone() *rbac.Principal { return &rbac.Principal{Identifier: &rbac.Principal_Any{Any: true}} }

func anything() *rbac.Permission { return &rbac.Permission{Rule: &rbac.Permission_Any{Any: true}} }

func never() *rbac.Permission {
	return &rbac.Permission{Rule: &rbac.Permission_NotRule{NotRule: anything()}}
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
