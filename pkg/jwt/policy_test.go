package jwt

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

func read(t *testing.T, spec string) (Policy, []authz.Problem) {
	t.Helper()
	var s security.RequestAuthentication
	if err := protojson.Unmarshal([]byte(spec), &s); err != nil {
		t.Fatal(err)
	}
	return FromRequestAuthentication(authz.Meta{Namespace: "a", Name: "r"}, &s, authz.Options{TrustDomain: "cluster.local", TrustDomainAliases: []string{"old.local"}})
}

func TestWhereKeysAre(t *testing.T) {
	for spec, want := range map[string]string{
		`{"issuer":"https://a.example/"}`:                                  "https://a.example/.well-known/openid-configuration",
		`{"issuer":"https://a.example/realms/x"}`:                          "https://a.example/realms/x/.well-known/openid-configuration",
		`{"issuer":"me@a.example","jwksUri":"https://a.example/keys?v=1"}`: "https://a.example/keys?v=1",
		`{"issuer":"spiffe://cluster.local"}`:                              "spiffe://cluster.local",
		`{"issuer":"spiffe://old.local"}`:                                  "spiffe://old.local",
	} {
		p, problems := read(t, `{"jwtRules":[`+spec+`]}`)
		if len(problems) > 0 || p.Rules[0].Source.String() != want {
			t.Errorf("%s: %v, %v, want %s", spec, p.Rules[0].Source, problems, want)
		}
	}
}

func TestWhatCannotBeVerifiedIsNamed(t *testing.T) {
	const keys = `"jwksUri":"https://a.example/keys"`
	for spec, want := range map[string]string{
		`{"jwtRules":[{` + keys + `}]}`:                                                                        "spec.jwtRules[0].issuer",
		`{"jwtRules":[{"issuer":"me@a.example"}]}`:                                                             "spec.jwtRules[0].issuer",
		`{"jwtRules":[{"issuer":"spiffe://else.where"}]}`:                                                      "spec.jwtRules[0].issuer",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"jwks":"{}"}]}`:                                               "spec.jwtRules[0].jwks",
		`{"jwtRules":[{"issuer":"x","jwks":"{}"}]}`:                                                            "spec.jwtRules[0].jwks",
		`{"jwtRules":[{"issuer":"x","jwksUri":"https://user:secret@a.example/"}]}`:                             "spec.jwtRules[0].jwksUri",
		`{"jwtRules":[{"issuer":"x","jwksUri":"file:///etc/passwd"}]}`:                                         "spec.jwtRules[0].jwksUri",
		`{"jwtRules":[{"issuer":"x","jwksUri":"https://"}]}`:                                                   "spec.jwtRules[0].jwksUri",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"audiences":[""]}]}`:                                          "spec.jwtRules[0].audiences[0]",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"fromHeaders":[{"name":"a b"}]}]}`:                            "spec.jwtRules[0].fromHeaders[0].name",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"fromHeaders":[{"name":"Host"}]}]}`:                           "spec.jwtRules[0].fromHeaders[0].name",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"fromHeaders":[{"name":"a","prefix":"Bearer\n"}]}]}`:          "spec.jwtRules[0].fromHeaders[0].prefix",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"outputClaimToHeaders":[{"header":"x","claim":"a\u0000"}]}]}`: "spec.jwtRules[0].outputClaimToHeaders[0].claim",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"fromParams":[""]}]}`:                                         "spec.jwtRules[0].fromParams[0]",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"fromCookies":["a\n"]}]}`:                                     "spec.jwtRules[0].fromCookies[0]",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"outputPayloadToHeader":"authorization"}]}`:                   "spec.jwtRules[0].outputPayloadToHeader",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"outputClaimToHeaders":[{"header":"x","claim":"a..b"}]}]}`:    "spec.jwtRules[0].outputClaimToHeaders[0].claim",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"outputClaimToHeaders":[{"header":"","claim":"a"}]}]}`:        "spec.jwtRules[0].outputClaimToHeaders[0].header",
		`{"jwtRules":[{"issuer":"x",` + keys + `,"timeout":"0s"}]}`:                                            "spec.jwtRules[0].timeout",
		`{"selector":{"matchLabels":{"app":"*"}}}`:                                                             "spec.selector.matchLabels",
		`{"targetRefs":[{"kind":"Pod","name":"p"}]}`:                                                           "spec.targetRefs[0].kind",
		`{"targetRefs":[{"kind":"Service","name":"p","namespace":"b"}]}`:                                       "spec.targetRefs[0].namespace",
		`{"targetRefs":[{"kind":"Service","name":"p"}],"selector":{"matchLabels":{"app":"a"}}}`:                "spec.targetRefs",
	} {
		_, problems := read(t, spec)
		if len(problems) == 0 || problems[0].Field != want {
			t.Errorf("%s: %v, want one with %s", spec, problems, want)
		}
		for _, p := range problems {
			if strings.Contains(p.Reason, "secret") {
				t.Errorf("%s: a password is told: %v", spec, p)
			}
		}
	}
}

func TestPlacesOfTokens(t *testing.T) {
	p, problems := read(t, `{"jwtRules":[{"issuer":"https://a.example"},{"issuer":"https://a.example","fromHeaders":[{"name":"X-Token"}],"fromParams":["t"],"fromCookies":["c"]}]}`)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if got := strings.Join(append(p.Rules[0].Places(), p.Rules[1].Places()...), ", "); got != "header authorization, parameter access_token, header x-token, parameter t, cookie c" {
		t.Errorf("%s", got)
	}
}
