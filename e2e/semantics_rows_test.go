package e2e

import (
	"net/http"

	"github.com/bulwark-mesh/bulwark/e2e/internal/wire"
)

// Questions, in each protocol.
func get(who, path, want, by string, headers ...string) ask {
	return request(who, http.MethodGet, path, want, by, headers...)
}

func request(who, method, path, want, by string, headers ...string) ask {
	a := ask{who: who, port: 8080, want: want, by: by, q: wire.Question{Kind: wire.HTTP11, Method: method, Path: path, Headers: map[string]string{}}}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "host" {
			a.q.Host = headers[i+1]
			continue
		}
		a.q.Headers[headers[i]] = headers[i+1]
	}
	return a
}

// over2 is a request over HTTP/2.
func over2(a ask) ask {
	a.q.Kind = wire.HTTP2
	return a
}

func webSocket(who, path, want, by string) ask {
	return ask{who: who, port: 8080, want: want, by: by, q: wire.Question{Kind: wire.WebSocket, Path: path}}
}

func unary(who, want string) ask {
	return ask{who: who, port: 7000, want: want, q: wire.Question{Kind: wire.GRPCUnary}}
}

func stream(who, want string) ask {
	return ask{who: who, port: 7000, want: want, q: wire.Question{Kind: wire.GRPCStream}}
}

func tcp(who, want string) ask {
	return ask{who: who, port: 9000, want: want, q: wire.Question{Kind: wire.TCP}}
}

func passthrough(who, sni, want string) ask {
	return ask{who: who, port: 8443, want: want, q: wire.Question{Kind: wire.TLS, SNI: sni}}
}

func serverFirst(who, want string) ask {
	return ask{who: who, port: 3306, want: want, q: wire.Question{Kind: wire.Greeted}}
}

// everything is each protocol, with what it gets where it is admitted, or denied.
func everything(who string, admitted bool, by string) []ask {
	ok, code, line, greeting, switched := "200", "OK", wire.Line, wire.Greeting, "101"
	if !admitted {
		ok, code, line, greeting, switched = "403", "PermissionDenied", wire.Nothing, wire.Nothing, "403"
	}
	return []ask{get(who, "/x", ok, by), over2(get(who, "/y", ok, by)), webSocket(who, "/socket", switched, by), unary(who, code), stream(who, code), tcp(who, line), passthrough(who, "app.example", line), serverFirst(who, greeting)}
}

// semanticLanes are the rows, on servers that do not concern each other. Those of the fifth are in a namespace whose modes are tried.
func semanticLanes() []lane {
	return []lane{
		{"one", rowsNS, orderRows()},
		{"two", rowsNS, valueRows()},
		{"three", rowsNS, protocolRows()},
		{"four", rowsNS, tokenRows()},
		{"five", rowsOther, modeRows()},
	}
}

