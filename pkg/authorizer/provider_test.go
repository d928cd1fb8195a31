package authorizer

import (
	"strings"
	"testing"
	"time"
)

func TestProvidersAreReadAsIstiosAre(t *testing.T) {
	list, err := Parse(`[
		{"name": "opa", "envoyExtAuthzGrpc": {"service": "opa/opa.opa.svc.cluster.local", "port": 9191, "timeout": "1s", "failOpen": true, "statusOnError": "503",
			"includeRequestBodyInCheck": {"maxRequestBytes": 4096, "allowPartialMessage": true, "packAsBytes": true}}},
		{"name": "oauth2-proxy", "envoyExtAuthzHttp": {"service": "oauth2-proxy.auth.svc.cluster.local", "port": 4180, "pathPrefix": "/check", "includeRequestHeadersInCheck": ["authorization", "cookie", "x-*"],
			"includeAdditionalHeadersInCheck": {"x-auth-request-redirect": "%REQ(:PATH)%"}, "headersToUpstreamOnAllow": ["*-user"], "headersToDownstreamOnDeny": ["set-cookie", "content-type"], "headersToDownstreamOnAllow": ["set-cookie"]}}]`)
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	opa, web := list[0], list[1]
	if !opa.GRPC || opa.Service != "opa/opa" || opa.Port != 9191 || opa.Timeout != time.Second || !opa.FailOpen || opa.StatusOnError != 503 || *opa.Body != (Body{4096, true, true}) {
		t.Errorf("%+v", opa)
	}
	if web.GRPC || web.Service != "auth/oauth2-proxy" || web.Timeout != defaultTimeout || web.FailOpen || web.StatusOnError != 403 || len(web.RequestHeaders) != 3 || web.PathPrefix != "/check" {
		t.Errorf("%+v", web)
	}
	for text, want := range map[string]string{
		`{}`: "not a list", `[{"name": "a"}]`: "neither", `[{"name": "A b", "envoyExtAuthzGrpc": {}}]`: "name", `[{"name": "zipkin", "zipkin": {"service": "a", "port": 1}}]`: "neither",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "a.example.com", "port": 1}}]`:                                                                                              "a Service of the cluster",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "b/a.a.svc.cluster.local", "port": 1}}]`:                                                                                    "a Service of the cluster",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "a.a.svc.cluster.local"}}]`:                                                                                                 "port",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "a.a.svc.cluster.local", "port": 1, "timeout": "0s"}}]`:                                                                     "timeout",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "a.a.svc.cluster.local", "port": 1, "statusOnError": "200"}}]`:                                                              "statusOnError",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "a.a.svc.cluster.local", "port": 1, "includeRequestBodyInCheck": {}}}]`:                                                     "maxRequestBytes",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "a.a.svc.cluster.local", "port": 1, "clearRouteCache": true}}]`:                                                             "clearRouteCache",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "a.a.svc.cluster.local", "port": 1, "retries": 3}}]`:                                                                        "retries",
		`[{"name": "a", "envoyExtAuthzHttp": {"service": "a.a.svc.cluster.local", "port": 1, "pathPrefix": "check"}}]`:                                                               "pathPrefix",
		`[{"name": "a", "envoyExtAuthzHttp": {"service": "a.a.svc.cluster.local", "port": 1, "headersToUpstreamOnAllow": ["x y"]}}]`:                                                 "headersToUpstreamOnAllow",
		`[{"name": "a", "envoyExtAuthzHttp": {"service": "a.a.svc.cluster.local", "port": 1, "includeAdditionalHeadersInCheck": {"x": "a\r\nb"}}}]`:                                  "includeAdditionalHeadersInCheck",
		`[{"name": "a", "envoyExtAuthzGrpc": {"service": "a.a.svc.cluster.local", "port": 1}}, {"name": "a", "envoyExtAuthzGrpc": {"service": "a.a.svc.cluster.local", "port": 2}}]`: "another one",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if list, err := Parse(" "); err != nil || list != nil {
		t.Errorf("nothing: %v, %v", list, err)
	}
}
