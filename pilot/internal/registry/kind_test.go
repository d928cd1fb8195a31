package registry_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

func TestKindsAreToldApart(t *testing.T) {
	names := map[string]bool{}
	for _, k := range registry.Kinds() {
		r := k.Resource()
		if k.String() == "" || r.Kind == "" || r.Version == "" || r.Resource == "" {
			t.Errorf("%s is not described: %+v", k, r)
		}
		if names[k.String()] {
			t.Errorf("two kinds are called %s", k)
		}
		names[k.String()] = true
		if registry.KindOfObject(r.Kind) != k {
			t.Errorf("a %s is not of the kind %s", r.Kind, k)
		}
	}
}

// whole returns an object of each typed kind in which all is set that anything is made of, and more.
func whole() []runtime.Object {
	named := meta.ObjectMeta{
		Namespace: "a", Name: "x", UID: "u", CreationTimestamp: meta.Unix(1, 0), ManagedFields: []meta.ManagedFieldsEntry{{Manager: "m"}},
		OwnerReferences: []meta.OwnerReference{{Name: "o"}},
		Labels:          map[string]string{"app": "x", discovery.LabelServiceName: "x", istiocompat.TLSModeLabel: istiocompat.TLSModeMutual},
		Annotations:     map[string]string{delivery.Label: "secret", istiocompat.ExportToAnnotation: "., b", "other": "text"},
	}
	port := func(name string) []core.ContainerPort { return []core.ContainerPort{{Name: name, ContainerPort: 80}} }
	return []runtime.Object{
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "a", Labels: named.Labels, Annotations: named.Annotations}},
		&core.Service{ObjectMeta: named, Spec: core.ServiceSpec{
			ClusterIPs: []string{"10.96.0.1"}, Selector: named.Labels, InternalTrafficPolicy: new(core.ServiceInternalTrafficPolicyLocal),
			SessionAffinity: core.ServiceAffinityClientIP, SessionAffinityConfig: &core.SessionAffinityConfig{ClientIP: &core.ClientIPConfig{TimeoutSeconds: new(int32(60))}},
			Ports: []core.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web"), AppProtocol: new("http")}, {Port: 53, Protocol: core.ProtocolUDP}},
		}},
		&networking.ServiceCIDR{
			ObjectMeta: meta.ObjectMeta{Name: "kubernetes", ManagedFields: named.ManagedFields, Finalizers: []string{"f"}, DeletionTimestamp: new(meta.Unix(2, 0))},
			Spec:       networking.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12", "fd00::/108"}},
		},
		&discovery.EndpointSlice{ObjectMeta: named, AddressType: discovery.AddressTypeIPv4,
			Ports: []discovery.EndpointPort{{Name: new("http"), Port: new(int32(80))}}, Endpoints: []discovery.Endpoint{{Addresses: []string{"10.0.0.1"}}, {
				Addresses: []string{"10.0.0.2"}, NodeName: new("n"), Zone: new("z"),
				Conditions: discovery.EndpointConditions{Ready: new(false), Serving: new(true), Terminating: new(true)},
				Hints:      &discovery.EndpointHints{ForNodes: []discovery.ForNode{{Name: "n"}}, ForZones: []discovery.ForZone{{Name: "z"}}}}}},
		&discovery.EndpointSlice{ObjectMeta: named, AddressType: discovery.AddressTypeIPv6, Endpoints: []discovery.Endpoint{{Addresses: []string{"fd00::1"}}}},
		&core.Node{ObjectMeta: meta.ObjectMeta{Name: "n", ManagedFields: named.ManagedFields, Labels: map[string]string{core.LabelTopologyZone: "z", "other": "label"}},
			Spec: core.NodeSpec{PodCIDR: "10.244.0.0/24"}, Status: core.NodeStatus{Phase: core.NodeRunning}},
		&core.Node{ObjectMeta: meta.ObjectMeta{Name: "m"}},
		&core.Pod{ObjectMeta: named, Spec: core.PodSpec{
			NodeName: "n", ServiceAccountName: "s", InitContainers: []core.Container{{Name: "i", Ports: port("one")}},
			Containers: []core.Container{{Name: "c", Image: "image", Ports: port("two")}},
		}, Status: core.PodStatus{Phase: core.PodRunning, PodIP: "10.0.0.1", PodIPs: []core.PodIP{{IP: "10.0.0.1"}, {IP: "FD00::00:1"}}, HostIP: "192.168.0.1"}},
		&core.Pod{ObjectMeta: named, Spec: core.PodSpec{HostNetwork: true}},
		&core.Pod{ObjectMeta: named, Status: core.PodStatus{Phase: core.PodSucceeded}},
	}
}

// What the informers keep, and what tests have from YAML, must become the same as the object of the API server.
func TestTrimmedAndUntypedObjectsBecomeTheSame(t *testing.T) {
	comparable := cmpopts.EquateComparable(netip.Prefix{})
	for _, o := range whole() {
		kind := registry.KindOfObject(typeOf(t, o))
		event := func(object any) registry.Event {
			e, err := kind.Event(object, fixture.Options)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		want := event(o.DeepCopyObject())
		text, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want.Object, event(&unstructured.Unstructured{Object: text}).Object, comparable); d != "" {
			t.Errorf("%s without a type: %s", kind, d)
		}
		before, _ := o.(meta.Object)
		kind.Trim(o)
		if got := event(o); got.ID != want.ID || len(before.GetManagedFields()) != 0 {
			t.Errorf("%s, trimmed: %+v", kind, got)
		} else if d := cmp.Diff(want.Object, got.Object, comparable); d != "" {
			t.Errorf("%s, trimmed: %s", kind, d)
		}
	}
}

func typeOf(t *testing.T, o runtime.Object) string {
	t.Helper()
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		t.Fatal(err)
	}
	return kinds[0].Kind
}

func TestChangesAreOfTheirKind(t *testing.T) {
	old, now := &registry.Pod{ID: "a/p", IPs: []string{"10.0.0.1"}}, &registry.Pod{ID: "a/p", IPs: []string{"10.0.0.2"}}
	for _, c := range []struct {
		change registry.Change
		want   []*registry.Pod
	}{
		{registry.Change{Kind: registry.Pods, ID: "a/p", New: now}, []*registry.Pod{now}},
		{registry.Change{Kind: registry.Pods, ID: "a/p", Old: old, New: now}, []*registry.Pod{old, now}},
		{registry.Change{Kind: registry.Pods, ID: "a/p", Old: old}, []*registry.Pod{old}},
		{registry.Change{Kind: registry.Services, ID: "a/p", New: &registry.Service{ID: "a/p"}}, nil},
	} {
		var got []*registry.Pod
		registry.Pods.Each(c.change, func(p *registry.Pod) { got = append(got, p) })
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%+v: %s", c.change, d)
		}
	}
}
