package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
)

// outsideCA vouches for servers that are not of the mesh.
type outsideCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newOutsideCA(t *testing.T) *outsideCA {
	t.Helper()
	a := &outsideCA{}
	a.cert, a.key = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "outside"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

// sign makes a certificate, of the authority itself if it has none yet.
func (a *outsideCA) sign(t *testing.T, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

// server is a server outside of the mesh, in a namespace without proxies, with a certificate for a name.
func (a *outsideCA) server(t *testing.T, namespace, app, name string) string {
	t.Helper()
	cert, key := a.sign(t, &x509.Certificate{DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	in64 := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return fmt.Sprintf(`
{apiVersion: v1, kind: Secret, metadata: {name: %[2]s, namespace: %[1]s}, data: {tls.crt: %[3]s, tls.key: %[4]s}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  selector: {matchLabels: {app: %[2]s}}
  template:
    metadata: {labels: {app: %[2]s}}
    spec:
      terminationGracePeriodSeconds: 1
      volumes: [{name: tls, secret: {secretName: %[2]s}}]
      containers: [{name: app, image: "docker.io/bulwark/sample:%[5]s", imagePullPolicy: IfNotPresent, args: [outside], volumeMounts: [{name: tls, mountPath: /tls}], readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}}]
---
`, namespace, app, in64("CERTIFICATE", cert.Raw), in64("PRIVATE KEY", der), *tag)
}

// asker asks for others, with a proxy that has the authority's certificate, and one of its own that the authority has signed. Some names are known in its pod alone: those of an address.
func (a *outsideCA) asker(t *testing.T, namespace, known string) string {
	t.Helper()
	own, key := a.sign(t, &x509.Certificate{URIs: []*url.URL{{Scheme: "https", Host: "asker.example"}}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for name, block := range map[string]*pem.Block{"ca.pem": {Type: "CERTIFICATE", Bytes: a.cert.Raw}, "own.pem": {Type: "CERTIFICATE", Bytes: own.Raw}, "own-key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		files[name] = string(pem.EncodeToMemory(block))
	}
	data, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {istio-injection: enabled}}}
---
{apiVersion: v1, kind: Secret, metadata: {name: ca, namespace: %[1]s}, stringData: %[2]s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: asker, namespace: %[1]s}
spec:
  selector: {matchLabels: {app: asker}}
  template:
    metadata:
      labels: {app: asker}
      annotations: {sidecar.istio.io/userVolume: '{"ca": {"secret": {"secretName": "ca"}}}', sidecar.istio.io/userVolumeMount: '{"ca": {"mountPath": "/etc/outside"}}'}
    spec:
      terminationGracePeriodSeconds: 1
      hostAliases: [{ip: %[4]q, hostnames: [dns.way.example, robin.way.example]}]
      containers: [{name: app, image: "docker.io/bulwark/sample:%[3]s", imagePullPolicy: IfNotPresent, args: [wait]}]
---
`, namespace, data, *tag, known)
}

// TestHostsOutsideAreKnownAndProveTheirNames has a workload call hosts of which the mesh knows by ServiceEntries alone, at an address that nobody has: by Host, by
// address, and by network. As soon as a rule says so, its proxy speaks TLS with them, and not with one that has another's certificate. Another namespace notices nothing.
func TestHostsOutsideAreKnownAndProveTheirNames(t *testing.T) {
	t.Parallel()
	const ns, other, world = "e2e-outside", "e2e-outside-other", "e2e-outside-world"
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cleanUp(t, ns, other, world)
	a := newOutsideCA(t)
	err := cluster.Apply(ctx, fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s}}\n---\n{apiVersion: v1, kind: Service, metadata: {name: known, namespace: %[1]s}, spec: {selector: {app: good}, ports: [{name: http, port: 8080}, {name: https, port: 8443}]}}\n---\n", world)+
		a.server(t, world, "good", "good.example")+a.server(t, world, "bad", "someone-else.example"))
	if err != nil {
		t.Fatal(err)
	}
	known, err := cluster.CoreV1().Services(world).Get(ctx, "known", metav1.GetOptions{})
	if err == nil {
		err = cluster.Apply(ctx, a.asker(t, ns, known.Spec.ClusterIP)+a.asker(t, other, known.Spec.ClusterIP))
	}
	if err == nil {
		err = cluster.Ready(ctx, world, 3*time.Minute)
	}
	for _, n := range []string{ns, other} {
		if err == nil {
			err = reachable(ctx, n, 3*time.Minute)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	const nowhere = "203.0.113.99:80"
	entry := func(host, app, port, more string) string {
		pod, err := cluster.Pod(ctx, world, app)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: %[2]s-%[3]s, namespace: %[1]s}, spec: {hosts: [%[3]s.example], resolution: STATIC, exportTo: ["."], endpoints: [{address: %[4]s}], ports: [{%[5]s}]%[6]s}}`+"\n---\n",
			ns, app, host, pod.Status.PodIP, port, more)
	}
	ask := func(namespace, at, host string, want func(sample.Response) bool) {
		t.Helper()
		var got sample.Response
		err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
			var err error
			if got, err = lab.ExecJSON[sample.Response](ctx, cluster, namespace, "asker", "app", "sample", "get", "http://"+at+"/pay", "-H", "Host: "+host); err == nil && !want(got) {
				err = fmt.Errorf("not what it should be")
			}
			return err
		})
		if err != nil {
			t.Errorf("%s at %s from %s: %v; %+v", host, at, namespace, err, got)
		}
	}
	seen := func(host, name string) func(sample.Response) bool {
		return func(r sample.Response) bool {
			var s sample.Seen
			return r.Status == 200 && json.Unmarshal([]byte(r.Body), &s) == nil && s == sample.Seen{Host: host, Path: "/pay", Name: name}
		}
	}
	unknown := func(r sample.Response) bool { return r.Status != 200 }
	const http = "number: 80, name: http, protocol: HTTP, targetPort: "
	rule := func(host string) string {
		return fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: %[2]s, namespace: %[1]s}, spec: {host: %[2]s.example, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /etc/outside/ca.pem}}}}\n---\n", ns, host)
	}

	ask(ns, nowhere, "plain.example", unknown)
	apply(ctx, t, entry("plain", "good", http+"8080", "")+entry("good", "good", http+"8443", "")+entry("bad", "bad", http+"8443", "")+
		entry("tcp", "good", "number: 5432, name: tcp, protocol: TCP, targetPort: 8443", ", addresses: [203.0.113.7]")+
		entry("wide", "good", "number: 5433, name: tcp, protocol: TCP, targetPort: 8443", ", addresses: [198.51.0.0/16]")+
		entry("narrow", "good", "number: 5433, name: tcp, protocol: TCP, targetPort: 8080", ", addresses: [198.51.100.0/24]"))
	ask(ns, nowhere, "plain.example", seen("plain.example", ""))
	ask(other, nowhere, "plain.example", unknown)
	ask(ns, "198.51.100.9:5433", "whoever.example", seen("whoever.example", ""))

	began := time.Now()
	named := func(host string) string {
		return strings.Replace(rule(host), "mode: SIMPLE", "mode: SIMPLE, subjectAltNames: [good.example]", 1)
	}
	apply(ctx, t, rule("good")+rule("bad")+named("tcp")+named("wide"))
	ask(ns, nowhere, "good.example", seen("good.example", "good.example"))
	ask(ns, "203.0.113.7:5432", "whoever.example", seen("whoever.example", "tcp.example"))
	ask(ns, "198.51.99.9:5433", "whoever.example", seen("whoever.example", "wide.example"))
	ask(ns, "198.51.100.9:5433", "whoever.example", seen("whoever.example", ""))
	ask(ns, nowhere, "bad.example", func(r sample.Response) bool {
		return r.Status == 503 && strings.Contains(r.Body, "the server of bad.example") && strings.Contains(r.Body, "CERTIFICATE_VERIFY_FAILED")
	})
	ask(ns, nowhere, "plain.example", seen("plain.example", ""))
	ask(other, nowhere, "good.example", unknown)

	// The same servers as applications of a Service, which serve TLS and have no proxy.
	service := "good." + world + ".svc.cluster.local"
	apply(ctx, t, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: good, namespace: %s}, spec: {selector: {app: good}, ports: [{name: http, port: 80, targetPort: 8443}]}}\n---\n", world)+
		fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: service, namespace: %s}, spec: {host: %s, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /etc/outside/ca.pem, subjectAltNames: [good.example]}}}}", ns, service))
	ask(ns, service+":80", "whoever.example", seen("whoever.example", service))
	ask(other, service+":80", "whoever.example", unknown)
	apply(ctx, t, fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: service, namespace: %s}, spec: {host: %s, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /etc/outside/ca.pem}}}}", ns, service))
	ask(ns, service+":80", "whoever.example", func(r sample.Response) bool {
		return r.Status == 503 && strings.Contains(r.Body, "CERTIFICATE_VERIFY_FAILED")
	})
	err = (&claims.Scene{Lab: cluster, Namespace: ns}).Audited(ctx, began, "source", func(e *claims.Event) bool {
		return e.Verdict == "VERDICT_REFUSED" && e.DestinationService == "bad.example" && strings.HasSuffix(e.SourceIdentity, "/ns/"+ns+"/sa/default")
	})
	if err != nil {
		t.Errorf("a server that has another's certificate: %v", err)
	}
	told, err := cluster.Meshctl(ctx, "reach", "-n", ns, "deploy/asker")
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(told)), " "), "good.example 80 HTTP "+ns+"/good-good TLS (SIMPLE) by DestinationRule "+ns+"/good") {
		t.Errorf("what operators are told: %v\n%s", err, told)
	}

	waysOut(ctx, t, ns, world)

	// A Sidecar keeps the workloads of a namespace from what has no name, whichever port it is at.
	confined := fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: confined, namespace: %s}, spec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}}", ns)
	pod, err := cluster.Pod(ctx, world, "good")
	if err != nil {
		t.Fatal(err)
	}
	unnamed := pod.Status.PodIP + ":8080"
	ask(ns, unnamed, "api.example", seen("api.example", ""))
	began = time.Now()
	apply(ctx, t, confined)
	outOfReach := func(r sample.Response) bool {
		return r.Status == 403 && strings.Contains(r.Body, "is out of reach of ")
	}
	ask(ns, unnamed, "api.example", outOfReach)
	ask(ns, nowhere, "nobody.example", outOfReach)
	ask(ns, nowhere, "good.example", seen("good.example", "good.example"))
	ask(ns, "203.0.113.7:5432", "whoever.example", seen("whoever.example", "tcp.example"))
	ask(other, unnamed, "api.example", seen("api.example", ""))
	err = (&claims.Scene{Lab: cluster, Namespace: ns}).Audited(ctx, began, "source", func(e *claims.Event) bool {
		return e.Verdict == "VERDICT_DENIED" && e.DestinationAddress == unnamed && strings.HasSuffix(e.SourceIdentity, "/ns/"+ns+"/sa/default")
	})
	if err != nil {
		t.Errorf("what has no name: %v", err)
	}
	if told, err := cluster.Meshctl(ctx, "reach", "-n", ns, "deploy/asker"); err != nil || !strings.Contains(string(told), "Sidecar "+ns+"/confined keeps it from everything else") {
		t.Errorf("what operators are told: %v\n%s", err, told)
	}
	if err := cluster.Delete(ctx, confined); err != nil {
		t.Fatal(err)
	}
	ask(ns, unnamed, "api.example", seen("api.example", ""))

	err = cluster.Apply(ctx, strings.ReplaceAll(entry("taken", "good", http+"8080", ""), `exportTo: ["."]`, `exportTo: ["*"]`))
	if err == nil || !strings.Contains(err.Error(), "is not for namespace "+ns+" to say; put it into bulwark-system") {
		t.Errorf("a ServiceEntry for others: %v", err)
	}
}

