package deltaxdstest

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// Facts are what the model reads in a resource; its body is their JSON.
type Facts struct {
	Value    int      // differs with every change
	Bad      bool     // the proxy refuses it
	Secret   string   // of a cluster
	Complete bool     // of a cluster: it needs no endpoints but those it brings
	Routes   []string // of a listener
	Filters  []string // of a listener
	Clusters []string // of a listener
}

func factsOf(r *discovery.Resource) Facts {
	var text wrapperspb.StringValue
	var f Facts
	if err := proto.Unmarshal(r.GetResource().GetValue(), &text); err == nil {
		err = json.Unmarshal([]byte(text.GetValue()), &f)
		if err == nil {
			return f
		}
	}
	panic(fmt.Sprintf("resource %s is not of this model", r.GetName()))
}

// World is the resources that a server has. It is a deltaxds.Source.
type World struct {
	resources map[string]map[string]*deltaxds.Resource
	facts     map[string]map[string]Facts
	value     int
	hidden    bool // nothing is known yet of secrets
	Changed   func(url, name string)
}

// NewWorld returns an empty world.
func NewWorld() *World {
	w := &World{resources: map[string]map[string]*deltaxds.Resource{}, facts: map[string]map[string]Facts{}, Changed: func(string, string) {}}
	for _, url := range Types {
		w.resources[url], w.facts[url] = map[string]*deltaxds.Resource{}, map[string]Facts{}
	}
	return w
}

// Resource implements deltaxds.Source.
func (w *World) Resource(url, name string) (*deltaxds.Resource, bool) {
	if url == deltaxds.SecretType && w.hidden {
		return nil, false
	}
	return w.resources[url][name], true
}

// Wildcard implements deltaxds.Source.
func (w *World) Wildcard(url string) ([]string, bool) {
	return slices.Sorted(maps.Keys(w.resources[url])), true
}

// Subscribed implements deltaxds.Source.
func (w *World) Subscribed(string, []string, []string) {}

// Set makes or changes a resource.
func (w *World) Set(url, name string, f Facts) {
	w.value++
	f.Value = w.value
	text, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	r, err := deltaxds.NewResource(name, wrapperspb.String(string(text)))
	if err != nil {
		panic(err)
	}
	w.resources[url][name], w.facts[url][name] = r, f
	w.Changed(url, name)
}

// Delete removes a resource.
func (w *World) Delete(url, name string) {
	delete(w.resources[url], name)
	delete(w.facts[url], name)
	w.Changed(url, name)
}

// HideSecrets has the secrets be unknown, or known again.
func (w *World) HideSecrets(hidden bool) {
	w.hidden = hidden
	for name := range w.resources[deltaxds.SecretType] {
		w.Changed(deltaxds.SecretType, name)
	}
}

const few = 3 // names of each type, so that events meet

// Random changes something. Most of the time what belongs together comes and goes together, as a Service does.
func (w *World) Random(r *rand.Rand) {
	name := fmt.Sprint(r.IntN(few))
	refs := func() []string {
		var out []string
		for i := range few {
			if r.IntN(3) == 0 {
				out = append(out, fmt.Sprint(i))
			}
		}
		return out
	}
	f := Facts{Bad: r.IntN(12) == 0}
	switch r.IntN(12) {
	case 0, 1: // a Service comes or changes
		w.Set(deltaxds.EndpointType, name, Facts{})
		fallthrough
	case 2:
		if r.IntN(2) == 0 {
			f.Secret = fmt.Sprint(r.IntN(2))
		}
		w.Set(deltaxds.ClusterType, name, f)
	case 3, 4: // a Service goes
		w.Delete(deltaxds.ClusterType, name)
		w.Delete(deltaxds.EndpointType, name)
	case 5:
		w.Set(deltaxds.EndpointType, name, f)
	case 6:
		f.Routes, f.Filters = refs(), refs()
		w.Set(deltaxds.ListenerType, name, f)
	case 7:
		w.Delete(deltaxds.ListenerType, name)
	case 8:
		w.Set([]string{deltaxds.SecretType, deltaxds.RouteType, deltaxds.ExtensionConfigType}[r.IntN(3)], name, f)
	case 9:
		w.Delete([]string{deltaxds.EndpointType, deltaxds.SecretType, deltaxds.RouteType, deltaxds.ExtensionConfigType}[r.IntN(4)], name)
	case 10:
		w.HideSecrets(!w.hidden)
	case 11: // a Service is there for a moment
		w.Set(deltaxds.EndpointType, name, Facts{})
		w.Set(deltaxds.ClusterType, name, Facts{})
		w.Delete(deltaxds.ClusterType, name)
		w.Delete(deltaxds.EndpointType, name)
	}
}

// RandomService makes, changes or deletes a Service: a listener, the cluster that it refers to, and the cluster's endpoints, of which nothing
// is bad or missing.
func (w *World) RandomService(r *rand.Rand) {
	name := fmt.Sprint(r.IntN(few))
	what := r.IntN(8)
	if w.resources[deltaxds.ListenerType][name] == nil {
		what = 0
	}
	switch what {
	case 0, 1:
		w.Set(deltaxds.EndpointType, name, Facts{})
		w.Set(deltaxds.ClusterType, name, Facts{})
		w.Set(deltaxds.ListenerType, name, Facts{Clusters: []string{name}})
	case 2:
		w.Set(deltaxds.ClusterType, name, Facts{})
	case 3:
		w.Set(deltaxds.EndpointType, name, Facts{})
	case 4: // it refers to another one besides
		for other := range w.resources[deltaxds.ListenerType] {
			if other > name {
				w.Set(deltaxds.ListenerType, name, Facts{Clusters: []string{name, other}})
				return
			}
		}
	default:
		for other, f := range w.facts[deltaxds.ListenerType] {
			if other != name && slices.Contains(f.Clusters, name) {
				w.Set(deltaxds.ListenerType, other, Facts{Clusters: []string{other}})
			}
		}
		w.Delete(deltaxds.ListenerType, name)
		w.Delete(deltaxds.ClusterType, name)
		w.Delete(deltaxds.EndpointType, name)
	}
}

