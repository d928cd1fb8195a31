package registry

import (
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// Revocation is one that is in force.
type Revocation struct {
	ID string
	revocation.Revocation
}

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
		if r.inForce[revocationID(e)] && (next.IsZero() || e.Expires.Before(next)) {
			next = e.Expires
		}
	}
	return next
}

// events are what happened to the entries since they were last asked for.
func (r *revocations) events(now time.Time) []Event {
	if due := r.due(); !r.changed && (due.IsZero() || now.Before(due)) {
		return nil
	}
	var out []Event
	inForce := map[string]bool{}
	for _, e := range r.list.Active(now) {
		id := revocationID(e)
		inForce[id] = true
		out = append(out, Event{Kind: Revocations, ID: id, Object: &Revocation{id, e}})
	}
	for id := range r.inForce {
		if !inForce[id] {
			out = append(out, Event{Kind: Revocations, ID: id})
		}
	}
	r.inForce, r.changed = inForce, false
	return out
}

// RevocationEvents are those of a ConfigMap that was seen first.
func RevocationEvents(data map[string]string, now time.Time) ([]Event, error) {
	list, err := revocation.Parse(data)
	if err != nil {
		return nil, err
	}
	r := revocations{}
	r.set(list)
	return r.events(now), nil
}

// revocationID tells entries apart that share a name by mistake; neither may hide the other.
func revocationID(r revocation.Revocation) string {
	return r.Name + "/" + r.Identity + "/" + r.Serial
}

// followRevocations connects the ConfigMap with the list. A list that cannot be read whole changes nothing, nor does a
// ConfigMap that is deleted: what is denied stays so until its time is over.
func followRevocations(f *Feed, kube kubernetes.Interface) error {
	factory := informers.NewSharedInformerFactoryWithOptions(kube, 0, informers.WithNamespace(mesh.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, mesh.RevocationsConfig).String()
		}))
	informer := factory.Core().V1().ConfigMaps().Informer()
	if err := f.watchErrors(Revocations, informer); err != nil {
		return err
	}
	set := func(o any) {
		if m, ok := o.(*core.ConfigMap); ok && m.Name == mesh.RevocationsConfig {
			f.revoke(m.Data)
		}
	}
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, o any) { set(o) },
		DeleteFunc: func(any) {
			f.log.Warn("the list of revocations was deleted; the last one stays in force")
		},
	})
	if err != nil {
		return fmt.Errorf("informer of %s: %w", Revocations, err)
	}
	f.sources = append(f.sources, source{string(Revocations), informer, handler})
	f.factories = append(f.factories, factory)
	return nil
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
