package push

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bulwark-mesh/bulwark/pilot/internal/catalog"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// agent is a connected one, with the pods of its node. Beside wake, all of it is guarded by the store's mu.
type agent struct {
	store  *Store
	pod    spiffe.Pod             // its own, by its certificate
	most   int                    // pods that all agents together may have
	module translate.ModuleSource // of its pods' proxies
	wake   chan struct{}          // capacity one: there may be something to send

	session *nodexds.Session
	pods    map[string]*member       // by UID
	layers  map[string]catalog.Layer // of its pods, by the names that the agent knows
	having  map[catalog.Layer]int    // how many of them have it
	waiting time.Time                // when the oldest change came that is not sent yet
	lagging map[*member]bool         // whose proxies have not taken all that their classes have
}

// member is a pod of an agent's node, with what the agent has said of its proxy.
type member struct {
	agent    *agent
	id, uid  string
	admitted bool // it is bound to the node, and subject is what it has
	refused  string
	subject  catalog.Subject
	identity spiffe.ID

	proxy     string // its node ID
	connected time.Time
	types     map[string]deltaxds.Status
	standing  standing
}

func newAgent(s *Store, own spiffe.Pod, most int) *agent {
	a := &agent{
		store: s, pod: own, most: most, wake: make(chan struct{}, 1), pods: map[string]*member{}, layers: map[string]catalog.Layer{},
		having: map[catalog.Layer]int{}, lagging: map[*member]bool{},
	}
	a.session = nodexds.NewSession(a)
	return a
}

// Resources implements nodexds.Layers.
func (a *agent) Resources(layer string, yield func(string, *deltaxds.Resource)) {
	for _, r := range a.store.catalog.In(a.layers[layer]) {
		if made := a.store.get(r); made != nil {
			yield(r.Type(), made)
		}
	}
}

// Resource implements nodexds.Layers.
func (a *agent) Resource(layer, typeURL, name string) *deltaxds.Resource {
	if r := a.store.catalog.At(a.layers[layer], typeURL, name); r != nil {
		return a.store.get(r)
	}
	return nil
}

// connect takes an agent in that has said what it has. It is to be disconnected, also after an error.
func (s *Store) connect(a *agent, opening []*nodev1.Report) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.agents[a] = true
	a.module = translate.ModuleLeft(opening[0].GetModule())
	for _, r := range opening {
		a.session.Open(r)
	}
	for _, r := range opening {
		for _, p := range r.GetPods() {
			if err := a.add(p); err != nil {
				return err
			}
		}
	}
	a.awake()
	return nil
}

// disconnect forgets an agent.
func (s *Store) disconnect(a *agent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.agents, a)
	for _, p := range a.pods {
		delete(s.full, p)
	}
	for _, p := range a.pods {
		a.remove(p)
	}
}

func (a *agent) awake() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// add adds a pod that the agent says it has.
func (a *agent) add(said *nodev1.Pod) error {
	switch {
	case a.pods[said.GetUid()] != nil:
		return nil
	case len(a.pods) >= maxPods:
		return status.Errorf(codes.ResourceExhausted, "a node has %d pods at most", maxPods)
	case len(said.GetUid()) > maxText || len(said.GetName()) > maxText:
		return status.Errorf(codes.InvalidArgument, "no pod has a name or UID of more than %d bytes", maxText)
	}
	p := &member{agent: a, id: said.GetName(), uid: said.GetUid()}
	a.pods[p.uid] = p
	of := a.store.pods[p.id]
	if of == nil {
		of = map[*member]bool{}
		a.store.pods[p.id] = of
	}
	of[p] = true
	a.store.look(p)
	return nil
}

// remove forgets a pod that the agent does not have any more.
func (a *agent) remove(p *member) {
	delete(a.store.full, p)
	a.store.withdraw(p)
	p.report("", time.Time{})
	delete(a.pods, p.uid)
	if of := a.store.pods[p.id]; of != nil {
		if delete(of, p); len(of) == 0 {
			delete(a.store.pods, p.id)
		}
	}
	a.session.Forget(p.uid)
	a.awake()
}

