package identity

import "time"

// Client is one taker of a pod's secrets: a stream on its socket, or the files of a volume.
type Client struct {
	pod    *Identity
	method string
	held   Held
}

// How secrets reach a pod.
const (
	BySocket = "socket"
	ByFiles  = "files"
)

// Held is what a client has taken.
type Held struct {
	Method   string
	Trusts   bool     // it has a trust bundle
	Sequence uint64   // of that bundle; 0 if it is older than the agent knows
	Issuers  []string // authority key IDs (hexadecimal) of the certificates it has
}

// Connect registers a client that has nothing yet. Close it at its end.
func (p *Identity) Connect(method string) *Client {
	c := &Client{pod: p, method: method}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clients[c] = true
	return c
}

// Holds says what the client has now.
func (c *Client) Holds(h Held) {
	h.Method = c.method
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	c.held = h
}

// Close forgets the client.
func (c *Client) Close() {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	delete(c.pod.clients, c)
}

// Delivery says how secrets reach the pod. Every pod has a socket.
func (p *Identity) Delivery() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.clients {
		if c.method == ByFiles {
			return []string{BySocket, ByFiles}
		}
	}
	return []string{BySocket}
}

// Clients returns what each client of the pod has taken, for those that have taken anything.
func (p *Identity) Clients() []Held {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Held
	for c := range p.clients {
		if c.held.Trusts || len(c.held.Issuers) > 0 {
			out = append(out, c.held)
		}
	}
	return out
}

// reconnects is how long a proxy may take to come back to the socket of an agent that was restarted, at its longest
// backoff.
const reconnects = time.Minute

// Restored says that an earlier agent has served the pod: its proxy may hold what this agent knows nothing of.
func (p *Identity) Restored() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.restored = p.issuer.Clock.Now()
}

// Unknown says whether the pod may still hold a certificate or bundle from an earlier agent: until this agent has an SVID
// for it and a client has taken one from its socket, or has had the time to. What the agent writes into files by itself
// says nothing of who has them from elsewhere.
func (p *Identity) Unknown() bool {
	st := p.Status()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.restored.IsZero():
		return false
	case len(st.Certificates) == 0:
		return true
	}
	for c := range p.clients {
		if c.held.Trusts && c.method == BySocket {
			return false
		}
	}
	return p.issuer.Clock.Now().Sub(p.restored) < reconnects
}
