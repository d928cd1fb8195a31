package e2e

import (
	"maps"
	"net/http"

	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

type set = map[string]any

// with is a question with a token, which is where its headers or its path say TOKEN or FORGED; in the usual place if they do not.
func (a ask) with(claims set, headers ...string) ask {
	if len(headers) == 0 {
		headers = []string{"authorization", "Bearer TOKEN"}
	}
	a.claims, a.q.Headers = claims, maps.Clone(a.q.Headers)
	if a.q.Headers == nil {
		a.q.Headers = map[string]string{}
	}
	for i := 0; i+1 < len(headers); i += 2 {
		a.q.Headers[headers[i]] = headers[i+1]
	}
	return a
}

// apart is a question that is decided before policies, by the token alone, or one whose token is not seen, so that the evaluator has no word.
func (a ask) apart() ask {
	a.before = true
	return a
}

func (a ask) saying(says, not string) ask {
	a.says, a.not = says, not
	return a
}

// tokenRows are those of RequestAuthentications. Their keys are inline; TestKeysAreFollowed and the cookbook have those of key servers.
func tokenRows() []row {
	ann := set{"sub": "ann", "aud": "rows", "azp": "desk", "scope": "read write", "groups": "staff night", "address": set{"city": "Oslo", "floor": 3}, "roles": []any{"clerk", "reader"}, "level": 42}
	but := func(name string, value any) set {
		out := set{name: value}
		for k, v := range ann {
			if k != name {
				out[k] = v
			}
		}
		return out
	}
	const forged = "Bearer FORGED"
	people := policy{ra, "people", `{jwtRules: [{issuer: ISSUER, jwks: 'JWKS', audiences: [rows, others], spaceDelimitedClaims: [groups]}]}`}
	preflight := request("client", http.MethodOptions, "/x", "200", "none", "origin", "https://app.example", "access-control-request-method", "GET")
	return []row{
		{"without a token all passes, with a bad one nothing", []policy{people}, []ask{
			get("client", "/x", "200", "none"), get("stranger", "/x", "200", "none"), get("client", "/x", "200", "none").with(ann), get("client", "/x?access_token=TOKEN", "200", "").with(ann, "x", "y"),
			get("client", "/x", "401", "").with(ann, "authorization", forged), get("client", "/x?access_token=FORGED", "401", "").with(ann, "x", "y"), get("client", "/x", "401", "").with(but("exp", 1)), get("client", "/x", "401", "").with(but("nbf", 32503680000)),
			get("client", "/x", "401", "").with(but("iss", "https://else.example")), get("client", "/x", "403", "").with(but("aud", "nobody")).apart(), get("client", "/x", "200", "none").with(but("aud", []any{"x", "others"})),
			get("client", "/x", "401", "").with(nil, "authorization", "Bearer x.y.z"),
			unary("client", "OK"), unary("client", "OK").with(ann), unary("client", "Unauthenticated").with(ann, "authorization", forged), stream("client", "Unauthenticated").with(ann, "authorization", forged), stream("client", "OK").with(ann),
			webSocket("client", "/s", "101", "none").with(ann), webSocket("client", "/s", "401", "").with(ann, "authorization", forged), tcp("client", wire.Line), serverFirst("client", wire.Greeting)}},
		{"a token is demanded by a policy", []policy{people, {ap, "token", `{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ["*"]}}], to: [{operation: {ports: ["8080", "7000"]}}]}]}`}}, []ask{
			get("client", "/x", "403", "token rule 0"), get("client", "/x?y=1", "403", "token rule 0"), get("client", "/x", "200", "none").with(ann), get("client", "/x", "401", "").with(ann, "authorization", forged),
			unary("client", "PermissionDenied"), unary("client", "OK").with(ann), stream("stranger", "PermissionDenied"), webSocket("client", "/s", "403", "token rule 0"), webSocket("client", "/s", "101", "none").with(ann), tcp("client", wire.Line)}},
		{"what a token says", []policy{people, {ap, "says", `{rules: [
			{from: [{source: {requestPrincipals: [ISSUER/ann]}}], to: [{operation: {paths: [/who]}}]},
			{to: [{operation: {paths: [/principal]}}], when: [{key: request.auth.principal, values: ["*/ann"]}]},
			{to: [{operation: {paths: [/audience]}}], when: [{key: request.auth.audiences, values: [rows]}]},
			{to: [{operation: {paths: [/presenter]}}], when: [{key: request.auth.presenter, values: [desk]}]},
			{to: [{operation: {paths: [/city]}}], when: [{key: "request.auth.claims[address][city]", values: ["Os*"]}]},
			{to: [{operation: {paths: [/role]}}], when: [{key: "request.auth.claims[roles]", values: [clerk]}]},
			{to: [{operation: {paths: [/scope]}}], when: [{key: "request.auth.claims[scope]", values: [write]}]},
			{to: [{operation: {paths: [/group]}}], when: [{key: "request.auth.claims[groups]", values: [night]}]},
			{to: [{operation: {paths: [/number]}}], when: [{key: "request.auth.claims[level]", values: ["42"]}]},
			{to: [{operation: {paths: [/not]}}], when: [{key: "request.auth.claims[roles]", notValues: [guest]}]}]}`}}, []ask{
			get("client", "/who", "200", "says rule 0").with(ann), get("client", "/who", "403", "none").with(but("sub", "bob")), get("client", "/who", "403", "none"), get("client", "/principal", "200", "says rule 1").with(ann),
			get("client", "/audience", "200", "says rule 2").with(ann), get("client", "/audience", "403", "none").with(but("aud", "others")), get("client", "/presenter", "200", "says rule 3").with(ann), get("client", "/presenter", "403", "none").with(but("azp", "door")),
			get("client", "/city", "200", "says rule 4").with(ann), get("client", "/city", "403", "none").with(but("address", set{"city": "Rome"})), get("client", "/role", "200", "says rule 5").with(ann), get("client", "/role", "403", "none").with(but("roles", []any{"reader"})),
			get("client", "/scope", "200", "says rule 6").with(ann), get("client", "/scope", "403", "none").with(but("scope", "read")), get("client", "/group", "200", "says rule 7").with(ann), get("client", "/group", "403", "none").with(but("groups", "staff")),
			get("client", "/number", "200", "says rule 8").with(ann), get("client", "/number", "403", "none").with(but("level", 43)), get("client", "/not", "200", "says rule 9").with(ann), get("client", "/not", "403", "none").with(but("roles", []any{"x", "guest"}))}},
		{"policies are united, and tokens are where they say", []policy{{ra, "first", `{jwtRules: [{issuer: ISSUER, jwks: 'JWKS', fromHeaders: [{name: x-first, prefix: "token "}], fromParams: [t], fromCookies: [session]}]}`},
			{ra, "second", `{jwtRules: [{issuer: "https://second.example", jwks: 'JWKS', fromHeaders: [{name: x-second}]}]}`}, {ap, "either", `{rules: [{from: [{source: {requestPrincipals: [ISSUER/ann, "https://second.example/*"]}}]}]}`}}, []ask{
			get("client", "/x", "200", "either rule 0").with(ann, "x-first", "token TOKEN"), get("client", "/x?t=TOKEN", "200", "").with(ann, "x", "y"), get("client", "/x", "200", "either rule 0").with(ann, "cookie", "a=b; session=TOKEN"),
			get("client", "/x", "200", "either rule 0").with(but("iss", "https://second.example"), "x-second", "TOKEN"), get("client", "/x", "403", "none").with(ann).apart(), get("client", "/x", "401", "").with(but("iss", "https://second.example"), "x-first", "token TOKEN"),
			get("client", "/x", "401", "").with(ann, "x-second", "FORGED"), get("client", "/x", "401", "").with(ann, "cookie", "session=FORGED"), get("client", "/x", "401", "").with(ann, "x-first", "token TOKEN", "x-second", "x.y.z"), tcp("client", wire.Nothing)}},
		{"what the application gets of a token", []policy{{ra, "told", `{jwtRules: [{issuer: ISSUER, jwks: 'JWKS', outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-city, claim: address.city}, {header: x-level, claim: level}]}]}`}}, []ask{
			get("client", "/headers", "200", "none").with(ann).saying(`"X-City":["Oslo"]`, "Authorization"), get("client", "/headers", "200", "none").with(ann).saying(`"X-Payload":["ey`, ""), get("client", "/headers", "200", "none").with(ann).saying(`"X-Level":["42"]`, ""),
			get("client", "/headers", "200", "none", "x-city", "Rome", "x-payload", "mine").saying("", "Rome"), get("client", "/headers", "200", "none", "x-payload", "mine").saying("", "mine")}},
		{"the token itself, if it is to be passed on", []policy{{ra, "forward", `{jwtRules: [{issuer: ISSUER, jwks: 'JWKS', forwardOriginalToken: true}]}`}}, []ask{
			get("client", "/headers", "200", "none").with(ann).saying(`"Authorization":["Bearer ey`, "")}},
		{"a CORS preflight needs no good token", []policy{people}, []ask{
			preflight, preflight.with(ann, "authorization", forged).apart(), request("client", http.MethodOptions, "/x", "401", "").with(ann, "authorization", forged)}},
	}
}
