package validate

import (
	"strings"
	"testing"
)

const (
	httpPort = `"ports":[{"number":80,"name":"http","protocol":"HTTP"}]`
	tcpPort  = `"ports":[{"number":5432,"name":"tcp","protocol":"TCP"}]`
	toHost   = `"host":"a.example.com","trafficPolicy":`
	toWeb    = `"host":"web","trafficPolicy":`
)

func TestWhatIsOutsideIsRefusedByFieldAndReason(t *testing.T) {
	for _, c := range []struct{ kind, spec, want string }{
		{"ServiceEntry", `{"hosts":["web.shop.svc.cluster.local"],` + httpPort + `}`, `spec.hosts[0]: "web.shop.svc.cluster.local" is a name of the cluster's own`},
		{"ServiceEntry", `{"hosts":["web.shop.svc"],` + httpPort + `}`, "is a name of the cluster's own"},
		{"ServiceEntry", `{"hosts":["kubernetes.default.svc.cluster.local"],` + httpPort + `}`, "is a name of the cluster's own"},
		{"ServiceEntry", `{"hosts":["*.local"],` + httpPort + `}`, "is a name of the cluster's own"},
		{"ServiceEntry", `{"hosts":["*.svc.cluster.local"],` + httpPort + `}`, "is a name of the cluster's own"},
		{"ServiceEntry", `{"hosts":["a.localhost"],` + httpPort + `}`, "is a name of the cluster's own"},
		{"ServiceEntry", `{"hosts":["web"],` + httpPort + `}`, "is a short name, which is a Service's"},
		{"ServiceEntry", `{"hosts":["*"],` + httpPort + `}`, "is no DNS name"},
		{"ServiceEntry", `{"hosts":["A.example.com"],` + httpPort + `}`, "is no DNS name"},
		{"ServiceEntry", `{"hosts":["a.*.example.com"],` + httpPort + `}`, "is no DNS name"},
		{"ServiceEntry", `{"hosts":["a.example.com:80"],` + httpPort + `}`, "is no DNS name"},
		{"ServiceEntry", `{"hosts":["203.0.113.1"],` + httpPort + `}`, "those stand in spec.addresses"},
		{"ServiceEntry", `{"hosts":["a.example.com","a.example.com"],` + httpPort + `}`, "stands there twice"},
		{"ServiceEntry", `{` + httpPort + `}`, "spec.hosts: there are none"},
		{"ServiceEntry", `{"hosts":["*.example.com"],"resolution":"DNS",` + httpPort + `}`, "only resolution NONE"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"DNS_ROUND_ROBIN","endpoints":[{"address":"b.example.com"},{"address":"c.example.com"}],` + httpPort + `}`, "spec.endpoints: with DNS_ROUND_ROBIN there is one name"},
		{"ServiceEntry", `{"hosts":["*.example.com"],"resolution":"DNS_ROUND_ROBIN",` + httpPort + `}`, "only resolution NONE"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["203.0.113.0/24"],"resolution":"DNS_ROUND_ROBIN",` + tcpPort + `}`, "spec.addresses: a network has many servers"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"DYNAMIC_DNS",` + httpPort + `}`, "spec.resolution: DYNAMIC_DNS is not supported yet"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"location":"MESH_INTERNAL",` + httpPort + `}`, "spec.subjectAltNames: there are none: with MESH_INTERNAL, a server proves that it is one of the mesh by its identity (spiffe://cluster.local/ns/a/sa/NAME)"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"location":"MESH_INTERNAL","subjectAltNames":["a.example.com"],` + httpPort + `}`, `spec.subjectAltNames[0]: "a.example.com" is no identity`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"location":"MESH_INTERNAL","resolution":"STATIC","endpoints":[{"address":"203.0.113.1","serviceAccount":"s"},{"address":"203.0.113.2"}],` + httpPort + `}`,
			"spec.endpoints[1].serviceAccount: is missing: a server of the mesh proves who it is"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"location":"MESH_INTERNAL","resolution":"STATIC","endpoints":[{"address":"203.0.113.1","serviceAccount":"a/b"}],` + httpPort + `}`, `"a/b" is no name of a service account`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"workloadSelector":{"labels":{"a":"b"}},` + httpPort + `}`, "spec.workloadSelector: is not supported yet"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"ofTomorrow":1,` + httpPort + `}`, `unknown field "ofTomorrow"`},
		{"ServiceEntry", `{"hosts":["a.example.com"]}`, "spec.ports: there are none"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"ports":[{"number":80,"name":"x"}]}`, `spec.ports[0].protocol: "": say what it speaks`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"ports":[{"number":53,"name":"dns","protocol":"UDP"}]}`, `spec.ports[0].protocol: "UDP"`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"ports":[{"number":15001,"name":"http","protocol":"HTTP"}]}`, "15001 is a port of the proxies themselves"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"ports":[{"number":70000,"name":"http","protocol":"HTTP"}]}`, "70000 is no port"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"ports":[{"number":80,"name":"http","protocol":"HTTP","targetPort":70000}]}`, "70000 is no port"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"ports":[{"number":80,"name":"http","protocol":"HTTP"},{"number":80,"name":"b","protocol":"HTTP"}]}`, "same name or number"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"ports":[{"number":80,"protocol":"HTTP"}]}`, "spec.ports[0].name: is missing"},
		{"ServiceEntry", `{"hosts":["a.example.com"],` + tcpPort + `}`, "nothing but addresses (spec.addresses) tells its connections from others"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["203.0.113.0/33"],` + tcpPort + `}`, `spec.addresses[0]: "203.0.113.0/33" is no network`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["203.0.113/24"],` + tcpPort + `}`, `"203.0.113/24" is no network`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["::ffff:203.0.113.0/120"],` + tcpPort + `}`, `is no network, such as`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["0.0.0.0/0"],` + tcpPort + `}`, `"0.0.0.0/0" has addresses that are those of no other machine: of 0.0.0.0/8; write narrower networks`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["::/0"],` + tcpPort + `}`, "write narrower networks"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["169.254.0.0/17"],` + tcpPort + `}`, "of 169.254.0.0/16; write narrower networks"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["127.0.0.1/32"],` + tcpPort + `}`, "is no address of another machine"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["203.0.113.0/24"],"resolution":"DNS",` + tcpPort + `}`, "spec.addresses: a network has many servers: with resolution NONE"},
		{"ServiceEntry", `{"hosts":["a.example.com","b.example.com"],"addresses":["203.0.113.0/24"],` + tcpPort + `}`, "spec.addresses: an address is one host's"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["127.0.0.1"],` + tcpPort + `}`, "is no address of another machine"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["169.254.169.254"],` + tcpPort + `}`, "is no address of another machine"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["::ffff:127.0.0.1"],` + tcpPort + `}`, "is no address of another machine"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"addresses":["fe80::1%eth0"],` + tcpPort + `}`, "is no IP address"},
		{"ServiceEntry", `{"hosts":["a.example.com","b.example.com"],"addresses":["203.0.113.1"],` + tcpPort + `}`, "spec.addresses: an address is one host's"},
		{"ServiceEntry", `{"hosts":["*.example.com"],"addresses":["203.0.113.1"],` + tcpPort + `}`, "spec.addresses: an address is one host's"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"STATIC",` + httpPort + `}`, "spec.endpoints: there are none"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"endpoints":[{"address":"203.0.113.1"}],` + httpPort + `}`, "spec.endpoints: with resolution NONE"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"STATIC","endpoints":[{"address":"b.example.com"}],` + httpPort + `}`, "is no IP address; use resolution DNS"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"DNS","endpoints":[{"address":"web.shop.svc.cluster.local"}],` + httpPort + `}`, "is a name of the cluster's own"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"DNS","endpoints":[{"address":"*.example.com"}],` + httpPort + `}`, "is a wildcard"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"STATIC","endpoints":[{"address":"unix:///run/x.sock"}],` + httpPort + `}`, "is no IP address"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"STATIC","endpoints":[{"address":"127.0.0.1"}],` + httpPort + `}`, "is no address of another machine"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"STATIC","endpoints":[{"address":"203.0.113.1","labels":{"a":"b"},"locality":"x","network":"n","serviceAccount":"s"}],` + httpPort + `}`,
			"spec.endpoints[0].labels: is not supported yet; spec.endpoints[0].locality: is not supported yet; spec.endpoints[0].network: is not supported yet; spec.endpoints[0].serviceAccount: means nothing with location MESH_EXTERNAL"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"resolution":"STATIC","endpoints":[{"address":"203.0.113.1","ports":{"grpc":81}}],` + httpPort + `}`, `spec.endpoints[0].ports: "grpc": 81 is no port's name and number`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"exportTo":["*"],` + httpPort + `}`, `spec.exportTo[0]: "*": what workloads of other namespaces call is not for namespace a to say; put it into bulwark-system`},
		{"ServiceEntry", `{"hosts":["a.example.com"],"exportTo":["b"],` + httpPort + `}`, "is not for namespace a to say"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"exportTo":["~"],` + httpPort + `}`, "would have it hold for nobody"},
		{"ServiceEntry", `{"hosts":["a.example.com"],"subjectAltNames":["*.example.com"],` + httpPort + `}`, "has no wildcards"},

		{"DestinationRule", `{"trafficPolicy":{"tls":{"mode":"SIMPLE"}}}`, `spec.host: "" is no name`},
		{"DestinationRule", `{"host":"*.local","trafficPolicy":{"tls":{"mode":"ISTIO_MUTUAL"}}}`, "is a wildcard for Services, which is not supported yet"},
		{"DestinationRule", `{"host":"*.shop.svc.cluster.local"}`, "is a wildcard for Services"},
		{"DestinationRule", `{"host":"*"}`, "is a wildcard for Services"},
		{"DestinationRule", `{"host":"web.shop.svc"}`, "a Service is named in full"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"SIMPLE","insecureSkipVerify":true}}}`, "spec.trafficPolicy.tls.insecureSkipVerify: is refused"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"SIMPLE","credentialName":"x"}}}`, "spec.trafficPolicy.tls.credentialName: is refused: private keys do not pass through Pilot"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"SIMPLE","caCrl":"/x"}}}`, "spec.trafficPolicy.tls.caCrl: is not supported yet"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"SIMPLE","caCertificates":"ca.pem"}}}`, `"ca.pem" is no absolute path`},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"SIMPLE","caCertificates":"/a/../ca.pem"}}}`, "is no absolute path"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"SIMPLE","clientCertificate":"/a"}}}`, "spec.trafficPolicy.tls.clientCertificate: means nothing with mode SIMPLE"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"SIMPLE","sni":"A b"}}}`, "spec.trafficPolicy.tls.sni"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"SIMPLE","subjectAltNames":[""]}}}`, "spec.trafficPolicy.tls.subjectAltNames[0]"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"MUTUAL","clientCertificate":"/a"}}}`, "spec.trafficPolicy.tls.privateKey: is missing"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"ISTIO_MUTUAL","subjectAltNames":["a.example.com"]}}}`, `"a.example.com" is no identity`},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"DISABLE","sni":"x.example"}}}`, "spec.trafficPolicy.tls.sni: means nothing with mode DISABLE"},
		{"DestinationRule", `{` + toHost + `{"tls":{"mode":"DISABLE","caCertificates":"/x","subjectAltNames":["y"]}}}`, "spec.trafficPolicy.tls.caCertificates: means nothing"},
		{"DestinationRule", `{` + toHost + `{"portLevelSettings":[{"port":{"number":80},"tls":{"mode":"SIMPLE"},"loadBalancer":{"simple":"RANDOM"}}]}}`, "spec.trafficPolicy.portLevelSettings[0].loadBalancer: is not supported yet"},
		{"DestinationRule", `{` + toHost + `{"portLevelSettings":[{"tls":{"mode":"SIMPLE"}}]}}`, "spec.trafficPolicy.portLevelSettings[0].port.number: 0 is no port"},
		{"DestinationRule", `{` + toHost + `{"portLevelSettings":[{"port":{"number":80}},{"port":{"number":80}}]}}`, "or there are other settings for it"},
		{"DestinationRule", `{` + toHost + `{"loadBalancer":{"simple":"RANDOM"},"connectionPool":{},"outlierDetection":{},"tunnel":{"targetHost":"x","targetPort":1},"proxyProtocol":{},"retryBudget":{}}}`,
			"spec.trafficPolicy.connectionPool: is not supported yet; spec.trafficPolicy.loadBalancer: is not supported yet; spec.trafficPolicy.outlierDetection: is not supported yet; " +
				"spec.trafficPolicy.proxyProtocol: is not supported yet; spec.trafficPolicy.retryBudget: is not supported yet; spec.trafficPolicy.tunnel: is not supported yet"},
		{"DestinationRule", `{"host":"a.example.com","workloadSelector":{"matchLabels":{"a":"b"}}}`, "spec.workloadSelector: is not supported yet"},
		{"DestinationRule", `{"host":"a.example.com","subsets":[{"name":"v1","trafficPolicy":{"connectionPool":{}}}]}`, "spec.subsets[0].trafficPolicy.connectionPool: is not supported yet"},
		{"DestinationRule", `{"host":"a.example.com","subsets":[{"name":"v1","trafficPolicy":{"tls":{"mode":"SIMPLE","insecureSkipVerify":true}}}]}`, "spec.subsets[0].trafficPolicy.tls.insecureSkipVerify: is refused"},
		{"DestinationRule", `{"host":"a.example.com","subsets":[{"labels":{"v":"1"}}]}`, `spec.subsets[0].name: "" is no name`},
		{"DestinationRule", `{"host":"a.example.com","subsets":[{"name":"v1"},{"name":"v1"}]}`, `spec.subsets[1].name: "v1" is no name, or that of another subset`},
		{"DestinationRule", `{"host":"a.example.com","subsets":[{"name":"v1","labels":{"a b":"c"}}]}`, `spec.subsets[0].labels: "a b": "c" is no label`},
		{"DestinationRule", `{"host":"a.example.com","subsets":[{"name":"v1","trafficPolicy":{"portLevelSettings":[{"port":{"number":80},"tls":{"mode":"SIMPLE","caCrl":"/x"}}]}}]}`, "spec.subsets[0].trafficPolicy.portLevelSettings[0].tls.caCrl: is not supported yet"},
		{"DestinationRule", `{"host":"a.example.com","exportTo":["A"]}`, `spec.exportTo[0]: "A" is no namespace`},
		{"DestinationRule", `{` + toWeb + `{"tls":{"mode":"SIMPLE","insecureSkipVerify":true}}}`, "spec.trafficPolicy.tls.insecureSkipVerify: is refused"},
		{"DestinationRule", `{` + toWeb + `{"tls":{"mode":"MUTUAL"}}}`, "spec.trafficPolicy.tls.clientCertificate: is missing"},
		{"DestinationRule", `{` + toWeb + `{"tls":{"mode":"ISTIO_MUTUAL","subjectAltNames":["web"]}}}`, `spec.trafficPolicy.tls.subjectAltNames[0]: "web" is no identity`},
		{"DestinationRule", `{` + toWeb + `{"tls":{"mode":"ISTIO_MUTUAL","sni":"x.example"}}}`, "spec.trafficPolicy.tls.sni: is not supported yet with ISTIO_MUTUAL"},
		{"DestinationRule", `{` + toWeb + `{"tls":{"mode":"ISTIO_MUTUAL","privateKey":"/k"}}}`, "spec.trafficPolicy.tls.privateKey: means nothing with mode ISTIO_MUTUAL"},
	} {
		got := review(t, c.kind, "a", c.spec)
		if got.Allowed || !strings.Contains(got.Result.Message, c.want) {
			t.Errorf("%s %s: %+v, want %q", c.kind, c.spec, got.Result, c.want)
		}
	}
}

