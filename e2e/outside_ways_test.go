package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
	"github.com/bulwark-mesh/bulwark/e2e/internal/sample"
	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// way is a ServiceEntry with its rule, and what is seen of a call by it. IP is the server's address, in plaintext at 8080 and over TLS at 8443, where its certificate is of good.example.
type way struct {
	what, entry, rule string // specs, in YAML's flow style
	q                 wire.Question
	seen              sample.Seen
	refused           string // instead: 503, and what is said then
}

const (
	byCA = "caCertificates: /etc/outside/ca.pem"
	own  = "clientCertificate: /etc/outside/own.pem, privateKey: /etc/outside/own-key.pem"
)

func byHost(host string, port int) wire.Question {
	return wire.Question{Kind: wire.HTTP11, Address: fmt.Sprintf("203.0.113.99:%d", port), Host: host, Path: "/pay"}
}

// ways are what a ServiceEntry can say of where a host is, and a DestinationRule of how it is spoken with. What DNS knows of it is in the asker's /etc/hosts, since no resolver here knows a
// name that is not the cluster's own, which a ServiceEntry may not name.
func ways() []way {
	return []way{
		{"NONE goes where its client does, and a rule holds for it", `{hosts: ["*.none.example"], resolution: NONE, ports: [{number: 8443, name: http, protocol: HTTP}]}`, `{host: "*.none.example", trafficPolicy: {tls: {mode: SIMPLE, CA, subjectAltNames: [good.example], sni: good.example}}}`,
			wire.Question{Kind: wire.HTTP11, Address: "IP:8443", Host: "a.none.example", Path: "/pay"}, sample.Seen{Host: "a.none.example", Name: "good.example"}, ""},
		{"DNS says where the host is", `{hosts: [dns.way.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}`, "",
			byHost("dns.way.example", 80), sample.Seen{Host: "dns.way.example"}, ""},
		{"and, of one address after the other, over TLS", `{hosts: [robin.way.example], resolution: DNS_ROUND_ROBIN, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]}`, `{host: robin.way.example, trafficPolicy: {tls: {mode: SIMPLE, CA, subjectAltNames: [good.example]}}}`,
			byHost("robin.way.example", 80), sample.Seen{Host: "robin.way.example", Name: "robin.way.example"}, ""},
		{"and where its servers are that have another name", `{hosts: [ends.way.example], resolution: DNS, endpoints: [{address: dns.way.example}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}`, "",
			byHost("ends.way.example", 80), sample.Seen{Host: "ends.way.example"}, ""},
		{"a client's own TLS, by its server name", `{hosts: [tls.way.example], resolution: STATIC, endpoints: [{address: IP}], ports: [{number: 443, name: tls, protocol: TLS, targetPort: 8443}]}`, "",
			wire.Question{Kind: wire.HTTPS, Address: "203.0.113.99:443", SNI: "tls.way.example", Host: "whoever.example", Path: "/pay"}, sample.Seen{Host: "whoever.example", Name: "tls.way.example"}, ""},
		{"MUTUAL shows the client's certificate", `{hosts: [mutual.way.example], resolution: STATIC, endpoints: [{address: IP}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]}`, `{host: mutual.way.example, trafficPolicy: {tls: {mode: MUTUAL, CA, OWN, subjectAltNames: [good.example]}}}`,
			byHost("mutual.way.example", 80), sample.Seen{Host: "mutual.way.example", Name: "mutual.way.example", Peer: "[https://asker.example]"}, ""},
		{"SIMPLE shows none, and asks by the name that the rule says", `{hosts: [simple.way.example], resolution: STATIC, subjectAltNames: [good.example], endpoints: [{address: IP}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]}`, `{host: simple.way.example, trafficPolicy: {tls: {mode: SIMPLE, CA, sni: other.example}}}`,
			byHost("simple.way.example", 80), sample.Seen{Host: "simple.way.example", Name: "other.example"}, ""},
		{"a port's setting in the place of that of all", `{hosts: [port.way.example], resolution: STATIC, endpoints: [{address: IP}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}`, `{host: port.way.example, trafficPolicy: {tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}}`,
			byHost("port.way.example", 80), sample.Seen{Host: "port.way.example"}, ""},
		{"a subset's settings have no effect", `{hosts: [subset.way.example], resolution: STATIC, endpoints: [{address: IP}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}`, `{host: subset.way.example, subsets: [{name: v2, labels: {version: v2}, trafficPolicy: {tls: {mode: SIMPLE}}}]}`,
			byHost("subset.way.example", 80), sample.Seen{Host: "subset.way.example"}, ""},
		{"ISTIO_MUTUAL without an identity that is named is closed", `{hosts: [closed.way.example], resolution: STATIC, endpoints: [{address: IP}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]}`, `{host: closed.way.example, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}`,
			byHost("closed.way.example", 80), sample.Seen{}, "no healthy upstream"},
		{"public authorities vouch for no server of another", `{hosts: [public.way.example], resolution: STATIC, endpoints: [{address: IP}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8443}]}`, `{host: public.way.example, trafficPolicy: {tls: {mode: SIMPLE, subjectAltNames: [good.example]}}}`,
			byHost("public.way.example", 80), sample.Seen{}, "CERTIFICATE_VERIFY_FAILED"},
	}
}

// waysOut tries them all at once, in the namespace of an asker. None names another's host, so none concerns another.
func waysOut(ctx context.Context, t *testing.T, ns, world string) {
	t.Helper()
	pod, err := cluster.Pod(ctx, world, "good")
	if err != nil {
		t.Fatal(err)
	}
	local := strings.NewReplacer("IP", pod.Status.PodIP, "CA", byCA, "OWN", own)
	var manifest string
	var questions []wire.Question
	for i, w := range ways() {
		manifest += fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: way-%d, namespace: %s}, spec: %s}\n---\n", i, ns, local.Replace(w.entry))
		if w.rule != "" {
			manifest += fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: way-%d, namespace: %s}, spec: %s}\n---\n", i, ns, local.Replace(w.rule))
		}
		w.q.Address = local.Replace(w.q.Address)
		questions = append(questions, w.q)
	}
	apply(ctx, t, manifest)
	list, err := json.Marshal(questions)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.PollFor(ctx, 30*time.Second, func(ctx context.Context) error {
		answers, err := lab.ExecJSON[[]wire.Answer](ctx, cluster, ns, "asker", "app", "sample", "questions", string(list))
		if err != nil {
			return err
		}
		var wrong []error
		for i, w := range ways() {
			got, want := answers[i], w.seen
			want.Path = "/pay"
			var seen sample.Seen
			switch {
			case w.refused != "" && got.Got == "503" && strings.Contains(got.Body, w.refused):
			case w.refused == "" && got.Got == "200" && json.Unmarshal([]byte(got.Body), &seen) == nil && seen == want:
			default:
				wrong = append(wrong, fmt.Errorf("%s: %+v, want %+v%s", w.what, got, want, w.refused))
			}
		}
		return errors.Join(wrong...)
	}); err != nil {
		t.Error(err)
	}
	if err := cluster.Delete(ctx, manifest); err != nil {
		t.Error(err)
	}
}
