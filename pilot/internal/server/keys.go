package server

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
	corev1 "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/keyserver"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/jwt"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// apiServer is the Service by which pods reach the API server.
const apiServer = "default/kubernetes"

// ownAddress says why key servers must not be looked for at an address: it is the control plane's, or the API server's, by the cluster's word.
func ownAddress(snap *registry.Snapshot, at netip.Addr) string {
	ip := at.String()
	for s := range snap.ServicesAt(ip) {
		if s.Namespace == mesh.Namespace || s.ID == apiServer {
			return "is of the control plane"
		}
	}
	if p := snap.PodAt(ip); p != nil && p.Namespace == mesh.Namespace {
		return "is of the control plane"
	}
	for sl := range snap.SlicesAt(ip) {
		if sl.ServiceID == apiServer || strings.HasPrefix(sl.ServiceID, mesh.Namespace+"/") {
			return "is of the control plane"
		}
	}
	return ""
}

// sayKeys makes what a key server answers, when it is another than before, an Event of the policies that name it.
func (p *Pilot) sayKeys(source string, err error) {
	for r := range p.registry.Snapshot().RequestAuthsBy(source) {
		of := &corev1.ObjectReference{APIVersion: registry.RequestAuths.Resource().GroupVersion().String(), Kind: registry.RequestAuths.Resource().Kind, Namespace: r.Namespace, Name: r.Name}
		if err == nil {
			p.events.Eventf(of, nil, corev1.EventTypeNormal, "KeysFetched", "Fetch", "The keys of %s are there again", printable.Text(source))
			continue
		}
		p.events.Eventf(of, nil, corev1.EventTypeWarning, "KeysNotFetched", keyserver.Step(err), "Tokens are verified by the last keys of %s, and refused if there are none: %s",
			printable.Text(source), printable.Text(err.Error()))
	}
}

// followMeshKeys has the mesh's own tokens be verified by the keys of the trust bundle, until ctx ends.
func (p *Pilot) followMeshKeys(ctx context.Context) error {
	for {
		trust, changed, err := p.identity.Bundle.Current()
		if err == nil {
			keys := meshKeys(trust)
			for _, td := range p.settings.authz().TrustDomains() {
				id := spiffe.TokenIssuer(td)
				p.feed.Fetched(registry.Event{Kind: registry.KeySets, ID: id, Object: &registry.KeySet{ID: id, Keys: keys}})
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// meshKeys are the keys of the trust bundle that sign tokens, as a key set.
func meshKeys(trust *svid.Trust) string {
	var set jose.JSONWebKeySet
	for id, key := range trust.JWT.JWTAuthorities() {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key, KeyID: id})
	}
	slices.SortFunc(set.Keys, func(a, b jose.JSONWebKey) int { return strings.Compare(a.KeyID, b.KeyID) })
	text, err := json.Marshal(set)
	if err != nil {
		return jwt.NoKeys
	}
	keys, _, err := jwt.ReadKeys(text)
	if err != nil {
		return jwt.NoKeys
	}
	return keys.Text
}

// keyServers are asked as the settings say.
func (p *Pilot) keyServers(options keyserver.Options) *keyserver.Servers {
	options.PrivateHosts = p.settings.KeyServerHosts
	options.Forbids = func(at netip.Addr) string { return ownAddress(p.registry.Snapshot(), at) }
	options.Put, options.Report = p.feed.Fetched, p.sayKeys
	return keyserver.New(options)
}

// demandKeys has the sources of a pod's keys be asked before their time.
func (p *Pilot) demandKeys(pod string) {
	snap := p.registry.Snapshot()
	if found := snap.Pod(pod); found != nil {
		for _, source := range compile.KeySources(snap, p.settings.compile(), compile.ClassOf(found)) {
			p.keys.Demand(source)
		}
	}
}