// orderRows are which policies hold, in which order, and how a rule is put together.
func orderRows() []row {
	all, nothing := policy{ap, "all", `{rules: [{}]}`}, policy{ap, "nothing", `{}`}
	return []row{
		{"without a policy all is allowed, in mutual TLS and in plaintext", nil, append(everything("client", true, "none"), everything("stranger", true, "none")...)},
		// Who decides is not looked for where it may be the client's own proxy, out of whose reach the server is then.
		{"ALLOW without rules allows nothing", []policy{nothing}, append(everything("client", false, ""), everything("stranger", false, "none")...)},
		{"a rule without demands matches everything, beside what allows nothing", []policy{nothing, all}, append(everything("client", true, "all rule 0"), everything("stranger", true, "all rule 0")...)},
		{"DENY outweighs ALLOW", []policy{all, {ap, "deny", `{action: DENY, rules: [{from: [{source: {namespaces: [OTHER-NS]}}]}]}`}},
			append(everything("client", true, "all rule 0"), get("other", "/", "403", "deny rule 0"), stream("other", "PermissionDenied"), webSocket("other", "/", "403", "deny rule 0"), tcp("other", wire.Nothing))},
		{"AUDIT decides nothing", []policy{{ap, "watch", `{action: AUDIT, rules: [{}]}`}}, everything("client", true, "none")},
		{"a rule is one of from, one of to, and all of when", []policy{{ap, "rule", `{rules: [{from: [{source: {serviceAccounts: [client]}}, {source: {namespaces: [OTHER-NS]}}],
			to: [{operation: {methods: [GET], paths: [/a, /b]}}, {operation: {methods: [POST]}}],
			when: [{key: "request.headers[x-a]", values: ["1", "2"]}, {key: "request.headers[x-b]", notValues: ["no", "never"]}]}]}`}}, []ask{
			get("client", "/a", "200", "rule rule 0", "x-a", "1"), get("client", "/b", "200", "rule rule 0", "x-a", "2", "x-b", "yes"), request("other", "POST", "/c", "200", "rule rule 0", "x-a", "2"),
			get("client", "/c", "403", "none", "x-a", "1"), get("client", "/a", "403", "none"), get("client", "/a", "403", "none", "x-a", "3"), get("client", "/a", "403", "none", "x-a", "1", "x-b", "never"),
			get("stranger", "/a", "403", "none", "x-a", "1"), request("client", "PUT", "/a", "403", "none", "x-a", "1")}},
		{"not… is none of the values", []policy{{ap, "deny", `{action: DENY, rules: [{from: [{source: {notNamespaces: [CLIENT-NS]}}], to: [{operation: {notMethods: [GET, PUT], notPaths: [/free, /also/*], notPorts: ["7000"], ports: ["8080"]}}]}]}`}}, []ask{
			request("other", "POST", "/x", "403", "deny rule 0"), get("other", "/x", "200", "none"), request("other", "PUT", "/x", "200", "none"), request("other", "POST", "/free", "200", "none"),
			request("other", "POST", "/also/this", "200", "none"), request("client", "POST", "/x", "200", "none"), request("stranger", "POST", "/x", "403", "deny rule 0"), unary("other", "OK")}},
		{"a policy of the root namespace holds in others, for whom it selects", []policy{{ap, "root/deny", `{action: DENY, rules: [{to: [{operation: {paths: [/root], ports: ["8080"]}}]}]}`}}, []ask{
			get("client", "/root", "403", ""), get("client", "/else", "200", "none")}},
		{"targetRefs of a Service hold for those behind it, and a Gateway's for nobody", []policy{{ap, "service", `{targetRefs: [{kind: Service, name: LANE}], rules: [{from: [{source: {serviceAccounts: [client]}}]}]}`},
			{ap, "gateway", `{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: LANE}], action: DENY, rules: [{}]}`}},
			append(everything("client", true, "service rule 0"), unary("other", "PermissionDenied"), tcp("stranger", wire.Nothing))},
		{"a policy on trial decides nothing", []policy{{ap, "trial/deny", `{action: DENY, rules: [{}]}`}, {ap, "trial/allow", `{}`}}, everything("client", true, "none")},
		{"an authorizer that is not there denies, whatever else allows", []policy{all, {ap, "custom", `{action: CUSTOM, provider: {name: none-of-that-name}, rules: [{from: [{source: {serviceAccounts: [client]}}]}]}`}}, append([]ask{
			get("client", "/", "403", "custom rule 0"), webSocket("client", "/", "403", "custom rule 0"), unary("client", "PermissionDenied"), stream("client", "PermissionDenied"), tcp("client", wire.Nothing), passthrough("client", "x.example", wire.Nothing)},
			everything("stranger", true, "all rule 0")...)},
		{"an authorizer that does not answer denies, allows (failOpen), or answers with a status", []policy{
			{ap, "denies", `{action: CUSTOM, provider: {name: nowhere}, rules: [{to: [{operation: {ports: ["8080"], paths: [/denies]}}, {operation: {ports: ["7000"]}}]}]}`},
			{ap, "opens", `{action: CUSTOM, provider: {name: nowhere-open}, rules: [{to: [{operation: {ports: ["8080"], paths: [/opens]}}]}]}`},
			{ap, "says", `{action: CUSTOM, provider: {name: nowhere-503}, rules: [{to: [{operation: {ports: ["8080"], paths: [/says]}}]}]}`}}, []ask{
			get("client", "/denies", "403", "denies rule 0"), get("client", "/opens", "200", "none"), get("client", "/says", "503", ""), get("client", "/else", "200", "none"), unary("client", "PermissionDenied")}},
		{"an authorizer of HTTP has no word about connections", []policy{{ap, "http", `{action: CUSTOM, provider: {name: outside}, rules: [{to: [{operation: {ports: ["9000", "8443"]}}]}]}`}}, []ask{
			tcp("client", wire.Line), passthrough("client", "x.example", wire.Line)}},
		{"DENY comes after CUSTOM, which allows nothing that another denies", []policy{{ap, "deny", `{action: DENY, rules: [{to: [{operation: {ports: ["8080"], paths: [/opens]}}]}]}`},
			{ap, "opens", `{action: CUSTOM, provider: {name: nowhere-open}, rules: [{to: [{operation: {ports: ["8080"]}}]}]}`}}, []ask{
			get("client", "/opens", "403", "deny rule 0"), get("client", "/else", "200", "none")}},
	}
}

