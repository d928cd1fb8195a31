package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// types in the order in which Envoy opens them anew.
var types = []string{deltaxds.ClusterType, deltaxds.EndpointType, deltaxds.ExtensionConfigType, deltaxds.ListenerType, deltaxds.RouteType}

// Proxy is one simulated proxy. Its state outlives its streams, as Envoy's does.
type Proxy struct {
	Member
	fleet *Fleet
	kept  map[string]*kept
	seen  *Watch // the last watch that this proxy has answered
}

// kept is what a proxy has of one type.
type kept struct {
	asked    bool
	answered bool              // in this stream
	versions map[string]string // what it has
	refs     map[string][]ref  // what these need
	wanted   map[string]bool   // names it has asked for
	absent   map[string]bool   // names it was told do not exist
}

func newProxy(f *Fleet, m Member) *Proxy {
	p := &Proxy{Member: m, fleet: f, kept: map[string]*kept{}}
	for _, url := range types {
		p.kept[url] = &kept{versions: map[string]string{}, refs: map[string][]ref{}, wanted: map[string]bool{}, absent: map[string]bool{}}
	}
	return p
}

// serve speaks one stream, and says once when the proxy has everything.
func (p *Proxy) serve(ctx context.Context, settled chan<- time.Time) error {
	conn, err := p.dial(p.fleet.traffic)
	if err != nil {
		return err
	}
	defer conn.Close()
	rpc, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	requests := p.opening()
	requests[0].Node = &core.Node{Id: p.NodeID(), Cluster: p.Workload + "." + p.Namespace}
	for done := false; ; {
		for _, req := range requests {
			if err := rpc.Send(req); err != nil {
				return fmt.Errorf("asking: %w", err)
			}
		}
		if !done && p.complete() {
			done = true
			settled <- time.Now()
		}
		resp, err := rpc.Recv()
		if err != nil {
			return err
		}
		p.count(resp)
		requests = p.take(resp)
	}
}

func (p *Proxy) count(resp *discovery.DeltaDiscoveryResponse) {
	f := p.fleet
	f.heard.Store(time.Now().UnixNano())
	f.traffic.count(resp)
	if f.Tap != nil {
		f.Tap(p.Member, resp)
	}
	if w := f.watch.Load(); w != nil {
		w.look(p, resp)
	}
}

// opening returns the requests that begin a stream: for clusters alone the first time, then for all that was asked for
// before, with the versions that are here.
func (p *Proxy) opening() []*discovery.DeltaDiscoveryRequest {
	p.kept[deltaxds.ClusterType].asked = true
	var out []*discovery.DeltaDiscoveryRequest
	for _, url := range types {
		k := p.kept[url]
		if !k.asked {
			continue
		}
		k.answered = false
		req := &discovery.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: slices.Sorted(maps.Keys(k.wanted)),
			InitialResourceVersions: maps.Clone(k.versions)}
		if wildcard(url) {
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, "*")
		}
		out = append(out, req)
	}
	return out
}

func wildcard(url string) bool { return url == deltaxds.ClusterType || url == deltaxds.ListenerType }

// take brings the state up to date with a response and returns what Envoy would say next: subscriptions to what the resources refer to, then
// the acknowledgement.
func (p *Proxy) take(resp *discovery.DeltaDiscoveryResponse) []*discovery.DeltaDiscoveryRequest {
	url := resp.GetTypeUrl()
	k := p.kept[url]
	if k == nil {
		return nil // of a type it has not asked for
	}
	k.answered = true
	for _, r := range resp.GetResources() {
		k.versions[r.GetName()] = r.GetVersion()
		delete(k.absent, r.GetName())
		if refs := p.fleet.refsOf(url, r); len(refs) > 0 {
			k.refs[r.GetName()] = refs
		} else {
			delete(k.refs, r.GetName())
		}
	}
	for _, name := range resp.GetRemovedResources() {
		delete(k.versions, name)
		delete(k.refs, name)
		if k.wanted[name] {
			k.absent[name] = true
		}
	}
	var out []*discovery.DeltaDiscoveryRequest
	switch url {
	case deltaxds.ClusterType:
		out = p.follow(out, k, deltaxds.EndpointType)
	case deltaxds.ListenerType:
		out = p.follow(out, k, deltaxds.ExtensionConfigType)
		out = p.follow(out, k, deltaxds.RouteType)
	}
	listeners := p.kept[deltaxds.ListenerType]
	if !listeners.asked && p.has(deltaxds.ClusterType) && p.has(deltaxds.EndpointType) {
		listeners.asked = true // an Envoy wants listeners when its clusters are warm
		out = append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ListenerType, ResourceNamesSubscribe: []string{"*"}})
	}
	return append(out, &discovery.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: resp.GetNonce()})
}

// follow asks for the names that the resources of one type refer to in another, and no longer for others.
func (p *Proxy) follow(out []*discovery.DeltaDiscoveryRequest, from *kept, url string) []*discovery.DeltaDiscoveryRequest {
	to := p.kept[url]
	needed := map[string]bool{}
	for _, refs := range from.refs {
		for _, r := range refs {
			if r.url == url {
				needed[r.name] = true
			}
		}
	}
	req := &discovery.DeltaDiscoveryRequest{TypeUrl: url}
	for name := range needed {
		if !to.wanted[name] {
			to.wanted[name] = true
			req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
		}
	}
	for name := range to.wanted {
		if !needed[name] {
			delete(to.wanted, name)
			delete(to.versions, name)
			delete(to.absent, name)
			req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
		}
	}
	if len(req.ResourceNamesSubscribe)+len(req.ResourceNamesUnsubscribe) == 0 {
		return out
	}
	to.asked = true
	slices.Sort(req.ResourceNamesSubscribe)
	return append(out, req)
}

// has reports whether everything asked for of a type is here.
func (p *Proxy) has(url string) bool {
	k := p.kept[url]
	if wildcard(url) {
		return k.answered
	}
	for name := range k.wanted {
		if _, ok := k.versions[name]; !ok && !k.absent[name] {
			return false
		}
	}
	return true
}

func (p *Proxy) complete() bool {
	for _, url := range types {
		if !p.has(url) {
			return false
		}
	}
	return true
}
