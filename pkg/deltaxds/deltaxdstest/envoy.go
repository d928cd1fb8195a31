// Package deltaxdstest is a model of Envoy as a client of delta ADS, and a world of resources for it. Both are driven step
// by step, without goroutines or clocks, so that a test can try every order of events and repeat one by its seed.
package deltaxdstest

import (
	"maps"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Types are those that the model knows, in the order in which Envoy comes to ask for them.
var Types = []string{
	deltaxds.ClusterType, deltaxds.EndpointType, deltaxds.SecretType, deltaxds.ListenerType, deltaxds.RouteType, deltaxds.ExtensionConfigType,
}

// Envoy is one proxy, as Envoy 1.40 behaves with initial_fetch_timeout 0:
//   - A cluster that is new or changed warms until it is answered about its endpoints, also with "there are none" or with
//     some that it refuses, and until it has its secret. For a changed one the endpoints are not asked for again. Nothing
//     is said about clusters, answers included, while one warms.
//   - Listeners are asked for when the first clusters have warmed.
//   - A listener is answered for at once, and serves when it has its routes and extension configurations.
//   - Of routes, secrets and extension configurations, a removal is ignored.
//   - One bad resource refuses a response. The good clusters and listeners in it are taken, of other types those before it.
//   - After a reconnect it says which versions it has: those of responses that it has taken whole. Of what it took of a
//     refused one the server knows nothing then, and cannot remove it.
type Envoy struct {
	read      func(*discovery.Resource) Facts
	types     map[string]*interest
	clusters  map[string]*cluster // in use
	warming   map[string]*cluster
	listeners map[string]*listener
	waiting   map[string]*listener // listeners that warm
	held      map[string]map[string]string
	started   bool // it has had its clusters, and asks for listeners
}

type cluster struct {
	version, secret string
	complete        bool   // it has its endpoints with it
	endpoints       string // version, or empty
	answered        bool
}

type listener struct {
	version         string
	routes, filters []string
	clusters        []string
}

// interest is Envoy's state of one subscription (DeltaSubscriptionState).
type interest struct {
	asked          bool // in this stream
	wildcard       bool
	names          map[string]bool
	versions       map[string]string
	added, removed map[string]bool
	answers        []*discovery.DeltaDiscoveryRequest
	unnamed        map[string]bool // taken of a refused response
}

// NewEnvoy returns a proxy that has just begun, in a World.
func NewEnvoy() *Envoy { return NewEnvoyReading(factsOf) }

// NewEnvoyReading returns a proxy that has just begun and finds in resources what read does: with real resources it asks for
// what Envoy would ask for.
func NewEnvoyReading(read func(*discovery.Resource) Facts) *Envoy {
	e := &Envoy{
		read: read, types: map[string]*interest{}, clusters: map[string]*cluster{}, warming: map[string]*cluster{}, listeners: map[string]*listener{},
		waiting: map[string]*listener{}, held: map[string]map[string]string{},
	}
	for _, url := range Types {
		e.held[url] = map[string]string{}
	}
	e.of(deltaxds.ClusterType).wildcard = true
	e.of(deltaxds.ListenerType).wildcard = true
	return e
}

func (e *Envoy) of(url string) *interest {
	if e.types[url] == nil {
		e.types[url] = &interest{
			names: map[string]bool{}, versions: map[string]string{}, added: map[string]bool{}, removed: map[string]bool{}, unnamed: map[string]bool{},
		}
	}
	return e.types[url]
}

// Reconnect begins a new stream. What was on its way is lost.
func (e *Envoy) Reconnect() {
	for _, t := range e.types {
		t.asked, t.answers = false, nil
		clear(t.added)
		clear(t.removed)
	}
}

// Ready lists the types of which the proxy has something to say.
func (e *Envoy) Ready() []string {
	var out []string
	for _, url := range Types {
		t := e.types[url]
		if t == nil || (url == deltaxds.ClusterType && len(e.warming) > 0) || (url == deltaxds.ListenerType && !e.started) {
			continue
		}
		if !t.asked && (t.wildcard || len(t.names) > 0) || t.asked && len(t.added)+len(t.removed)+len(t.answers) > 0 {
			out = append(out, url)
		}
	}
	return out
}

// Request returns the next request of a type that is ready.
func (e *Envoy) Request(url string) *discovery.DeltaDiscoveryRequest {
	t := e.of(url)
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: url}
	if !t.asked {
		t.asked = true
		req.ResourceNamesSubscribe = slices.Sorted(maps.Keys(t.names))
		if t.wildcard && len(t.names) > 0 {
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, "*")
		}
		req.InitialResourceVersions = maps.Clone(t.versions)
	} else {
		if len(t.answers) > 0 {
			req, t.answers = t.answers[0], t.answers[1:]
		}
		req.ResourceNamesSubscribe = slices.Sorted(maps.Keys(t.added))
		req.ResourceNamesUnsubscribe = slices.Sorted(maps.Keys(t.removed))
	}
	clear(t.added)
	clear(t.removed)
	return req
}

