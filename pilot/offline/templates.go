package offline

import (
	"iter"
	"slices"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/bulwark-mesh/bulwark/pilot/inject"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// places are where kinds of objects have their template of a pod.
var places = map[string][]string{
	"Deployment": {"spec", "template"}, "StatefulSet": {"spec", "template"}, "DaemonSet": {"spec", "template"}, "ReplicaSet": {"spec", "template"},
	"ReplicationController": {"spec", "template"}, "Job": {"spec", "template"}, "CronJob": {"spec", "jobTemplate", "spec", "template"},
}

// Makers are the kinds of these whose objects people write, which a cluster is asked for: they stand for pods that are not there yet.
func Makers() (out []Resource) {
	for _, m := range []struct{ group, resource, kind string }{
		{"apps", "deployments", "Deployment"}, {"apps", "statefulsets", "StatefulSet"}, {"apps", "daemonsets", "DaemonSet"}, {"batch", "cronjobs", "CronJob"}, {"batch", "jobs", "Job"},
	} {
		out = append(out, Resource{GroupVersionResource: schema.GroupVersionResource{Group: m.group, Version: "v1", Resource: m.resource}, Kind: m.kind})
	}
	return out
}

// ended reports whether a Job makes no pods any more: it has done its work, or given it up.
func ended(o *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	return o.GetKind() == "Job" && slices.ContainsFunc(conditions, func(c any) bool {
		m, _ := c.(map[string]any)
		return (m["type"] == "Complete" || m["type"] == "Failed") && m["status"] == "True"
	})
}

// Templates makes a pod of each object that has a template of one, with the object's name: what a cluster would have if the objects were
// applied to it. A Job that has ended has none. Whether it has a proxy is what injected says of it, as a file does not: nil means that each has.
func Templates(objects []*unstructured.Unstructured, injected func(pod *unstructured.Unstructured) bool) (pods []*unstructured.Unstructured) {
	for _, o := range objects {
		place := places[o.GetKind()]
		if place == nil || ended(o) {
			continue
		}
		template, found, err := unstructured.NestedMap(o.Object, place...)
		if err != nil || !found {
			continue
		}
		pod := &unstructured.Unstructured{Object: template}
		pod.SetAPIVersion("v1")
		pod.SetKind("Pod")
		pod.SetNamespace(o.GetNamespace())
		pod.SetName(o.GetName())
		if account, _, _ := unstructured.NestedString(pod.Object, "spec", "serviceAccountName"); account == "" {
			if err := unstructured.SetNestedField(pod.Object, "default", "spec", "serviceAccountName"); err != nil {
				continue // a template without a spec that is a map is no pod's
			}
		}
		if injected == nil || injected(pod) {
			labels := pod.GetLabels()
			if labels == nil {
				labels = map[string]string{}
			}
			labels[istiocompat.TLSModeLabel] = istiocompat.TLSModeMutual
			pod.SetLabels(labels)
		}
		pods = append(pods, pod)
	}
	return pods
}

// Injected says whether a pod of a template would have a proxy, by the labels of the namespaces that are among the objects. Of a namespace that is not there
// it is taken for granted that it asks for proxies: a file does not say.
func Injected(objects iter.Seq[*unstructured.Unstructured]) func(pod *unstructured.Unstructured) bool {
	labels := map[string]map[string]string{}
	for o := range objects {
		if o.GetKind() == "Namespace" {
			labels[o.GetName()] = o.GetLabels()
		}
	}
	return func(pod *unstructured.Unstructured) bool {
		known, ok := labels[pod.GetNamespace()]
		if !ok {
			known = map[string]string{istiocompat.InjectionLabel: "enabled"}
		}
		var p core.Pod
		return runtime.DefaultUnstructuredConverter.FromUnstructured(pod.Object, &p) == nil && inject.LeavesAlone(&p, pod.GetNamespace(), known) == ""
	}
}
