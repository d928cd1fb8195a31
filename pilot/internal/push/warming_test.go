package push

import (
	"errors"
	"fmt"
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
	wire    []string   // what has been said of endpoints, by both
	offered chan bool  // if there is one, nobody hears the proxy ask for endpoints before some were sent
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

func (s *small) Subscribed(url string, added, _ []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if url == deltaxds.EndpointType {
		s.wire = append(s.wire, fmt.Sprint("asked for ", added))
	}
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
	if r.GetTypeUrl() == deltaxds.EndpointType {
		var names []string
		for _, res := range r.GetResources() {
			names = append(names, res.GetName())
		}
		c.s.wire = append(c.s.wire, fmt.Sprint("sent ", names))
		if len(names) > 0 {
			select {
			case c.s.offered <- true:
			default:
			}
		}
	}
	c.s.mu.Unlock()
	if cut {
		return errors.New("cut")
	}
	return c.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Send(r)
}

func (c *cutting) Recv() (*discovery.DeltaDiscoveryRequest, error) {
	req, err := c.AggregatedDiscoveryService_DeltaAggregatedResourcesServer.Recv()
	c.s.mu.Lock()
	offered := c.s.offered
	c.s.mu.Unlock()
	if offered != nil && len(req.GetResourceNamesSubscribe()) > 0 {
		select {
		case <-offered:
		case <-time.After(5 * time.Second):
			return nil, errors.New("nothing was offered")
		}
	}
	return req, err
}

// settled waits until the n-th stream has asked for clusters and listeners and everything is answered.
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
		_, listens := status[deltaxds.ListenerType]
		if ok && listens && !clusters.Pending && !endpoints.Pending {
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

// The real Envoy takes endpoints that are sent right after the cluster that needs them, before it has asked, and its asking for them
// afterwards needs no answer. It is so again when the cluster has gone and comes back.
func TestEnvoyTakesEndpointsThatItIsOffered(t *testing.T) {
	s := newSmall(t)
	s.settled(1)
	s.mu.Lock()
	s.offered = make(chan bool, 1)
	s.mu.Unlock()
	for i := range 20 {
		s.mu.Lock()
		s.wire = nil
		s.mu.Unlock()
		s.put(deltaxds.EndpointType, "d", &endpoint.ClusterLoadAssignment{ClusterName: "d"})
		s.put(deltaxds.ClusterType, "d", func() *cluster.Cluster { c := ofEndpoints(time.Second); c.Name = "d"; return c }())
		s.dirty(deltaxds.ClusterType, "d")
		s.settled(1)
		s.mu.Lock()
		if want := []string{"sent [d]", "asked for [d]"}; !slices.Equal(s.wire, want) {
			t.Errorf("time %d: %q, want %q", i, s.wire, want)
		}
		s.mu.Unlock()
		s.put(deltaxds.ClusterType, "d", nil)
		s.put(deltaxds.EndpointType, "d", nil)
		s.dirty(deltaxds.ClusterType, "d")
		s.dirty(deltaxds.EndpointType, "d")
		s.settled(1)
	}
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
