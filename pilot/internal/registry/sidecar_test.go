package registry

import (
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// sidecar makes a Sidecar of its spec in YAML.
func sidecar(t *testing.T, spec string) *Sidecar {
	t.Helper()
	var value any
	if err := yaml.Unmarshal([]byte(spec), &value); err != nil {
		t.Fatal(err)
	}
	s, err := Sidecars.Decode(resource("Sidecar", value), authz.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func egress(s *Sidecar) string {
	if s.Egress == nil {
		return "everything"
	}
	texts := make([]string, len(s.Egress))
	for i, h := range s.Egress {
		texts[i] = h.Namespace + "/" + h.Host
	}
	return strings.Join(texts, " ")
}

func TestSidecarsThatAreEnforcedWhole(t *testing.T) {
	for spec, want := range map[string]string{
		`null`:                                  "everything",
		`{}`:                                    "everything",
		`workloadSelector: {labels: {app: x}}`:  "everything",
		`egress: [{hosts: ["./*"]}]`:            "./*",
		`egress: [{hosts: ["~/*"]}]`:            "~/*",
		`egress: [{hosts: ["*/*", "~shop/*"]}]`: "*/* ~shop/*",
		`egress: [{hosts: ["~./*", "~*/*", "*/*"]}]`:                                                           "~./* ~*/* */*",
		`egress: [{hosts: ["shop/*", "*/web.shop.svc.cluster.local"]}, {hosts: ["bank/*.svc.cluster.local"]}]`: "shop/* */web.shop.svc.cluster.local bank/*.svc.cluster.local",
		`egress: [{hosts: ["*/*.local"], captureMode: DEFAULT}]`:                                               "*/*.local",
	} {
		if s := sidecar(t, spec); egress(s) != want || len(s.Problems) > 0 || s.Partly || len(adviseSidecar(s)) > 0 {
			t.Errorf("%s: %s; %+v", spec, egress(s), s)
		}
	}
}

// What is stored holds as far as it can be enforced, and never lets workloads know more services than its hosts name.
func TestSidecarsOfWhichSomethingIsNotEnforced(t *testing.T) {
	const hosts = `egress: [{hosts: ["./*"]}]`
	for _, c := range []struct{ spec, egress, problem string }{
		{`{ingress: [{port: {number: 80}}], ` + hosts + `}`, "./*", "spec.ingress: is not enforced"},
		{`{outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.example}}, ` + hosts + `}`, "./*", "spec.outboundTrafficPolicy.egressProxy: is not enforced"},
		{`{inboundConnectionPool: {tcp: {maxConnections: 1}}, ` + hosts + `}`, "./*", "spec.inboundConnectionPool: is not enforced"},
		{`egress: [{hosts: ["./*"]}, {hosts: ["b/*"], port: {number: 80}}]`, "./* b/*", "spec.egress[1].port: is not enforced"},
		{`egress: [{hosts: ["./*"], bind: 127.0.0.1}]`, "./*", "spec.egress[0].bind: is not enforced"},
		{`egress: [{hosts: ["./*"], captureMode: NONE}]`, "./*", "spec.egress[0].captureMode: is not enforced"},
		{`{ofTomorrow: 1, ` + hosts + `}`, "./*", `unknown field "ofTomorrow"`},
		{`{workloadSelector: {}, ` + hosts + `}`, "./*", "spec.workloadSelector: has no labels"},
		{`egress: [{}]`, "", "spec.egress[0].hosts: there are none"},
		{`egress: [{hosts: []}, {hosts: [b/*]}]`, "b/*", "spec.egress[0].hosts: there are none"},
		{`egress: [{hosts: ["*"]}]`, "", `spec.egress[0].hosts[0]: "*" is not <namespace>/<DNS name>`},
		{`egress: [{hosts: ["/*", "b/", "b/*"]}]`, "b/*", `"/*" is not <namespace>/<DNS name>`},
		{`egress: [{hosts: ["b/web", "./*"]}]`, "./*", `spec.egress[0].hosts[0]: "b/web" does not name services in full`},
		{`egress: [{hosts: ["b/web.*", "b/w*.x.y", "b/*.*.x", "b/Web.x"]}]`, "", `"b/w*.x.y" does not end with a DNS name`},
		{`egress: [{hosts: ["B/*", "a b/*", "a*/*"]}]`, "", `"a b/*" does not begin with the name of a namespace`},
		{`egress: [{hosts: ["*/*", "~shop/web"]}]`, "*/* ~/*", `"~shop/web" does not name services in full`},
		{`egress: [{hosts: ["*/*", "~Shop/*"]}]`, "*/* ~/*", `"~Shop/*" does not begin with the name of a namespace`},
	} {
		s := sidecar(t, c.spec)
		v, _ := Sidecars.Verdict(s)
		if egress(s) != c.egress || !strings.Contains(v.Summary(), c.problem) || !v.Partly || v.Idle || v.Kind != "Sidecar" || v.Name != "p" {
			t.Errorf("%s: %s; %+v", c.spec, egress(s), v)
		}
	}
}

// Where workloads may connect is what Istio's field says, of which the first mode is the one that keeps them from what has no name. So does what cannot be understood.
func TestSidecarsSayWhereTheirWorkloadsMayConnect(t *testing.T) {
	for spec, want := range map[string]Outbound{
		`{}`: "",
		`outboundTrafficPolicy: {mode: REGISTRY_ONLY}`:                                   RegistryOnly,
		`outboundTrafficPolicy: {}`:                                                      RegistryOnly,
		`outboundTrafficPolicy: {mode: ALLOW_ANY}`:                                       AllowAny,
		`{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ["./*"]}]}`:     RegistryOnly,
		`{outboundTrafficPolicy: {mode: REGISTRY_ONLY, egressProxy: {host: a.example}}}`: RegistryOnly,
		`{outboundTrafficPolicy: {mode: 7}}`:                                             RegistryOnly,
		`{outboundTrafficPolicy: {mode: OF_TOMORROW}}`:                                   RegistryOnly,
		`{outboundTrafficPolicy: 3}`:                                                     RegistryOnly,
		`{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: 3}`:                      RegistryOnly,
		`{outboundTrafficPolicy: {mode: ALLOW_ANY}, egress: 3}`:                          AllowAny,
		`{egress: 3}`: "",
	} {
		if s := sidecar(t, spec); s.Outbound != want || s.Silent() != (spec == `{}`) {
			t.Errorf("%s: %q, silent %v; %+v", spec, s.Outbound, s.Silent(), s)
		}
	}
	if s := sidecar(t, `{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ["./api.example.com"]}]}`); len(adviseSidecar(s)) > 0 {
		t.Errorf("a host outside of the mesh: %v", adviseSidecar(s))
	}
}

func TestSidecarThatCannotBeReadHidesAllServices(t *testing.T) {
	for _, spec := range []string{`text`, `{egress: 3, workloadSelector: {labels: {app: x}}}`, `egress: [{hosts: [1]}]`, `{ingress: 1, egress: [{hosts: ["*/*"]}]}`} {
		s := sidecar(t, spec)
		if v, _ := Sidecars.Verdict(s); s.Egress == nil || len(s.Egress) > 0 || len(v.Problems) != 1 || v.Partly {
			t.Errorf("%s: %+v, %+v", spec, s, v)
		}
	}
	if s := sidecar(t, `{egress: 3, workloadSelector: {labels: {app: x}}}`); s.Selector["app"] != "x" {
		t.Errorf("it is not for whom it was: %+v", s)
	}
	many := make([]string, MaxEgressHosts+1)
	for i := range many {
		many[i] = fmt.Sprintf("ns%d/*", i)
	}
	if s := sidecar(t, fmt.Sprintf("egress: [{hosts: [%s]}]", strings.Join(many, ", "))); s.Egress == nil || len(s.Egress) > 0 || len(s.Problems) == 0 {
		t.Errorf("of %d hosts, %d are kept: %+v", len(many), len(s.Egress), s.Problems)
	}
	if s := sidecar(t, fmt.Sprintf("egress: [{hosts: [%s]}]", strings.Join(many[1:], ", "))); len(s.Egress) != MaxEgressHosts || s.Problems != nil {
		t.Errorf("of %d hosts, %d are kept: %+v", MaxEgressHosts, len(s.Egress), s.Problems)
	}
}

func TestSidecarsThatTouchNothingAreTold(t *testing.T) {
	s := sidecar(t, `{workloadSelector: {labels: {app: "a*"}}, egress: [{hosts: ["./*"]}]}`)
	if v, _ := Sidecars.Verdict(s); !v.Idle || !strings.Contains(v.Summary(), `spec.workloadSelector.labels: "app": "a*" can never match`) {
		t.Errorf("%+v", v)
	}
	s = sidecar(t, `egress: [{hosts: ["*/api.example.com", "shop/web.shop.svc", "*/*.example.com", "*/web.shop.svc.cluster.local"]}]`)
	if advice := Sidecars.Advice(s); len(advice) != 3 || !strings.HasPrefix(advice[0], "*/api.example.com names no service of the mesh") || len(s.Problems) > 0 {
		t.Errorf("%q, %+v", advice, s.Problems)
	}
}