// look finds out whether an agent's pod is its node's, and what its proxy has then. A pod that is not known yet, or whose name is still
// another's, is looked at again when it is; one that there was no room for, when another has gone.
func (s *Store) look(p *member) {
	now := s.catalog.Snapshot().Pod(p.id)
	switch {
	case now == nil: // the proxy of a pod that was deleted drains with what it has
	case now.UID != p.uid:
		if p.admitted {
			s.refuse(p, "another pod has its name", "unauthorized")
		}
	case now.Node != p.agent.pod.Node:
		s.refuse(p, "it is not bound to the node", "unauthorized")
	case p.admitted:
		s.move(p, now)
	case s.admitted >= p.agent.most:
		s.full[p] = true
		s.refuse(p, fmt.Sprintf("%d pods have their configuration from here already", s.admitted), "full")
	default:
		s.admit(p, now)
	}
}

func (s *Store) admit(p *member, now *registry.Pod) {
	s.admitted++
	p.admitted, p.refused, p.subject = true, "", s.catalog.Join(now, p.agent.module)
	p.identity = spiffe.ID{TrustDomain: s.settings.TrustDomain, Namespace: now.Namespace, ServiceAccount: now.ServiceAccount}
	delete(s.full, p)
	p.agent.hold(p.subject)
	p.agent.speak(p)
	s.enlist(p)
}

// move has a pod that has changed be the subject that it is now.
func (s *Store) move(p *member, now *registry.Pod) {
	was := p.subject
	subject, gone := s.catalog.Follow(was, now)
	if subject == was {
		return
	}
	p.subject = subject
	p.agent.hold(subject)
	p.agent.release(was)
	s.forget(gone)
	p.agent.speak(p)
	if was.Class() != subject.Class() {
		s.enlist(p)
	}
}

// refuse has a pod's proxy have nothing from here, and tells the agent why.
func (s *Store) refuse(p *member, reason, counted string) {
	if p.refused == reason {
		return
	}
	s.withdraw(p)
	p.refused = reason
	s.metrics.refused.WithLabelValues(counted).Inc()
	s.log.Warn("refused a pod", "pod", p.id, "uid", p.uid, "node", p.agent.pod.Node, "agent", p.agent.pod.Name, "reason", reason)
	p.agent.session.Speak(p.uid, nil, reason)
	p.agent.awake()
}

// withdraw has a pod be no subject any more, which makes room for another.
func (s *Store) withdraw(p *member) {
	if !p.admitted {
		return
	}
	s.admitted--
	p.admitted = false
	s.enlist(p)
	p.agent.release(p.subject)
	s.forget(s.catalog.Leave(p.subject))
	for other := range s.full {
		delete(s.full, other)
		other.refused = ""
		if s.look(other); other.admitted {
			break
		}
	}
}

func (a *agent) speak(p *member) {
	var names []string
	for _, l := range p.subject.Layers() {
		names = append(names, l.String())
	}
	a.session.Speak(p.uid, names, "")
	a.changed(time.Now())
}

// changed says that there may be something to send.
func (a *agent) changed(now time.Time) {
	if a.waiting.IsZero() {
		a.waiting = now
	}
	a.awake()
}

// hold has an agent hear of what a subject has.
func (a *agent) hold(s catalog.Subject) {
	for _, l := range s.Layers() {
		if a.having[l]++; a.having[l] > 1 {
			continue
		}
		a.layers[l.String()] = l
		if a.store.following[l] == nil {
			a.store.following[l] = map[*agent]bool{}
		}
		a.store.following[l][a] = true
	}
}

func (a *agent) release(s catalog.Subject) {
	for _, l := range s.Layers() {
		if a.having[l]--; a.having[l] > 0 {
			continue
		}
		delete(a.having, l)
		delete(a.layers, l.String())
		if delete(a.store.following[l], a); len(a.store.following[l]) == 0 {
			delete(a.store.following, l)
		}
	}
}

// next returns what is to be sent now, or nil, and since when it has waited.
func (s *Store) next(a *agent) (u *nodexds.Outgoing, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u = a.session.Next(); u != nil || !a.session.Waits() {
		since, a.waiting = a.waiting, time.Time{}
	}
	if u == nil {
		a.catchUp() // what turned out to be the same is not waited for
	}
	return u, since
}

// owes says whether an update is on its way to an agent.
func (s *Store) owes(a *agent) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.session.Waits()
}
