package translate

import (
	"fmt"
	"slices"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtauthn "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// verified is the stage in which tokens are verified, and their claims noted for those that ask for them. The filter takes off the headers that it may set, whoever wrote them.
var verified = stage{
	name: "jwt", kinds: []proto.Message{&jwtauthn.JwtAuthentication{}},
	http:   func(w *compile.Workload) proto.Message { return tokens(w) },
	silent: func(w *compile.Workload, _ bool) bool { return len(w.Issuers) == 0 },
}

// tokens is the filter that verifies the tokens of a workload's issuers. A request without a token passes; with one, it has to be good.
func tokens(w *compile.Workload) *jwtauthn.JwtAuthentication {
	out := &jwtauthn.JwtAuthentication{BypassCorsPreflight: true}
	if len(w.Issuers) == 0 {
		return out
	}
	out.Providers = map[string]*jwtauthn.JwtProvider{}
	issuers := takenApart(w.Issuers)
	for i, issuer := range issuers {
		out.Providers[providerName(i)] = provider(issuer)
	}
	var each []*jwtauthn.JwtRequirement
	for _, group := range sharing(issuers) {
		each = append(each, requirement(group))
	}
	all := allRequirements(each)
	for _, match := range []*route.RouteMatch{{PathSpecifier: &route.RouteMatch_Prefix{Prefix: ""}}, {PathSpecifier: ofTunnels()}} {
		out.Rules = append(out.Rules, &jwtauthn.RequirementRule{Match: match, RequirementType: &jwtauthn.RequirementRule_Requires{Requires: all}})
	}
	return out
}

// takenApart has tokens in the query looked for by a provider of their own, which leaves them there: Envoy takes one out by writing the query again with its escapes
// decoded, so that b=%26c%3D1 would reach the application as two parameters.
func takenApart(issuers []compile.Issuer) (out []compile.Issuer) {
	for _, i := range issuers {
		if i.Forward || len(i.Params) == 0 && len(i.Headers)+len(i.Cookies) > 0 {
			out = append(out, i)
			continue
		}
		rest, query := i, i
		if len(i.Params) == 0 { // the usual places
			rest.Headers, query.Params = []jwt.Header{{Name: "Authorization", Prefix: "Bearer "}}, []string{"access_token"}
		}
		rest.Params, query.Headers, query.Cookies, query.Forward = nil, nil, nil, true
		if out = append(out, query); len(rest.Headers)+len(rest.Cookies) > 0 {
			out = append(out, rest)
		}
	}
	return out
}

func providerName(i int) string { return fmt.Sprintf("issuer-%d", i) }

// sharing groups issuers whose tokens may be in the same place of a request, by their indexes.
func sharing(issuers []compile.Issuer) (groups [][]int) {
	var places [][]string // of each group
	for i, issuer := range issuers {
		group, at := []int{i}, issuer.Places()
		for g := len(groups) - 1; g >= 0; g-- {
			if slices.ContainsFunc(at, func(place string) bool { return slices.Contains(places[g], place) }) {
				group, at = append(groups[g], group...), append(at, places[g]...)
				groups, places = slices.Delete(groups, g, g+1), slices.Delete(places, g, g+1)
			}
		}
		groups, places = append(groups, group), append(places, at)
	}
	return groups
}

// requirement is about a group: one token is good, or there is none. Tokens in places of another group are that one's to judge.
func requirement(group []int) *jwtauthn.JwtRequirement {
	missing := &jwtauthn.JwtRequirement{RequiresType: &jwtauthn.JwtRequirement_AllowMissing{AllowMissing: &emptypb.Empty{}}}
	var good, each []*jwtauthn.JwtRequirement
	for _, i := range group {
		one := &jwtauthn.JwtRequirement{RequiresType: &jwtauthn.JwtRequirement_ProviderName{ProviderName: providerName(i)}}
		good = append(good, one)
		each = append(each, anyRequirement(one, missing))
	}
	if len(each) == 1 {
		return each[0]
	}
	return anyRequirement(append(good, allRequirements(each))...)
}

func allRequirements(of []*jwtauthn.JwtRequirement) *jwtauthn.JwtRequirement {
	if len(of) == 1 {
		return of[0]
	}
	return &jwtauthn.JwtRequirement{RequiresType: &jwtauthn.JwtRequirement_RequiresAll{RequiresAll: &jwtauthn.JwtRequirementAndList{Requirements: of}}}
}

func anyRequirement(of ...*jwtauthn.JwtRequirement) *jwtauthn.JwtRequirement {
	return &jwtauthn.JwtRequirement{RequiresType: &jwtauthn.JwtRequirement_RequiresAny{RequiresAny: &jwtauthn.JwtRequirementOrList{Requirements: of}}}
}

func provider(i compile.Issuer) *jwtauthn.JwtProvider {
	out := &jwtauthn.JwtProvider{
		Issuer: i.Issuer, Audiences: i.Audiences, Forward: i.Forward, FromParams: i.Params, FromCookies: i.Cookies, ForwardPayloadHeader: i.PayloadHeader,
		PayloadInMetadata: rbac.Payload,
		NormalizePayloadInMetadata: &jwtauthn.JwtProvider_NormalizePayload{
			SpaceDelimitedClaims: append([]string{"scope", "permission"}, i.SpaceDelimited...)},
	}
	if i.KeySet == jwt.NoKeys {
		out.JwksSourceSpecifier = noKeys()
	} else {
		out.JwksSourceSpecifier = &jwtauthn.JwtProvider_LocalJwks{LocalJwks: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: i.KeySet}}}
	}
	for _, h := range i.Headers {
		out.FromHeaders = append(out.FromHeaders, &jwtauthn.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
	}
	for _, c := range i.Claims {
		out.ClaimToHeaders = append(out.ClaimToHeaders, claimToHeader(c))
	}
	return out
}

// noKeys is in the place of keys that are not known, as a set without keys is refused: a cluster that there is not, where none can be fetched, so that each token fails.
func noKeys() *jwtauthn.JwtProvider_RemoteJwks {
	return &jwtauthn.JwtProvider_RemoteJwks{RemoteJwks: &jwtauthn.RemoteJwks{HttpUri: &core.HttpUri{
		Uri: "http://unknown.invalid", HttpUpstreamType: &core.HttpUri_Cluster{Cluster: "no-keys"}, Timeout: envoy.Seconds(1)}}}
}

func claimToHeader(c jwt.ClaimHeader) *jwtauthn.JwtClaimToHeader {
	return &jwtauthn.JwtClaimToHeader{HeaderName: c.Header, ClaimName: strings.Join(c.Claim, ".")}
}
