package featuretest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// world is a cluster's objects, as YAML, that change at random. There are few of each kind and few values of each field, so
// that changes meet: addresses are used anew, labels are selected by several, and names come back.
type world struct {
	random  *rand.Rand
	objects map[string]string           // by kind, namespace and name
	events  map[string][]registry.Event // what Pilot was told of each
	touched []string                    // objects that have changed and Pilot was not told
	pods    map[string]*pod             // of the proxies
	births  int
}

// pod is a pod with a proxy, and lives through changes of all that is its own.
type pod struct {
	namespace, name, uid, ip, account, app, version, web string
	secret                                               bool // its certificate comes from one
}

var (
	namespaces = []string{"shop", "bank", "bulwark-system"}
	apps       = []string{"a", "b", "c"}
	accounts   = []string{"one", "two"}
	times      = []string{"2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"}
	clusterIPs = []string{"10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "10.96.0.5", "fd00::1", "fd00::2", "fd00::3"}
	sixes      = []string{"fd00:1::1", "fd00:1::2", "fd00:1::3", "fd00:1::4", "fd00:1::5", "fd00:1::6", "fd00:1::7", "fd00:1::8", "2001:db8::1"}
	addresses  = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8", "203.0.113.1"}
	// ports of Services, as they may differ: name, number, where the pod listens.
	ports = []string{
		`{name: http, port: 80, targetPort: 8080}`, `{name: http, port: 81, targetPort: web}`, `{name: grpc, port: 9000}`, `{name: data, port: 80, targetPort: 8080}`,
		`{name: tcp, port: 5432}`, `{name: mysql, port: 3306}`, `{name: x, port: 7000, appProtocol: kubernetes.io/h2c}`, `{name: dns, port: 53, protocol: UDP}`,
	}
	slicePorts = []string{
		`{name: http, port: 8080}`, `{name: grpc, port: 9000}`, `{name: data, port: 8080}`,
		`{name: tcp, port: 5432}`, `{name: mysql, port: 3306}`, `{name: x, port: 7000}`,
	}
	rules = []string{
		`{}`, `{from: [{source: {principals: [cluster.local/ns/shop/sa/one]}}]}`, `{from: [{source: {namespaces: [bank]}}]}`,
		`{from: [{source: {ipBlocks: [10.0.0.0/24]}}]}`, `{to: [{operation: {methods: [GET], paths: [/a, /b/*]}}]}`, `{to: [{operation: {ports: ["8080"]}}]}`,
		`{when: [{key: "request.headers[x-user]", values: [eve]}]}`, `{from: [{source: {requestPrincipals: ["*"]}}]}`,
		`{from: [{source: {namespaces: [shop]}}], when: [{key: "request.auth.claims[a]", values: [b]}]}`,
	}
	issuers = []string{`{issuer: "https://a.example"}`, `{issuer: "https://b.example", audiences: [x], fromCookies: [c]}`, `{issuer: "spiffe://cluster.local"}`, `{issuer: nonsense}`}
	modes   = []string{"STRICT", "PERMISSIVE", "DISABLE", "UNSET"}
	exports = []string{"*", ".", "~", "bank", "shop, bank", ".,bulwark-system", "nowhere", "*,~"}
	egress  = []string{
		`"*/*"`, `"./*"`, `"~/*"`, `"shop/*"`, `"bank/s0.bank.svc.cluster.local"`, `"*/s1.shop.svc.cluster.local"`, `"*/*.bank.svc.cluster.local"`,
		`"~bank/*"`, `"not understood"`,
	}
	zones  = []string{"east", "west", ""}
	hosts  = []string{"node-0", "node-1"} // where function placed puts pods
	ranges = []string{"10.96.0.0/30", "10.96.0.0/29", "203.0.113.0/24", "fd00::/108"}
)

func newWorld(seed uint64) *world {
	w := &world{random: rand.New(rand.NewPCG(seed, 0)), objects: map[string]string{}, events: map[string][]registry.Event{}, pods: map[string]*pod{}}
	for i, namespace := range []string{"shop", "shop", "shop", "shop", "bank", "bank", "bulwark-system"} {
		w.born(&pod{namespace: namespace, name: fmt.Sprintf("p%d", i), ip: addresses[i], app: "a", account: "one", version: "v1", web: "8080", secret: i%2 == 1})
	}
	return w
}

func one[T any](w *world, of []T) T { return of[w.random.IntN(len(of))] }

// mostly returns the first half of the time, so that pods come to be alike again.
func mostly[T any](w *world, of []T) T {
	if w.chance(50) {
		return of[0]
	}
	return one(w, of)
}

func (w *world) chance(percent int) bool { return w.random.IntN(100) < percent }

func (w *world) some(of []string, percent int) []string {
	return slices.DeleteFunc(slices.Clone(of), func(string) bool { return !w.chance(percent) })
}

var versions = map[string]string{
	"Service": "v1", "Pod": "v1", "Node": "v1", "ConfigMap": "v1", "EndpointSlice": "discovery.k8s.io/v1", "AuthorizationPolicy": "security.istio.io/v1",
	"PeerAuthentication": "security.istio.io/v1", "RequestAuthentication": "security.istio.io/v1", "Sidecar": "networking.istio.io/v1",
	"ServiceEntry": "networking.istio.io/v1", "DestinationRule": "networking.istio.io/v1",
	"ServiceCIDR": "networking.k8s.io/v1",
}

// set makes or changes an object. Metadata is what it has beside its name, and rest is its other fields.
func (w *world) set(kind, namespace, name, metadata, rest string) {
	id := fmt.Sprintf("%s %s/%s", kind, namespace, name)
	text := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: %s, namespace: %q, %s}\n%s\n", versions[kind], kind, name, namespace, metadata, rest)
	if w.objects[id] != text {
		w.objects[id] = text
		w.touch(id)
	}
}

