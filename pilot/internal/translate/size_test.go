package translate_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
)

// TestWhatAServiceCostsAProxy bounds the bytes of configuration that each service of the mesh is to each proxy that may use it.
func TestWhatAServiceCostsAProxy(t *testing.T) {
	for _, of := range []struct {
		protocol protocol.Protocol
		most     int
	}{{protocol.HTTP, 1615}, {protocol.HTTP2, 1475}, {protocol.TCP, 1410}, {protocol.Auto, 2050}} {
		const name = "recommendations"
		p := compile.ServicePort{Service: &registry.Service{Name: name, Namespace: "storefront"}, Host: name + ".storefront.svc.cluster.local", Number: 8080,
			Protocol: of.protocol, Mutual: true, Identities: []string{"spiffe://cluster.local/ns/storefront/sa/" + name}}
		var endpoints []compile.Endpoint
		for i := range 4 {
			endpoints = append(endpoints, compile.Endpoint{Address: fmt.Sprintf("10.244.17.%d", 100+i), Port: 8080,
				Workload: compile.Labels{Workload: name, CanonicalName: name, Namespace: "storefront", CanonicalRevision: "latest"}})
		}
		l := proto.Size(translate.ServiceListener(&compile.Frontend{Address: compile.Address{IP: "10.96.117.203", Port: 8080}, Service: p}))
		c := proto.Size(translate.OutboundCluster(&p, delivery.ByAgent))
		e := proto.Size(translate.Endpoints(p.Cluster(), endpoints))
		t.Logf("%s: %d bytes of listener, %d of cluster, %d of 4 endpoints", of.protocol, l, c, e)
		if l+c+e > of.most {
			t.Errorf("a service of %s has %d bytes, more than %d", of.protocol, l+c+e, of.most)
		}
	}
	w := &compile.Workload{Class: compile.Class{Namespace: "storefront"}, Other: compile.InboundPort{Protocol: protocol.Auto}}
	if n := proto.Size(translate.InboundListener(settings, w)); n > 40000 {
		t.Errorf("the inbound listener of a workload has %d bytes", n)
	}
}
