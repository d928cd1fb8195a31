package push

import (
	"strings"
	"time"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// What an agent says is kept, so it is bounded.
const (
	maxPods = 2000 // of a node; kubelet's own limit is in the hundreds
	maxText = 1000
)

// stall is what an agent says of a proxy that does not take its configuration.
type stall struct {
	pod *member
	deltaxds.Stalled
}

// hear takes an agent's report, and returns the proxies that have stalled.
func (s *Store) hear(a *agent, r *nodev1.Report) ([]stall, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, said := range r.GetPods() {
		if !said.GetGone() {
			if err := a.add(said); err != nil {
				return nil, err
			}
		} else if p := a.pods[said.GetUid()]; p != nil {
			a.remove(p)
		}
	}
	a.session.Take(r)
	var stalls []stall
	for _, said := range r.GetProxies() {
		p := a.pods[said.GetUid()]
		if p == nil {
			continue
		}
		var connected time.Time
		if said.GetConnected() != nil {
			connected = said.GetConnected().AsTime()
		}
		p.report(bounded(said.GetNodeId()), connected)
		for _, t := range said.GetTypes() {
			p.progress(t)
		}
		if stalled := said.GetStalled(); stalled != nil {
			stalls = append(stalls, stall{p, deltaxds.Stalled{Type: bounded(stalled.GetType()), Names: stalled.GetNames(),
				For: time.Duration(stalled.GetSeconds() * float64(time.Second)), Waits: bounded(stalled.GetWaits())}})
		}
	}
	a.catchUp()
	a.awake() // what it has received, another may follow
	return stalls, nil
}

// subjectsAmong are the pods of some UIDs that have their configuration from here ("namespace/name").
func (s *Store) subjectsAmong(a *agent, uids []string) (out []string) {
	if len(uids) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, uid := range uids {
		if p := a.pods[uid]; p != nil && p.admitted {
			out = append(out, p.id)
		}
	}
	return out
}

// report notes which proxy a pod has; none if connected is zero.
func (p *member) report(proxy string, connected time.Time) {
	if p.proxy == proxy && p.connected.Equal(connected) {
		return
	}
	s := p.agent.store
	if !p.connected.IsZero() {
		s.proxies--
	}
	if !connected.IsZero() {
		s.proxies++
		s.log.Info("proxy connected", "node", proxy, "pod", p.id)
	}
	s.metrics.connections.Set(float64(s.proxies))
	p.proxy, p.connected, p.types = proxy, connected, map[string]deltaxds.Status{}
	s.enlist(p)
}

// progress notes what the proxy has of a type.
func (p *member) progress(t *nodev1.Type) {
	url := t.GetType()
	if shortNames[url] == "" || p.connected.IsZero() {
		return
	}
	was, is := p.types[url], deltaxds.Status{
		Subscribed: int(t.GetSubscribed()), Sent: int(t.GetSent()), Acked: int(t.GetAcked()), Nacked: int(t.GetNacked()), Pending: t.GetPending(),
		Resource: bounded(t.GetRefused()), Error: bounded(t.GetReason()),
	}
	p.types[url] = is
	if is.Error != "" && (is.Error != was.Error || is.Resource != was.Resource) {
		p.agent.store.log.Warn("a proxy refuses configuration", "pod", p.id, "type", short(url), "resource", is.Resource, "reason", is.Error)
	}
}

func bounded(text string) string { return strings.ToValidUTF8(text[:min(len(text), maxText)], "") }
