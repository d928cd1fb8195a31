package deltaxds_test

import (
	"runtime"
	"slices"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds/deltaxdstest"
)

// A client that is just to be sent something when its source changes is not sent half of the change.
func TestClientSeesNoHalfOfAChange(t *testing.T) {
	world := deltaxdstest.NewWorld()
	stream := deltaxds.NewStream(world, clock.RealClock{})
	for _, url := range []string{deltaxds.ClusterType, deltaxds.ListenerType} {
		stream.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: url})
		stream.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: stream.Next().GetNonce()})
	}
	stream.Dirty(deltaxds.ListenerType, "l")
	first := make(chan *deltaxds.Response, 1)
	deltaxds.Change([]*deltaxds.Stream{stream}, func() map[*deltaxds.Stream]deltaxds.News {
		world.Set(deltaxds.ListenerType, "l", deltaxdstest.Facts{})
		go func() { first <- stream.Next() }()
		for range 10000 { // it has every chance to look now
			runtime.Gosched()
		}
		world.Set(deltaxds.ClusterType, "c", deltaxdstest.Facts{})
		return map[*deltaxds.Stream]deltaxds.News{stream: {Names: map[string][]string{deltaxds.ClusterType: {"c"}}}}
	})
	if resp := <-first; resp.GetTypeUrl() != deltaxds.ClusterType {
		t.Fatalf("the first that it is sent is %v", resp)
	}
}

// All that a client has or has asked for is looked at, and what there is of which it has asked for everything.
func TestClientIsToldWhateverDiffers(t *testing.T) {
	world := deltaxdstest.NewWorld()
	world.Set(deltaxds.ClusterType, "stays", deltaxdstest.Facts{})
	world.Set(deltaxds.ClusterType, "goes", deltaxdstest.Facts{})
	stream := deltaxds.NewStream(world, clock.RealClock{})
	answer := func() *deltaxds.Response {
		resp := stream.Next()
		if resp != nil {
			stream.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()})
		}
		return resp
	}
	stream.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.ClusterType})
	stream.Take(&discovery.DeltaDiscoveryRequest{TypeUrl: deltaxds.EndpointType, ResourceNamesSubscribe: []string{"stays"}})
	for answer() != nil {
	}
	deltaxds.Change([]*deltaxds.Stream{stream}, func() map[*deltaxds.Stream]deltaxds.News {
		world.Delete(deltaxds.ClusterType, "goes")
		world.Set(deltaxds.ClusterType, "comes", deltaxdstest.Facts{})
		world.Set(deltaxds.EndpointType, "stays", deltaxdstest.Facts{})
		return map[*deltaxds.Stream]deltaxds.News{stream: {Everything: true}}
	})
	var said []string
	for resp := answer(); resp != nil; resp = answer() {
		for _, r := range resp.GetResources() {
			said = append(said, r.GetName())
		}
		for _, name := range resp.GetRemovedResources() {
			said = append(said, "-"+name)
		}
	}
	if want := []string{"comes", "stays", "-goes"}; !slices.Equal(said, want) {
		t.Fatalf("said %v, want %v", said, want)
	}
}
