package registry

import (
	"fmt"
	"iter"

	"github.com/hashicorp/go-memdb"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// kinds are all the kinds of objects that Pilot watches. Each is described in the file that has its objects' type.
var kinds = []Kind{Services, ServiceCIDRs, Slices, Pods, Nodes, Namespaces, LimitRanges, Policies, PeerAuths, RequestAuths, Sidecars, ServiceEntries, DestinationRules, Revocations}

// fetched are the kinds of what comes from elsewhere than the API server.
var fetched = []Kind{KeySets}

// Kinds returns every kind of objects that Pilot watches.
func Kinds() []Kind { return kinds }

// KindOfObject finds the kind that the API server calls by a name such as "Pod", or returns nil.
func KindOfObject(name string) Kind {
	for _, k := range kinds {
		if k.Resource().Kind == name {
			return k
		}
	}
	return nil
}

// Kind is what Pilot has to know of a kind of objects, whatever their type is here: a *KindOf that stands in Kinds. What
// watches, stores, counts, checks or reports objects asks the kind, so that a new one needs no change there.
type Kind interface {
	// String is the kind's name in metrics, in logs and to operators.
	String() string
	// Resource is what the API server has of the kind.
	Resource() Resource
	// Trim drops from an object of the API server what Event does not read; it changes the object.
	Trim(object any)
	// Event is what an object of the API server, with a Go type of its own or without one, sets in the registry or, if the mesh
	// has nothing to do with it, removes.
	Event(object any, options authz.Options) (Event, error)
	// IsPolicy reports whether admission refuses objects of the kind that cannot be enforced, and whether what of a stored one cannot
	// be is written into its status.
	IsPolicy() bool
	// IsCounted reports whether it is a policy of which is counted by how many proxies it is enforced.
	IsCounted() bool
	// IsAdvised reports whether authors of objects are told something, though none is refused.
	IsAdvised() bool
	// Verdict says how much of a policy of the registry can be enforced. There is none on nil and on what is no policy.
	Verdict(object any) (Verdict, bool)
	// Advice is what to tell an object's author, of what holds, but maybe not as its author thinks.
	Advice(object any) []string

	table() *memdb.TableSchema
}

// Resource is what the API server has of a kind.
type Resource struct {
	schema.GroupVersionResource
	Kind string               // what the API server calls an object
	Only types.NamespacedName // the one object that is watched; empty if all are, in every namespace
}

// KindOf describes a kind whose objects the registry keeps as *T. T is a plain struct with a field ID, which is the namespace and
// the name, joined by a slash, of what it was made from, or only the name where there is no namespace.
type KindOf[T any] struct {
	name     string
	resource Resource
	source[T]
	indexes []*memdb.IndexSchema // beside the one by ID

	judge  func(*T) Verdict  // without its Kind; of policies only
	advise func(*T) []string // of what is reviewed, but maybe never refused

	uncounted bool // it is no policy of the workloads for which it is: what their classes have does not say whether it holds
}

// source is how objects are made from those of the API server. Revocations, of which one object lists many, have none, nor has what is fetched.
type source[T any] struct {
	decode func(object any, options authz.Options) (*T, error) // nil without an error: the mesh has nothing to do with it
	trim   func(object any)                                    // nil: all of it is read
}

// typed is the source of what Kubernetes has a Go type for. trim drops what convert does not read, which is most of an object.
func typed[O, T any](trim func(*O), convert func(*O) *T) source[T] {
	return source[T]{
		trim: func(object any) {
			if o, ok := object.(*O); ok {
				trim(o)
			}
		},
		decode: func(object any, _ authz.Options) (*T, error) {
			switch o := object.(type) {
			case *O:
				return convert(o), nil
			case *unstructured.Unstructured:
				var t O
				if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &t); err != nil {
					return nil, err
				}
				return convert(&t), nil
			}
			return nil, fmt.Errorf("it is a %T, not a %T", object, new(O))
		},
	}
}

// custom is the source of a custom resource, which is always made into something: one that cannot be decoded fails closed.
func custom[T any](convert func(*unstructured.Unstructured, authz.Options) *T) source[T] {
	return source[T]{
		decode: func(object any, options authz.Options) (*T, error) {
			u, ok := object.(*unstructured.Unstructured)
			if !ok {
				return nil, fmt.Errorf("it is a %T, not unstructured", object)
			}
			return convert(u, options), nil
		},
	}
}

