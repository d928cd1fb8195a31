package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What an installation is told is what its values say where no cluster is asked: each of the settings that decide about requests, and the mesh-wide policy.
func TestValuesOfTheInstallationStandForItsCluster(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"world.yaml": `
apiVersion: apps/v1
kind: Deployment
metadata: {name: payroll, namespace: finance}
spec: {template: {metadata: {labels: {app: payroll}}, spec: {serviceAccountName: payroll, containers: [{name: a, ports: [{containerPort: 8080}]}]}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: finance}
spec: {action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: ["/accounts/*"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: near, namespace: finance}
spec: {action: DENY, rules: [{from: [{source: {notRemoteIpBlocks: [10.0.0.0/8]}}], to: [{operation: {paths: [/near]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: named, namespace: finance}
spec: {action: DENY, rules: [{from: [{source: {principals: [old.example/ns/finance/sa/web]}}], to: [{operation: {paths: [/named]}}]}]}
`,
		"mesh.yaml":  "trustDomain: corp.example\ntrustDomainAliases: [old.example]\ntrustedProxies: 1\nmtls: strict\nextensionProviders:\n- name: opa\n  envoyExtAuthzGrpc: {service: opa.opa.svc.cluster.local, port: \"9191\"}\n",
		"later.yaml": "mtls: permissive\n", "istio.yaml": "meshConfig: {extensionProviders: []}\n", "nobody.yaml": "extensionProviders: [{name: opa, zipkin: {service: a, port: 1}}]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const explain = "authz explain --offline -f DIR/world.yaml -n finance --to payroll --port 8080 "
	const asked, untold = "the installation, which no cluster is asked for", "External authorizers are settings of the installation"
	for _, c := range []struct {
		line string
		code int
		want string // in what it prints or notes
	}{
		{explain + "--from web --path /accounts/1", 1, "DENIED by finance/ask rule 0"},
		{explain + "--from web --path /accounts/1", 1, untold},
		{explain + "--from web --path /accounts/1 --values DIR/mesh.yaml", 0, "an external authorizer is asked by finance/ask rule 0"},
		{explain + "--from web --path /accounts/1 --values DIR/mesh.yaml", 0, "corp.example/ns/finance/sa/web"},
		{explain + "--plaintext --path /x --source-ip 10.0.0.1 --values DIR/mesh.yaml", 1, "by bulwark-system/default"},
		{explain + "--plaintext --path /x --source-ip 10.0.0.1 --values DIR/mesh.yaml --values DIR/later.yaml", 0, "PERMISSIVE"},
		{explain + "--plaintext --path /x --source-ip 10.0.0.1 --values DIR/mesh.yaml --set mtls=permissive", 0, "PERMISSIVE"},
		{explain + "--plaintext --path /x --source-ip 10.0.0.1 --values DIR/mesh.yaml --only", 1, "by bulwark-system/default"},
		{explain + "--from web --path /named --values DIR/mesh.yaml", 1, "DENIED by finance/named rule 0"},
		{explain + "--from web --path /named --set trustDomain=corp.example", 0, "ALLOWED"},
		{explain + "--from web --path /near --remote-ip 10.0.0.1 --source-ip 192.0.2.1 --values DIR/mesh.yaml", 0, "ALLOWED"},
		{"authz who-can --offline -f DIR/world.yaml -n finance payroll --values DIR/mesh.yaml", 0, "only if the external authorizer opa allows it, too"},
		{"authz diff --against DIR/world.yaml -f DIR/world.yaml -n finance --values DIR/mesh.yaml", 0, "Nothing changes"},
		{"authz diff --against DIR/world.yaml -f DIR/world.yaml -n finance", 0, untold},
		{"analyze --offline DIR/world.yaml -n finance", 0, "BW0121  AuthorizationPolicy finance/ask"},
		{"analyze --offline DIR/world.yaml -n finance", 0, untold},
		{"analyze --offline DIR/world.yaml -n finance --values DIR/mesh.yaml", 0, "5 infos in 5 objects"},
		{"analyze --offline --whole DIR/world.yaml -n finance --values DIR/mesh.yaml", 1, "BW0123  AuthorizationPolicy finance/ask"},
		{explain + "--from web --values DIR/istio.yaml", 2, "additional properties 'meshConfig' not allowed"},
		{explain + "--from web --values DIR/nobody.yaml", 2, "opa is neither envoyExtAuthzGrpc nor envoyExtAuthzHttp"},
		{explain + "--from web --values DIR/none.yaml", 2, "meshctl: reading values: open "},
		{explain + "--from web --values DIR/mesh.yaml --trust-domain a", 2, "write --set trustDomain=VALUE"},
		{explain + "--from web --values DIR/mesh.yaml --trusted-proxies 0", 2, "write --set trustedProxies=VALUE"},
		{explain + "--from web --set mtls=strict --trust-domain-aliases a", 2, "write --set trustDomainAliases=VALUE"},
		{"authz explain --offline -f - -n finance --from web --to payroll --values -", 2, "name a file"},
		{"authz diff --against - -f DIR/world.yaml --values -", 2, "name a file"},
		{"authz explain -n finance --from web --to payroll --values DIR/mesh.yaml", 2, "give them with --offline"},
		{"analyze --set mtls=strict", 2, "give them with --offline"},
	} {
		code, out, notes := meshctl(t, strings.ReplaceAll(c.line, "DIR", dir))
		if code != c.code || !strings.Contains(out+notes, c.want) {
			t.Errorf("%s: status %d, want %d and %q in\n%s%s", c.line, code, c.code, c.want, out, notes)
		}
		if told := strings.Contains(notes, asked); told != (c.want == untold || code < 2 && !strings.Contains(c.line, "--values") && !strings.Contains(c.line, "--set")) {
			t.Errorf("%s: whether an installation has authorizers is untold: %v", c.line, told)
		}
	}
}
