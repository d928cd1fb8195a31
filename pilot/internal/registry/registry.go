// Package registry holds what Pilot knows of the cluster: an in-memory database with immutable snapshots. Objects are kept in a small
// form of our own, so that what is not used costs nothing and changes nothing. What Pilot has to know of a kind of objects to watch
// it, to keep them, to check them and to report on them is described in one place, the kind's file.
package registry

import (
	"fmt"
	"reflect"
	"slices"

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

// New returns an empty registry.
func New() (*Registry, error) {
	schema := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, k := range slices.Concat(kinds, fetched) {
		schema.Tables[k.String()] = k.table()
	}
	db, err := memdb.NewMemDB(schema)
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
		old, err := txn.First(e.Kind.String(), byID.Name, e.ID)
		if err != nil {
			return nil, fmt.Errorf("looking up %s %s: %w", e.Kind, e.ID, err)
		}
		switch {
		case e.Object == nil && old == nil:
			continue
		case e.Object == nil:
			err = txn.Delete(e.Kind.String(), old)
		case old != nil && reflect.DeepEqual(old, e.Object):
			continue
		default:
			err = txn.Insert(e.Kind.String(), e.Object)
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

// get looks a kind's objects up; they come in the order of their IDs.
func (s *Snapshot) get(k Kind, index string, args ...any) memdb.ResultIterator {
	it, err := s.txn.Get(k.String(), index, args...)
	if err != nil {
		panic(fmt.Sprintf("registry: table %s, index %s: %v", k, index, err)) // the schema is ours
	}
	return it
}
