package registry

import (
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// stored makes an object of the registry of what is stored in namespace a, whatever admission would say.
func stored[T any](t *testing.T, kind *KindOf[T], spec string) (*T, Verdict) {
	t.Helper()
	var value any
	if err := yaml.Unmarshal([]byte(spec), &value); err != nil {
		t.Fatal(err)
	}
	out, err := kind.Decode(resource(kind.resource.Kind, value), authz.Options{RootNamespace: "root"})
	if err != nil {
		t.Fatal(err)
	}
	v, _ := kind.Verdict(out)
	return out, v
}

// A ServiceEntry that is stored and cannot be enforced holds for nobody; one that is exported to others, as Istio lets it be, still holds in its own namespace.
func TestStoredServiceEntriesHoldForWhomTheyMay(t *testing.T) {
	const whole = `hosts: [a.example], ports: [{number: 80, name: http, protocol: HTTP}]`
	for spec, want := range map[string]struct{ ignored, partly, problems bool }{
		`{` + whole + `}`:                     {false, true, false},
		`{` + whole + `, exportTo: ["*"]}`:    {false, true, true},
		`{` + whole + `, exportTo: [b]}`:      {false, true, true},
		`{` + whole + `, exportTo: ["~"]}`:    {true, false, true},
		`{` + whole + `, location: 1}`:        {true, false, true},
		`{` + whole + `, resolution: STATIC}`: {true, false, true},
		`{` + whole + `, ofTomorrow: {}}`:     {true, false, true},
		`{hosts: [1], ports: [{number: 80}]}`: {true, false, true},
		`{hosts: [web], exportTo: [a]}`:       {true, false, true},
	} {
		e, v := stored(t, ServiceEntries, spec)
		if e.Ignored != want.ignored || v.Idle != want.ignored || v.Partly != want.partly || (len(e.Problems) > 0) != want.problems {
			t.Errorf("%s: %+v, %+v", spec, e, v)
		}
	}
}

// A DestinationRule that is stored and asks of TLS what cannot be had has its host closed; what else is not supported is left out.
func TestStoredDestinationRulesFailClosed(t *testing.T) {
	for spec, want := range map[string]struct {
		broken  bool
		problem bool
	}{
		`{host: a.example, trafficPolicy: {tls: {mode: SIMPLE}}}`:                                                       {false, false},
		`{host: a.example, trafficPolicy: {tls: {mode: SIMPLE}, loadBalancer: {simple: RANDOM}}}`:                       {false, true},
		`{host: a.example, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}`:                             {true, true},
		`{host: a.example, trafficPolicy: {tls: {mode: MUTUAL, credentialName: x}}}`:                                    {true, true},
		`{host: a.example, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, caCrl: /x}}]}}`: {true, true},
		`{host: a.example, trafficPolicy: {tls: {mode: SIMPLE, ofTomorrow: 1}}}`:                                        {true, true},
		`{host: a.example, trafficPolicy: {tls: {mode: 99}}}`:                                                           {true, true},
		`{host: a.example, trafficPolicy: {tls: [1]}}`:                                                                  {true, true},
		`{host: a.example, trafficPolicy: {loadBalancer: {simple: RANDOM}}}`:                                            {false, true},
	} {
		d, v := stored(t, DestinationRules, spec)
		if d.Broken() != want.broken || v.Partly == want.broken || (len(d.Problems) > 0) != want.problem || d.Host != "a.example" {
			t.Errorf("%s: %+v, TLS %+v, %+v", spec, d, d.TLS, v)
		}
	}
}
