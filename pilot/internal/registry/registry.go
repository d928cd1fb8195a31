package registry

import (
	"fmt"
	"iter"
	"reflect"

	"github.com/hashicorp/go-memdb"
)

// Registry is the database. One goroutine applies events; any number read snapshots.
type Registry struct {
	db    *memdb.MemDB
	sizes map[Kind]int // of the goroutine that applies
}

// Event sets an object, or removes it when Object is nil.
type Event struct {
	Kind   Kind
	ID     string
	Object any // *Service, *Slice, …
}

// Change is what an event did. Old or New is nil for something that came or went.
type Change struct {
	Kind     Kind
	ID       string
	Old, New any
}

func index(name, field string, unique, missing, list bool) *memdb.IndexSchema {
	var indexer memdb.Indexer = &memdb.StringFieldIndex{Field: field}
	if list {
		indexer = &memdb.StringSliceFieldIndex{Field: field}
	}
	return &memdb.IndexSchema{Name: name, Unique: unique, AllowMissing: missing, Indexer: indexer}
}

func tables() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, k := range kinds {
		s.Tables[string(k)] = &memdb.TableSchema{Name: string(k), Indexes: map[string]*memdb.IndexSchema{"id": index("id", "ID", true, false, false)}}
	}
	add := func(k Kind, i *memdb.IndexSchema) { s.Tables[string(k)].Indexes[i.Name] = i }
	for _, k := range []Kind{Services, Pods, Policies, PeerAuths, JWTRules} {
		add(k, index("namespace", "Namespace", false, false, false))
	}
	add(Services, index("ip", "ClusterIPs", false, true, true))
	add(Slices, index("service", "ServiceID", false, true, false))
	add(Slices, index("address", "Addresses", false, true, true))
	add(Pods, index("ip", "IP", false, true, false))
	add(Revocations, index("identity", "Identity", false, false, false))
	return s
}

// New returns an empty registry.
func New() (*Registry, error) {
	db, err := memdb.NewMemDB(tables())
	if err != nil {
		return nil, fmt.Errorf("registry schema: %w", err)
	}
	return &Registry{db, map[Kind]int{}}, nil
}

// Apply makes all events visible at once and returns what changed. Events that change nothing are not returned.
func (r *Registry) Apply(events []Event) ([]Change, error) {
	txn := r.db.Txn(true)
	defer txn.Abort()
	var changes []Change
	for _, e := range events {
		old, err := txn.First(string(e.Kind), "id", e.ID)
		if err != nil {
			return nil, fmt.Errorf("looking up %s %s: %w", e.Kind, e.ID, err)
		}
		switch {
		case e.Object == nil && old == nil:
			continue
		case e.Object == nil:
			err = txn.Delete(string(e.Kind), old)
		case old != nil && reflect.DeepEqual(old, e.Object):
			continue
		default:
			err = txn.Insert(string(e.Kind), e.Object)
		}
		if err != nil {
			return nil, fmt.Errorf("storing %s %s: %w", e.Kind, e.ID, err)
		}
		changes = append(changes, Change{e.Kind, e.ID, old, e.Object})
	}
	txn.Commit()
	for _, c := range changes {
		switch {
		case c.Old == nil:
			r.sizes[c.Kind]++
		case c.New == nil:
			r.sizes[c.Kind]--
		}
	}
	return changes, nil
}

// Size counts the objects of a kind; it is for the goroutine that applies.
func (r *Registry) Size(k Kind) int { return r.sizes[k] }

// Snapshot returns the present state; it never changes.
func (r *Registry) Snapshot() *Snapshot { return &Snapshot{r.db.Snapshot().Txn(false)} }

// Snapshot is a state of the registry. Results come in the order of their IDs.
type Snapshot struct{ txn *memdb.Txn }

func all[T any](s *Snapshot, k Kind, idx string, args ...any) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		it, err := s.txn.Get(string(k), idx, args...)
		if err != nil {
			panic(fmt.Sprintf("registry: table %s, index %s: %v", k, idx, err)) // the schema is ours
		}
		for o := it.Next(); o != nil; o = it.Next() {
			if !yield(o.(*T)) {
				return
			}
		}
	}
}

