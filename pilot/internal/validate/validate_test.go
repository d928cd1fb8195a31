package validate

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

func review(t *testing.T, kind, namespace, spec string) *admissionv1.AdmissionResponse {
	t.Helper()
	return annotated(t, kind, namespace, spec, "{}")
}

func annotated(t *testing.T, kind, namespace, spec, annotations string) *admissionv1.AdmissionResponse {
	t.Helper()
	return Objects(authz.Options{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"})(t.Context(), &admissionv1.AdmissionRequest{
		Operation: admissionv1.Create, Namespace: namespace, Name: "p", Kind: meta.GroupVersionKind{Kind: kind},
		Object: runtime.RawExtension{Raw: []byte(`{"metadata":{"name":"p","annotations":` + annotations + `},"spec":` + spec + `}`)},
	})
}

func TestRefusalsNameFieldAndReason(t *testing.T) {
	for _, c := range []struct{ kind, namespace, spec, want string }{
		{"AuthorizationPolicy", "a", `{"action":"CUSTOM","rules":[{}]}`, "spec.provider.name: is empty"},
		{"AuthorizationPolicy", "a", `{"rules":[{"to":[{"operation":{"pathes":["/"]}}]}]}`, `unknown field "pathes"`},
		{"AuthorizationPolicy", "a", `{"rules":[{"to":[{"operation":{"ports":["70000"]}}]}]}`, `spec.rules[0].to[0].operation.ports[0]: "70000" is not a port`},
		{"PeerAuthentication", "a", `{"portLevelMtls":{"80":{"mode":"STRICT"}}}`, "spec.portLevelMtls: needs a selector"},
		{"PeerAuthentication", "bulwark-system", `{"selector":{"matchLabels":{"a":"b"}}}`, "spec.selector: has no effect in the root namespace"},
		{"PeerAuthentication", "a", `{"selector":{"matchLabels":{"app":"a*"}},"mtls":{"mode":"STRICT"}}`, `spec.selector.matchLabels: "app": "a*" can never match`},
		{"AuthorizationPolicy", "a", `{"selector":{"matchLabels":{"app":"a b"}}}`, `spec.selector.matchLabels: "app": "a b" can never match`},
		{"AuthorizationPolicy", "a", `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/a%2Fb"]}}]}]}`, `spec.rules[0].to[0].operation.paths[0]: "/a%2Fb" can never match: %2F is decoded before paths are compared, or denied as ambiguous; write "/a/b"`},
		{"RequestAuthentication", "a", `{"jwtRules":[{"issuer":"x"}]}`, "spec.jwtRules[0].issuer: has no keys to be discovered"},
		{"RequestAuthentication", "a", `{"jwtRules":[{"issuer":"x","jwksUri":"ftp://a.example/keys"}]}`, `spec.jwtRules[0].jwksUri: "ftp://a.example/keys" is not a URL of http or https`},
		{"RequestAuthentication", "a", `{"jwtRules":[{"issuer":"x","jwks":"{\"keys\":[{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}]}"}]}`, "spec.jwtRules[0].jwks: keys[0]: it is a shared secret"},
		{"RequestAuthentication", "a", `{"jwtRules":[{"jwksUri":"https://a.example/keys"}]}`, "spec.jwtRules[0].issuer: is empty"},
		{"RequestAuthentication", "a", `{"jwtRules":[{"issuer":"x","jwksUri":"https://a.example/keys","outputPayloadToHeader":"Authorization"}]}`, "has a meaning of its own"},
		{"RequestAuthentication", "a", `{"jwtRules":[{"issuer":"x","jwksUri":"https://a.example/keys","key":1}]}`, `unknown field "key"`},
		{"AuthorizationPolicy", "a", `{"rules":[{"from":[{"source":{"requestPrincipals":["https://a.example*"]}}]}]}`, `write "https://a.example/*"`},
		{"Sidecar", "a", `{"ingress":[{"port":{"number":80}}],"egress":[{"hosts":["./*"]}]}`, "spec.ingress: is not enforced"},
		{"Sidecar", "a", `{"egress":[{"hosts":["./*"],"port":{"number":80}}]}`, "spec.egress[0].port: is not enforced"},
		{"Sidecar", "a", `{"egress":[{"hosts":["shop/web"]}]}`, `spec.egress[0].hosts[0]: "shop/web" does not name services in full`},
	} {
		got := review(t, c.kind, c.namespace, c.spec)
		if got.Allowed || !strings.Contains(got.Result.Message, c.want) {
			t.Errorf("%s %s: %+v, want %q", c.kind, c.spec, got.Result, c.want)
		}
	}
}