// valueRows are what values match.
func valueRows() []row {
	return []row{
		{"exact, prefix, suffix, presence; hosts with their port and in any case, headers as they are written", []policy{{ap, "values", `{rules: [
			{to: [{operation: {hosts: [shop.example], paths: ["/pre*"]}}]}, {to: [{operation: {hosts: ["*.example:8443"], paths: ["*/end"]}}]},
			{when: [{key: "request.headers[x-present]", values: ["*"]}]}, {when: [{key: "request.headers[x-case]", values: ["Yes", "pre-*", "*-suf"]}]}]}`}}, []ask{
			get("client", "/prefix/1", "200", "values rule 0", "host", "SHOP.example"), get("client", "/pre", "403", "none", "host", "shop.example:81"), get("client", "/nopre", "403", "none", "host", "shop.example"),
			get("client", "/x/end", "200", "values rule 1", "host", "a.example:8443"), get("client", "/x/END", "403", "none", "host", "a.example:8443"), get("client", "/x/end", "403", "none", "host", "a.example"),
			get("client", "/", "200", "values rule 2", "x-present", "any"), get("client", "/", "403", "none"),
			get("client", "/", "200", "values rule 3", "x-case", "Yes"), get("client", "/", "403", "none", "x-case", "yes"), get("client", "/", "200", "values rule 3", "x-case", "pre-x"), get("client", "/", "200", "values rule 3", "x-case", "x-suf"),
			over2(get("client", "/prefix/2", "200", "values rule 0", "host", "shop.EXAMPLE"))}},
		{"templates of paths", []policy{{ap, "paths", `{rules: [{to: [{operation: {paths: ["/t/{*}/x", "/d/{**}", "/a/{**}/b"]}}]}]}`}}, []ask{
			get("client", "/t/1/x", "200", "paths rule 0"), get("client", "/t/1/2/x", "403", "none"), get("client", "/t//x", "403", ""), get("client", "/d/1/2", "200", "paths rule 0"), get("client", "/e/1", "403", "none"),
			get("client", "/a/1/2/b", "200", "paths rule 0"), get("client", "/a/1/c", "403", "none"), get("client", "/t/1/x?q=/no", "200", "paths rule 0"), get("client", "/t/%2e%2e/x", "403", "")}},
		{"identities, of which plaintext has none", []policy{{ap, "who", `{rules: [
			{from: [{source: {principals: [cluster.local/ns/CLIENT-NS/sa/client]}}], to: [{operation: {paths: [/principal]}}]},
			{from: [{source: {principals: ["*/sa/other"]}}], to: [{operation: {paths: [/suffix]}}]},
			{from: [{source: {principals: ["*"]}}], to: [{operation: {paths: [/anybody]}}]},
			{from: [{source: {notPrincipals: [cluster.local/ns/CLIENT-NS/sa/client]}}], to: [{operation: {paths: [/not]}}]},
			{from: [{source: {namespaces: [OTHER-NS]}}], to: [{operation: {paths: [/namespace]}}]},
			{from: [{source: {notNamespaces: ["e2e-rows-*"]}}], to: [{operation: {paths: [/not-namespace]}}]},
			{from: [{source: {serviceAccounts: [client, OTHER-NS/other]}}], to: [{operation: {paths: [/account]}}]},
			{from: [{source: {notServiceAccounts: [client]}}], to: [{operation: {paths: [/not-account]}}]}]}`}}, []ask{
			get("client", "/principal", "200", "who rule 0"), get("other", "/principal", "403", "none"), get("stranger", "/principal", "403", "none"),
			get("other", "/suffix", "200", "who rule 1"), get("client", "/suffix", "403", "none"), get("client", "/anybody", "200", "who rule 2"), get("stranger", "/anybody", "403", "none"),
			get("client", "/not", "403", "none"), get("other", "/not", "200", "who rule 3"), get("stranger", "/not", "200", "who rule 3"),
			get("other", "/namespace", "200", "who rule 4"), get("client", "/namespace", "403", "none"), get("client", "/not-namespace", "200", "who rule 5"), get("other", "/not-namespace", "403", "none"), get("stranger", "/not-namespace", "200", "who rule 5"),
			get("client", "/account", "200", "who rule 6"), get("other", "/account", "200", "who rule 6"), get("stranger", "/account", "403", "none"), get("client", "/not-account", "403", "none"), get("other", "/not-account", "200", "who rule 7")}},
		{"trust domains, and their aliases", []policy{{ap, "td", `{rules: [
			{from: [{source: {trustDomains: [cluster.local]}}], to: [{operation: {paths: [/domain]}}]},
			{from: [{source: {notTrustDomains: [cluster.local]}}], to: [{operation: {paths: [/not-domain]}}]},
			{when: [{key: source.trustDomain, values: ["clu*"]}], to: [{operation: {paths: [/when]}}]},
			{from: [{source: {principals: [former.example/ns/CLIENT-NS/sa/client]}}], to: [{operation: {paths: [/alias]}}]},
			{from: [{source: {principals: [foreign.example/ns/CLIENT-NS/sa/client]}}], to: [{operation: {paths: [/foreign]}}]},
			{from: [{source: {principals: ["*/ns/CLIENT-NS/sa/client"]}}], to: [{operation: {paths: [/any]}}]}]}`}}, []ask{
			get("client", "/domain", "200", "td rule 0"), get("stranger", "/domain", "403", "none"), get("client", "/not-domain", "403", "none"), get("stranger", "/not-domain", "200", "td rule 1"),
			get("other", "/when", "200", "td rule 2"), get("stranger", "/when", "403", "none"), get("client", "/alias", "200", "td rule 3"), get("other", "/alias", "403", "none"),
			get("client", "/foreign", "403", "none"), get("client", "/any", "200", "td rule 5")}},
		{"keys of when, about who asks", []policy{{ap, "when", `{rules: [
			{to: [{operation: {paths: [/namespace]}}], when: [{key: source.namespace, values: [CLIENT-NS]}]},
			{to: [{operation: {paths: [/principal]}}], when: [{key: source.principal, notValues: ["*/sa/other"]}]},
			{to: [{operation: {paths: [/account]}}], when: [{key: source.serviceAccount, values: [CLIENT-NS/client]}]},
			{to: [{operation: {paths: [/both]}}], when: [{key: source.namespace, values: ["e2e-*"], notValues: [OTHER-NS]}]}]}`}}, []ask{
			get("client", "/namespace", "200", "when rule 0"), get("other", "/namespace", "403", "none"), get("client", "/principal", "200", "when rule 1"), get("other", "/principal", "403", "none"), get("stranger", "/principal", "200", "when rule 1"),
			get("client", "/account", "200", "when rule 2"), get("stranger", "/account", "403", "none"), get("client", "/both", "200", "when rule 3"), get("other", "/both", "403", "none")}},
		{"addresses and ports: of the peer, and of the workload", []policy{{ap, "where", `{rules: [
			{from: [{source: {ipBlocks: [CLIENT-IP]}}], to: [{operation: {paths: [/peer]}}]}, {from: [{source: {notIpBlocks: ["CLIENT-IP/32"]}}], to: [{operation: {paths: [/not-peer]}}]},
			{from: [{source: {remoteIpBlocks: [CLIENT-IP]}}], to: [{operation: {paths: [/remote]}}]}, {from: [{source: {remoteIpBlocks: [203.0.113.9]}}], to: [{operation: {paths: [/claimed]}}]},
			{to: [{operation: {paths: [/port], ports: ["8080"]}}]}, {to: [{operation: {paths: [/service-port], ports: ["80"]}}]},
			{to: [{operation: {paths: [/when]}}], when: [{key: source.ip, values: [CLIENT-IP]}, {key: destination.ip, values: [SERVER-IP]}, {key: destination.port, values: ["8080"]}, {key: remote.ip, notValues: [203.0.113.9]}]}]}`}}, []ask{
			get("client", "/peer", "200", "where rule 0"), get("other", "/peer", "403", "none"), get("client", "/not-peer", "403", "none"), get("stranger", "/not-peer", "200", "where rule 1"),
			get("client", "/remote", "200", "where rule 2"), get("client", "/claimed", "403", "none", "x-forwarded-for", "203.0.113.9"), get("client", "/port", "200", "where rule 4"), get("client", "/service-port", "403", "none"),
			get("client", "/when", "200", "where rule 6", "x-forwarded-for", "203.0.113.9"), get("other", "/when", "403", "none")}},
	}
}