// Take handles a response.
func (e *Envoy) Take(resp *discovery.DeltaDiscoveryResponse) {
	url := resp.GetTypeUrl()
	t := e.of(url)
	refused := false
	switch url {
	case deltaxds.ClusterType:
		refused = e.takeClusters(resp)
	case deltaxds.ListenerType:
		refused = e.takeListeners(resp)
	default:
		refused = e.takeNamed(resp)
	}
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: resp.GetNonce()}
	if refused {
		answer.ErrorDetail = &rpcstatus.Status{Code: 3, Message: "there is a bad one"}
		for _, r := range resp.GetResources() {
			t.unnamed[r.GetName()] = t.versions[r.GetName()] == ""
		}
	} else {
		for _, r := range resp.GetResources() {
			if t.wildcard || t.names[r.GetName()] {
				t.versions[r.GetName()] = r.GetVersion()
				delete(t.unnamed, r.GetName())
			}
		}
		for _, name := range resp.GetRemovedResources() {
			delete(t.versions, name)
			delete(t.unnamed, name)
		}
	}
	t.answers = append(t.answers, answer)
	e.settle()
}

func (e *Envoy) takeClusters(resp *discovery.DeltaDiscoveryResponse) (refused bool) {
	for _, r := range resp.GetResources() {
		f := e.read(r)
		if f.Bad {
			refused = true
			continue
		}
		name, now := r.GetName(), e.clusters[r.GetName()]
		if w := e.warming[name]; w != nil {
			now = w
		}
		if now != nil && now.version == r.GetVersion() {
			continue
		}
		e.warming[name] = &cluster{version: r.GetVersion(), secret: f.Secret, complete: f.Complete}
	}
	for _, name := range resp.GetRemovedResources() {
		delete(e.clusters, name)
		delete(e.warming, name)
	}
	return refused
}

func (e *Envoy) takeListeners(resp *discovery.DeltaDiscoveryResponse) (refused bool) {
	for _, name := range resp.GetRemovedResources() {
		delete(e.listeners, name)
		delete(e.waiting, name)
	}
	for _, r := range resp.GetResources() {
		f := e.read(r)
		if f.Bad {
			refused = true
			continue
		}
		name, now := r.GetName(), e.listeners[r.GetName()]
		if w := e.waiting[name]; w != nil {
			now = w
		}
		if now != nil && now.version == r.GetVersion() {
			continue
		}
		e.waiting[name] = &listener{version: r.GetVersion(), routes: f.Routes, filters: f.Filters, clusters: f.Clusters}
	}
	return refused
}

// takeNamed handles the types that are asked for by name.
func (e *Envoy) takeNamed(resp *discovery.DeltaDiscoveryResponse) (refused bool) {
	url := resp.GetTypeUrl()
	names := e.of(url).names
	for _, r := range resp.GetResources() {
		if !names[r.GetName()] {
			continue
		}
		if e.read(r).Bad {
			if url == deltaxds.EndpointType { // every cluster that waits goes on without
				for _, c := range e.warming {
					c.answered = true
				}
			}
			return true
		}
		e.held[url][r.GetName()] = r.GetVersion()
		if url == deltaxds.EndpointType {
			e.answer(r.GetName(), r.GetVersion())
		}
	}
	if url == deltaxds.EndpointType {
		for _, name := range resp.GetRemovedResources() {
			e.answer(name, "")
		}
	}
	return false
}