func one[T any](s *Snapshot, k Kind, id string) *T {
	for o := range all[T](s, k, "id", id) {
		return o
	}
	return nil
}

// Service returns a service, or nil.
func (s *Snapshot) Service(id string) *Service { return one[Service](s, Services, id) }

// Pod returns a pod, or nil.
func (s *Snapshot) Pod(id string) *Pod { return one[Pod](s, Pods, id) }

// Namespace returns a namespace, or nil.
func (s *Snapshot) Namespace(name string) *Namespace { return one[Namespace](s, Namespaces, name) }

// Services returns every service.
func (s *Snapshot) Services() iter.Seq[*Service] { return all[Service](s, Services, "id") }

// ServicesIn returns a namespace's services.
func (s *Snapshot) ServicesIn(ns string) iter.Seq[*Service] {
	return all[Service](s, Services, "namespace", ns)
}

// ServicesAt returns the services with a cluster IP.
func (s *Snapshot) ServicesAt(ip string) iter.Seq[*Service] {
	return all[Service](s, Services, "ip", ip)
}

// SlicesOf returns the endpoint slices of a service.
func (s *Snapshot) SlicesOf(serviceID string) iter.Seq[*Slice] {
	return all[Slice](s, Slices, "service", serviceID)
}

// SlicesAt returns the endpoint slices that hold an address.
func (s *Snapshot) SlicesAt(address string) iter.Seq[*Slice] {
	return all[Slice](s, Slices, "address", address)
}

// PodsIn returns a namespace's pods.
func (s *Snapshot) PodsIn(ns string) iter.Seq[*Pod] { return all[Pod](s, Pods, "namespace", ns) }

// Pods returns every pod.
func (s *Snapshot) Pods() iter.Seq[*Pod] { return all[Pod](s, Pods, "id") }

// PodAt returns the pod that has an address for itself, or nil. Pods on the host's network share one.
func (s *Snapshot) PodAt(ip string) *Pod {
	var found *Pod
	for p := range all[Pod](s, Pods, "ip", ip) {
		if !p.HostNetwork {
			return p
		}
		found = p
	}
	return found
}

// Policies returns every AuthorizationPolicy.
func (s *Snapshot) Policies() iter.Seq[*Policy] { return all[Policy](s, Policies, "id") }

// PoliciesIn returns a namespace's AuthorizationPolicies.
func (s *Snapshot) PoliciesIn(ns string) iter.Seq[*Policy] {
	return all[Policy](s, Policies, "namespace", ns)
}

// PeerAuths returns every PeerAuthentication.
func (s *Snapshot) PeerAuths() iter.Seq[*PeerAuth] { return all[PeerAuth](s, PeerAuths, "id") }

// PeerAuthsIn returns a namespace's PeerAuthentications.
func (s *Snapshot) PeerAuthsIn(ns string) iter.Seq[*PeerAuth] {
	return all[PeerAuth](s, PeerAuths, "namespace", ns)
}

// JWTRules returns every RequestAuthentication.
func (s *Snapshot) JWTRules() iter.Seq[*JWTRule] { return all[JWTRule](s, JWTRules, "id") }

// JWTRulesIn returns a namespace's RequestAuthentications.
func (s *Snapshot) JWTRulesIn(ns string) iter.Seq[*JWTRule] {
	return all[JWTRule](s, JWTRules, "namespace", ns)
}

// Revocations returns every revocation that is in force.
func (s *Snapshot) Revocations() iter.Seq[*Revocation] { return all[Revocation](s, Revocations, "id") }

// Revoked reports whether a SPIFFE ID is revoked as a whole, not some certificate of it.
func (s *Snapshot) Revoked(identity string) bool {
	for r := range all[Revocation](s, Revocations, "identity", identity) {
		if r.Serial == "" {
			return true
		}
	}
	return false
}
