package deltaxds

import (
	"context"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"k8s.io/utils/clock"
)

// Source says what one client may have. Its methods are called from the stream's goroutine and must not block.
type Source interface {
	// Resource returns a resource; nil with known set means that it does not exist, which the client is told. While
	// known is false the client hears nothing and goes on waiting.
	Resource(typeURL, name string) (r *Resource, known bool)
	// Wildcard returns the names that a wildcard subscription of the type covers.
	Wildcard(typeURL string) (names []string, known bool)
	// Subscribed is told of every change in what the client has asked for.
	Subscribed(typeURL string, added, removed []string)
}

// Witness is a Source that wants to know what the client really has. Like its other methods these are called from the
// stream's goroutine.
type Witness interface {
	Source
	// Took says which versions of resources the client has, by name: those it has just taken, or, when it opens the
	// stream, those it says it had before.
	Took(typeURL string, versions map[string]string)
	// Refused says which version the client will not have, and why. It keeps what it had.
	Refused(typeURL string, versions map[string]string, reason string)
}

// Follower is a Source that is told after every step of the stream: what Status returns may have changed.
type Follower interface {
	Source
	Stepped()
}

// RPC is the server's side of a delta discovery stream: DeltaAggregatedResources, DeltaSecrets and their kin.
type RPC interface {
	Context() context.Context
	Send(*discovery.DeltaDiscoveryResponse) error
	Recv() (*discovery.DeltaDiscoveryRequest, error)
}

// Sharing is an RPC on a server that has Codec. It is sent responses by SendShared, and never by Send.
type Sharing interface {
	RPC
	SendShared(*Response) error
}

// Status is what a client has of one type.
type Status struct {
	Subscribed int    `json:"subscribed"`
	Sent       int    `json:"sent"`               // responses sent
	Acked      int    `json:"acked"`              // responses taken
	Nacked     int    `json:"nacked"`             // responses refused
	Error      string `json:"error,omitempty"`    // why something that the client should have is refused
	Resource   string `json:"resource,omitempty"` // what that is, once it is known
	Pending    bool   `json:"pending"`            // something is unsent or unanswered
}

// Stream is one client. Dirty, Change and Status may be called from any goroutine, and the other methods from one at
// a time.
type Stream struct {
	source Source
	clock  clock.Clock
	wake   chan struct{} // capacity one: there is something dirty

	mu      sync.Mutex
	session *session
	busy    time.Duration // how long Serve has not listened
}

// NewStream returns a stream that has not asked for anything yet.
func NewStream(source Source, cl clock.Clock) *Stream {
	return &Stream{source: source, clock: cl, wake: make(chan struct{}, 1), session: newSession(source)}
}

// Dirty says that resources of a type may have changed, come or gone. It never blocks, and costs the stream one look at
// each name, however often it is said before the client takes the change.
func (s *Stream) Dirty(typeURL string, names ...string) {
	s.mu.Lock()
	s.session.mark(typeURL, names)
	s.mu.Unlock()
	s.awake()
}

// News is what may differ for a client: all that it has asked for, or names by type.
type News struct {
	Everything bool
	Names      map[string][]string
}

// Change runs what alters the answers of the sources of streams, and has each look at what it returns for it. This comes between two steps of
// every stream, so that no client is sent a resource of the new state before what that refers to. It must not be called by two at a time
// for the same streams, nor from a source.
func Change(streams []*Stream, change func() map[*Stream]News) {
	for _, s := range streams {
		s.mu.Lock()
	}
	for s, news := range change() {
		if news.Everything {
			s.session.everything()
		}
		for url, names := range news.Names {
			s.session.mark(url, names)
		}
		s.awake()
	}
	for _, s := range streams {
		s.mu.Unlock()
	}
}

func (s *Stream) awake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Status returns what the client has, by type URL.
func (s *Stream) Status() map[string]Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]Status, len(s.session.types))
	for url, sub := range s.session.types {
		st := sub.status
		st.Subscribed = max(len(sub.names), len(sub.said))
		st.Pending = sub.pending() || len(s.session.dirty[url]) > 0
		out[url] = st
	}
	return out
}

