package explain

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

var options = authz.Options{TrustDomain: "cluster.local", RootNamespace: "bulwark-system",
	Authorizers: []authorizer.Provider{{Name: "opa", GRPC: true, Service: "opa/opa", Port: 9191}}}

func objectsOf(t testing.TB, texts ...string) (out []*unstructured.Unstructured) {
	t.Helper()
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(strings.Join(texts, "\n---\n"))), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := documents.Decode(&o.Object); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
}

func meshOf(t testing.TB, objects []*unstructured.Unstructured) *Mesh {
	t.Helper()
	m, err := New(objects, options, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func sample(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("../../manifests/samples/finance.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func policyYAML(name, spec string) string {
	return "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name + ", namespace: finance}\nspec: " + spec
}

func peerYAML(namespace, name, spec string) string {
	return "\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec: {" + spec + "}"
}

const revoked = `
apiVersion: v1
kind: ConfigMap
metadata: {name: bulwark-revocations, namespace: bulwark-system}
data: {revocations.json: '[{"name":"r","identity":"spiffe://cluster.local/ns/finance/sa/account-auditor","reason":"stolen","created":"2026-01-01T00:00:00Z","expires":"2099-01-01T00:00:00Z"}]'}`

func TestEveryReasonIsExplained(t *testing.T) {
	auditor := Ask{Namespace: "finance", From: "account-auditor", To: "deploy/payroll", Port: 8080, Method: "GET", Path: "/accounts/1"}
	with := func(change func(*Ask)) Ask {
		ask := auditor
		change(&ask)
		return ask
	}
	const denyAll = `{action: DENY, rules: [{from: [{source: {namespaces: [finance]}}]}]}`
	for _, c := range []struct {
		name    string
		extra   string
		ask     Ask
		allowed bool
		by      Stage
		policy  string
		says    string // in the reason, a note, or why there is no change
		change  int    // policies
	}{
		{"allowed", "", auditor, true, AtPolicies, "finance/payroll-readers rule 0", "allowed by", 0},
		{"default deny", "", with(func(a *Ask) { a.From = "web" }), false, AtPolicies, "", "these select the workload: finance/ledger-readers, finance/payroll-readers", 1},
		{"misspelt account", "", with(func(a *Ask) { a.From = "auditor" }), false, AtPolicies, "", "no pod runs as finance/auditor", 1},
		{"denied by a rule", policyYAML("none", denyAll), auditor, false, AtPolicies, "finance/none rule 0", "holds for other workloads, too", 1},
		{"denied by a rule, and by default", policyYAML("none", denyAll), with(func(a *Ask) { a.From = "web" }), false, AtPolicies, "finance/none rule 0", "", 2},
		{"plaintext", "", with(func(a *Ask) { a.From, a.Plaintext = "", true }), false, AtMutualTLS, "", "STRICT, by finance/default", 0},
		{"plaintext, by the narrowest policy", peerYAML("bulwark-system", "mesh", "mtls: {mode: STRICT}") + "\n---" + peerYAML("finance", "of-payroll", "selector: {matchLabels: {app: payroll}}, mtls: {mode: STRICT}") + "\n---" +
			peerYAML("finance", "younger", "selector: {matchLabels: {app: payroll}}, mtls: {mode: PERMISSIVE}"), with(func(a *Ask) { a.From, a.Plaintext = "", true }), false, AtMutualTLS, "", "STRICT, by finance/of-payroll)", 0},
		{"plaintext, where the narrowest says nothing", peerYAML("finance", "of-payroll", "selector: {matchLabels: {app: payroll}}, portLevelMtls: {9: {mode: DISABLE}}"), with(func(a *Ask) { a.From, a.Plaintext = "", true }),
			false, AtMutualTLS, "", "STRICT, by finance/default)", 0},
		{"ambiguous path", "", with(func(a *Ask) { a.Path = "/accounts//1" }), false, AtPolicies, authz.AmbiguousPathRule, "normalise paths", 0},
		{"ambiguous method", "", with(func(a *Ask) { a.Method = "get" }), false, AtPolicies, authz.AmbiguousMethodRule, "no policy changes that", 0},
		{"tunnel", "", with(func(a *Ask) { a.Method, a.Path = "CONNECT", "" }), false, AtPolicies, authz.TunnelRule, "no policy changes that", 0},
		{"malformed", "", with(func(a *Ask) { a.Host = "a b" }), false, AtCodec, "", "before any rule is asked", 0},
		{"HTTP at a port of TCP", "", with(func(a *Ask) { a.Port = 9000 }), true, AtPolicies, "finance/ledger-readers rule 0", "declared to speak TCP", 0},
		{"DENY of HTTP at a port of TCP", policyYAML("paths", `{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}`), with(func(a *Ask) { a.Port, a.TCP = 9000, true }),
			false, AtPolicies, "finance/paths rule 0", "it denies more", 1},
		{"tried out", strings.Replace(policyYAML("none", denyAll), "namespace: finance}", "namespace: finance, annotations: {istio.io/dry-run: 'true'}}", 1), auditor,
			true, AtPolicies, "finance/payroll-readers rule 0", "", 0},
		{"cannot be enforced", policyYAML("broken", `{action: DENY, rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]}`), auditor,
			false, AtPolicies, "finance/broken rule 0", "cannot be enforced as it is written", 0},
		{"revoked", revoked, auditor, false, AtRevocation, "", "meshctl identity restore", 0},
		{"another mesh", "", with(func(a *Ask) { a.From = "other/ns/finance/sa/account-auditor" }), false, AtHandshake, "", "another trust domain", 0},
		{"not exported", "apiVersion: v1\nkind: Service\nmetadata: {name: payroll, namespace: finance, annotations: {networking.istio.io/exportTo: shop}}\nspec: {selector: {app: payroll}, ports: [{name: http, port: 80, targetPort: 8080}]}",
			auditor, false, AtReach, "", "not exported to namespace finance", 0},
		{"hidden", "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: finance}\nspec: {egress: [{hosts: [shop/*]}]}",
			auditor, false, AtReach, "", "Sidecar finance/default", 0},
		{"no proxy", "apiVersion: v1\nkind: Namespace\nmetadata: {name: finance}", auditor, true, AtNothing, "", "nothing decides about what comes to it", 0},
		{"another workload behind the service", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: canary, namespace: finance}\nspec: {selector: {matchLabels: {app: payroll, v: canary}}, template: {metadata: {labels: {app: payroll, v: canary}}, spec: {}}}",
			with(func(a *Ask) { a.To, a.Port = "svc/payroll", 80 }), true, AtPolicies, "finance/payroll-readers rule 0", "other workloads are behind", 0},
		{"a token", policyYAML("tokens", `{action: DENY, rules: [{from: [{source: {notRequestPrincipals: ["https://issuer/*"]}}]}]}`), auditor,
			false, AtPolicies, "finance/tokens rule 0", "no RequestAuthentication selects the workload", 1},
		{"a service's port", "", with(func(a *Ask) { a.Port = 80 }), true, AtPolicies, "finance/payroll-readers rule 0", "the workload's, which policies name, is 8080", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := meshOf(t, Overlay(objectsOf(t, sample(t)), objectsOf(t, c.extra)))
			e, err := m.Explain(c.ask)
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(append(append([]string{e.Reason, e.NoChange}, e.Notes...), e.ChangeNotes...), "\n")
			if e.Allowed != c.allowed || e.By != c.by || e.Policy != c.policy || !strings.Contains(all, c.says) || len(e.Change) != c.change {
				t.Errorf("%+v\nwant allowed %v by %s %q, saying %q, with %d changes", e, c.allowed, c.by, c.policy, c.says, c.change)
			}
			if (c.name == "tried out") != (e.DryRun != nil && !e.DryRun.Allowed) {
				t.Errorf("tried out: %+v", e.DryRun)
			}
			if len(e.Change) == 0 {
				return
			}
			// What is printed is applied as it is printed.
			text, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": e.Change})
			if err != nil {
				t.Fatal(err)
			}
			list := &unstructured.UnstructuredList{}
			if err := json.Unmarshal(text, list); err != nil {
				t.Fatal(err)
			}
			var changed []*unstructured.Unstructured
			for i := range list.Items {
				changed = append(changed, &list.Items[i])
			}
			after, err := meshOf(t, Overlay(Overlay(objectsOf(t, sample(t)), objectsOf(t, c.extra)), changed)).Explain(c.ask)
			if err != nil || !after.Allowed {
				t.Errorf("with the change it is %+v, %v", after, err)
			}
		})
	}
}