func (w *world) remove(kind, namespace, name string) {
	id := fmt.Sprintf("%s %s/%s", kind, namespace, name)
	if _, there := w.objects[id]; there {
		delete(w.objects, id)
		w.touch(id)
	}
}

func (w *world) touch(id string) {
	if !slices.Contains(w.touched, id) {
		w.touched = append(w.touched, id)
	}
}

// news returns the events of what has changed, and says it in words.
func (w *world) news(t *testing.T) (out []registry.Event, said string) {
	t.Helper()
	var words []string
	for _, id := range w.touched {
		var now []registry.Event
		if text, ok := w.objects[id]; ok {
			events, err := fixture.Events([]byte(text))
			if err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			now = events
			words = append(words, id+" is\n"+text)
		} else {
			words = append(words, id+" is gone")
		}
		for _, old := range w.events[id] {
			if !slices.ContainsFunc(now, func(e registry.Event) bool { return e.Kind == old.Kind && e.ID == old.ID }) {
				out = append(out, registry.Event{Kind: old.Kind, ID: old.ID})
			}
		}
		out = append(out, now...)
		w.events[id] = now
	}
	w.touched = nil
	return out, strings.Join(words, "\n")
}

// all returns the events that make the world as it is.
func (w *world) all() []registry.Event {
	var out []registry.Event
	for _, id := range slices.Sorted(maps.Keys(w.events)) {
		out = append(out, w.events[id]...)
	}
	return out
}

// change makes one change.
func (w *world) change() {
	for before := len(w.touched); len(w.touched) == before; {
		w.try()
	}
}

