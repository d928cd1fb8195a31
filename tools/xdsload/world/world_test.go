package world

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	security "istio.io/api/security/v1beta1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// pretended returns a world in an API server in memory, whose controllers have put every pod behind its service.
func pretended(s Sizes) *World {
	client := fake.NewClientset()
	client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		pod := a.(clienttesting.CreateAction).GetObject().(*core.Pod)
		pod.UID = types.UID("uid-of-" + pod.Name)
		return false, nil, nil
	})
	client.PrependReactor("list", "endpointslices", func(clienttesting.Action) (bool, runtime.Object, error) {
		// The client leaves out what has not the labels that it asks for.
		return true, &discovery.EndpointSliceList{Items: []discovery.EndpointSlice{{
			ObjectMeta: named("", "all", proxyLabel, value), Endpoints: make([]discovery.Endpoint, s.pods()+s.Targets)}}}, nil
	})
	w := worldOf(s)
	w.kube, w.alive = client, client
	w.dynamic = dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		peerAuthentications: "PeerAuthenticationList", authorizationPolicies: "AuthorizationPolicyList"})
	return w
}

// What is made is what the sizes say: policies select as many services, and admit those workloads that may call them.
func TestPoliciesAdmitWhoMayCall(t *testing.T) {
	for _, kind := range []Kind{Open, Closed} {
		s := Sizes{Kind: kind, Nodes: 4, PodsPerNode: 5, Services: 26, Endpoints: 2, Namespaces: 5, Targets: 3}
		if err := s.Validate(); err != nil {
			t.Fatal(err)
		}
		w := pretended(s)
		if err := w.CreateNodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.Create(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := w.dynamic.Resource(authorizationPolicies).List(t.Context(), meta.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		selected, names := map[string]bool{}, []string{}
		for i := range s.Services {
			names = append(names, workloadName(i))
		}
		for _, u := range list.Items {
			text, err := json.Marshal(u.Object["spec"])
			if err != nil {
				t.Fatal(err)
			}
			var spec security.AuthorizationPolicy
			if err := protojson.Unmarshal(text, &spec); err != nil {
				t.Fatalf("policy %s: %v", u.GetName(), err)
			}
			p, problems := authz.FromAuthorizationPolicy(authz.Meta{Namespace: u.GetNamespace(), Name: u.GetName()}, &spec,
				authz.Options{TrustDomain: mesh.DefaultTrustDomain, RootNamespace: mesh.Namespace})
			if len(problems) > 0 {
				t.Fatalf("policy %s: %v", u.GetName(), problems)
			}
			if p.Action != authz.Allow {
				continue
			}
			selected[p.Selector["app"]] = true
			workload := slices.Index(names, p.Selector["app"])
			members, named := p.Rules[0].Members()
			if !named || len(members) != len(distances) {
				t.Fatalf("policy %s admits %v, %v", u.GetName(), members, named)
			}
			for _, m := range w.Members() {
				admitted := slices.ContainsFunc(members, func(of authz.Member) bool { return of.Admits(m.Namespace, m.ServiceAccount) })
				if admitted != w.mayCall(workload)(m) {
					t.Errorf("%s: policy %s admits pod %s: %v", kind, u.GetName(), m.Pod, admitted)
				}
			}
		}
		if want := map[Kind]int{Open: 1, Closed: 26}[kind]; len(selected) != want {
			t.Errorf("%s: policies select %d workloads, want %d", kind, len(selected), want)
		}
		for _, m := range w.Members() {
			if m.UID != "uid-of-"+m.Pod {
				t.Errorf("pod %s has UID %q", m.Pod, m.UID)
			}
			made, err := w.kube.CoreV1().Pods(m.Namespace).Get(t.Context(), m.Pod, meta.GetOptions{})
			if err != nil || made.Spec.NodeName != m.Node || made.Status.PodIP != m.IP {
				t.Errorf("pod %s is on %s with %s, %v", m.Pod, made.Spec.NodeName, made.Status.PodIP, err)
			}
		}
		for _, c := range []Change{w.EndpointChange(1), w.WorkloadPolicyChange(1), w.NamespacePolicyChange(1)} {
			if err := c.Make(t.Context()); err != nil {
				t.Errorf("%s: %s: %v", kind, c.Marker, err)
			}
		}
	}
}

// An API server that cannot delete everything in the time that it has is asked again, and all is gone when Remove returns.
func TestRemoveTriesAgain(t *testing.T) {
	s := Sizes{Kind: Closed, Nodes: 2, PodsPerNode: 2, Services: 26, Endpoints: 2, Namespaces: 2, Targets: 1}
	w := pretended(s)
	if err := w.CreateNodes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := w.kube.(*fake.Clientset)
	client.PrependReactor("delete-collection", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) { // which the client in memory does not do
		for i := range s.Nodes {
			_ = client.Tracker().Delete(core.SchemeGroupVersion.WithResource("nodes"), "", nodeName(i)) // if it is there
		}
		return true, nil, nil
	})
	failures := 1
	client.PrependReactor("delete-collection", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		failures--
		return failures >= 0, nil, errors.New("stream error: INTERNAL_ERROR")
	})
	if err := w.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	namespaces, err := w.kube.CoreV1().Namespaces().List(t.Context(), meta.ListOptions{LabelSelector: selector})
	if err != nil || len(namespaces.Items) > 0 || failures >= 0 {
		t.Errorf("there are still %d namespaces, %v", len(namespaces.Items), err)
	}
}