func TestWhatIsNotThereIsNamed(t *testing.T) {
	m := meshOf(t, objectsOf(t, sample(t)))
	for want, ask := range map[string]Ask{
		"there are deploy/account-auditor, deploy/payroll, deploy/web": {Namespace: "finance", From: "web", To: "deploy/payrol"},
		"nor any other (-n names the namespace)":                       {Namespace: "default", From: "finance/web", To: "deploy/payroll"},
		"who asks?":                                                    {Namespace: "finance", To: "deploy/payroll"},
		"--from: ":                                                     {Namespace: "finance", From: "A/B", To: "deploy/payroll"},
	} {
		if _, err := m.Explain(ask); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", ask, err, want)
		}
	}
}

func TestRecordIsARequestOfTheOneWhoDecided(t *testing.T) {
	m := meshOf(t, objectsOf(t, sample(t)))
	event := &telemetryv1.Event{
		Observer: &telemetryv1.Workload{Namespace: "finance", Pod: "payroll-5d9c-abc", ServiceAccount: "payroll"}, Reporter: telemetryv1.Reporter_REPORTER_DESTINATION,
		SourceIdentity: "spiffe://cluster.local/ns/finance/sa/web", SourceAddress: "10.0.0.9:4000", DestinationAddress: "10.0.0.8:8080",
		Method: "GET", Path: "/accounts/1?x=y", Authority: "payroll.finance", Verdict: telemetryv1.Verdict_VERDICT_DENIED, Reason: telemetryv1.ReasonNoAllow,
		Trial: &telemetryv1.Trial{Verdict: telemetryv1.Verdict_VERDICT_ALLOWED, Policy: "finance/tried rule 0"},
	}
	r, err := m.Recorded(&telemetryv1.Record{Index: 7, Event: event})
	if err != nil || r.Ask.To != "pod/payroll" || r.Ask.Port != 8080 || r.Ask.SourceIP != netip.MustParseAddr("10.0.0.9") {
		t.Fatalf("%+v, %v", r, err)
	}
	if said := r.Summary(); !strings.HasSuffix(said, "; on trial allowed: finance/tried rule 0") {
		t.Error(said)
	}
	if e, err := m.Explain(r.Ask); err != nil || e.Allowed || len(e.Change) != 1 || !strings.Contains(e.Request, "/accounts/1") {
		t.Errorf("%+v, %v", e, err)
	}
	event.Reporter, event.DestinationService, event.Observer = telemetryv1.Reporter_REPORTER_SOURCE, "payroll.finance.svc.cluster.local", &telemetryv1.Workload{Namespace: "finance", Pod: "web", Identity: event.GetSourceIdentity()}
	if r, err := m.Recorded(&telemetryv1.Record{Event: event}); err != nil || r.Ask.To != "svc/payroll" || r.Ask.From != event.GetSourceIdentity() {
		t.Errorf("the client's: %+v, %v", r, err)
	}
	event.Kind = telemetryv1.Kind_KIND_ADMIN
	if _, err := m.Recorded(&telemetryv1.Record{Event: event}); err == nil {
		t.Error("an operator's act is taken for a request")
	}
}