// try makes a change, or finds that nothing is to be changed.
func (w *world) try() {
	namespace, n := one(w, namespaces), w.random.IntN(3)
	switch k := w.random.IntN(28); {
	case k > 25:
		w.entry(namespace, fmt.Sprintf("o%d", n))
	case k > 23:
		w.rule(namespace, fmt.Sprintf("d%d", n))
	case k == 23:
		w.node(one(w, hosts))
	case k < 4:
		w.service(namespace, fmt.Sprintf("s%d", n))
	case k < 7:
		w.slice(namespace, fmt.Sprintf("s%d", n))
	case k < 11:
		w.pod(w.pods[one(w, slices.Sorted(maps.Keys(w.pods)))])
	case k < 12:
		w.stranger(namespace, fmt.Sprintf("x%d", n))
	case k < 15:
		w.authorization(namespace, fmt.Sprintf("a%d", n))
	case k < 17:
		w.peers(namespace, fmt.Sprintf("m%d", n))
	case k < 18:
		w.tokens(namespace, "j")
	case k < 20:
		w.sidecar(namespace, fmt.Sprintf("e%d", n))
	case k < 21:
		w.serviceCIDR(fmt.Sprintf("c%d", n))
	default:
		w.revocations()
	}
}

func (w *world) service(namespace, name string) {
	if w.chance(20) {
		w.remove("Service", namespace, name)
		return
	}
	kind := "ClusterIP"
	var ips []string
	switch {
	case w.chance(5):
		kind = "ExternalName"
	case w.chance(25):
		ips = []string{"None"}
	default:
		ips = w.some(clusterIPs, 20)
	}
	selector := "{}"
	if w.chance(80) {
		selector = fmt.Sprintf("{app: %s}", one(w, apps))
	}
	numbers := map[string]bool{} // of which the API server takes each once
	list := slices.DeleteFunc(w.some(ports, 30), func(p string) bool {
		_, rest, _ := strings.Cut(p, "port: ")
		number := rest[:strings.IndexAny(rest, ",}")]
		defer func() { numbers[number] = true }()
		return numbers[number]
	})
	metadata := w.created()
	if w.chance(30) {
		metadata += fmt.Sprintf(", annotations: {networking.istio.io/exportTo: %q}", one(w, exports))
	}
	traffic := one(w, []string{"", "", "", ", internalTrafficPolicy: Local", ", sessionAffinity: ClientIP"})
	w.set("Service", namespace, name, metadata, fmt.Sprintf("spec: {type: %s, clusterIPs: [%s], selector: %s, ports: [%s]%s}",
		kind, quoted(ips), selector, strings.Join(list, ", "), traffic))
}

// node is a node that comes, goes, or is labelled with a zone.
func (w *world) node(name string) {
	if w.chance(20) {
		w.remove("Node", "", name)
		return
	}
	w.set("Node", "", name, fmt.Sprintf("labels: {topology.kubernetes.io/zone: %q}", one(w, zones)), "")
}

func (w *world) created() string { return fmt.Sprintf("creationTimestamp: %q", one(w, times)) }

func quoted(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(out, ", ")
}

func (w *world) slice(namespace, service string) {
	name, of, family := service+one(w, []string{"-x", "-y", "-z"}), addresses, "IPv4"
	if strings.HasSuffix(name, "-z") { // a slice's family never changes
		of, family = sixes, "IPv6"
	}
	if w.chance(20) {
		w.remove("EndpointSlice", namespace, name)
		return
	}
	if w.chance(10) {
		service = fmt.Sprintf("s%d", w.random.IntN(3))
	}
	var endpoints []string
	hinted, byNode := w.chance(60), w.chance(40)
	for _, a := range w.some(of, 35) {
		hints := ""
		if hinted && w.chance(97) {
			hints = fmt.Sprintf(", hints: {forZones: [{name: %q}]}", one(w, zones[:2]))
			if byNode {
				hints = fmt.Sprintf(", hints: {forZones: [{name: %q}], forNodes: [{name: %s}]}", one(w, zones[:2]), one(w, hosts))
			}
		}
		endpoints = append(endpoints, fmt.Sprintf("{addresses: [%q], nodeName: %s, conditions: {ready: %v, serving: true, terminating: %v}%s}",
			a, one(w, hosts), w.chance(70), w.chance(50), hints))
	}
	w.set("EndpointSlice", namespace, name, fmt.Sprintf("labels: {kubernetes.io/service-name: %s}", service),
		fmt.Sprintf("addressType: %s\nports: [%s]\nendpoints: [%s]", family, strings.Join(slicePorts, ", "), strings.Join(endpoints, ", ")))
}

