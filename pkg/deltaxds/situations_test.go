package deltaxds_test

import (
	"strings"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds/deltaxdstest"
)

// rest makes moves until none is possible.
func (p *play) rest(t *testing.T) {
	t.Helper()
	for range 20000 {
		if !p.move() {
			return
		}
	}
	t.Fatal("it does not come to rest")
}

func (p *play) service(name string) {
	p.world.Set(deltaxds.EndpointType, name, deltaxdstest.Facts{})
	p.world.Set(deltaxds.ClusterType, name, deltaxdstest.Facts{})
}

func (p *play) noService(name string) {
	p.world.Delete(deltaxds.ClusterType, name)
	p.world.Delete(deltaxds.EndpointType, name)
}

// say makes the proxy send its next request of a type, and the server hear it.
func (p *play) say(url string) *discovery.DeltaDiscoveryRequest {
	req := p.envoy.Request(url)
	p.stream.Take(req)
	return req
}

// Situations in which users of delta xDS have met proxies that went on with old configuration, each in many orders of what
// happens on the wire.
func TestSituationsThatHaveFrozenProxies(t *testing.T) {
	const cds, eds, lds, rds, ecds, sds = deltaxds.ClusterType, deltaxds.EndpointType, deltaxds.ListenerType, deltaxds.RouteType,
		deltaxds.ExtensionConfigType, deltaxds.SecretType
	for name, happens := range map[string]func(t *testing.T, p *play){
		"a cluster is announced before it has endpoints, and they come later": func(t *testing.T, p *play) {
			p.world.Set(cds, "a", deltaxdstest.Facts{})
			p.rest(t)
			p.world.Set(eds, "a", deltaxdstest.Facts{})
		},
		"a cluster goes while the proxy that warms it connects to another server": func(t *testing.T, p *play) {
			p.service("a")
			for len(p.envoy.Ready()) > 0 && p.envoy.Ready()[0] == cds { // until it has the cluster, and before it has endpoints
				p.say(cds)
				if resp := p.stream.Next(); resp != nil {
					p.envoy.Take(resp.DeltaDiscoveryResponse)
				}
			}
			p.connect()
			p.noService("a")
		},
		"a cluster changes while the proxy is between two servers": func(t *testing.T, p *play) {
			p.service("a")
			p.rest(t)
			p.connect()
			p.world.Set(cds, "a", deltaxdstest.Facts{})
		},
		"a cluster changes, and the connection is lost before its endpoints have come again": func(t *testing.T, p *play) {
			p.service("a")
			p.rest(t)
			p.world.Set(cds, "a", deltaxdstest.Facts{})
			p.envoy.Take(p.stream.Next().DeltaDiscoveryResponse)
			p.connect()
		},
		"a Service is there for a moment, again and again": func(t *testing.T, p *play) {
			for range 10 {
				p.service("a")
				for range p.random.IntN(6) {
					p.move()
				}
				p.noService("a")
				for range p.random.IntN(6) {
					p.move()
				}
			}
		},
		"a Service goes and comes back before the proxy has dropped its endpoints": func(t *testing.T, p *play) {
			p.service("a")
			p.rest(t)
			p.noService("a")
			for range p.random.IntN(8) {
				p.move()
			}
			p.service("a")
		},
		"a name is asked for beside everything, and everything goes on to be sent": func(t *testing.T, p *play) {
			p.service("a")
			p.rest(t)
			p.envoy.Ask("a")
			p.rest(t)
			p.service("b")
			p.rest(t)
			p.envoy.Unask("a")
			p.world.Set(cds, "a", deltaxdstest.Facts{})
		},
		"a listener is announced before its routes and filters": func(t *testing.T, p *play) {
			p.world.Set(lds, "l", deltaxdstest.Facts{Routes: []string{"r"}, Filters: []string{"f"}})
			p.rest(t)
			p.world.Set(rds, "r", deltaxdstest.Facts{})
			p.world.Set(ecds, "f", deltaxdstest.Facts{})
		},
		"the proxy reconnects with routes of a listener that is gone": func(t *testing.T, p *play) {
			p.world.Set(rds, "r", deltaxdstest.Facts{})
			p.world.Set(lds, "l", deltaxdstest.Facts{Routes: []string{"r"}})
			p.rest(t)
			p.world.Delete(lds, "l")
			p.world.Delete(rds, "r")
			p.connect()
		},
		"a secret changes while the cluster that names it warms": func(t *testing.T, p *play) {
			p.world.HideSecrets(true)
			p.world.Set(eds, "a", deltaxdstest.Facts{})
			p.world.Set(cds, "a", deltaxdstest.Facts{Secret: "s"})
			for range p.random.IntN(12) {
				p.move()
			}
			p.world.Set(sds, "s", deltaxdstest.Facts{})
			p.world.HideSecrets(false)
			p.world.Set(sds, "s", deltaxdstest.Facts{})
		},
		"a filter is refused that comes with others, and is mended": func(t *testing.T, p *play) {
			p.world.Set(lds, "l", deltaxdstest.Facts{Filters: []string{"f", "g", "h"}})
			p.world.Set(ecds, "f", deltaxdstest.Facts{Bad: true})
			p.world.Set(ecds, "g", deltaxdstest.Facts{})
			p.world.Set(ecds, "h", deltaxdstest.Facts{})
			p.rest(t)
			p.world.Set(ecds, "f", deltaxdstest.Facts{})
		},
		"a filter goes with the listener that names it": func(t *testing.T, p *play) {
			p.world.Set(ecds, "f", deltaxdstest.Facts{})
			p.world.Set(lds, "l", deltaxdstest.Facts{Filters: []string{"f"}})
			p.rest(t)
			p.world.Delete(ecds, "f") // first, and all the same last on the wire
			p.world.Set(lds, "l", deltaxdstest.Facts{})
			if resp := p.stream.Next(); resp == nil || resp.GetTypeUrl() != lds {
				t.Fatalf("the filter is taken from a listener that is in use: %v", resp)
			} else {
				p.down = append(p.down, resp.DeltaDiscoveryResponse)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				p := newPlay(seed)
				happens(t, p)
				p.rest(t)
				wrong := p.world.Compare(p.envoy)
				for url, st := range p.stream.Status() {
					if st.Pending || st.Error != "" {
						wrong = append(wrong, url+" is not settled")
					}
				}
				if len(wrong) > 0 {
					t.Fatalf("seed %d:\n%s", seed, strings.Join(wrong, "\n"))
				}
			}
		})
	}
}