func apply(ctx context.Context, t *testing.T, manifest string) {
	t.Helper()
	if err := cluster.Apply(ctx, manifest); err != nil {
		t.Fatal(err)
	}
}

// TestRulesForServicesHoldForTheirClients has clients of two namespaces call a Service of the mesh: a rule of one has its proxies take another identity for the server's
// alone, and then plaintext, which a STRICT server refuses. The other's clients notice nothing.
func TestRulesForServicesHoldForTheirClients(t *testing.T) {
	t.Parallel()
	const ns, other = "e2e-rules", "e2e-rules-other"
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cleanUp(t, ns, other)
	a := newOutsideCA(t)
	err := cluster.Apply(ctx, a.asker(t, ns, "203.0.113.99")+a.asker(t, other, "203.0.113.99")+fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: %[1]s}
spec:
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: app, image: "docker.io/bulwark/sample:%[2]s", imagePullPolicy: IfNotPresent, args: [server], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}]
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: %[1]s}, spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: strict, namespace: %[1]s}, spec: {mtls: {mode: STRICT}}}
`, ns, *tag))
	for _, n := range []string{ns, other} {
		if err == nil {
			err = reachable(ctx, n, 3*time.Minute)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	status := func(namespace string, want int) {
		t.Helper()
		err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
			got, err := lab.ExecJSON[sample.Response](ctx, cluster, namespace, "asker", "app", "sample", "get", "http://server."+ns+"/accounts/1")
			if err == nil && got.Status != want {
				err = fmt.Errorf("%+v, want %d", got, want)
			}
			return err
		})
		if err != nil {
			t.Errorf("from %s: %v", namespace, err)
		}
	}
	rule := func(way string) string {
		return fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: server, namespace: %s}, spec: {host: server.%s.svc.cluster.local, trafficPolicy: {tls: {%s}}}}", other, ns, way)
	}
	for _, c := range []struct {
		way  string
		want int // of the clients whose rule it is
	}{
		{"", 200},
		{"mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://cluster.local/ns/" + ns + "/sa/someone-else]", 503},
		{"mode: ISTIO_MUTUAL, subjectAltNames: [spiffe://cluster.local/ns/" + ns + "/sa/default]", 200},
		{"mode: DISABLE", 503},
		{"mode: SIMPLE", 503},
		{"mode: ISTIO_MUTUAL", 200},
	} {
		if c.way != "" {
			apply(ctx, t, rule(c.way))
		}
		status(other, c.want)
		status(ns, 200)
	}

	// The same server by a ServiceEntry, as one of the mesh that is elsewhere: it has to have the identity that is named there.
	pod, err := cluster.Pod(ctx, ns, "server")
	if err != nil {
		t.Fatal(err)
	}
	for account, want := range map[string]int{"default": 200, "someone-else": 503} {
		apply(ctx, t, fmt.Sprintf(`{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: %[1]s, namespace: %[2]s}, spec: {hosts: [%[1]s.example], location: MESH_INTERNAL, subjectAltNames: ["spiffe://cluster.local/ns/%[3]s/sa/%[1]s"], `+
			`resolution: STATIC, exportTo: ["."], endpoints: [{address: %[4]s}], ports: [{number: 8088, name: http, protocol: HTTP, targetPort: 8080}]}}`, account, other, ns, pod.Status.PodIP))
		err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
			got, err := lab.ExecJSON[sample.Response](ctx, cluster, other, "asker", "app", "sample", "get", "http://203.0.113.99:8088/accounts/1", "-H", "Host: "+account+".example")
			if err == nil && got.Status != want {
				err = fmt.Errorf("%+v, want %d", got, want)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s of the mesh outside: %v", account, err)
		}
	}
}
