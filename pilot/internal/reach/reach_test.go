package reach

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
)

var settings = compile.Settings{TrustDomain: "cluster.local", RootNamespace: "bulwark-system"}

// mesh has a service of each sort: one that policies give to an identity and to a namespace, one without policies, one that is not
// exported or only to some namespaces, one without ports; and a Sidecar that hides one of them from pods of bank.
const mesh = `
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIPs: [10.96.0.1], selector: {app: web}, ports: [{name: http, port: 80}, {name: grpc, port: 9000}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: open, namespace: shop}
spec: {clusterIPs: [10.96.0.2], selector: {app: open}, ports: [{port: 3306}]}
---
apiVersion: v1
kind: Service
metadata: {name: private, namespace: shop, annotations: {networking.istio.io/exportTo: "."}}
spec: {clusterIPs: [10.96.0.3], selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: secret, namespace: shop, annotations: {networking.istio.io/exportTo: "."}}
spec: {clusterIPs: [10.96.0.4], selector: {app: secret}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: udp, namespace: shop}
spec: {clusterIPs: [10.96.0.5], selector: {app: web}, ports: [{port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: hidden, namespace: bank}
spec: {clusterIPs: [10.96.0.6], selector: {app: hidden}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: bank, annotations: {networking.istio.io/exportTo: "., vault"}}
spec: {clusterIPs: [10.96.0.7], selector: {app: ledger}, ports: [{port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tellers, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/bank/sa/teller]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bank, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [bank]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {selector: {matchLabels: {app: secret}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: shops, namespace: bank}
spec: {workloadSelector: {labels: {app: teller}}, egress: [{hosts: ["shop/*"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: teller-1, namespace: bank, labels: {app: teller, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: teller}
---
apiVersion: v1
kind: Pod
metadata: {name: teller-2, namespace: bank, labels: {app: teller, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: teller}
---
apiVersion: v1
kind: Pod
metadata: {name: clerk, namespace: bank, labels: {app: clerk, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: clerk}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: bank, labels: {app: teller}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, security.istio.io/tlsMode: istio}}
`

func world(t *testing.T) *registry.Snapshot {
	t.Helper()
	reg, err := fixture.Load([]byte(mesh))
	if err != nil {
		t.Fatal(err)
	}
	return reg.Snapshot()
}

var (
	webPorts = []operatorv1.Port{{Name: "http", Number: 80, Protocol: "HTTP"}, {Name: "grpc", Number: 9000, Protocol: "HTTP2"}}
	unnamed  = []operatorv1.Port{{Number: 80, Protocol: "AUTO"}}
	open     = operatorv1.Reachable{Service: "shop/open", Ports: []operatorv1.Port{{Number: 3306, Protocol: "TCP"}}, Open: "no ALLOW policy holds for the pods that it selects", Everyone: true}
)

func TestWhatAWorkloadMayCall(t *testing.T) {
	snap := world(t)
	web := func(by ...string) operatorv1.Reachable {
		return operatorv1.Reachable{Service: "shop/web", Ports: webPorts, By: by}
	}
	hidden := operatorv1.Reachable{Service: "bank/hidden", Ports: unnamed, Open: open.Open, Everyone: true}
	ledger := operatorv1.Reachable{Service: "bank/ledger", Ports: unnamed, Open: open.Open}
	for pod, want := range map[string]operatorv1.Reach{
		"bank/teller-1": {Pod: "bank/teller-1", ServiceAccount: "teller", Proxied: true, Sidecar: "bank/shops", Hidden: []string{"bank/hidden", "bank/ledger"},
			NotExported: []string{"shop/private"}, Services: []operatorv1.Reachable{open, web("shop/bank", "shop/tellers")}},
		"bank/clerk": {Pod: "bank/clerk", ServiceAccount: "clerk", Proxied: true, NotExported: []string{"shop/private"},
			Services: []operatorv1.Reachable{hidden, ledger, open, web("shop/bank")}},
		"shop/web":  {Pod: "shop/web", ServiceAccount: "default", Proxied: true, NotExported: []string{"bank/ledger"}, Services: []operatorv1.Reachable{hidden, open}},
		"bank/bare": {Pod: "bank/bare", ServiceAccount: "default", Services: []operatorv1.Reachable{}},
	} {
		got, err := Of(snap, settings, pod)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", pod, d)
		}
	}
	if _, err := Of(snap, settings, "bank/gone"); err == nil {
		t.Error("a pod that is not there may call something")
	}
}

func TestWhoMayCallAService(t *testing.T) {
	snap := world(t)
	for service, want := range map[string]operatorv1.Audience{
		"shop/web": {Ports: webPorts, Members: []operatorv1.Member{
			{Namespace: "bank", By: []string{"shop/bank"}}, {Namespace: "bank", ServiceAccount: "teller", By: []string{"shop/tellers"}}}},
		"shop/open":    {Ports: open.Ports, Everyone: true, Open: open.Open, Members: []operatorv1.Member{}},
		"shop/private": {Ports: unnamed, ExportTo: []string{"."}, Members: []operatorv1.Member{}},
		"shop/secret":  {Ports: unnamed, ExportTo: []string{"."}, Members: []operatorv1.Member{}},
		"shop/udp": {Ports: []operatorv1.Port{}, Members: []operatorv1.Member{
			{Namespace: "bank", By: []string{"shop/bank"}}, {Namespace: "bank", ServiceAccount: "teller", By: []string{"shop/tellers"}}}},
		"bank/ledger": {Ports: unnamed, Open: open.Open, ExportTo: []string{".", "vault"}, Hidden: []operatorv1.Hidden{{Sidecar: "bank/shops", Pods: 2}},
			Members: []operatorv1.Member{{Namespace: "bank"}, {Namespace: "vault"}}},
		"bank/hidden": {Ports: unnamed, Everyone: true, Open: open.Open, Members: []operatorv1.Member{}, Hidden: []operatorv1.Hidden{{Sidecar: "bank/shops", Pods: 2}}},
	} {
		want.Service = service
		got, err := To(snap, settings, service)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", service, d)
		}
	}
	if _, err := To(snap, settings, "shop/gone"); err == nil {
		t.Error("somebody may call a service that is not there")
	}
}
