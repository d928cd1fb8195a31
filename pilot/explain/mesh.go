// Package explain answers operators who ask why a request is decided as it is, who may do what, and what other policies would change: from the objects of
// a cluster or of files, as Pilot would read them. Everything here is a function of objects.
package explain

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	istio "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/offline"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Mesh is what objects say of a mesh.
type Mesh struct {
	snap    *registry.Snapshot
	set     compile.Settings
	options authz.Options
	owners  []owner
	written map[string]*unstructured.Unstructured // AuthorizationPolicies, by "namespace/name"
}

// owner is what has pods: a Deployment, and the like.
type owner struct {
	kind, namespace, name string
	labels                map[string]string // that its pods have
}

// short are kinds as people write them.
var short = map[string]string{"Deployment": "deploy", "StatefulSet": "sts", "DaemonSet": "ds", "ReplicaSet": "rs", "Job": "job", "CronJob": "cronjob", "ReplicationController": "rc"}

func (o owner) String() string { return o.namespace + "/" + short[o.kind] + "/" + o.name }

// IsPolicy reports whether an object says who may do what.
func IsPolicy(o *unstructured.Unstructured) bool {
	return strings.HasPrefix(o.GetAPIVersion(), "security.istio.io/")
}

// Overlay are the objects of base with those of over in their place where they have the same kind and name, and the others of over.
func Overlay(base, over []*unstructured.Unstructured) []*unstructured.Unstructured {
	key := func(o *unstructured.Unstructured) string {
		return o.GroupVersionKind().GroupKind().String() + " " + o.GetNamespace() + "/" + o.GetName()
	}
	there := map[string]bool{}
	for _, o := range over {
		there[key(o)] = true
	}
	out := slices.DeleteFunc(slices.Clone(base), func(o *unstructured.Unstructured) bool { return there[key(o)] })
	return append(out, over...)
}

// WithoutPolicies are the objects that say nothing of who may do what.
func WithoutPolicies(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	return slices.DeleteFunc(slices.Clone(objects), IsPolicy)
}

// New makes a mesh of objects: what Pilot watches (offline.Resources), and what has pods (offline.Makers). A Deployment, or the like, of which there is no pod has one that is imagined, with a proxy.
func New(objects []*unstructured.Unstructured, options authz.Options, now time.Time) (*Mesh, error) {
	m := &Mesh{
		set: compile.SettingsOf(options), options: options, written: map[string]*unstructured.Unstructured{},
	}
	snap, others, err := offline.Snapshot(objects, options, now)
	if err != nil {
		return nil, err
	}
	m.snap = snap
	injected := offline.Injected(slices.Values(objects))
	var without []*unstructured.Unstructured
	for _, o := range others {
		if short[o.GetKind()] == "" {
			continue
		}
		pods := offline.Templates([]*unstructured.Unstructured{o}, injected)
		if len(pods) == 0 {
			continue
		}
		w := owner{o.GetKind(), o.GetNamespace(), o.GetName(), pods[0].GetLabels()}
		if labels, _, err := unstructured.NestedStringMap(o.Object, "spec", "selector", "matchLabels"); err == nil && len(labels) > 0 {
			w.labels = labels
		}
		m.owners = append(m.owners, w)
		found := false
		for range snap.PodsSelected(w.namespace, w.labels) {
			found = true
			break
		}
		if !found || len(w.labels) == 0 {
			without = append(without, pods...)
		}
	}
	slices.SortFunc(m.owners, func(a, b owner) int { return cmp.Compare(a.String(), b.String()) })
	if len(without) > 0 {
		if m.snap, _, err = offline.Snapshot(slices.Concat(objects, without), options, now); err != nil {
			return nil, err
		}
	}
	for _, o := range objects {
		if IsPolicy(o) && o.GetKind() == registry.Policies.Resource().Kind {
			m.written[o.GetNamespace()+"/"+o.GetName()] = o
		}
	}
	return m, nil
}

// specs are the policies of a scope that somebody wrote.
func (m *Mesh) specs(scope []authz.Policy) (out []authz.Spec) {
	for _, p := range scope {
		o := m.written[p.Namespace+"/"+p.Name]
		if o == nil {
			continue
		}
		text, err := json.Marshal(o.Object["spec"])
		if err != nil {
			continue // it has been decoded from JSON or YAML
		}
		spec := &istio.AuthorizationPolicy{}
		if protojson.Unmarshal(text, spec) == nil {
			out = append(out, authz.Spec{Meta: p.Meta, AuthorizationPolicy: spec})
		}
	}
	return out
}

// Workload is pods that are the same to Pilot.
type Workload struct {
	Name   string // namespace/kind/name
	pod    *registry.Pod
	labels map[string]string // that select it
}

