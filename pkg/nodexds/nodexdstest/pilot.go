package nodexdstest

import (
	"crypto/x509"
	"sync"

	nodev1 "github.com/bulwark-mesh/bulwark/pkg/api/node/v1"
	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/nodexds"
)

// Pilot is a server with one layer, which all pods have, of one agent. It speaks as Pilot does, and checks nothing.
type Pilot struct {
	nodev1.UnimplementedNodeConfigurationServer

	mu        sync.Mutex
	resources map[string]map[string]*deltaxds.Resource
	peers     []*x509.Certificate // of streams; nil without TLS
	sent      int                 // resources
	strange   bool                // pods that come are unknown
	session   *nodexds.Session    // of the last stream
	wake      chan struct{}
	proxies   map[string]*proxy // by the pod's UID, as the agent has said
}

type proxy struct {
	id    string
	types map[string]*nodev1.Type
}

const layer = "everything"

// NewPilot returns a Pilot that has nothing.
func NewPilot() *Pilot { return &Pilot{resources: map[string]map[string]*deltaxds.Resource{}} }

// Follow implements NodeConfiguration.
func (p *Pilot) Follow(rpc nodev1.NodeConfiguration_FollowServer) error {
	certificate, _ := mtls.PeerCertificate(rpc.Context()) // none without TLS
	p.mu.Lock()
	p.peers, p.sent = append(p.peers, certificate), 0
	p.session, p.wake, p.proxies = nodexds.NewSession(p), make(chan struct{}, 1), map[string]*proxy{}
	session, wake := p.session, p.wake
	p.mu.Unlock()
	reports, failed := make(chan *nodev1.Report), make(chan error, 1)
	go func() { // ends with the stream, which gRPC ends when the call returns
		for {
			r, err := rpc.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case reports <- r:
			case <-rpc.Context().Done():
				return
			}
		}
	}()
	for opening := true; ; {
		select {
		case r := <-reports:
			p.hear(session, r, opening)
			opening = opening && r.GetMore()
		case <-wake:
		case err := <-failed:
			return err
		case <-rpc.Context().Done():
			return rpc.Context().Err()
		}
		if opening {
			continue
		}
		for _, part := range p.next(session) {
			if err := rpc.SendMsg(part); err != nil {
				return err
			}
		}
	}
}

func (p *Pilot) next(session *nodexds.Session) []*nodexds.Outgoing {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := session.Next()
	if u == nil {
		return nil
	}
	for _, c := range u.Changes {
		p.sent += len(c.Resources)
	}
	return u.Parts()
}

func (p *Pilot) hear(session *nodexds.Session, r *nodev1.Report, opening bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if opening {
		session.Open(r)
	}
	session.Take(r)
	for _, pod := range r.GetPods() {
		if pod.GetGone() {
			session.Forget(pod.GetUid())
		} else if !p.strange {
			session.Speak(pod.GetUid(), []string{layer}, "")
		}
	}
	for _, said := range r.GetProxies() {
		known := p.proxies[said.GetUid()]
		if known == nil || known.id != said.GetNodeId() || said.GetConnected() == nil {
			known = &proxy{said.GetNodeId(), map[string]*nodev1.Type{}}
			p.proxies[said.GetUid()] = known
		}
		for _, t := range said.GetTypes() {
			known.types[t.GetType()] = t
		}
	}
}

// Resources implements nodexds.Layers. It is called with mu held, as Resource is.
func (p *Pilot) Resources(_ string, yield func(string, *deltaxds.Resource)) {
	for url, of := range p.resources {
		for _, r := range of {
			yield(url, r)
		}
	}
}

// Resource implements nodexds.Layers.
func (p *Pilot) Resource(_, url, name string) *deltaxds.Resource { return p.resources[url][name] }

// Set makes or changes a resource.
func (p *Pilot) Set(url string, r *deltaxds.Resource) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resources[url] == nil {
		p.resources[url] = map[string]*deltaxds.Resource{}
	}
	p.resources[url][r.Name] = r
	p.changed(url, r.Name)
}

// Remove removes a resource.
func (p *Pilot) Remove(url, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.resources[url], name)
	p.changed(url, name)
}

func (p *Pilot) changed(url, name string) {
	if p.session != nil && p.session.Mark(layer, url, name) {
		p.awake()
	}
}

func (p *Pilot) awake() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Estrange has pods that come from now on be unknown.
func (p *Pilot) Estrange() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.strange = true
}

// Meet has an unknown pod be known.
func (p *Pilot) Meet(uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session.Speak(uid, []string{layer}, "")
	p.awake()
}

// Status is what the proxy of a pod has by the agent's word.
func (p *Pilot) Status(uid, url string) *nodev1.Type {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.proxies[uid]; known != nil {
		return known.types[url]
	}
	return nil
}

// Sent is the number of resources that were sent on the last stream.
func (p *Pilot) Sent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// Peers are the certificates of those who have called, in the order of their streams.
func (p *Pilot) Peers() []*x509.Certificate {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peers
}