func (k *KindOf[T]) String() string { return k.name }

func (k *KindOf[T]) Resource() Resource { return k.resource }

func (k *KindOf[T]) Trim(object any) {
	if m, err := meta.Accessor(object); err == nil {
		m.SetManagedFields(nil)
	}
	if k.trim != nil {
		k.trim(object)
	}
}

// Decode makes of an object of the API server what the registry keeps, which is nil if the mesh has nothing to do with it.
func (k *KindOf[T]) Decode(object any, options authz.Options) (*T, error) {
	if k.decode == nil {
		return nil, fmt.Errorf("no %s is made from a single object", k)
	}
	t, err := k.decode(object, options)
	if err != nil {
		return nil, fmt.Errorf("decoding %s %s: %w", k, IDOf(object), err)
	}
	return t, nil
}

func (k *KindOf[T]) Event(object any, options authz.Options) (Event, error) {
	t, err := k.Decode(object, options)
	if err != nil {
		return Event{}, err
	}
	e := Event{Kind: k, ID: IDOf(object)}
	if t != nil {
		e.Object = t
	}
	return e, nil
}

func (k *KindOf[T]) IsPolicy() bool { return k.judge != nil }

func (k *KindOf[T]) IsCounted() bool { return k.IsPolicy() && !k.uncounted }

func (k *KindOf[T]) IsAdvised() bool { return k.judge == nil && k.advise != nil }

func (k *KindOf[T]) Verdict(object any) (Verdict, bool) {
	t, ok := object.(*T)
	if !ok || k.judge == nil {
		return Verdict{}, false
	}
	v := k.judge(t)
	v.Kind = k.resource.Kind
	if s, ok := object.(selecting); ok {
		_, _, v.Selector = s.selects()
	}
	if t, ok := object.(targeting); ok {
		v.Services = t.targets()
	}
	return v, true
}

func (k *KindOf[T]) Advice(object any) []string {
	if t, ok := object.(*T); ok && k.advise != nil {
		return k.advise(t)
	}
	return nil
}

// Of returns what a change of this kind found and what it left; nil for what came or went, and for changes of other kinds.
func (k *KindOf[T]) Of(c Change) (old, now *T) {
	old, _ = c.Old.(*T)
	now, _ = c.New.(*T)
	return old, now
}

// Each calls f with what a change of this kind found and with what it left.
func (k *KindOf[T]) Each(c Change, f func(*T)) {
	old, now := k.Of(c)
	if old != nil {
		f(old)
	}
	if now != nil {
		f(now)
	}
}

// IDOf is the ID of an object of the API server, empty if it is none.
func IDOf(object any) string {
	m, err := meta.Accessor(object)
	if err != nil {
		return ""
	}
	if m.GetNamespace() == "" {
		return m.GetName()
	}
	return m.GetNamespace() + "/" + m.GetName()
}

func (k *KindOf[T]) table() *memdb.TableSchema {
	table := &memdb.TableSchema{Name: k.name, Indexes: map[string]*memdb.IndexSchema{}}
	for _, i := range append([]*memdb.IndexSchema{byID}, k.indexes...) {
		table.Indexes[i.Name] = i
	}
	return table
}

// The index that every kind has, and the one that many have.
var (
	byID        = &memdb.IndexSchema{Name: "id", Unique: true, Indexer: &memdb.StringFieldIndex{Field: "ID"}}
	byNamespace = &memdb.IndexSchema{Name: "namespace", Indexer: &memdb.StringFieldIndex{Field: "Namespace"}}
)

// by is an index by a field; what has the field empty is not in it.
func by(name, field string) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: &memdb.StringFieldIndex{Field: field}}
}

// byEach is an index by each of the texts in a field.
func byEach(name, field string) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: &memdb.StringSliceFieldIndex{Field: field}}
}

// all returns a snapshot's objects, in the order of their IDs: every one for the index "id" without arguments.
func (k *KindOf[T]) all(s *Snapshot, index string, args ...any) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		found := s.get(k, index, args...)
		for o := found.Next(); o != nil; o = found.Next() {
			if !yield(o.(*T)) {
				return
			}
		}
	}
}

// one returns a snapshot's object, or nil.
func (k *KindOf[T]) one(s *Snapshot, id string) *T {
	t, _ := s.get(k, byID.Name, id).Next().(*T)
	return t
}