// born has a pod come, for the first time or as another one of its name.
func (w *world) born(p *pod) {
	w.births++
	p.uid = fmt.Sprint(w.births)
	w.pods[p.namespace+"/"+p.name] = p
	w.show(p)
}

func (w *world) show(p *pod) {
	annotations := map[string]string{}
	if p.secret {
		annotations["bulwark.dev/identity"] = "secret"
	}
	text, err := json.Marshal(annotations)
	if err != nil {
		panic(err) // strings are always text
	}
	metadata := fmt.Sprintf("uid: %q, labels: {app: %s, version: %s, security.istio.io/tlsMode: istio}, annotations: %s", p.uid, p.app, p.version, text)
	spec := fmt.Sprintf("spec: {serviceAccountName: %s, containers: [{name: app, image: x, ports: [{name: web, containerPort: %s}]}]}", p.account, p.web)
	w.set("Pod", p.namespace, p.name, metadata, fmt.Sprintf("%[1]s\nstatus: {phase: Running, podIP: %[2]s, podIPs: [{ip: %[2]s}%[3]s]}", spec, p.ip, second(p.ip)))
}

// second is the address of IPv6 of the pod that has another, which half of the pods have.
func second(ip string) string {
	if i := slices.Index(addresses, ip); i%2 == 0 {
		return fmt.Sprintf(", {ip: %q}", sixes[i])
	}
	return ""
}

// pod changes one thing of a pod with a proxy, or replaces the pod.
func (w *world) pod(p *pod) {
	if _, there := w.objects["Pod "+p.namespace+"/"+p.name]; !there {
		w.born(p)
		return
	}
	switch w.random.IntN(8) {
	case 0:
		p.app = mostly(w, apps)
	case 1:
		p.version = mostly(w, []string{"v1", "v2"})
	case 2:
		p.ip = one(w, addresses)
	case 3, 4:
		p.secret = !p.secret
	case 5:
		p.web = mostly(w, []string{"8080", "9090"})
	case 6:
		p.account = mostly(w, accounts)
		w.born(p)
		return
	case 7:
		w.remove("Pod", p.namespace, p.name)
		return
	}
	w.show(p)
}

// stranger is a pod whose proxy, if it has one, does not take part.
func (w *world) stranger(namespace, name string) {
	if w.chance(30) {
		w.remove("Pod", namespace, name)
		return
	}
	labels, host, phase := "app: "+one(w, apps), w.chance(15), "Running"
	if w.chance(40) {
		labels += ", security.istio.io/tlsMode: istio"
	}
	if w.chance(10) {
		phase = "Succeeded"
	}
	ip := one(w, addresses)
	if w.chance(10) {
		ip = ""
	}
	spec := fmt.Sprintf("spec: {serviceAccountName: %s, hostNetwork: %v, containers: [{name: app, image: x}]}", one(w, accounts), host)
	w.set("Pod", namespace, name, fmt.Sprintf("uid: %s, labels: {%s}", name, labels), fmt.Sprintf("%s\nstatus: {phase: %s, podIP: %q}", spec, phase, ip))
}

// selector selects workloads, or all, and is followed by another field.
func (w *world) selector() string {
	if w.chance(40) {
		return ""
	}
	return fmt.Sprintf("selector: {matchLabels: {app: %s}},", one(w, apps))
}