func (e *Envoy) answer(name, version string) {
	for _, set := range []map[string]*cluster{e.clusters, e.warming} {
		if c := set[name]; c != nil {
			c.answered = true
			if version != "" {
				c.endpoints = version
			}
		}
	}
}

// settle puts into use what has warmed, and asks for what is needed and no longer for what is not.
func (e *Envoy) settle() {
	for name, c := range e.warming {
		if (c.answered || c.complete) && (c.secret == "" || e.held[deltaxds.SecretType][c.secret] != "") {
			e.clusters[name] = c
			delete(e.warming, name)
		}
	}
	e.started = e.started || len(e.warming) == 0
	for name, l := range e.waiting {
		if e.has(deltaxds.RouteType, l.routes) && e.has(deltaxds.ExtensionConfigType, l.filters) {
			e.listeners[name] = l
			delete(e.waiting, name)
		}
	}
	endpoints, secrets, routes, filters := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, set := range []map[string]*cluster{e.clusters, e.warming} {
		for name, c := range set {
			if !c.complete {
				endpoints[name] = true
			}
			if c.secret != "" {
				secrets[c.secret] = true
			}
		}
	}
	for _, set := range []map[string]*listener{e.listeners, e.waiting} {
		for _, l := range set {
			for _, n := range l.routes {
				routes[n] = true
			}
			for _, n := range l.filters {
				filters[n] = true
			}
		}
	}
	e.want(deltaxds.EndpointType, endpoints)
	e.want(deltaxds.SecretType, secrets)
	e.want(deltaxds.RouteType, routes)
	e.want(deltaxds.ExtensionConfigType, filters)
}

func (e *Envoy) has(url string, names []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool { return e.held[url][n] == "" })
}

// want brings a subscription up to date.
func (e *Envoy) want(url string, names map[string]bool) {
	t := e.of(url)
	for name := range names {
		if !t.names[name] {
			t.names[name] = true
			t.added[name] = true
			delete(t.removed, name)
		}
	}
	for name := range t.names {
		if !names[name] {
			delete(t.names, name)
			delete(t.versions, name)
			delete(t.added, name)
			delete(e.held[url], name)
			t.removed[name] = true
		}
	}
}

// Ask subscribes to a cluster by name, as a filter that discovers clusters on demand does, though everything is
// subscribed to already; it may have the name.
func (e *Envoy) Ask(name string) {
	t := e.of(deltaxds.ClusterType)
	t.names[name], t.added[name] = true, true
	delete(t.removed, name)
}

// Unask takes Ask back.
func (e *Envoy) Unask(name string) {
	t := e.of(deltaxds.ClusterType)
	if t.names[name] {
		delete(t.names, name)
		delete(t.added, name)
		t.removed[name] = true
	}
}

// Has returns the resources of a type that the proxy has, with their versions: what it would name if it connected anew.
func (e *Envoy) Has(url string) map[string]string { return maps.Clone(e.of(url).versions) }

// Warming names the clusters and listeners that were sent and are not used yet, as something that they need has not come.
func (e *Envoy) Warming() []string {
	out := slices.Collect(maps.Keys(e.warming))
	return slices.Sorted(slices.Values(append(out, slices.Collect(maps.Keys(e.waiting))...)))
}

// Ahead names the listeners in use that refer to a cluster that is not: requests to them fail.
func (e *Envoy) Ahead() []string {
	var out []string
	for name, l := range e.listeners {
		if slices.ContainsFunc(l.clusters, func(c string) bool { return e.clusters[c] == nil }) {
			out = append(out, name)
		}
	}
	return slices.Sorted(slices.Values(out))
}
