package analyze

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	core "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/offline"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Kinds are the kinds of objects that are looked at. Of those that Pilot does not watch, what makes pods stands for the pods that are not there yet.
func Kinds() []offline.Resource {
	unused := []registry.Kind{registry.Nodes, registry.LimitRanges, registry.ServiceCIDRs}
	var out []offline.Resource
	for _, r := range offline.Resources() {
		if !slices.ContainsFunc(unused, func(k registry.Kind) bool { return k.Resource().Kind == r.Kind }) {
			out = append(out, r)
		}
	}
	return append(append(out, accountKind), offline.Makers()...)
}

var accountKind = offline.Resource{GroupVersionResource: core.SchemeGroupVersion.WithResource("serviceaccounts"), Kind: "ServiceAccount"}

// world is what there is, as Pilot would know it, and what is worked out of it once.
type world struct {
	Input
	objects    []*unstructured.Unstructured // without those that others replace, in an order of their own
	byName     map[Object]*unstructured.Unstructured
	snap       *registry.Snapshot
	before     *registry.Snapshot // the cluster without the files; nil if there is no cluster or there are no files
	set        compile.Settings
	namespaces map[string]bool       // that exist: also those that something is in
	accounts   map[authz.Member]bool // that exist
	classes    []class
	byAccount  map[authz.Member][]*registry.Pod
	policies   []*policy
	comparison *authz.Comparison
}

// class is a kind of workload: pods that have one configuration.
type class struct {
	compile.Workload
	pods []*registry.Pod
	held []*policy // that hold for it, if it has a proxy
	// closed says that nobody without an identity is admitted: it has ALLOW policies, and each of their rules asks for one.
	closed bool
}

// policy is an AuthorizationPolicy, with its text.
type policy struct {
	*registry.Policy
	object  Object
	spec    *security.AuthorizationPolicy // what of it can be read
	classes []*class                      // with a proxy that it holds for
	dead    map[int]bool                  // the rules that can never match, by index

	compared []*authz.Compared // the rules, in their order
}

// enforced reports whether the policy decides something.
func (p *policy) enforced() bool { return !p.Ignored && !p.DryRun }

func newWorld(in Input) (*world, error) {
	w := &world{Input: in, byName: map[Object]*unstructured.Unstructured{}, accounts: map[authz.Member]bool{},
		namespaces: map[string]bool{core.NamespaceDefault: true, metav1.NamespaceSystem: true, metav1.NamespacePublic: true, core.NamespaceNodeLease: true}, byAccount: map[authz.Member][]*registry.Pod{}, comparison: authz.NewComparison(),
		set: compile.SettingsOf(in.Options)}
	merged := merge(in.Cluster, in.Files, in.Now)
	for _, o := range merged {
		if offline.Watched(o) || w.byName[objectOf(o)] == nil {
			w.byName[objectOf(o)] = o
		}
		w.objects = append(w.objects, o)
	}
	slices.SortFunc(w.objects, func(a, b *unstructured.Unstructured) int { return cmp.Compare(nameOf(a), nameOf(b)) })
	var err error
	if w.snap, err = snapshot(merged, in); err != nil {
		return nil, err
	}
	if len(in.Cluster) > 0 && len(in.Files) > 0 {
		before := in
		before.Files = nil
		if w.before, err = snapshot(merge(in.Cluster, nil, in.Now), before); err != nil {
			return nil, err
		}
	}
	for _, o := range w.objects {
		w.namespaces[o.GetNamespace()] = true
		if o.GetKind() == "Namespace" {
			w.namespaces[o.GetName()] = true
		}
		if o.GetKind() == accountKind.Kind {
			w.accounts[authz.Member{Namespace: o.GetNamespace(), Account: o.GetName()}] = true
		}
	}
	w.classes = classes(w.snap, w.set)
	for p := range w.snap.Pods() {
		w.byAccount[authz.Member{Namespace: p.Namespace, Account: p.ServiceAccount}] = append(w.byAccount[authz.Member{Namespace: p.Namespace, Account: p.ServiceAccount}], p)
	}
	for p := range w.snap.Policies() {
		n := &policy{Policy: p, object: Object{registry.Policies.Resource().Kind, p.Namespace, p.Name}, spec: &security.AuthorizationPolicy{}, dead: map[int]bool{}}
		decode(w.byName[n.object], n.spec)
		w.policies = append(w.policies, n)
	}
	for i := range w.classes {
		c := &w.classes[i]
		for _, p := range w.policies {
			if c.pods[0].Proxied && p.InScope(w.set.RootNamespace, c.Class.Namespace, c.Class.Labels) {
				p.classes, c.held = append(p.classes, c), append(c.held, p)
			}
		}
		c.closed = closed(c.held)
	}
	return w, nil
}