func TestPoliciesThatCanBeEnforcedPass(t *testing.T) {
	for _, c := range []struct{ kind, spec, warning string }{
		{"PeerAuthentication", `{"mtls":{"mode":"STRICT"}}`, ""},
		{"AuthorizationPolicy", `{}`, ""},
		{"Sidecar", `{"workloadSelector":{"labels":{"app":"x"}},"egress":[{"hosts":["./*","shop/web.shop.svc.cluster.local","~/*"]}]}`, ""},
		{"Sidecar", `{"egress":[{"hosts":["*/api.example.com"]}]}`, "names no service of the mesh"},
		{"AuthorizationPolicy", `null`, ""},
		{"AuthorizationPolicy", `{"action":"DENY","rules":[{"to":[{"operation":{"paths":["/admin"]}}]}]}`, "denies more"},
		{"AuthorizationPolicy", `{"rules":[{"from":[{"source":{"principals":["cluster.local/ns/a/sa/b"]}}]}]}`, ""},
		{"AuthorizationPolicy", `{"rules":[{"from":[{"source":{"ipBlocks":["10.0.0.0/8"]}}]}]}`, "a client that waits for the server to speak gets nothing"},
		{"AuthorizationPolicy", `{"action":"DENY","rules":[{"from":[{"source":{"principals":["cluster.local/ns/a/sa/b"]}}]}]}`, "a client that waits for the server to speak gets nothing"},
		{"AuthorizationPolicy", `{"action":"CUSTOM","provider":{"name":"opa"},"rules":[{}]}`, "there is no external authorizer \"opa\""},
		{"RequestAuthentication", `{"jwtRules":[{"issuer":"https://a.example"}]}`, "a request without a token passes"},
		{"RequestAuthentication", `{"jwtRules":[{"issuer":"spiffe://cluster.local"}]}`, "name your audiences"},
		{"RequestAuthentication", `{"jwtRules":[{"issuer":"x","jwksUri":"http://a.example/keys"}]}`, "use https, or jwks"},
		{"RequestAuthentication", `{}`, "verifies nothing"},
		{"AuthorizationPolicy", `{"rules":[{"from":[{"source":{"requestPrincipals":["*"],"remoteIpBlocks":["10.0.0.0/8"]}}]}]}`, "is the address of the TCP peer"},
		{"AuthorizationPolicy", `{"rules":[{"to":[{"operation":{"methods":["GET"]}}]}]}`, "never match on ports that are not HTTP"},
		{"AuthorizationPolicy", `{"rules":[{"to":[{"operation":{"paths":["/service/*health"]}}]}]}`, "the other one is taken as it is"},
		{"AuthorizationPolicy", `{"rules":[{"from":[{"source":{"principals":["other.example/ns/a/sa/b"]}}]}]}`, "nor an alias of it"},
	} {
		got := review(t, c.kind, "a", c.spec)
		if !got.Allowed || !strings.Contains(strings.Join(got.Warnings, " "), c.warning) || c.warning == "" && len(got.Warnings) > 0 {
			t.Errorf("%s %s: %+v", c.kind, c.spec, got)
		}
	}
}

func TestDryRunIsTrueOrFalseAndOfAuthorizationPolicies(t *testing.T) {
	for _, c := range []struct{ kind, value, want string }{
		{"AuthorizationPolicy", "true", ""},
		{"AuthorizationPolicy", "false", ""},
		{"AuthorizationPolicy", "1", ""},
		{"AuthorizationPolicy", "yes", `metadata.annotations[istio.io/dry-run]: "yes" is neither true nor false`},
		{"AuthorizationPolicy", "", "neither true nor false"},
		{"AuthorizationPolicy", "true ", "neither true nor false"},
		{"PeerAuthentication", "true", "only an AuthorizationPolicy can be tried out"},
	} {
		got := annotated(t, c.kind, "a", "{}", `{"istio.io/dry-run":"`+c.value+`"}`)
		if got.Allowed != (c.want == "") || !got.Allowed && !strings.Contains(got.Result.Message, c.want) {
			t.Errorf("%s %q: %+v", c.kind, c.value, got)
		}
	}
	got := annotated(t, "AuthorizationPolicy", "a", `{"action":"AUDIT","rules":[{}]}`, `{"istio.io/dry-run":"true"}`)
	if !got.Allowed || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "AUDIT decides nothing") {
		t.Errorf("a dry run of what decides nothing: %+v", got)
	}
}

// A Service is never refused, whatever it is, as its pods can be called without Pilot's word.
func TestAuthorsOfServicesAreToldWhatHolds(t *testing.T) {
	for _, c := range []struct{ spec, warning string }{
		{`{"ports":[{"port":80}],"internalTrafficPolicy":"Local","trafficDistribution":"PreferSameNode","publishNotReadyAddresses":true}`, ""},
		{`{"ports":[{"port":80},{"port":53,"protocol":"UDP"}]}`, "port 53 is UDP, which proxies do not take"},
		{`{"ports":[{"port":3868,"protocol":"SCTP"}]}`, "port 3868 is SCTP"},
		{`{"sessionAffinity":"ClientIP"}`, ""},
		{`{"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":10800}}}`, ""},
		{`{"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}}}`, "also after 1m0s of silence"},
		{`{"clusterIPs":["None"],"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":60}}}`, ""},
		{`{"type":"ExternalName","externalName":"a.example","ports":[{"port":53,"protocol":"UDP"}]}`, ""},
		{`"nonsense"`, ""},
	} {
		got := review(t, "Service", "a", c.spec)
		if !got.Allowed || !strings.Contains(strings.Join(got.Warnings, " "), c.warning) || c.warning == "" && len(got.Warnings) > 0 {
			t.Errorf("%s: %+v", c.spec, got)
		}
	}
}
