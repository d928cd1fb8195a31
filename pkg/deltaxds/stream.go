package deltaxds

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
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
	// Refused says which versions the client will not have, and why. It keeps what it had.
	Refused(typeURL string, versions map[string]string, reason string)
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
	Sent       int    `json:"sent"`            // responses sent
	Acked      int    `json:"acked"`           // responses taken
	Nacked     int    `json:"nacked"`          // responses refused
	Error      string `json:"error,omitempty"` // why the last response was refused
	Pending    bool   `json:"pending"`         // something is unsent or unanswered
}

// Stream is one client. Dirty and Status may be called from any goroutine.
type Stream struct {
	source Source

	mu    sync.Mutex
	dirty map[string]map[string]bool // type → names that may have changed since they were last looked at
	wake  chan struct{}              // capacity one: there is something dirty

	types map[string]*subscription // guarded by mu: read by Status
	nonce int
}

type subscription struct {
	wildcard bool
	names    map[string]bool       // subscribed by name
	versions map[string]string     // what the client has, by our last word
	unsaid   map[string]bool       // names to look at when the type may be sent
	answered bool                  // a wildcard subscription is answered even when there is nothing
	inFlight string                // nonce of the response the client has not answered yet
	sent     []*discovery.Resource // what is in that response, if the source is a Witness
	status   Status
}

// NewStream returns a stream that has not asked for anything yet.
func NewStream(source Source) *Stream {
	return &Stream{source: source, dirty: map[string]map[string]bool{}, wake: make(chan struct{}, 1), types: map[string]*subscription{}}
}

// Dirty says that resources of a type may have changed, come or gone. It never blocks, and costs the stream one look at
// each name, however often it is said before the client takes the change.
func (s *Stream) Dirty(typeURL string, names ...string) {
	s.mu.Lock()
	set := s.dirty[typeURL]
	if set == nil {
		set = map[string]bool{}
		s.dirty[typeURL] = set
	}
	for _, n := range names {
		set[n] = true
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Status returns what the client has, by type URL.
func (s *Stream) Status() map[string]Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]Status, len(s.types))
	for url, sub := range s.types {
		st := sub.status
		st.Subscribed = max(len(sub.names), len(sub.versions))
		st.Pending = sub.inFlight != "" || len(sub.unsaid) > 0 || len(s.dirty[url]) > 0
		out[url] = st
	}
	return out
}

