package push

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// ProxyStatus is what a proxy has, for the operator.
type ProxyStatus struct {
	Proxy       string                     `json:"proxy"` // <pod>.<namespace>
	Node        string                     `json:"node"`
	Identity    string                     `json:"identity"`
	ConnectedAt time.Time                  `json:"connectedAt"`
	Types       map[string]deltaxds.Status `json:"types"` // CDS, EDS, LDS, RDS
	Synced      bool                       `json:"synced"`
}

// Proxies lists the proxies that are connected to their agents, or have stalled.
func (s *Store) Proxies() []ProxyStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []ProxyStatus{}
	for a := range s.agents {
		for _, p := range a.pods {
			if p.admitted && !p.connected.IsZero() {
				out = append(out, p.status())
			}
		}
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int {
		return cmp.Or(cmp.Compare(a.Proxy, b.Proxy), a.ConnectedAt.Compare(b.ConnectedAt))
	})
	return out
}

// status is what the proxy has: what the agent has said of it, unless something is under way that the agent has not spoken of yet.
func (p *member) status() ProxyStatus {
	out := ProxyStatus{Proxy: proxyName(p.id), Node: p.proxy, Identity: p.identity.String(), ConnectedAt: p.connected, Types: map[string]deltaxds.Status{},
		Synced: p.asked(deltaxds.ClusterType) && p.asked(deltaxds.ListenerType)}
	for url, st := range p.types {
		st.Pending = st.Pending || p.agent.session.Behind(p.uid, url)
		out.Types[strings.ToUpper(short(url))] = st
		out.Synced = out.Synced && !st.Pending && st.Error == ""
	}
	return out
}

func (p *member) asked(url string) bool { _, ok := p.types[url]; return ok }

// podID is the pod ("namespace/name") of the proxy of a name; neither a namespace's nor a pod's name may hold what would be ambiguous: a namespace has no dot.
func podID(proxy string) string {
	i := strings.LastIndexByte(proxy, '.')
	return proxy[i+1:] + "/" + proxy[:max(0, i)]
}

func proxyName(pod string) string {
	namespace, name, _ := strings.Cut(pod, "/")
	return name + "." + namespace
}

// Config returns the resources of a proxy ("<pod>.<namespace>"), by type. Secrets are none of Pilot's.
func (s *Store) Config(proxy string) (map[string][]json.RawMessage, error) {
	resources, ok := s.resourcesOf(proxy)
	if !ok {
		return nil, fmt.Errorf("proxy %q is not connected", proxy)
	}
	out := map[string][]json.RawMessage{}
	for _, typeURL := range dumped {
		for _, r := range resources[typeURL] {
			msg, err := r.Body().UnmarshalNew()
			if err != nil {
				return nil, fmt.Errorf("resource %s: %w", r.Name, err)
			}
			text, err := protojson.Marshal(msg)
			if err != nil {
				return nil, fmt.Errorf("resource %s: %w", r.Name, err)
			}
			out[strings.ToUpper(short(typeURL))] = append(out[strings.ToUpper(short(typeURL))], text)
		}
	}
	return out, nil
}

var dumped = []string{deltaxds.ClusterType, deltaxds.EndpointType, deltaxds.ListenerType, deltaxds.RouteType, deltaxds.ExtensionConfigType}

// resourcesOf collects what a proxy is to have.
func (s *Store) resourcesOf(proxy string) (out map[string][]*deltaxds.Resource, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.agents {
		for _, p := range a.pods {
			if !p.admitted || proxyName(p.id) != proxy {
				continue
			}
			out = map[string][]*deltaxds.Resource{}
			for _, typeURL := range dumped {
				for _, id := range s.catalog.All(p.subject, typeURL) {
					if r := s.get(id); r != nil {
						out[typeURL] = append(out[typeURL], r)
					}
				}
			}
			return out, true
		}
	}
	return nil, false
}
