package compile

import "github.com/bulwark-mesh/bulwark/pilot/internal/registry"

// outside: what is outside for a namespace or, if it is the root namespace, maybe for all.
func (e *Effects) outside(set Settings, namespace string) {
	if namespace == set.RootNamespace {
		namespace = ""
	}
	e.Outside[namespace] = true
}

// rule: how hosts are spoken with, by clients of some namespaces; and who these are.
func (e *Effects) rule(snap *registry.Snapshot, set Settings, d *registry.DestinationRule) {
	e.outside(set, d.Namespace)
	for _, ns := range d.ExportTo {
		e.Outside[ns] = true
	}
	id, ok := serviceOf(d.Host)
	if !ok {
		return
	}
	e.Services[id], e.Endpoints[id] = true, true
	for _, s := range e.nowAndBefore(snap, id) {
		for _, at := range Frontends(snap, s) {
			e.Frontends[at] = true
		}
	}
}

// claims: addresses that come to be the mesh's, or are no longer, which ServiceEntries name.
func (e *Effects) claims(snap *registry.Snapshot, set Settings, addresses ...string) {
	for _, a := range addresses {
		for entry := range snap.ServiceEntriesAt(a) {
			e.outside(set, entry.Namespace)
		}
	}
}

// expected: identities that DestinationRules and ServiceEntries name as those of servers, of which one is revoked, or no longer. Few changes are of these.
func (e *Effects) expected(snap *registry.Snapshot) {
	for d := range snap.DestinationRules() {
		switch service, ok := serviceOf(d.Host); {
		case !d.Expects():
		case ok:
			e.Services[service] = true
		default:
			e.Outside[""] = true
		}
	}
	for entry := range snap.ServiceEntries() {
		if entry.Internal {
			e.Outside[""] = true
		}
	}
}
