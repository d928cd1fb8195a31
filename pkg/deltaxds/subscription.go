package deltaxds

import (
	"maps"
	"slices"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// subscription is what the client has asked for of one type, was told of it and has answered.
type subscription struct {
	wildcard bool
	answered bool              // a wildcard subscription is answered even when there is nothing
	names    map[string]bool   // subscribed by name
	said     map[string]string // our last word about a name: its version, or nothing
	unsaid   map[string]bool   // names to look at when the type may be sent
	gone     map[string]bool   // names the client has that no longer exist, and whose removal waits
	since    time.Time         // when the first of these began to wait
	again    [][]string        // names of a refused response, in parts that are sent apart to find who is refused
	refused  map[string]string // names whose last version was refused, and why
	inFlight []sent            // responses that the client has not answered
	status   Status
}

// sent is a response on its way.
type sent struct {
	nonce     string
	at        time.Time
	resources []*discovery.Resource
	removed   []string
}

func newSubscription() *subscription {
	return &subscription{names: map[string]bool{}, said: map[string]string{}, unsaid: map[string]bool{}, gone: map[string]bool{}, refused: map[string]string{}}
}

// forget drops all that was said about a name.
func (s *subscription) forget(name string) {
	delete(s.said, name)
	delete(s.unsaid, name)
	delete(s.gone, name)
	delete(s.refused, name)
}

func (s *subscription) took() {
	s.status.Acked++
	s.sayError()
}

// refuse notes a refusal. One bad resource makes Envoy refuse a whole response, and some of what came with it is not
// taken either. So what was refused together is sent again in halves until the bad one is alone: that one is returned.
func (s *subscription) refuse(r sent, reason string) map[string]string {
	s.status.Nacked++
	var alone map[string]string
	switch n := len(r.resources); {
	case n == 1:
		name := r.resources[0].GetName()
		if s.said[name] == r.resources[0].GetVersion() {
			if len(s.refused) >= maxReasons {
				reason = "refused, as many others are"
			}
			s.refused[name] = reason
		}
		alone = versionsOf(r.resources)
	case n > 1:
		names := make([]string, n)
		for i, res := range r.resources {
			names[i] = res.GetName()
		}
		s.again = append(s.again, names[:n/2], names[n/2:])
	}
	if len(r.resources) > 0 { // what it removes was not taken either; the removals alone are not refused
		for _, name := range r.removed {
			if (s.wildcard || s.names[name]) && s.said[name] == nothing {
				s.said[name], s.unsaid[name] = unknown, true
			}
		}
	}
	s.sayError()
	if s.status.Error == "" {
		s.status.Error = reason
	}
	return alone
}

// sayError keeps an error in the status while something is refused.
func (s *subscription) sayError() {
	if len(s.again) > 0 && s.status.Error != "" {
		return
	}
	s.status.Error, s.status.Resource = "", ""
	if len(s.refused) > 0 {
		s.status.Resource = slices.Min(slices.Collect(maps.Keys(s.refused)))
		s.status.Error = s.refused[s.status.Resource]
	}
}

// pending says whether something is unsent or unanswered.
func (s *subscription) pending() bool {
	return len(s.inFlight) > 0 || s.unsent()
}

func (s *subscription) unsent() bool {
	return len(s.unsaid) > 0 || len(s.gone) > 0 || len(s.again) > 0 || (s.wildcard && !s.answered)
}

// goneNow adds a removal. A name that the client has asked for stays known as one that does not exist.
func (s *subscription) goneNow(resp *Response, name string) {
	s.forget(name)
	if s.names[name] {
		s.said[name] = nothing
	}
	resp.RemovedResources = append(resp.RemovedResources, name)
}

// settle drops the set of what was unsaid when nothing is: a map that once held every name of a mesh is as slow to list
// as it was then.
func (s *subscription) settle() {
	if len(s.unsaid) == 0 {
		s.unsaid = map[string]bool{}
	}
}

func versionsOf(resources []*discovery.Resource) map[string]string {
	out := make(map[string]string, len(resources))
	for _, r := range resources {
		out[r.GetName()] = r.GetVersion()
	}
	return out
}

// What a client says is kept: so many reasons of a type, each so long.
const (
	maxReasons = 100
	maxReason  = 1000
)

func bounded(text string) string { return strings.ToValidUTF8(text[:min(len(text), maxReason)], "") }