// Complete makes what is referred to and is missing, or is bad: with initial_fetch_timeout 0 a cluster without its secret
// and a listener without its routes never serve, and that is the world's fault. With all set, so are the secrets that only
// earlier versions of a cluster refer to.
func (w *World) Complete(all bool) {
	w.HideSecrets(false)
	need := func(url string, names ...string) {
		for _, name := range names {
			if f, ok := w.facts[url][name]; name != "" && (!ok || f.Bad) {
				w.Set(url, name, Facts{})
			}
		}
	}
	if all {
		need(deltaxds.SecretType, "0", "1")
	} else { // what replaces a cluster that cannot warm is not refused
		for name, f := range maps.Clone(w.facts[deltaxds.ClusterType]) {
			if f.Bad {
				w.Set(deltaxds.ClusterType, name, Facts{Secret: f.Secret})
			}
		}
	}
	for _, f := range w.facts[deltaxds.ClusterType] {
		need(deltaxds.SecretType, f.Secret)
	}
	for _, f := range w.facts[deltaxds.ListenerType] {
		need(deltaxds.RouteType, f.Routes...)
		need(deltaxds.ExtensionConfigType, f.Filters...)
	}
}

// Compare returns where a proxy that has nothing more to take differs from the world.
func (w *World) Compare(e *Envoy) []string {
	var out []string
	differ := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	names := func(url string) []string { return slices.Sorted(maps.Keys(w.resources[url])) }
	for _, name := range names(deltaxds.ClusterType) {
		if w.facts[deltaxds.ClusterType][name].Bad {
			continue
		}
		c := e.clusters[name]
		if c == nil || c.version != w.resources[deltaxds.ClusterType][name].Version {
			differ("cluster %s is not in use (warms: %v)", name, e.warming[name])
			continue
		}
		if r := w.resources[deltaxds.EndpointType][name]; r != nil && !w.facts[deltaxds.EndpointType][name].Bad && c.endpoints != r.Version {
			differ("cluster %s has other endpoints: %q", name, c.endpoints)
		}
	}
	for _, name := range names(deltaxds.ListenerType) {
		l := e.listeners[name]
		if !w.facts[deltaxds.ListenerType][name].Bad && (l == nil || l.version != w.resources[deltaxds.ListenerType][name].Version) {
			differ("listener %s is not in use (warms: %v)", name, e.waiting[name])
		}
	}
	gone := func(url, what string, has map[string]bool) {
		for name := range has {
			if w.resources[url][name] == nil && !e.of(url).unnamed[name] {
				differ("%s %s is still there", what, name)
			}
		}
	}
	gone(deltaxds.ClusterType, "cluster", keys(e.clusters, e.warming))
	gone(deltaxds.ListenerType, "listener", keys(e.listeners, e.waiting))
	for _, url := range Types {
		for name := range e.of(url).names {
			r := w.resources[url][name]
			if r != nil && !w.facts[url][name].Bad && e.of(url).versions[name] != r.Version {
				differ("%s %s has another version", url, name)
			}
			if r == nil && e.of(url).versions[name] != "" {
				differ("%s %s has a version and does not exist", url, name)
			}
		}
	}
	return out
}

// Refuses says whether the world has something of a type that the proxy asks for and refuses.
func (w *World) Refuses(e *Envoy, url string) bool {
	for name, f := range w.facts[url] {
		if f.Bad && (e.of(url).wildcard || e.of(url).names[name]) {
			return true
		}
	}
	return false
}

func keys[T any](sets ...map[string]T) map[string]bool {
	out := map[string]bool{}
	for _, set := range sets {
		for name := range set {
			out[name] = true
		}
	}
	return out
}

// Stack returns a world of what the given ones have, of one name what the first has of it that has one. What is set in it later is set
// where it comes from, or else in the last.
func Stack(worlds ...*World) *World {
	out := NewWorld()
	owner := func(url, name string) *World {
		for _, w := range worlds {
			if w.resources[url][name] != nil {
				return w
			}
		}
		return worlds[len(worlds)-1]
	}
	for _, url := range Types {
		for _, w := range worlds {
			for name := range w.resources[url] {
				from := owner(url, name)
				out.resources[url][name], out.facts[url][name] = from.resources[url][name], from.facts[url][name]
				out.value = max(out.value, w.value)
			}
		}
	}
	out.Changed = func(url, name string) {
		to := owner(url, name)
		to.value = max(to.value, out.value)
		to.resources[url][name], to.facts[url][name] = out.resources[url][name], out.facts[url][name]
		to.Changed(url, name)
	}
	return out
}

// All returns the resources of a type by name.
func (w *World) All(url string) map[string]*deltaxds.Resource { return w.resources[url] }

// Bad says whether a proxy would refuse a resource.
func (w *World) Bad(url, name string) bool { return w.facts[url][name].Bad }

// Seeds are the worlds to try, numbered: the one of the seed that a failure has named, or, if that is zero, many from a random one on.
func Seeds(named uint64, many int) iter.Seq2[int, uint64] {
	return func(yield func(int, uint64) bool) {
		if named != 0 {
			yield(0, named)
			return
		}
		first := rand.Uint64()
		for i := range many {
			if !yield(i, first+uint64(i)) {
				return
			}
		}
	}
}
