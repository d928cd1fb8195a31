package rbac

import (
	"math"

	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Where the claims of a verified token are noted: by the filter that verifies tokens, under a name.
const (
	JWTFilter = "envoy.filters.http.jwt_authn"
	Payload   = "payload"
)

// claim matches a claim, by the names of the claims that it is within and its own.
func claim(path []string, value *matcher.ValueMatcher) *rbac.Principal {
	m := &matcher.MetadataMatcher{Filter: JWTFilter, Value: value}
	for _, key := range append([]string{Payload}, path...) {
		m.Path = append(m.Path, &matcher.MetadataMatcher_PathSegment{Segment: &matcher.MetadataMatcher_PathSegment_Key{Key: key}})
	}
	return &rbac.Principal{Identifier: &rbac.Principal_SourcedMetadata{SourcedMetadata: &rbac.SourcedMetadata{MetadataMatcher: m, MetadataSource: rbac.MetadataSource_DYNAMIC}}}
}

func text(m authz.Match) *matcher.ValueMatcher {
	return &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_StringMatch{StringMatch: Text(m, false)}}
}

// anyOf matches a claim as one of several matches would have it, or a list with such an element.
func anyOf(matches []authz.Match) *matcher.ValueMatcher {
	var all []*matcher.ValueMatcher
	for _, m := range matches {
		all = append(all, text(m))
		if n, ok := m.Number(); ok {
			all = append(all, number(&matcher.DoubleMatcher{MatchPattern: &matcher.DoubleMatcher_Exact{Exact: n}}))
		}
		switch {
		case m.Kind == authz.Present:
			all = append(all, boolean(true), boolean(false), number(&matcher.DoubleMatcher{MatchPattern: &matcher.DoubleMatcher_Range{Range: &typev3.DoubleRange{Start: -math.MaxFloat64, End: math.MaxFloat64}}}))
		case m.Kind == authz.Exact && (m.Value == "true" || m.Value == "false"):
			all = append(all, boolean(m.Value == "true"))
		}
	}
	one := or(all)
	return or([]*matcher.ValueMatcher{one, {MatchPattern: &matcher.ValueMatcher_ListMatch{ListMatch: &matcher.ListMatcher{
		MatchPattern: &matcher.ListMatcher_OneOf{OneOf: one}}}}})
}

func or(all []*matcher.ValueMatcher) *matcher.ValueMatcher {
	if len(all) == 1 {
		return all[0]
	}
	return &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_OrMatch{OrMatch: &matcher.OrMatcher{ValueMatchers: all}}}
}

func boolean(b bool) *matcher.ValueMatcher {
	return &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_BoolMatch{BoolMatch: b}}
}

func number(m *matcher.DoubleMatcher) *matcher.ValueMatcher {
	return &matcher.ValueMatcher{MatchPattern: &matcher.ValueMatcher_DoubleMatch{DoubleMatch: m}}
}
