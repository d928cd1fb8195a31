// Package offline is for those who ask what Pilot would do and only have objects, of a cluster or of files: it makes of them what Pilot knows.
package offline

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// Resource is a kind of objects that Pilot watches.
type Resource = registry.Resource

// Resources are all that Pilot watches.
func Resources() (out []Resource) {
	for _, k := range registry.Kinds() {
		out = append(out, k.Resource())
	}
	return out
}

// Snapshot is what Pilot would know if the objects were all that there is, at a time, which decides which revocations are in force. It returns the objects
// of kinds that Pilot does not watch as others. A template of pods (of a Deployment, and the like) is one of these; see Templates.
func Snapshot(objects []*unstructured.Unstructured, options authz.Options, now time.Time) (snap *registry.Snapshot, others []*unstructured.Unstructured, err error) {
	reg, err := registry.New()
	if err != nil {
		return nil, nil, err
	}
	var all []registry.Event
	for _, o := range objects {
		kind := watched(o)
		if kind == nil {
			others = append(others, o)
			continue
		}
		events, err := Events(kind, o, options, now)
		if err != nil {
			return nil, nil, fmt.Errorf("%s %s: %w", o.GetKind(), registry.IDOf(o), err)
		}
		all = append(all, events...)
	}
	if _, err := reg.Apply(all); err != nil {
		return nil, nil, err
	}
	return reg.Snapshot(), others, nil
}

// Watched reports whether Pilot watches an object.
func Watched(o *unstructured.Unstructured) bool { return watched(o) != nil }

// watched is the kind of an object, nil if Pilot does not watch it: another group may have a kind of the same name, and of some kinds
// only one object is watched.
func watched(o *unstructured.Unstructured) registry.Kind {
	kind := registry.KindOfObject(o.GetKind())
	if kind == nil {
		return nil
	}
	r := kind.Resource()
	group, err := schema.ParseGroupVersion(o.GetAPIVersion())
	if err != nil || group.Group != r.Group || r.Only.Name != "" && (o.GetNamespace() != r.Only.Namespace || o.GetName() != r.Only.Name) {
		return nil
	}
	return kind
}

// Events are what an object of a kind sets in Pilot's registry.
func Events(kind registry.Kind, o *unstructured.Unstructured, options authz.Options, now time.Time) ([]registry.Event, error) {
	if kind == registry.Revocations {
		data, _, err := unstructured.NestedStringMap(o.Object, "data")
		if err != nil {
			return nil, err
		}
		list, err := revocation.Parse(data)
		return registry.InForce(list, now), err
	}
	e, err := kind.Event(o, options)
	return []registry.Event{e}, err
}