// Workloads are all that have a proxy, one for each class of pods, in the order of their names; of a namespace, if one is given.
func (m *Mesh) Workloads(namespace string) []Workload {
	byClass := map[string]Workload{}
	for p := range m.snap.Pods() {
		if !p.Proxied || namespace != "" && p.Namespace != namespace {
			continue
		}
		key := compile.ClassOf(p).Key()
		if _, ok := byClass[key]; !ok {
			byClass[key] = m.workload(p)
		}
	}
	out := slices.SortedFunc(maps.Values(byClass), func(a, b Workload) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.pod.ID, b.pod.ID)) })
	for i := len(out) - 1; i > 0; i-- {
		if out[i].Name == out[i-1].Name { // its pods differ, as while it is rolled out
			out[i].Name += " (pod " + out[i].pod.Name + ")"
		}
	}
	return out
}

// workload names a pod by what it belongs to.
func (m *Mesh) workload(p *registry.Pod) Workload {
	w := Workload{Name: p.Namespace + "/pod/" + p.Name, pod: p}
	for _, o := range m.owners {
		if o.namespace == p.Namespace && len(o.labels) > 0 && authz.Selects(o.labels, p.Labels) {
			return Workload{o.String(), p, o.labels}
		}
	}
	for _, s := range m.snap.ServicesFor(p.Namespace, p.Labels) {
		w.labels = s.Selector
		return w
	}
	w.labels = maps.Clone(p.Labels)
	for _, added := range []string{"pod-template-hash", "controller-revision-hash", "security.istio.io/tlsMode", "service.istio.io/canonical-name", "service.istio.io/canonical-revision"} {
		delete(w.labels, added)
	}
	return w
}

// Find finds the workload that is named deploy/NAME (or sts, ds, job), svc/NAME, pod/NAME, or NAME of any of these, in a namespace.
func (m *Mesh) Find(namespace, ref string) (Workload, *registry.Service, error) {
	kind, name, both := strings.Cut(ref, "/")
	if !both {
		kind, name = "", ref
	}
	is := func(kinds ...string) bool { return kind == "" || slices.Contains(kinds, kind) }
	for _, o := range m.owners {
		if o.namespace != namespace || o.name != name || !is(short[o.kind], strings.ToLower(o.kind), strings.ToLower(o.kind)+"s") {
			continue
		}
		for p := range m.snap.PodsSelected(namespace, o.labels) {
			return Workload{o.String(), p, o.labels}, nil, nil
		}
		if p := m.snap.Pod(namespace + "/" + name); p != nil {
			return Workload{o.String(), p, o.labels}, nil, nil
		}
	}
	if p := m.snap.Pod(namespace + "/" + name); p != nil && is("pod", "pods", "po") {
		return m.workload(p), nil, nil
	}
	if s := m.snap.Service(namespace + "/" + name); s != nil && is("svc", "service", "services") {
		for p := range m.snap.PodsSelected(namespace, s.Selector) {
			if len(s.Selector) > 0 {
				return m.workload(p), s, nil
			}
		}
		return Workload{}, nil, fmt.Errorf("Service %s/%s selects no pod", namespace, name)
	}
	var there []string
	for _, o := range m.owners {
		if o.namespace == namespace {
			there = append(there, short[o.kind]+"/"+o.name)
		}
	}
	if len(there) == 0 {
		return Workload{}, nil, fmt.Errorf("there is no workload %q in namespace %s, nor any other (-n names the namespace)", ref, namespace)
	}
	return Workload{}, nil, fmt.Errorf("there is no workload %q in namespace %s; there are %s", ref, namespace, strings.Join(there[:min(10, len(there))], ", "))
}

// Names are what Find finds in a namespace, for completion.
func (m *Mesh) Names(namespace string) (out []string) {
	for _, o := range m.owners {
		if o.namespace == namespace {
			out = append(out, short[o.kind]+"/"+o.name)
		}
	}
	for s := range m.snap.ServicesIn(namespace) {
		out = append(out, "svc/"+s.Name)
	}
	return out
}

// Accounts are the service accounts ("namespace/name") as which pods run, in order.
func (m *Mesh) Accounts() []string {
	seen := map[string]bool{}
	for p := range m.snap.Pods() {
		seen[p.Namespace+"/"+p.ServiceAccount] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// Identity reads who is named by <account>, <namespace>/<account>, a principal or a SPIFFE ID.
func (m *Mesh) Identity(namespace, name string) (spiffe.ID, error) {
	switch strings.Count(name, "/") {
	case 0:
		return spiffe.New(m.set.TrustDomain, namespace, name)
	case 1:
		ns, account, _ := strings.Cut(name, "/")
		return spiffe.New(m.set.TrustDomain, ns, account)
	}
	return spiffe.Parse("spiffe://" + strings.TrimPrefix(name, "spiffe://"))
}

// compiled is what holds at a workload.
func (m *Mesh) compiled(w Workload) compile.Workload {
	return compile.CompileWorkload(m.snap, m.set, compile.ClassOf(w.pod))
}

// portOf is one of a workload's ports, declared or not.
func portOf(w compile.Workload, number uint32) compile.InboundPort {
	for _, p := range w.Ports {
		if p.Number == number {
			return p
		}
	}
	other := w.Other
	other.Number = number
	return other
}
