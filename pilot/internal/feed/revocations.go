package feed

import (
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// revocations turns the list that Citadel keeps into what is in force: an entry whose time is over goes like an object that
// was deleted.
type revocations struct {
	list    revocation.List
	inForce map[string]bool
	changed bool
}

func (r *revocations) set(list revocation.List) { r.list, r.changed = list, true }

// due is when an entry ends next; the zero time if none does.
func (r *revocations) due() time.Time {
	var next time.Time
	for _, e := range r.list {
		if r.inForce[registry.RevocationID(e)] && (next.IsZero() || e.Expires.Before(next)) {
			next = e.Expires
		}
	}
	return next
}

// events are what happened to the entries since they were last asked for.
func (r *revocations) events(now time.Time) []registry.Event {
	if due := r.due(); !r.changed && (due.IsZero() || now.Before(due)) {
		return nil
	}
	out := registry.InForce(r.list, now)
	inForce := map[string]bool{}
	for _, e := range out {
		inForce[e.ID] = true
	}
	for id := range r.inForce {
		if !inForce[id] {
			out = append(out, registry.Event{Kind: registry.Revocations, ID: id})
		}
	}
	r.inForce, r.changed = inForce, false
	return out
}

// revocationsHandler reads the ConfigMap with the list. A list that cannot be read whole changes nothing, nor does a ConfigMap that is
// deleted: what is denied stays so until its time is over.
func (f *Feed) revocationsHandler() cache.ResourceEventHandler {
	set := func(object any) {
		if m, ok := object.(*core.ConfigMap); ok && m.Name == mesh.RevocationsConfig {
			f.revoke(m.Data)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, now any) { set(now) },
		DeleteFunc: func(any) { f.log.Warn("the list of revocations was deleted; the last one stays in force") },
	}
}

func (f *Feed) revoke(data map[string]string) {
	list, err := revocation.Parse(data)
	if err != nil {
		f.metrics.badRevocations.Set(1)
		f.log.Error("the list of revocations is damaged; the last good one stays in force", "configMap", mesh.RevocationsConfig, "error", err)
		return
	}
	f.metrics.badRevocations.Set(0)
	f.mu.Lock()
	f.revoked.set(list)
	f.mu.Unlock()
	f.signal()
}
