package push

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/utils/clock"

	"github.com/bulwark-mesh/bulwark/pilot/internal/envoytest"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// small is a server with one cluster and its endpoints, for a real Envoy.
type small struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	t *testing.T

	mu      sync.Mutex
	have    map[string]map[string]*deltaxds.Resource
	streams []*deltaxds.Stream
	asked   [][]string // by stream, the types in the order of the first requests
	cut     bool       // the stream ends when endpoints are to be sent
}

func newSmall(t *testing.T) *small {
	s := &small{t: t, have: map[string]map[string]*deltaxds.Resource{deltaxds.ClusterType: {}, deltaxds.EndpointType: {}}}
	s.put(deltaxds.ClusterType, "c", ofEndpoints(time.Second))
	s.put(deltaxds.EndpointType, "c", &endpoint.ClusterLoadAssignment{ClusterName: "c"})
	(&envoytest.Agent{ADS: s}).Start(t, "sidecar~10.0.0.1~web-1.a~a.svc.cluster.local")
	return s
}

func ofEndpoints(timeout time.Duration) *cluster.Cluster {
	ads := &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3, InitialFetchTimeout: durationpb.New(0),
		ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}
	return &cluster.Cluster{Name: "c", ConnectTimeout: durationpb.New(timeout), ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig: &cluster.Cluster_EdsClusterConfig{EdsConfig: ads}}
}

func (s *small) put(url, name string, msg proto.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if msg == nil {
		delete(s.have[url], name)
		return
	}
	r, err := deltaxds.NewResource(name, msg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.have[url][name] = r
}

func (s *small) dirty(url, name string) {
	s.mu.Lock()
	last := s.streams[len(s.streams)-1]
	s.mu.Unlock()
	last.Dirty(url, name)
}

func (s *small) Resource(url, name string) (*deltaxds.Resource, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.have[url][name], true
}

func (s *small) Wildcard(url string) (names []string, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.have[url] {
		names = append(names, name)
	}
	return names, true
}

func (s *small) Subscribed(url string, _, _ []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.asked) - 1
	s.asked[last] = append(s.asked[last], url)
}

func (s *small) DeltaAggregatedResources(rpc discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	stream := deltaxds.NewStream(s, clock.RealClock{})
	s.mu.Lock()
	s.streams, s.asked = append(s.streams, stream), append(s.asked, nil)
	s.mu.Unlock()
	return stream.Serve(&cutting{rpc, s}, nil)
}

type cutting struct {
	discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	s *small
}

func (c *cutting) Send(r *discovery.DeltaDiscoveryResponse) error {
	c.s.mu.Lock()
	cut := c.s.cut && r.GetTypeUrl() == deltaxds.EndpointType
	if cut {
		c.s.cut = false
	}
	c.s.mu.Unlock()
	if cut {
		return errors.New("cut")
	}
	return c.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Send(r)
}

// settled waits until the n-th stream has asked for clusters and everything is answered.
func (s *small) settled(n int) {
	s.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		streams, asked := slices.Clone(s.streams), slices.Clone(s.asked)
		s.mu.Unlock()
		var status map[string]deltaxds.Status
		if len(streams) == n { // without our lock, which the stream takes under its own
			status = streams[n-1].Status()
		}
		clusters, ok := status[deltaxds.ClusterType]
		endpoints := status[deltaxds.EndpointType]
		if ok && !clusters.Pending && !endpoints.Pending {
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("the proxy is stuck: %d streams, asked for %v, status %+v", n, asked, status)
		}
	}
}

// The real Envoy does what the model of deltaxdstest does: while a changed cluster warms it asks, in a new stream, for
// endpoints and not for clusters, and says that it has them.
func TestEnvoyThatReconnectsWhileAClusterWarms(t *testing.T) {
	s := newSmall(t)
	s.settled(1)
	s.mu.Lock()
	s.cut = true
	s.mu.Unlock()
	s.put(deltaxds.ClusterType, "c", ofEndpoints(2*time.Second))
	s.dirty(deltaxds.ClusterType, "c")
	s.settled(2)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[1][0] != deltaxds.EndpointType {
		t.Errorf("the new stream began with %v", s.asked[1])
	}
}

// As before, and the cluster has gone meanwhile.
func TestEnvoyThatReconnectsWhileAClusterWarmsThatIsGone(t *testing.T) {
	s := newSmall(t)
	s.settled(1)
	s.mu.Lock()
	s.cut = true
	s.mu.Unlock()
	s.put(deltaxds.ClusterType, "c", ofEndpoints(2*time.Second))
	s.dirty(deltaxds.ClusterType, "c")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		cut := !s.cut
		s.mu.Unlock()
		if cut {
			break
		}
	}
	s.put(deltaxds.ClusterType, "c", nil)
	s.put(deltaxds.EndpointType, "c", nil)
	s.settled(2)
}

// A Service that is there for a moment does not freeze the real Envoy, whatever it has come to.
func TestEnvoyTakesServicesThatAreThereForAMoment(t *testing.T) {
	s := newSmall(t)
	s.settled(1)
	for i := range 50 {
		s.put(deltaxds.ClusterType, "d", func() *cluster.Cluster { c := ofEndpoints(time.Second); c.Name = "d"; return c }())
		s.dirty(deltaxds.ClusterType, "d")
		time.Sleep(time.Duration(i) * 100 * time.Microsecond) // it goes at every moment of what Envoy does with it
		s.put(deltaxds.ClusterType, "d", nil)
		s.dirty(deltaxds.ClusterType, "d")
		s.dirty(deltaxds.EndpointType, "d")
		s.settled(1)
	}
}
