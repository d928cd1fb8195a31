package world

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
)

// Every tenth service speaks TCP.
const tcpEvery = 10

const endpointsWithin = 5 * time.Minute

// proxyLabel names another service proxy, so that kube-proxy does not spend the machine on these services.
const proxyLabel = "service.kubernetes.io/service-proxy-name"

func named(namespace, name string, labels ...string) meta.ObjectMeta {
	o := meta.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{label: value}}
	for i := 0; i < len(labels); i += 2 {
		o.Labels[labels[i]] = labels[i+1]
	}
	return o
}

func (w *World) createNamespace(ctx context.Context, i int) error {
	_, err := w.kube.CoreV1().Namespaces().Create(ctx, &core.Namespace{
		ObjectMeta: named("", namespaceName(i), mesh.SecretsLabel, "disabled")}, meta.CreateOptions{})
	if err != nil {
		return err
	}
	return w.apply(ctx, peerAuthentications, namespaceName(i), "default", map[string]any{"mtls": map[string]any{"mode": "STRICT"}})
}

func (w *World) createAccount(ctx context.Context, workload int) error {
	ns := w.namespaceOf(workload)
	_, err := w.kube.CoreV1().ServiceAccounts(ns).Create(ctx, &core.ServiceAccount{ObjectMeta: named(ns, workloadName(workload))}, meta.CreateOptions{})
	return err
}

func (w *World) createPod(ctx context.Context, i int) error {
	m := w.pod(i)
	made, err := w.kube.CoreV1().Pods(m.Namespace).Create(ctx, podOf(m), meta.CreateOptions{})
	if err != nil {
		return err
	}
	if i < len(w.uids) {
		w.uids[i] = string(made.UID)
	}
	patch, err := statusPatch(core.PodStatus{
		Phase: core.PodRunning, PodIP: m.IP, PodIPs: []core.PodIP{{IP: m.IP}},
		Conditions: []core.PodCondition{
			{Type: core.PodReady, Status: core.ConditionTrue}, {Type: core.ContainersReady, Status: core.ConditionTrue},
			{Type: core.PodInitialized, Status: core.ConditionTrue}, {Type: core.PodScheduled, Status: core.ConditionTrue}},
	})
	if err != nil {
		return err
	}
	_, err = w.kube.CoreV1().Pods(m.Namespace).Patch(ctx, m.Pod, types.StrategicMergePatchType, patch, meta.PatchOptions{}, "status")
	return err
}

func podOf(m fleet.Member) *core.Pod {
	no := false
	return &core.Pod{
		ObjectMeta: named(m.Namespace, m.Pod, "app", m.Workload, "version", "v1", istiocompat.TLSModeLabel, istiocompat.TLSModeMutual),
		Spec: core.PodSpec{
			NodeName: m.Node, ServiceAccountName: m.ServiceAccount, AutomountServiceAccountToken: &no,
			Tolerations: []core.Toleration{{Operator: core.TolerationOpExists}},
			Containers: []core.Container{{Name: "app", Image: "none.invalid/app", Ports: []core.ContainerPort{
				{Name: "http", ContainerPort: 8080}, {Name: "tcp", ContainerPort: 9000}}}},
		}}
}

// statusPatch sets a status; controllers may have touched the object since it was made.
func statusPatch(status any) ([]byte, error) { return json.Marshal(map[string]any{"status": status}) }

func servicePort(service int) core.ServicePort {
	if service%tcpEvery == 0 {
		return core.ServicePort{Name: "tcp", Port: 9000, TargetPort: intstr.FromInt32(9000)}
	}
	return core.ServicePort{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}
}

func (w *World) createService(ctx context.Context, i int) error {
	ns := w.namespaceOf(i)
	_, err := w.kube.CoreV1().Services(ns).Create(ctx, &core.Service{
		ObjectMeta: named(ns, serviceName(i), proxyLabel, value),
		Spec:       core.ServiceSpec{Selector: map[string]string{"app": workloadName(i)}, Ports: []core.ServicePort{servicePort(i)}},
	}, meta.CreateOptions{})
	return err
}

// createSlice gives the n-th target another endpoint, in a slice of its own.
func (w *World) createSlice(ctx context.Context, n int) error {
	i := w.target(n)
	ns, port := w.namespaceOf(i), servicePort(i)
	_, err := w.kube.DiscoveryV1().EndpointSlices(ns).Create(ctx, &discovery.EndpointSlice{
		ObjectMeta:  named(ns, serviceName(i), discovery.LabelServiceName, serviceName(i), discovery.LabelManagedBy, value, proxyLabel, value),
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &port.Name, Port: &port.TargetPort.IntVal}},
		Endpoints:   []discovery.Endpoint{{Addresses: []string{changedAddress(0)}}},
	}, meta.CreateOptions{})
	return err
}

// awaitEndpoints returns when the controllers have found the pods of every service.
func (w *World) awaitEndpoints(ctx context.Context) error {
	want, have := w.pods()+w.Targets, 0
	err := wait.PollUntilContextTimeout(ctx, time.Second, endpointsWithin, true, func(ctx context.Context) (bool, error) {
		list, err := w.kube.DiscoveryV1().EndpointSlices("").List(ctx, meta.ListOptions{LabelSelector: proxyLabel + "=" + value, ResourceVersion: "0"})
		if err != nil {
			return false, err
		}
		have = 0
		for _, s := range list.Items {
			have += len(s.Endpoints)
		}
		return have == want, nil
	})
	if err != nil {
		return fmt.Errorf("services have %d endpoints of %d: %w", have, want, err)
	}
	return nil
}

// changedAddress returns addresses of one length, so that none is the beginning of another.
func changedAddress(n int) string { return fmt.Sprintf("10.251.%d.%d", 100+n/100%100, 100+n%100) }

// Injected is the first pod as injection makes it. Nothing is stored.
func (w *World) Injected(ctx context.Context) (*core.Pod, error) {
	pod := podOf(w.pod(0))
	pod.Name += "-injected"
	pod.Labels[istiocompat.PodInjectionLabel] = "true"
	made, err := w.kube.CoreV1().Pods(pod.Namespace).Create(ctx, pod, meta.CreateOptions{DryRun: []string{meta.DryRunAll}})
	if err != nil {
		return nil, fmt.Errorf("having a pod injected: %w", err)
	}
	made.Name = w.pod(0).Pod
	return made, nil
}
