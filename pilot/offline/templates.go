package offline

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

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