func (w *world) authorization(namespace, name string) {
	if w.chance(30) {
		w.remove("AuthorizationPolicy", namespace, name)
		return
	}
	annotations := "{}"
	if w.chance(20) {
		annotations = `{istio.io/dry-run: "true"}`
	}
	action := one(w, []string{"ALLOW", "ALLOW", "DENY", "DENY", "AUDIT", "CUSTOM", "CUSTOM, provider: {name: opa}", "CUSTOM, provider: {name: ward}", "NONSENSE"})
	w.set("AuthorizationPolicy", namespace, name, "annotations: "+annotations,
		fmt.Sprintf("spec: {action: %s, %s rules: [%s]}", action, w.target(), strings.Join(w.some(rules, 20), ", ")))
}

// target is a selector, or a Service.
func (w *world) target() string {
	if w.chance(70) {
		return w.selector()
	}
	return fmt.Sprintf("targetRefs: [{kind: %s, name: s%d}],", one(w, []string{"Service", "Service", "Service", "Nonsense"}), w.random.IntN(3))
}

func (w *world) peers(namespace, name string) {
	if w.chance(30) {
		w.remove("PeerAuthentication", namespace, name)
		return
	}
	selector, levels := w.selector(), ""
	if selector != "" && w.chance(50) {
		levels = fmt.Sprintf("portLevelMtls: {8080: {mode: %s}},", one(w, modes))
	}
	w.set("PeerAuthentication", namespace, name, w.created(), fmt.Sprintf("spec: {%s %s mtls: {mode: %s}}", selector, levels, one(w, modes)))
}

func (w *world) tokens(namespace, name string) {
	if w.chance(50) {
		w.remove("RequestAuthentication", namespace, name)
		return
	}
	w.set("RequestAuthentication", namespace, name, "", fmt.Sprintf("spec: {%s jwtRules: [%s]}", w.target(), strings.Join(w.some(issuers, 40), ", ")))
}

func (w *world) sidecar(namespace, name string) {
	if w.chance(50) {
		w.remove("Sidecar", namespace, name)
		return
	}
	selector, list := "", "" // an empty list of hosts is one that declares nothing
	if w.chance(60) {
		selector = fmt.Sprintf("workloadSelector: {labels: {app: %s}},", one(w, apps))
	}
	if hosts := w.some(egress, 25); len(hosts) > 0 {
		list = fmt.Sprintf("{hosts: [%s]}", strings.Join(hosts, ", "))
	}
	outbound := one(w, []string{"", "", "outboundTrafficPolicy: {mode: ALLOW_ANY},", "outboundTrafficPolicy: {mode: REGISTRY_ONLY},"})
	w.set("Sidecar", namespace, name, w.created(), fmt.Sprintf("spec: {%s %s egress: [%s]}", selector, outbound, list))
}

func (w *world) serviceCIDR(name string) {
	if w.chance(30) {
		w.remove("ServiceCIDR", "", name)
		return
	}
	w.set("ServiceCIDR", "", name, "", fmt.Sprintf("spec: {cidrs: [%s]}", quoted(w.some(ranges, 40))))
}

// revocations makes a new list, of which most has been in the last.
func (w *world) revocations() {
	const entry = `{"name": %q, "identity": "spiffe://cluster.local/ns/%s/sa/%s", "serial": %q, "created": "2026-01-01T00:00:00Z", "expires": %q}`
	const inForce = "2200-01-01T00:00:00Z" // by the clock of package fixture
	var list []string
	for _, namespace := range namespaces[:2] {
		for _, account := range accounts {
			for _, serial := range w.some([]string{"", "ab"}, 15) {
				list = append(list, fmt.Sprintf(entry, namespace+"-"+account+serial, namespace, account, serial, inForce))
			}
		}
	}
	w.set("ConfigMap", "bulwark-system", "bulwark-revocations", "", fmt.Sprintf("data: {revocations.json: '[%s]'}", strings.Join(list, ", ")))
}