// Take brings the stream up to date with a request. Serve calls it; it is there by itself, like Next, for whoever has the
// requests from elsewhere.
func (s *Stream) Take(req *discovery.DeltaDiscoveryRequest) {
	s.mu.Lock()
	h := s.session.take(req)
	s.mu.Unlock()
	url := req.GetTypeUrl()
	if len(h.added)+len(h.removed) > 0 || h.first {
		s.source.Subscribed(url, h.added, h.removed)
	}
	if w, ok := s.source.(Witness); ok {
		if len(h.took) > 0 {
			w.Took(url, h.took)
		}
		if len(h.refused) > 0 {
			w.Refused(url, h.refused, h.reason)
		}
	}
	s.stepped()
}

// Next returns a response to send now, or nil if there is none. It counts as sent.
func (s *Stream) Next() *Response {
	s.mu.Lock()
	resp := s.session.next(s.now())
	s.mu.Unlock()
	s.stepped()
	return resp
}

// Stalled returns what the client has left unanswered for too long, or nil.
func (s *Stream) Stalled() *Stalled {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session.stalled(s.now())
}

// now is the time by which a client's silence is measured: it stands while Serve is at work and could not hear the client. A server that
// has a thousand clients to make responses for would take itself for a thousand clients that hang. It is called with mu held.
func (s *Stream) now() time.Time { return s.clock.Now().Add(-s.busy) }

// worked adds to the time in which Serve did not listen.
func (s *Stream) worked(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy += d
}

func (s *Stream) stepped() {
	if f, ok := s.source.(Follower); ok {
		f.Stepped()
	}
}

// Serve speaks with the client until the stream ends; first, if not nil, is a request that was read already. It returns
// nil when the client hung up, and a *Stalled when it does not answer.
func (s *Stream) Serve(rpc RPC, first *discovery.DeltaDiscoveryRequest) error {
	ctx := rpc.Context()
	requests, failed := receive(rpc)
	out, sent := make(chan *Response), make(chan error, 1)
	defer close(out)
	// Sending waits for the client's flow control, and reading what it says and watching the clock must not. The goroutine
	// ends, if it is in the midst of sending, when gRPC ends the stream because Serve has returned.
	go func() {
		for resp := range out {
			sent <- send(rpc, resp)
		}
	}()
	listened := s.clock.Now() // when Serve last did
	if first != nil {
		s.Take(first)
	}
	for sending := false; ; {
		if !sending {
			if resp := s.Next(); resp != nil {
				out <- resp
				sending = true
			}
		}
		s.worked(s.clock.Now().Sub(listened))
		if stalled := s.Stalled(); stalled != nil {
			return stalled
		}
		alarm := s.alarm(sending)
		var heard *discovery.DeltaDiscoveryRequest
		select {
		case heard = <-requests:
		case <-s.wake:
		case err := <-sent:
			if err != nil {
				return err
			}
			sending = false
		case <-alarm.C():
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return ignoreEOF(err)
		case <-ctx.Done():
			return nil
		}
		alarm.Stop()
		listened = s.clock.Now()
		if heard != nil {
			s.Take(heard)
		}
	}
}

// alarm rings when something is to be done although nothing has happened.
func (s *Stream) alarm(sending bool) clock.Timer {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	at, ok := s.session.limit()
	if due, waits := s.session.due(now); waits && !sending && (!ok || due.Before(at)) {
		at, ok = due, true
	}
	if !ok {
		return silent{}
	}
	return s.clock.NewTimer(max(at.Sub(now), time.Millisecond))
}

// silent is a timer that never rings.
type silent struct{ clock.Timer }

func (silent) C() <-chan time.Time { return nil }
func (silent) Stop() bool          { return false }

// receive reads requests until the stream's context ends, which gRPC does when the call returns.
func receive(rpc RPC) (<-chan *discovery.DeltaDiscoveryRequest, <-chan error) {
	requests, failed := make(chan *discovery.DeltaDiscoveryRequest), make(chan error, 1)
	go func() {
		for {
			req, err := rpc.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-rpc.Context().Done():
				return
			}
		}
	}()
	return requests, failed
}

func send(rpc RPC, resp *Response) error {
	if sharing, ok := rpc.(Sharing); ok {
		return sharing.SendShared(resp)
	}
	return rpc.Send(resp.DeltaDiscoveryResponse)
}
