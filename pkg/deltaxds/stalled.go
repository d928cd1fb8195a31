package deltaxds

import (
	"fmt"
	"strings"
	"time"
)

// StallLimit is how long a client may leave a response unanswered. Envoy takes milliseconds, and seconds where it is
// starved of CPU.
const StallLimit = 30 * time.Second

// Stalled is the error with which Serve ends a stream whose client has not answered for StallLimit. A client that comes
// back says what it has, and both sides begin anew with that.
type Stalled struct {
	Type  string        // of the response that is not answered
	Names []string      // of its resources, and of those it removes
	For   time.Duration // since it was sent
	Waits string        // what the client may be waiting for, as far as can be seen from here
}

// Error implements error.
func (s *Stalled) Error() string {
	return fmt.Sprintf("no answer to %s of type %s for %s; %s", Quoted(s.Names), s.Type, s.For.Round(time.Second), s.Waits)
}

// Quoted is names of resources for people: quoted, and not more than a few.
func Quoted(names []string) string {
	const most = 5
	var out []string
	for _, n := range names[:min(most, len(names))] {
		out = append(out, fmt.Sprintf("%.120q", n))
	}
	if more := len(names) - len(out); more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	return "[" + strings.Join(out, " ") + "]"
}

// oldest returns the response that has waited longest for its answer, and its type.
func (s *session) oldest() (url string, r sent, ok bool) {
	for _, u := range s.ordered {
		if in := s.types[u].inFlight; len(in) > 0 && (!ok || in[0].at.Before(r.at)) {
			url, r, ok = u, in[0], true
		}
	}
	return url, r, ok
}

// limit returns when the client will have stalled if it goes on saying nothing.
func (s *session) limit() (time.Time, bool) {
	_, r, ok := s.oldest()
	if r.at.Before(s.excused) {
		r.at = s.excused
	}
	return r.at.Add(StallLimit), ok
}

// stalled says whether the client has stalled. One that waits for what is not known here has not: that is not its fault,
// nor would another stream bring it.
func (s *session) stalled(now time.Time) *Stalled {
	limit, ok := s.limit()
	if !ok || now.Before(limit) {
		return nil
	}
	if len(s.unanswerable()) > 0 {
		s.excused = now
		return nil
	}
	url, r, _ := s.oldest()
	out := &Stalled{Type: url, For: now.Sub(r.at), Waits: s.waitsFor(url)}
	for _, res := range r.resources {
		out.Names = append(out.Names, res.GetName())
	}
	out.Names = append(out.Names, r.removed...)
	return out
}

// unanswerable returns what the client has asked for and the source does not know yet.
func (s *session) unanswerable() []string {
	var out []string
	for _, url := range s.ordered {
		sub := s.types[url]
		for name := range sub.names {
			if _, told := sub.said[name]; told {
				continue
			}
			if _, known := s.source.Resource(url, name); !known {
				out = append(out, name)
			}
		}
	}
	return out
}

// waitsFor says what a client that has not answered for a type may be waiting for.
func (s *session) waitsFor(url string) string {
	var others []string
	for _, u := range s.ordered {
		if sub := s.types[u]; u != url && sub.pending() {
			others = append(others, u)
		}
	}
	if len(others) > 0 {
		return "unanswered or unsent as well: " + strings.Join(others, ", ")
	}
	return "everything else that it has asked for has been answered"
}