// Serve speaks with the client until the stream ends; first, if not nil, is a request that was read already. It returns
// nil when the client hung up.
func (s *Stream) Serve(rpc RPC, first *discovery.DeltaDiscoveryRequest) error {
	ctx := rpc.Context()
	requests := make(chan *discovery.DeltaDiscoveryRequest)
	failed := make(chan error, 1)
	go func() { // ends with the stream's context, which gRPC cancels when Serve returns
		for {
			req, err := rpc.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	if first != nil {
		s.take(first)
	}
	for {
		if err := s.flush(rpc); err != nil {
			return err
		}
		select {
		case req := <-requests:
			s.take(req)
		case <-s.wake:
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return ignoreEOF(err)
		case <-ctx.Done():
			return nil
		}
	}
}

// take brings the state up to date with a request: an answer to a response, a change of subscription, or both.
func (s *Stream) take(req *discovery.DeltaDiscoveryRequest) {
	url := req.GetTypeUrl()
	s.mu.Lock()
	sub, known := s.types[url]
	if !known {
		sub = &subscription{names: map[string]bool{}, versions: map[string]string{}, unsaid: map[string]bool{}}
		s.types[url] = sub
		// A client that reconnects names what it has, and is not sent that again.
		maps.Copy(sub.versions, req.GetInitialResourceVersions())
	}
	took, refused := map[string]string(nil), map[string]string(nil)
	if !known && len(req.GetInitialResourceVersions()) > 0 {
		took = req.GetInitialResourceVersions()
	}
	if req.GetResponseNonce() != "" && req.GetResponseNonce() == sub.inFlight {
		sub.inFlight = ""
		if req.GetErrorDetail() != nil {
			sub.status.Nacked++
			sub.status.Error = req.GetErrorDetail().GetMessage()
			refused = versionsOf(sub.sent)
		} else {
			sub.status.Acked++
			sub.status.Error = ""
			took = versionsOf(sub.sent)
		}
		sub.sent = nil
	}
	var added, removed []string
	subscribe := req.GetResourceNamesSubscribe()
	if !known && len(subscribe) == 0 && (url == ClusterType || url == ListenerType) {
		subscribe = []string{"*"} // the older way of asking for everything
	}
	for _, name := range subscribe {
		if name == "*" {
			sub.wildcard, sub.answered = true, false
		} else {
			sub.names[name] = true
			added = append(added, name)
		}
		if known {
			delete(sub.versions, name) // asked for anew, so it is sent anew
		}
		sub.unsaid[name] = true
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == "*" {
			sub.wildcard = false
		} else {
			delete(sub.names, name)
			removed = append(removed, name)
		}
		delete(sub.versions, name)
		delete(sub.unsaid, name)
	}
	if sub.wildcard && sub.unsaid["*"] {
		delete(sub.unsaid, "*")
		for name := range sub.versions {
			sub.unsaid[name] = true // to be told of what has gone meanwhile
		}
	}
	s.mu.Unlock()
	if len(added)+len(removed) > 0 || !known {
		s.source.Subscribed(url, added, removed)
	}
	if w, ok := s.source.(Witness); ok {
		if len(took) > 0 {
			w.Took(url, took)
		}
		if len(refused) > 0 {
			w.Refused(url, refused, req.GetErrorDetail().GetMessage())
		}
	}
}

// flush sends what may be sent now: one response of a type in flight at a time, what is referred to before what refers to
// it, and removals in the opposite order when nothing else is going on.
//
// Envoy answers for clusters only when they have warmed, which takes their endpoints and secrets. So listeners and routes
// wait for that answer, and nothing else does.
func (s *Stream) flush(rpc RPC) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for url, names := range s.dirty {
		if sub := s.types[url]; sub != nil {
			maps.Copy(sub.unsaid, names)
		}
	}
	clear(s.dirty)
	types := s.ordered()
	for _, url := range types {
		if s.types[url].inFlight != "" || s.mustWait(url) {
			continue
		}
		if resp := s.additions(url); resp != nil {
			if err := s.send(rpc, url, resp); err != nil {
				return err
			}
		}
	}
	for _, url := range slices.Backward(types) {
		for _, sub := range s.types {
			if sub.inFlight != "" {
				return nil // its answer brings us back here
			}
		}
		if resp := s.removals(url); resp != nil {
			if err := s.send(rpc, url, resp); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Stream) mustWait(url string) bool {
	if url != ListenerType && url != RouteType {
		return false
	}
	clusters := s.types[ClusterType]
	return clusters != nil && clusters.inFlight != ""
}

func (s *Stream) ordered() []string {
	var out []string
	for _, url := range order {
		if s.types[url] != nil {
			out = append(out, url)
		}
	}
	var others []string
	for url := range s.types {
		if !slices.Contains(order, url) {
			others = append(others, url)
		}
	}
	slices.Sort(others)
	return append(out, others...)
}

// additions builds a response of what is new or changed; it leaves removals in unsaid.
func (s *Stream) additions(url string) *Response {
	sub := s.types[url]
	resp := &Response{DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{TypeUrl: url}}
	owed := false
	if sub.wildcard && !sub.answered {
		names, known := s.source.Wildcard(url)
		if known {
			sub.answered, owed = true, true
			for _, n := range names {
				sub.unsaid[n] = true
			}
		}
	}
	if len(sub.unsaid) == 0 && !owed {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(sub.unsaid)) {
		if !sub.wildcard && !sub.names[name] {
			delete(sub.unsaid, name)
			continue
		}
		r, known := s.source.Resource(url, name)
		if !known {
			delete(sub.unsaid, name) // it becomes dirty when it is known
			continue
		}
		if r == nil {
			continue
		}
		delete(sub.unsaid, name)
		if sub.versions[name] == r.Version {
			continue
		}
		sub.versions[name] = r.Version
		resp.add(r)
		if url == ClusterType {
			s.warm(name)
		}
	}
	sub.settle()
	if len(resp.Resources) == 0 && !owed {
		return nil
	}
	return resp
}

// settle drops the set of what was unsaid when nothing is: a map that once held every name of a mesh is as slow to list
// as it was then.
func (s *subscription) settle() {
	if len(s.unsaid) == 0 {
		s.unsaid = map[string]bool{}
	}
}

// warm has the endpoints of a cluster sent again: Envoy makes a changed cluster anew, waits for its endpoints and, being
// subscribed to them for the old one, does not ask. Endpoints have the name of their cluster.
func (s *Stream) warm(cluster string) {
	if endpoints := s.types[EndpointType]; endpoints != nil && endpoints.names[cluster] {
		delete(endpoints.versions, cluster)
		endpoints.unsaid[cluster] = true
	}
}

func (s *Stream) removals(url string) *Response {
	sub := s.types[url]
	if len(sub.unsaid) == 0 {
		return nil
	}
	resp := &Response{DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{TypeUrl: url}}
	for _, name := range slices.Sorted(maps.Keys(sub.unsaid)) {
		delete(sub.unsaid, name)
		_, had := sub.versions[name]
		if had || sub.names[name] {
			delete(sub.versions, name)
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
	}
	sub.settle()
	if len(resp.RemovedResources) == 0 {
		return nil
	}
	return resp
}

// send is called with mu held; Send may wait for the client's flow control, so mu is released meanwhile.
func (s *Stream) send(rpc RPC, url string, resp *Response) error {
	s.nonce++
	resp.Nonce = strconv.Itoa(s.nonce)
	s.types[url].inFlight = resp.Nonce
	s.types[url].status.Sent++
	if _, ok := s.source.(Witness); ok {
		s.types[url].sent = resp.GetResources()
	}
	s.mu.Unlock()
	defer s.mu.Lock()
	if sharing, ok := rpc.(Sharing); ok {
		return sharing.SendShared(resp)
	}
	return rpc.Send(resp.DeltaDiscoveryResponse)
}

func versionsOf(resources []*discovery.Resource) map[string]string {
	out := make(map[string]string, len(resources))
	for _, r := range resources {
		out[r.GetName()] = r.GetVersion()
	}
	return out
}
