package registry_test

import (
	"slices"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/fixture"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// An address is found by its one canonical text, however it was written into an object, and is of the family that kube-proxy takes it for.
func TestAddressesAreWrittenInOneWay(t *testing.T) {
	for written, want := range map[string]struct {
		text   string
		family registry.Family
	}{
		"10.0.0.1":                {"10.0.0.1", registry.IPv4},
		"010.0.0.01":              {"10.0.0.1", registry.IPv4}, // which the API server has stored
		"::ffff:10.0.0.1":         {"10.0.0.1", registry.IPv4},
		"FD00:0:0::0A":            {"fd00::a", registry.IPv6},
		"2001:db8:0:0:1:0:0:1":    {"2001:db8::1:0:0:1", registry.IPv6},
		"no address of anybody's": {"no address of anybody's", registry.IPv4},
	} {
		e, err := registry.Services.Event(&core.Service{ObjectMeta: meta.ObjectMeta{Namespace: "a", Name: "s"}, Spec: core.ServiceSpec{ClusterIPs: []string{written}}}, fixture.Options)
		if err != nil {
			t.Fatal(err)
		}
		s := e.Object.(*registry.Service)
		if s.ClusterIPs[0] != want.text || registry.FamilyOf(s.ClusterIPs[0]) != want.family || !slices.Equal(s.Families(), []registry.Family{want.family}) {
			t.Errorf("%s is %q of %s, want %+v", written, s.ClusterIPs[0], registry.FamilyOf(s.ClusterIPs[0]), want)
		}
	}
}
