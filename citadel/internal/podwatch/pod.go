package podwatch

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Pod is what is known of a pod.
type Pod struct {
	Namespace      string
	Name           string
	UID            string
	Node           string // empty until it is scheduled
	ServiceAccount string
	IP             string
	DeletedAt      time.Time // when the grace of its deletion ends; zero if it is not being deleted
	Ended          bool      // Succeeded or Failed: it runs no more
	Ready          bool
	Component      string // pilot, citadel, mixer or agent, by the labels of a pod of the control plane; else empty
	MountsSecret   bool   // a workload Secret
	MountsBundle   bool   // the trust bundle's ConfigMap
	Member         bool   // it has a volume of the node agent: a socket
}

const nameLabel = "app.kubernetes.io/name"

// Of returns what is kept of a pod.
func Of(p *corev1.Pod) Pod {
	out := Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName, ServiceAccount: p.Spec.ServiceAccountName,
		IP: p.Status.PodIP, Ended: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if p.DeletionTimestamp != nil {
		out.DeletedAt = p.DeletionTimestamp.UTC()
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Ready = c.Status == corev1.ConditionTrue
		}
	}
	if p.Namespace == mesh.Namespace && p.Labels[mesh.PartOfLabel] == mesh.PartOfValue {
		out.Component = p.Labels[nameLabel]
	}
	for _, v := range p.Spec.Volumes {
		out.mounts(v)
	}
	return out
}

func (p *Pod) mounts(v corev1.Volume) {
	secret := func(name string) { p.MountsSecret = p.MountsSecret || mesh.IsSecretName(name) }
	config := func(name string) { p.MountsBundle = p.MountsBundle || name == mesh.TrustBundleConfig }
	if v.Secret != nil {
		secret(v.Secret.SecretName)
	}
	if v.ConfigMap != nil {
		config(v.ConfigMap.Name)
	}
	if v.CSI != nil && v.CSI.Driver == mesh.CSIDriver {
		p.Member = true
	}
	if v.Projected == nil {
		return
	}
	for _, s := range v.Projected.Sources {
		if s.Secret != nil {
			secret(s.Secret.Name)
		}
		if s.ConfigMap != nil {
			config(s.ConfigMap.Name)
		}
	}
}

// keepPod and keepAccount are the caches' transforms. They leave tombstones and what they have made themselves alone.
func keepPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	return &entry{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}, pod: Of(p)}, nil
}

func keepAccount(o any) (any, error) {
	a, ok := o.(*corev1.ServiceAccount)
	if !ok {
		return o, nil
	}
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: a.Namespace, Name: a.Name, UID: a.UID, ResourceVersion: a.ResourceVersion}}, nil
}