// protocolRows are what rules do where calls are not plain requests.
func protocolRows() []row {
	return []row{
		{"gRPC: methods are paths, and each call is a POST", []policy{{ap, "grpc", `{rules: [{from: [{source: {serviceAccounts: [client]}}], to: [{operation: {paths: [/grpc.health.v1.Health/Check], methods: [POST], ports: ["7000"]}}]},
			{from: [{source: {namespaces: [OTHER-NS]}}], to: [{operation: {paths: [/grpc.health.v1.Health/*], methods: [GET]}}]}]}`}}, []ask{
			unary("client", "OK"), stream("client", "PermissionDenied"), unary("other", "PermissionDenied"), unary("stranger", "PermissionDenied")}},
		{"gRPC: a stream is denied as a call is", []policy{{ap, "grpc", `{action: DENY, rules: [{to: [{operation: {paths: ["*/Watch"], ports: ["7000"]}}]}]}`}}, []ask{
			unary("client", "OK"), stream("client", "PermissionDenied"), stream("stranger", "PermissionDenied")}},
		{"a WebSocket is the request that asks for it", []policy{{ap, "socket", `{rules: [{from: [{source: {serviceAccounts: [client]}}], to: [{operation: {paths: [/socket], methods: [GET]}}]}]}`}}, []ask{
			webSocket("client", "/socket", "101", "socket rule 0"), webSocket("client", "/other", "403", "none"), webSocket("other", "/socket", "403", ""), webSocket("stranger", "/socket", "403", "none")}},
		{"identities of connections: TCP, TLS of the application's own, and a server that speaks first", []policy{{ap, "who", `{rules: [{from: [{source: {serviceAccounts: [client]}}]}]}`}}, []ask{
			tcp("client", wire.Line), tcp("other", wire.Nothing), tcp("stranger", wire.Nothing), passthrough("client", "app.example", wire.Line), passthrough("other", "app.example", wire.Nothing), passthrough("stranger", "app.example", wire.Nothing),
			serverFirst("client", wire.Greeting), serverFirst("other", wire.Nothing), serverFirst("stranger", wire.Nothing)}},
		{"a port of no declared protocol is what its client speaks", []policy{{ap, "any", `{rules: [{from: [{source: {serviceAccounts: [client]}}], to: [{operation: {ports: ["8081"]}}]}, {from: [{source: {namespaces: [OTHER-NS]}}], to: [{operation: {ports: ["8081"], paths: [/any]}}]}]}`}}, []ask{
			at(8081, get("client", "/x", "200", "")), at(8081, get("other", "/any", "200", "")), at(8081, get("other", "/x", "403", "")), at(8081, tcp("client", wire.Line)), at(8081, tcp("other", wire.Nothing)),
			at(8081, passthrough("client", "a.example", wire.Line)), at(8081, passthrough("other", "a.example", wire.Nothing)), at(8081, unary("client", "OK")), at(8081, webSocket("other", "/any", "101", ""))}},
		{"connection.sni is the server name of TLS as the server's proxy sees it: an application's own in plaintext, the mesh's in mutual TLS", []policy{{ap, "sni", `{action: DENY, rules: [{to: [{operation: {ports: ["8443"]}}], when: [{key: connection.sni, values: [closed.example, "*.shut.example"]}]}]}`}}, []ask{
			passthrough("stranger", "closed.example", wire.Nothing), passthrough("stranger", "a.shut.example", wire.Nothing), passthrough("stranger", "open.example", wire.Line), passthrough("client", "closed.example", wire.Line), tcp("stranger", wire.Line)}},
		{"ALLOW by server name", []policy{{ap, "sni", `{rules: [{when: [{key: connection.sni, values: [open.example]}]}]}`}}, []ask{
			passthrough("stranger", "open.example", wire.Line), passthrough("stranger", "closed.example", wire.Nothing), tcp("stranger", wire.Nothing)}},
		{"what is of HTTP: ALLOW does not match a connection", []policy{{ap, "allow", `{rules: [{from: [{source: {serviceAccounts: [client]}}], to: [{operation: {paths: ["/x*"]}}]}]}`}}, []ask{
			get("client", "/x", "200", "allow rule 0"), tcp("client", wire.Nothing), passthrough("client", "a.example", wire.Nothing), serverFirst("client", wire.Nothing)}},
		{"what is of HTTP: DENY forgets it of a connection", []policy{{ap, "deny", `{action: DENY, rules: [{to: [{operation: {paths: [/admin], methods: [GET]}}]}]}`}}, []ask{
			get("client", "/admin", "403", "deny rule 0"), get("client", "/else", "200", "none"), tcp("client", wire.Nothing), passthrough("stranger", "a.example", wire.Nothing)}},
		{"AUDIT of what is of HTTP touches no connection", []policy{{ap, "audit", `{action: AUDIT, rules: [{to: [{operation: {paths: [/admin]}}]}]}`}}, []ask{tcp("client", wire.Line), serverFirst("client", wire.Greeting)}},
	}
}

