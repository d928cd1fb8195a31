package translate_test

import (
	"fmt"
	"testing"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// BenchmarkRoutesOf1000Services is what a new HTTP service costs in each namespace that has clients of its port.
func BenchmarkRoutesOf1000Services(b *testing.B) {
	var services []*registry.Service
	for i := range 1000 {
		services = append(services, &registry.Service{Namespace: fmt.Sprint("n", i%50), Name: fmt.Sprint("s", i), ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250)}})
	}
	for b.Loop() {
		if _, err := deltaxds.NewResource("80", translate.OutboundRoutes(80, "n1", services)); err != nil {
			b.Fatal(err)
		}
	}
}