func TestWhatIsOutsidePasses(t *testing.T) {
	const own = `"exportTo":["."],`
	for _, c := range []struct{ kind, namespace, spec, warning string }{
		{"ServiceEntry", "a", `{"hosts":["a.example.com","*.b.example.com"],` + own + httpPort + `}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"exportTo":["a"],"resolution":"DNS",` + httpPort + `}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"resolution":"DNS","endpoints":[{"address":"b.example.com","ports":{"http":8080},"weight":3},{"address":"2001:db8::1"}],` + own + httpPort + `}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"addresses":["203.0.113.1","2001:db8::1"],"resolution":"STATIC","endpoints":[{"address":"203.0.113.1"}],` + own + tcpPort + `}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"addresses":["203.0.113.9/24","10.0.0.0/8","203.0.113.1/32","2001:db8::/32"],` + own + tcpPort + `}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"addresses":["203.0.113.0/24"],"resolution":"STATIC","endpoints":[{"address":"203.0.113.1"}],` + own + tcpPort + `}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],` + own + `"ports":[{"number":443,"name":"tls-x"},{"number":80,"name":"http-x"},{"number":81,"name":"x","protocol":"grpc"}]}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],` + httpPort + `}`, "in Istio it holds in all"},
		{"ServiceEntry", "bulwark-system", `{"hosts":["a.example.com"],"exportTo":["*"],` + httpPort + `}`, ""},
		{"ServiceEntry", "bulwark-system", `{"hosts":["a.example.com"],"exportTo":["b",".","c"],` + httpPort + `}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"subjectAltNames":["spiffe://x/y"],` + own + httpPort + `}`, "where a DestinationRule has proxies speak TLS"},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"location":"MESH_INTERNAL","subjectAltNames":["spiffe://cluster.local/ns/a/sa/b"],` + own + httpPort + `}`, ""},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"location":"MESH_INTERNAL","resolution":"STATIC","endpoints":[{"address":"203.0.113.1","serviceAccount":"s"}],` + own + httpPort + `}`, ""},
		{"DestinationRule", "a", `{` + toHost + `{"tls":{"mode":"ISTIO_MUTUAL"}}}`, "ISTIO_MUTUAL: holds with a server whose identity the rule or the ServiceEntry names"},
		{"DestinationRule", "a", `{` + toHost + `{"tls":{"mode":"SIMPLE","caCertificates":"system"}}}`, "are left as they are: there, clients speak TLS themselves"},
		{"DestinationRule", "a", `{` + toHost + `{"tls":{"mode":"SIMPLE"}}}`, "ports of a ServiceEntry for a.example.com; without one"},
		{"DestinationRule", "a", `{"host":"*.example.com","trafficPolicy":{"tls":{"mode":"MUTUAL","clientCertificate":"/c","privateKey":"/k","caCertificates":"/ca"}}}`, "ports of a ServiceEntry"},
		{"DestinationRule", "a", `{` + toWeb + `{"tls":{"mode":"SIMPLE","caCertificates":"/ca.pem"}}}`, "a STRICT server's proxy refuses that"},
		{"DestinationRule", "a", `{` + toWeb + `{"tls":{"mode":"SIMPLE"}}}`, "no caCertificates: the application's certificate has to be one of the public authorities"},
		{"DestinationRule", "a", `{` + toWeb + `{"tls":{"mode":"DISABLE"}}}`, "a STRICT server refuses that"},
		{"DestinationRule", "a", `{` + toWeb + `{"tls":{"mode":"ISTIO_MUTUAL","subjectAltNames":["spiffe://cluster.local/ns/a/sa/b"]}}}`, ""},
		{"DestinationRule", "a", `{"host":"web.b.svc.cluster.local","trafficPolicy":{"portLevelSettings":[{"port":{"number":80},"tls":{"mode":"ISTIO_MUTUAL"}}]}}`, ""},
		{"DestinationRule", "a", `{"host":"web","subsets":[{"name":"v1","labels":{"v":"1"}}]}`, "spec.subsets: have no effect, as nothing routes to them: a VirtualService does, which is not supported yet"},
		{"ServiceEntry", "a", `{"hosts":["a.example.com"],"resolution":"DNS_ROUND_ROBIN","endpoints":[{"address":"b.example.com"}],` + own + httpPort + `}`, ""},
		{"DestinationRule", "a", `{"host":"web"}`, "says nothing of TLS, and has no effect"},
	} {
		got := review(t, c.kind, c.namespace, c.spec)
		if !got.Allowed || !strings.Contains(strings.Join(got.Warnings, " "), c.warning) || c.warning == "" && len(got.Warnings) > 0 {
			t.Errorf("%s %s: %+v, %+v", c.kind, c.spec, got, got.Result)
		}
	}
}