// at is a question at another port.
func at(port uint32, a ask) ask {
	a.port = port
	return a
}

// modeRows are modes of mutual TLS.
func modeRows() []row {
	admitted, refused := everything("stranger", true, ""), []ask{get("stranger", "/x", wire.Nothing, ""), tcp("stranger", wire.Nothing), unary("stranger", "Unavailable"), passthrough("stranger", "a.example", wire.Nothing), serverFirst("stranger", wire.Nothing), webSocket("stranger", "/", wire.Nothing, "")}
	mesh := everything("client", true, "")
	namespace := policy{pa, "namespace", `{selector: none, mtls: {mode: STRICT}}`}
	return []row{
		{"the namespace's mode", []policy{namespace}, append(mesh, refused...)},
		{"PERMISSIVE without any", nil, append(mesh, admitted...)},
		{"a workload's UNSET is its namespace's", []policy{namespace, {pa, "workload", `{mtls: {mode: UNSET}}`}}, append(mesh, refused...)},
		{"a workload's mode before its namespace's", []policy{namespace, {pa, "workload", `{mtls: {mode: PERMISSIVE}}`}}, append(mesh, admitted...)},
		{"a port's mode before its workload's, by the workload's number; UNSET is the workload's", []policy{{pa, "workload", `{mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}, 80: {mode: PERMISSIVE}, 9000: {mode: UNSET}}}`}}, append(mesh,
			get("stranger", "/x", "200", ""), webSocket("stranger", "/", "101", ""), tcp("stranger", wire.Nothing), unary("stranger", "Unavailable"), passthrough("stranger", "a.example", wire.Nothing))},
		{"the oldest of a scope", []policy{{pa, "z-older", `{mtls: {mode: PERMISSIVE}}`}, {pa, "a-younger", `{mtls: {mode: STRICT}}`}}, append(mesh, admitted...)},
		{"without mutual TLS nobody has an identity", []policy{{pa, "workload", `{mtls: {mode: DISABLE}}`}, {ap, "who", `{rules: [{from: [{source: {namespaces: [CLIENT-NS]}}]}, {to: [{operation: {ports: ["8080"], paths: [/free]}}]}]}`}}, []ask{
			get("client", "/free", "200", ""), get("client", "/x", "403", "none"), get("stranger", "/free", "200", "who rule 1"), get("stranger", "/x", "403", "none")}},
	}
}