// nameOf tells objects apart: another group may have a kind of the same name.
func nameOf(o *unstructured.Unstructured) string {
	return objectOf(o).String() + " " + o.GroupVersionKind().Group
}

// merge puts files on top of a cluster. What is there already keeps the time when it was made; what is new is made now.
func merge(cluster, files []*unstructured.Unstructured, now time.Time) map[string]*unstructured.Unstructured {
	merged := map[string]*unstructured.Unstructured{}
	for _, o := range cluster {
		merged[nameOf(o)] = o
	}
	for _, o := range files {
		created := metav1.NewTime(now)
		if old := merged[nameOf(o)]; old != nil {
			created = old.GetCreationTimestamp()
		}
		if len(cluster) > 0 {
			o = o.DeepCopy()
			o.SetCreationTimestamp(created)
		}
		merged[nameOf(o)] = o
	}
	return merged
}

// snapshot is what Pilot would know of objects.
func snapshot(merged map[string]*unstructured.Unstructured, in Input) (*registry.Snapshot, error) {
	isNew := map[Object]bool{} // of files: the pods that it makes are not there yet
	for _, o := range in.Files {
		isNew[objectOf(o)] = true
	}
	running := map[Object]bool{} // what has pods
	for _, o := range merged {
		if o.GetKind() == "Pod" {
			running[makerOf(o)] = true
		}
	}
	injected := offline.Injected(maps.Values(merged))
	var objects []*unstructured.Unstructured
	for _, o := range merged {
		id, maker := objectOf(o), makerOf(o)
		if o.GetKind() == "Pod" && maker.Name != "" && isNew[maker] {
			continue // another one comes for it
		}
		if !running[id] || isNew[id] {
			for _, pod := range offline.Templates([]*unstructured.Unstructured{o}, injected) {
				pod.SetName(strings.ToLower(o.GetKind()) + "/" + o.GetName()) // which no pod is called
				objects = append(objects, pod)
			}
		}
		objects = append(objects, o)
	}
	snap, _, err := offline.Snapshot(objects, in.Options, in.Now)
	return snap, err
}

// makerOf is what made a pod, of those whose templates are looked at.
func makerOf(pod *unstructured.Unstructured) Object {
	for _, owner := range pod.GetOwnerReferences() {
		name, ok := owner.Name, true
		switch owner.Kind {
		case "ReplicaSet":
			name, ok = strings.CutSuffix(owner.Name, "-"+pod.GetLabels()["pod-template-hash"])
			if ok {
				return Object{"Deployment", pod.GetNamespace(), name}
			}
		case "StatefulSet", "DaemonSet", "Job":
			return Object{owner.Kind, pod.GetNamespace(), name}
		}
	}
	return Object{}
}

// classes are the workloads of a snapshot, in the order of their first pods. Pods without a proxy are apart.
func classes(snap *registry.Snapshot, set compile.Settings) (out []class) {
	at := map[string]int{}
	for p := range snap.Pods() {
		c := compile.ClassOf(p)
		key := c.Key()
		if p.Proxied {
			key += "+"
		}
		i, known := at[key]
		if !known {
			i = len(out)
			at[key] = i
			out = append(out, class{Workload: compile.CompileWorkload(snap, set, c)})
		}
		out[i].pods = append(out[i].pods, p)
	}
	return out
}

// name is what a workload is called: by the labels that metrics call it by, or else by one of its pods.
func (c *class) name() string {
	if c.Labels.CanonicalName != "" {
		return c.Labels.Namespace + "/" + c.Labels.CanonicalName
	}
	return "pod " + c.pods[0].ID
}

// ignored reports whether an object's annotation leaves a code out.
func (w *world) ignored(o Object, code string) bool {
	object := w.byName[o]
	if object == nil || code == UnknownCode {
		return false
	}
	codes := ignoredCodes(object)
	return slices.Contains(codes, "*") || slices.Contains(codes, code)
}

// decode reads what it can of an object's spec.
func decode(o *unstructured.Unstructured, into proto.Message) {
	if o == nil {
		return
	}
	raw, err := json.Marshal(o.Object["spec"])
	if err != nil {
		return
	}
	known := protojson.UnmarshalOptions{DiscardUnknown: true}
	if known.Unmarshal(raw, into) != nil {
		proto.Reset(into) // Pilot says what is wrong with it
	}
}
