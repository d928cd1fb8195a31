package run

import (
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// The leader is behind its Service in each family that its pod has, whichever comes first there: the Service may have either. The next leader takes its place in both.
func TestTheLeaderIsFoundInEachFamily(t *testing.T) {
	client := fake.NewClientset()
	for _, addresses := range [][]string{{"10.0.0.1", "fd00::1"}, {"fd00::2", "10.0.0.2"}} {
		if err := applyEndpoints(t.Context(), client, addresses); err != nil {
			t.Fatal(err)
		}
	}
	list, err := client.DiscoveryV1().EndpointSlices(mesh.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + mesh.CitadelLeader})
	if err != nil {
		t.Fatal(err)
	}
	got := map[discoveryv1.AddressType]string{}
	for _, s := range list.Items {
		got[s.AddressType] += s.Endpoints[0].Addresses[0]
	}
	if len(list.Items) != 2 || got[discoveryv1.AddressTypeIPv4] != "10.0.0.2" || got[discoveryv1.AddressTypeIPv6] != "fd00::2" {
		t.Errorf("%d slices with %v", len(list.Items), got)
	}
}
