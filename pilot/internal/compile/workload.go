package compile

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"time"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Class is everything of a pod that its inbound configuration depends on. Pods of one class share it.
type Class struct {
	Namespace      string
	ServiceAccount string
	Labels         map[string]string
	Ports          []registry.PodPort
	Delivery       delivery.Way
	NormalizePaths bool          `json:",omitempty"`
	IdleTimeout    time.Duration `json:",omitempty"` // of connections and streams to it; none if 0
	ProxyProtocol  []uint32      `json:",omitempty"` // ports at which load balancers say for whom they connect
}

// ClassOf returns the class of a pod.
func ClassOf(p *registry.Pod) Class {
	return Class{p.Namespace, p.ServiceAccount, p.Labels, p.Ports, p.Delivery, p.NormalizePaths, p.IdleTimeout, p.ProxyProtocol}
}

// Key names the class. Every field is in it: two pods with one key have equal configuration.
func (c Class) Key() string {
	b, err := json.Marshal(c) // maps are marshalled in the order of their keys
	if err != nil {
		panic("class of plain data: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}

// AsInjected is the class as injection knows it: without the labels that the API server gives a pod that is bound to a node, after the node's. On one
// node they are the same for all pods.
func (c Class) AsInjected() Class {
	c.Labels = maps.Clone(c.Labels)
	delete(c.Labels, core.LabelTopologyZone)
	delete(c.Labels, core.LabelTopologyRegion)
	return c
}

// Workload is what the inbound side of a class's proxies does.
type Workload struct {
	Class       Class
	Identity    string
	Labels      Labels
	Ports       []InboundPort         // ports that services or policies name, in order
	Other       InboundPort           // every other port
	Policies    []authz.Policy        // in scope, in the order of namespace and name
	Authorizers []authorizer.Provider // that its policies have asked, in the order of their names
	Issuers     []Issuer              // whose tokens are verified, in the order of their names
	IPv6        bool                  // it is called by addresses of IPv6, too
}

// Issuer is one whose tokens are verified, and by which keys.
type Issuer struct {
	jwt.Rule
	KeySet string // a JSON Web Key Set; there may be no key in it
}

// EveryPort returns the ports that are named, and then what stands for every other.
func (w *Workload) EveryPort() []InboundPort { return append(slices.Clone(w.Ports), w.Other) }

// InboundPort is one port of a workload.
type InboundPort struct {
	Number      uint32
	Protocol    protocol.Protocol
	Mode        authz.TLSMode
	ServiceName string // of the oldest service that names it, for metrics
	ServerFirst bool   // the application speaks before its client does
}

// CompileWorkload compiles a class.
func CompileWorkload(snap *registry.Snapshot, set Settings, c Class) Workload {
	w := Workload{Class: c, Policies: policies(snap, set, c), Issuers: issuers(snap, set, c), IPv6: IPv6(ServiceRanges(snap))}
	w.Authorizers = authorizers(set, w.Policies)
	w.Labels = Labels{Namespace: c.Namespace, CanonicalName: CanonicalName(c.Labels, ""), CanonicalRevision: CanonicalRevision(c.Labels)}
	if id, err := spiffe.New(set.TrustDomain, c.Namespace, c.ServiceAccount); err == nil {
		w.Identity = id.String()
	}
	modes := ModesOf(snap, set, c.Namespace, c.Labels)
	ports := map[uint32]*InboundPort{}
	for _, s := range servicesOf(snap, c) {
		for _, sp := range s.Ports {
			number := TargetPort(c, sp)
			if number == 0 {
				continue
			}
			if p := ports[number]; p != nil { // an older service names it already
				p.agree(sp)
				continue
			}
			ports[number] = &InboundPort{Number: number, Protocol: sp.Protocol, ServiceName: s.Name, ServerFirst: sp.ServerFirst}
		}
	}
	for number := range modes.Ports {
		if ports[number] == nil {
			ports[number] = &InboundPort{Number: number, Protocol: protocol.Auto}
		}
	}
	for _, number := range slices.Sorted(maps.Keys(ports)) {
		p := ports[number]
		p.Mode = modes.Mode(number)
		w.Ports = append(w.Ports, *p)
	}
	w.Other = InboundPort{Protocol: protocol.Auto, Mode: modes.Default}
	return w
}

// agree takes in what another service says of the port. Where they differ, nothing is declared: each connection is taken for
// what it is, so that clients of both are served.
func (p *InboundPort) agree(sp registry.ServicePort) {
	p.ServerFirst = p.ServerFirst && sp.ServerFirst
	switch {
	case p.Protocol == sp.Protocol:
	case p.Protocol.IsHTTP() && sp.Protocol.IsHTTP():
		p.Protocol = protocol.HTTP
	default:
		p.Protocol = protocol.Auto
	}
}

// servicesOf returns the services that select a class, oldest first.
func servicesOf(snap *registry.Snapshot, c Class) []*registry.Service {
	out := snap.ServicesFor(c.Namespace, c.Labels)
	slices.SortStableFunc(out, func(a, b *registry.Service) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// TargetPort is the port of a class's pods behind a port of a service; 0 if they have none of its name.
func TargetPort(c Class, sp registry.ServicePort) uint32 {
	if sp.TargetName == "" {
		return sp.Target
	}
	for _, p := range c.Ports {
		if p.Name == sp.TargetName {
			return p.Number
		}
	}
	return 0
}

// policies returns the policies in scope of a class. A RequestAuthentication that cannot be enforced denies all. Nobody is asked about what is sent to an external
// authorizer: it would be asked about the question, and about that one.
func policies(snap *registry.Snapshot, set Settings, c Class) []authz.Policy {
	var out []authz.Policy
	authorizes := slices.ContainsFunc(snap.ServicesFor(c.Namespace, c.Labels), func(s *registry.Service) bool { return set.Asks(s.ID) })
	for _, ns := range scopes(set, c.Namespace) {
		for _, p := range snap.PoliciesFor(ns, c.Labels) {
			if p.Action == authz.Custom && authorizes {
				continue
			}
			if p.InScope(set.RootNamespace, c.Namespace, c.Labels) && targeted(snap, p.Namespace, p.Services, c.Namespace, c.Labels) {
				out = append(out, p.Policy)
			}
		}
		for _, r := range snap.RequestAuthsFor(ns, c.Labels) {
			if r.Broken() && targeted(snap, r.Namespace, r.Services, c.Namespace, c.Labels) {
				out = append(out, authz.Policy{
					Meta:   authz.Meta{Namespace: ns, Name: "unenforceable-requestauthentication-" + r.Name},
					Action: authz.Deny, Rules: []authz.Rule{{}},
				})
			}
		}
	}
	return out
}

// issuers returns whose tokens are verified at a class: all that the RequestAuthentications in scope name, together.
func issuers(snap *registry.Snapshot, set Settings, c Class) (out []Issuer) {
	for _, ns := range scopes(set, c.Namespace) {
		for _, r := range snap.RequestAuthsFor(ns, c.Labels) {
			if r.Ignored || r.Broken() || !targeted(snap, r.Namespace, r.Services, c.Namespace, c.Labels) {
				continue
			}
			for _, rule := range r.Rules {
				out = append(out, Issuer{rule, keysOf(snap, rule)})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Issuer) int { return cmp.Compare(a.Issuer, b.Issuer) })
	return out
}

// authorizers are those of the installation that policies have asked.
func authorizers(set Settings, policies []authz.Policy) (out []authorizer.Provider) {
	for _, p := range set.Authorizers {
		if slices.ContainsFunc(policies, func(q authz.Policy) bool { return q.Action == authz.Custom && q.Provider == p.Name }) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b authorizer.Provider) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// targeted reports whether a policy holds for a workload by the Services of its namespace that it targets: the workload is behind one of them. A policy that targets none
// holds for all that it selects.
func targeted(snap *registry.Snapshot, of string, services []string, namespace string, labels map[string]string) bool {
	return len(services) == 0 || of == namespace && slices.ContainsFunc(snap.ServicesFor(namespace, labels), func(s *registry.Service) bool { return slices.Contains(services, s.Name) })
}

// HoldsFor reports whether a policy is for pods of a namespace with the labels, by the Services that it targets, too.
func HoldsFor(snap *registry.Snapshot, rootNamespace string, v registry.Verdict, namespace string, labels map[string]string) bool {
	return v.Selects(rootNamespace, namespace, labels) && targeted(snap, v.Namespace, v.Services, namespace, labels)
}

// KeySources are where keys of a class's issuers are fetched, as registry.KeySets know them.
func KeySources(snap *registry.Snapshot, set Settings, c Class) (out []string) {
	for _, i := range issuers(snap, set, c) {
		if !i.Source.IsZero() {
			out = append(out, i.Source.String())
		}
	}
	return out
}

// keysOf are the keys of a rule as far as they are known: without any, none of its tokens can be verified.
func keysOf(snap *registry.Snapshot, rule jwt.Rule) string {
	if rule.Source.IsZero() {
		return rule.Keys
	}
	if set := snap.KeySet(rule.Source.String()); set != nil {
		return set.Keys
	}
	return jwt.NoKeys
}

func scopes(set Settings, namespace string) []string {
	if namespace == set.RootNamespace {
		return []string{namespace}
	}
	return []string{set.RootNamespace, namespace}
}

// ModesOf are the modes of mutual TLS of pods with these labels, and which PeerAuthentications say so. Without labels they are those of the namespace.
func ModesOf(snap *registry.Snapshot, set Settings, namespace string, labels map[string]string) authz.PeerModes {
	return authz.ComposePeer(peerPolicies(snap, set, namespace), set.RootNamespace, namespace, labels)
}

func peerPolicies(snap *registry.Snapshot, set Settings, namespace string) []authz.PeerPolicy {
	var out []authz.PeerPolicy
	for _, ns := range scopes(set, namespace) {
		for p := range snap.PeerAuthsIn(ns) {
			out = append(out, p.PeerPolicy)
		}
	}
	return out
}
