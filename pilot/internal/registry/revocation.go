package registry

import (
	"iter"
	"time"

	"github.com/hashicorp/go-memdb"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// Revocations are those in force of the list that Citadel keeps in a ConfigMap. They are not made from an object each: InForce
// makes them from the list, again whenever the time of one is over.
var Revocations = &KindOf[Revocation]{
	name: "revocation",
	resource: Resource{
		GroupVersionResource: core.SchemeGroupVersion.WithResource("configmaps"), Kind: "ConfigMap",
		Only: types.NamespacedName{Namespace: mesh.Namespace, Name: mesh.RevocationsConfig},
	},
	indexes: []*memdb.IndexSchema{by("identity", "Identity")},
}

// Revocation is one that is in force.
type Revocation struct {
	ID string
	revocation.Revocation
}

// InForce makes the events that set what of a list is in force.
func InForce(list revocation.List, now time.Time) []Event {
	var out []Event
	for _, r := range list.Active(now) {
		id := RevocationID(r)
		out = append(out, Event{Kind: Revocations, ID: id, Object: &Revocation{id, r}})
	}
	return out
}

// RevocationID tells entries apart that share a name by mistake; neither may hide the other.
func RevocationID(r revocation.Revocation) string {
	return r.Name + "/" + r.Identity + "/" + r.Serial
}

// Revocations returns every revocation that is in force.
func (s *Snapshot) Revocations() iter.Seq[*Revocation] { return Revocations.all(s, byID.Name) }

// Revoked reports whether a SPIFFE ID is revoked as a whole, not some certificate of it.
func (s *Snapshot) Revoked(identity string) bool {
	for r := range Revocations.all(s, "identity", identity) {
		if r.Serial == "" {
			return true
		}
	}
	return false
}
