package deltaxds

import (
	"maps"
	"slices"
	"strconv"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// Patience is how long an answer that the client owes may hold back what else there is to say. Envoy answers within
// milliseconds; one that does not must not keep a new policy, or the end of what it waits for, from being sent.
const Patience = 5 * time.Second

const (
	nothing = ""  // our word about a name of which the client knows that there is none
	unknown = "?" // the client has something under the name, and it is not known which version
)

// session is what one client has asked for, what it was told and what it has answered: the protocol as a state machine
// that does no I/O and knows the time only from its caller.
//
// No two waits may wait for each other, so these are all there are, and each ends after Patience:
//   - a type waits for the answer to its last response;
//   - listeners and routes wait for the answer about clusters, which Envoy gives when these have warmed. Envoy asks for clusters first,
//     or, if one warms when it returns, when that has: for this they wait, too;
//   - the removal of a resource the client has waits for what may still refer to it. A client that returns has yet to ask for listeners.
//
// What Envoy needs to warm, endpoints and secrets and the word that there are none, waits for its own type alone, which
// Envoy answers at once.
type session struct {
	source  Source
	dirty   map[string]map[string]bool // type → names that may have changed since they were last looked at
	types   map[string]*subscription
	ordered []string // the types
	nonce   int
	began   time.Time // when there first was something to look for
	returns bool      // the client had clusters when it came
	excused time.Time // until then the client was waiting for us
}

func newSession(source Source) *session {
	return &session{source: source, dirty: map[string]map[string]bool{}, types: map[string]*subscription{}}
}

// heard is what a request says that concerns the source.
type heard struct {
	first          bool // of its type
	added, removed []string
	took, refused  map[string]string
	reason         string
}

// take brings the state up to date with a request: an answer to a response, a change of subscription, or both.
func (s *session) take(req *discovery.DeltaDiscoveryRequest) heard {
	url := req.GetTypeUrl()
	sub := s.types[url]
	out := heard{first: sub == nil}
	subscribe := req.GetResourceNamesSubscribe()
	if out.first {
		sub = newSubscription()
		s.types[url] = sub
		s.ordered = inOrder(s.types)
		s.open(sub, req)
		out.took = req.GetInitialResourceVersions()
		s.returns = s.returns || url == ClusterType && len(out.took) > 0
		if len(subscribe) == 0 && (url == ClusterType || url == ListenerType) {
			subscribe = []string{"*"} // the older way of asking for everything
		}
	}
	if nonce := req.GetResponseNonce(); nonce != "" {
		if i := slices.IndexFunc(sub.inFlight, func(r sent) bool { return r.nonce == nonce }); i >= 0 {
			response := sub.inFlight[i]
			sub.inFlight = slices.Delete(sub.inFlight, i, i+1)
			if req.GetErrorDetail() == nil {
				out.took = versionsOf(response.resources)
				sub.took()
			} else {
				out.reason = bounded(req.GetErrorDetail().GetMessage())
				out.refused = sub.refuse(response, out.reason)
			}
		}
	}
	for _, name := range subscribe {
		if name == "*" {
			sub.wildcard, sub.answered = true, false
			for name := range sub.said {
				sub.unsaid[name] = true // to be told of what has gone meanwhile
			}
			continue
		}
		sub.names[name] = true
		out.added = append(out.added, name)
		if !out.first {
			sub.forget(name) // asked for anew, so it is answered anew
		}
		sub.unsaid[name] = true
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		if name == "*" {
			sub.wildcard = false
			for name := range sub.said {
				if !sub.names[name] {
					sub.forget(name)
				}
			}
			continue
		}
		delete(sub.names, name)
		out.removed = append(out.removed, name)
		sub.forget(name)
		if sub.wildcard { // the client cannot know whether everything includes it
			sub.said[name], sub.unsaid[name] = unknown, true
		}
	}
	return out
}

// mark notes that resources may have changed, come or gone.
func (s *session) mark(url string, names []string) {
	set := s.dirty[url]
	if set == nil {
		set = map[string]bool{}
		s.dirty[url] = set
	}
	for _, n := range names {
		set[n] = true
	}
}

// everything has all looked at that the client has or has asked for, and all that there is where it has asked for that.
func (s *session) everything() {
	for url, sub := range s.types {
		for name := range sub.names {
			sub.unsaid[name] = true
		}
		for name := range sub.said {
			sub.unsaid[name] = true
		}
		if sub.wildcard && sub.answered {
			names, _ := s.source.Wildcard(url)
			for _, name := range names {
				sub.unsaid[name] = true
			}
		}
	}
}

// open notes what a client that reconnects says it has: something under each of the names. In which version is not
// believed, so whatever it asks for is sent again, and Envoy passes over what has not changed. Its word is wrong for
//   - endpoints: those that it had for a cluster count as the changed cluster's, too, which may still wait for its own;
//   - what was in a response that it has refused: it takes some of that, and says that it has what it had before.
func (s *session) open(sub *subscription, req *discovery.DeltaDiscoveryRequest) {
	for name := range req.GetInitialResourceVersions() {
		sub.said[name] = unknown
	}
}

// next returns what may be sent now, or nil: what is referred to before what refers to it, and removals in the opposite
// order. What it returns counts as sent.
func (s *session) next(now time.Time) *Response {
	if s.began.IsZero() {
		s.began = now
	}
	for url, names := range s.dirty {
		if sub := s.types[url]; sub != nil {
			maps.Copy(sub.unsaid, names)
		}
	}
	clear(s.dirty)
	for _, url := range s.ordered {
		if s.unanswered(url, now) || (url == ListenerType || url == RouteType) && s.clustersComeFirst(now) {
			continue
		}
		if resp := s.additions(url, now); resp != nil {
			return s.send(url, resp, now)
		}
	}
	for _, url := range slices.Backward(s.ordered) {
		if s.unanswered(url, now) || s.referred(url, now) {
			continue
		}
		if resp := s.removals(url); resp != nil {
			return s.send(url, resp, now)
		}
	}
	return nil
}

// unanswered says whether the client has yet to answer for a type, and may be waited for.
func (s *session) unanswered(url string, now time.Time) bool {
	sub := s.types[url]
	return sub != nil && len(sub.inFlight) > 0 && now.Sub(sub.inFlight[len(sub.inFlight)-1].at) < Patience
}

// clustersComeFirst says whether what refers to clusters has to wait for them.
func (s *session) clustersComeFirst(now time.Time) bool {
	if s.types[ClusterType] == nil {
		return now.Sub(s.began) < Patience
	}
	return s.unanswered(ClusterType, now)
}

// referrers are the types whose resources refer to those of a type by name and go on doing so until they are replaced.
// Listeners are referred to by none: those that go and those that come are sent together, and Envoy removes first, so
// that a new one may have the address of an old one. Endpoints and secrets go with what they are for; Envoy keeps them.
var referrers = map[string][]string{
	ClusterType:         {ExtensionConfigType, ListenerType, RouteType},
	ExtensionConfigType: {ListenerType},
	RouteType:           {ListenerType},
}

// referred says whether something that the client has may still refer to what has gone, because what replaces it is unsent
// or unanswered. What is not known here yet does not count: it may come only when the client has answered for this.
func (s *session) referred(url string, now time.Time) bool {
	if now.Sub(s.types[url].since) >= Patience {
		return false
	}
	if s.returns && s.types[ListenerType] == nil && len(referrers[url]) > 0 {
		return true
	}
	return slices.ContainsFunc(referrers[url], func(by string) bool {
		sub := s.types[by]
		return sub != nil && len(sub.inFlight)+len(sub.unsaid)+len(sub.again) > 0
	})
}

// inOrder is the types of a session in the order in which they are sent; it is made anew for each that a client comes to ask for.
func inOrder(types map[string]*subscription) []string {
	var out []string
	for _, url := range order {
		if types[url] != nil {
			out = append(out, url)
		}
	}
	var others []string
	for url := range types {
		if !slices.Contains(order, url) {
			others = append(others, url)
		}
	}
	slices.Sort(others)
	return append(out, others...)
}

// additions builds a response of what is new or changed, and of what the client has asked for and does not exist.
// Whoever waits for a name is told at once that there is none; only the removal of what the client has is left to
// removals.
func (s *session) additions(url string, now time.Time) *Response {
	sub := s.types[url]
	resp := newResponse(url)
	if s.retry(url, sub, resp); len(resp.Resources) > 0 {
		return resp
	}
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
	for _, name := range slices.Sorted(maps.Keys(sub.unsaid)) {
		delete(sub.unsaid, name)
		if !sub.wildcard && !sub.names[name] {
			continue
		}
		r, known := s.source.Resource(url, name)
		last, told := sub.said[name]
		switch {
		case !known: // it becomes dirty when it is known
		case r != nil:
			delete(sub.gone, name)
			if last != r.Version {
				s.add(url, resp, r)
			}
		case told && last != nothing:
			s.remove(url, resp, name, now)
		case !told && sub.names[name]:
			sub.said[name] = nothing
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
	}
	sub.settle()
	if len(resp.Resources)+len(resp.RemovedResources) == 0 && !owed {
		return nil
	}
	return resp
}

// retry adds the next part of what was refused together.
func (s *session) retry(url string, sub *subscription, resp *Response) {
	for len(sub.again) > 0 && len(resp.Resources) == 0 {
		for _, name := range sub.again[0] {
			if _, told := sub.said[name]; !told {
				continue // unsubscribed or gone meanwhile
			}
			if r, _ := s.source.Resource(url, name); r != nil {
				delete(sub.unsaid, name)
				delete(sub.gone, name)
				s.add(url, resp, r)
			} else { // the client may have what was refused with others, or not: it is told anew when it is known
				sub.said[name], sub.unsaid[name] = unknown, true
			}
		}
		sub.again = sub.again[1:]
	}
	sub.sayError()
}

func (s *session) add(url string, resp *Response, r *Resource) {
	sub := s.types[url]
	sub.said[r.Name] = r.Version
	delete(sub.refused, r.Name)
	resp.add(r)
	if url == ClusterType {
		s.warm(r.Name)
	}
}

// remove has the client told that what it has is gone, now if nothing can refer to it.
func (s *session) remove(url string, resp *Response, name string, now time.Time) {
	sub := s.types[url]
	if len(referrers[url]) > 0 {
		if len(sub.gone) == 0 {
			sub.since = now
		}
		sub.gone[name] = true
		return
	}
	sub.goneNow(resp, name)
}

// warm has the endpoints of a cluster sent again: Envoy makes a changed cluster anew, waits for its endpoints and, being
// subscribed to them for the old one, does not ask. Endpoints have the name of their cluster.
func (s *session) warm(cluster string) {
	endpoints := s.types[EndpointType]
	if endpoints != nil && endpoints.names[cluster] {
		endpoints.forget(cluster)
		endpoints.unsaid[cluster] = true
	}
}

func (s *session) removals(url string) *Response {
	sub := s.types[url]
	if len(sub.gone) == 0 {
		return nil
	}
	resp := newResponse(url)
	for _, name := range slices.Sorted(maps.Keys(sub.gone)) {
		if r, known := s.source.Resource(url, name); r != nil || !known {
			delete(sub.gone, name) // it has come back; whoever made it says so
			continue
		}
		sub.goneNow(resp, name)
	}
	sub.gone = map[string]bool{}
	if len(resp.RemovedResources) == 0 {
		return nil
	}
	return resp
}

func (s *session) send(url string, resp *Response, now time.Time) *Response {
	s.nonce++
	resp.Nonce = strconv.Itoa(s.nonce)
	sub := s.types[url]
	sub.inFlight = append(sub.inFlight, sent{resp.Nonce, now, resp.GetResources(), resp.GetRemovedResources()})
	sub.status.Sent++
	sub.sayError()
	return resp
}

func newResponse(url string) *Response {
	return &Response{DeltaDiscoveryResponse: &discovery.DeltaDiscoveryResponse{TypeUrl: url}}
}

// due returns when next has to be called again although nothing has happened.
func (s *session) due(now time.Time) (at time.Time, ok bool) {
	sooner := func(t time.Time) {
		if t.After(now) && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	waits := false
	for _, sub := range s.types {
		waits = waits || sub.unsent()
	}
	if !waits {
		return at, false
	}
	sooner(s.began.Add(Patience))
	for _, sub := range s.types {
		if n := len(sub.inFlight); n > 0 {
			sooner(sub.inFlight[n-1].at.Add(Patience))
		}
		if len(sub.gone) > 0 {
			sooner(sub.since.Add(Patience))
		}
	}
	return at, ok
}
