package translate

import (
	"fmt"
	"slices"
	"strings"

	mutation "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	headermutation "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	jwtauthn "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// unclaimed takes off requests the headers in which the application is told what a token says. The filter that sets them takes off those of tokens that it looks for, and it stops looking
// when one token will do.
var unclaimed = stage{
	name: "unclaimed", kinds: []proto.Message{&headermutation.HeaderMutation{}},
	http: func(w *compile.Workload) proto.Message {
		out := &headermutation.HeaderMutation{Mutations: &headermutation.Mutations{}}
		for _, name := range told(w) {
			out.Mutations.RequestMutations = append(out.Mutations.RequestMutations, &mutation.HeaderMutation{Action: &mutation.HeaderMutation_Remove{Remove: name}})
		}
		return out
	},
	silent: func(w *compile.Workload, _ bool) bool { return len(told(w)) == 0 },
}

func told(w *compile.Workload) (out []string) {
	for _, i := range w.Issuers {
		for _, name := range i.Named() {
			if name = strings.ToLower(name); !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// verified verifies tokens, and notes the claims for those that ask for them.
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
	for i, issuer := range w.Issuers {
		out.Providers[providerName(i)] = provider(issuer)
	}
	var each []*jwtauthn.JwtRequirement
	for _, group := range sharing(w.Issuers) {
		each = append(each, requirement(group))
	}
	all := allRequirements(each)
	for _, match := range []*route.RouteMatch{{PathSpecifier: &route.RouteMatch_Prefix{Prefix: ""}}, {PathSpecifier: ofTunnels()}} {
		out.Rules = append(out.Rules, &jwtauthn.RequirementRule{Match: match, RequirementType: &jwtauthn.RequirementRule_Requires{Requires: all}})
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
