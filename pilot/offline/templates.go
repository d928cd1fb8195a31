package offline

import (
	"iter"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/bulwark-mesh/bulwark/pilot/inject"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

// places are where kinds of objects have their template of a pod.
var places = map[string][]string{
	"Deployment": {"spec", "template"}, "StatefulSet": {"spec", "template"}, "DaemonSet": {"spec", "template"}, "ReplicaSet": {"spec", "template"},
	"ReplicationController": {"spec", "template"}, "Job": {"spec", "template"}, "CronJob": {"spec", "jobTemplate", "spec", "template"},
}

// Templates makes a pod of each object that has a template of one, with the object's name: what a cluster would have if the objects were
// applied to it. Whether it has a proxy is what injected says of it, as a file does not: nil means that each has.
func Templates(objects []*unstructured.Unstructured, injected func(pod *unstructured.Unstructured) bool) (pods []*unstructured.Unstructured) {
	for _, o := range objects {
		place := places[o.GetKind()]
		if place == nil {
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
