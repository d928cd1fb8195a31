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

// Proxies lists the connected proxies.
func (s *Store) Proxies() []ProxyStatus {
	out := []ProxyStatus{}
	for _, c := range s.connected() {
		p := ProxyStatus{Proxy: proxyName(c.pod), Node: c.node, Identity: c.identity.String(), ConnectedAt: c.since,
			Types: map[string]deltaxds.Status{}, Synced: true}
		for url, st := range c.stream.Status() {
			p.Types[strings.ToUpper(short(url))] = st
			p.Synced = p.Synced && !st.Pending && st.Error == ""
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b ProxyStatus) int {
		return cmp.Or(cmp.Compare(a.Proxy, b.Proxy), a.ConnectedAt.Compare(b.ConnectedAt))
	})
	return out
}

func (s *Store) connected() []*client {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*client, 0, len(s.clients))
	for c := range s.clients {
		out = append(out, c)
	}
	return out
}

func proxyName(pod string) string {
	namespace, name, _ := strings.Cut(pod, "/")
	return name + "." + namespace
}

// Config returns the resources of a connected proxy ("<pod>.<namespace>"), by type. Secrets are none of Pilot's.
func (s *Store) Config(proxy string) (map[string][]json.RawMessage, error) {
	for _, c := range s.connected() {
		if proxyName(c.pod) == proxy {
			return s.dump(c)
		}
	}
	return nil, fmt.Errorf("proxy %q is not connected", proxy)
}

func (s *Store) dump(c *client) (map[string][]json.RawMessage, error) {
	out := map[string][]json.RawMessage{}
	for _, typeURL := range []string{deltaxds.ClusterType, deltaxds.EndpointType, deltaxds.ListenerType, deltaxds.ExtensionConfigType} {
		for _, r := range s.resourcesOf(c, typeURL) {
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

// resourcesOf collects what a client may have.
func (s *Store) resourcesOf(c *client, typeURL string) []*deltaxds.Resource {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*deltaxds.Resource
	for _, id := range s.catalog.All(c.subject, typeURL) {
		if r := s.get(id); r != nil {
			out = append(out, r)
		}
	}
	return out
}