// refusedRows are policies that nobody can apply, with what they are told.
func refusedRows() map[string]struct {
	policy policy
	says   string
} {
	return map[string]struct {
		policy policy
		says   string
	}{
		"DENY without rules":                      {policy{ap, "refused", `{action: DENY}`}, "spec.rules"},
		"CUSTOM without rules":                    {policy{ap, "refused", `{action: CUSTOM, provider: {name: outside}}`}, "spec.rules"},
		"CUSTOM that asks for a token":            {policy{ap, "refused", `{action: CUSTOM, provider: {name: outside}, rules: [{from: [{source: {requestPrincipals: ["*"]}}]}]}`}, "requestPrincipals"},
		"CUSTOM on trial":                         {policy{ap, "trial/refused", `{action: CUSTOM, provider: {name: outside}, rules: [{}]}`}, "dry-run"},
		"selector and targetRefs":                 {policy{ap, "refused", `{selector: {matchLabels: {app: x}}, targetRefs: [{kind: Service, name: x}], rules: [{}]}`}, "targetRefs"},
		"serviceAccounts and principals":          {policy{ap, "refused", `{rules: [{from: [{source: {serviceAccounts: [a], principals: ["*"]}}]}]}`}, "serviceAccounts"},
		"an account with a wildcard":              {policy{ap, "refused", `{rules: [{from: [{source: {serviceAccounts: ["x/*"]}}]}]}`}, "serviceAccounts"},
		"a template with an operator after {**}":  {policy{ap, "refused", `{rules: [{to: [{operation: {paths: ["/a/{**}/{*}"]}}]}]}`}, "paths"},
		"a template within a segment":             {policy{ap, "refused", `{rules: [{to: [{operation: {paths: ["/a{*}"]}}]}]}`}, "paths"},
		"a template and a *":                      {policy{ap, "refused", `{rules: [{to: [{operation: {paths: ["/{*}/a*"]}}]}]}`}, "paths"},
		"a key that there is not":                 {policy{ap, "refused", `{rules: [{when: [{key: source.weather, values: [rain]}]}]}`}, "source.weather"},
		"a port's mode without a selector":        {policy{pa, "refused", `{selector: none, portLevelMtls: {8080: {mode: STRICT}}}`}, "portLevelMtls"},
		"a workload's mode in the root namespace": {policy{pa, "root/refused", `{mtls: {mode: STRICT}}`}, "spec.selector"},
		"keys and where they are":                 {policy{ra, "refused", `{jwtRules: [{issuer: a, jwks: '{"keys": []}', jwksUri: "https://a.example"}]}`}, "jwks"},
	}
}
