package server

import (
	"net/http/httptest"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
)

func TestReachAnswersOneOfTwoQuestions(t *testing.T) {
	reg, err := fixture.Load([]byte(`
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.96.0.1], ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop}
`))
	if err != nil {
		t.Fatal(err)
	}
	p := &Pilot{registry: reg, settings: Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}}
	for query, want := range map[string]string{
		"?workload=shop/p": "pod shop/p", "?service=shop/web": "service shop/web", "?service=shop%2Fweb": "service shop/web",
		"": "", "?workload=&service=": "", "?workload=shop/p&service=shop/web": "", "?workload=shop/web": "", "?service=shop/p": "",
	} {
		answer, err := p.reach(httptest.NewRequest("GET", "/v1/reach"+query, nil))
		got := ""
		switch v := answer.(type) {
		case operatorv1.Reach:
			got = "pod " + v.Pod
		case operatorv1.Audience:
			got = "service " + v.Service
		}
		if want != "" && got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v, want %q", query, got, err, want)
		}
	}
}
