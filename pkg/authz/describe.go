package authz

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Describe is a request in a line, for people.
func (r Request) Describe() string {
	var out []string
	if r.HTTP {
		out = append(out, strings.TrimSpace(r.Method+" "+r.Path))
		if r.Host != "" {
			out = append(out, "host "+r.Host)
		}
	} else {
		out = append(out, "TCP connection")
	}
	if r.DestinationPort != 0 {
		out = append(out, fmt.Sprintf("to port %d", r.DestinationPort))
	}
	switch {
	case r.RemoteIP.IsValid() && r.SourceIP.IsValid() && r.RemoteIP != r.SourceIP:
		out = append(out, fmt.Sprintf("from %s by %s", r.RemoteIP, r.SourceIP))
	case r.RemoteIP.IsValid():
		out = append(out, "from "+r.RemoteIP.String())
	case r.SourceIP.IsValid():
		out = append(out, "from "+r.SourceIP.String())
	}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		out = append(out, fmt.Sprintf("%s: %s", name, strings.Join(r.Headers[name], " | ")))
	}
	if r.Claims != nil {
		claims, err := json.Marshal(r.Claims)
		if err == nil { // they come from JSON
			out = append(out, "token "+string(claims))
		}
	}
	return strings.Join(out, ", ")
}

// Many reports whether a request can have several values of the attribute, any of which is enough for a match: the lines of a header, the elements of a claim.
func (a Attribute) Many() bool { return a == Header || a == Claim }

// Optional reports whether a request can be without the attribute, other than with an empty text.
func (a Attribute) Optional() bool { return a.Many() || a == RequestPrincipal }

// AtPort reports whether a clause about the destination's port holds at a port.
func (c Clause) AtPort(port uint32) bool {
	return c.predicate()(&seen{Request: Request{DestinationPort: port}})
}

// Set gives a request values of an attribute, in the form in which rules see them. It is false if a request cannot have them.
func (r *Request) Set(a Attribute, key string, values []string) bool {
	value := strings.Join(values, "")
	var err error
	switch {
	case a.Many() && a == Header:
		if r.Headers == nil {
			r.Headers = map[string][]string{}
		}
		r.Headers[key] = values
	case len(values) == 0:
		return a.Identity() || a.Optional()
	case a == Claim:
		r.claim(ClaimPath(key), values)
	case a == RequestPrincipal:
		issuer, subject, _ := strings.Cut(value, BetweenIssuerAndSubject)
		r.claim([]string{"iss"}, []string{issuer})
		r.claim([]string{"sub"}, []string{subject})
	case a == RemoteIP:
		r.RemoteIP, err = netip.ParseAddr(value)
	case a.Identity():
		r.Source, err = spiffe.Parse(value)
	case a == SourceIP:
		r.SourceIP, err = netip.ParseAddr(value)
	case a == DestinationIP:
		r.DestinationIP, err = netip.ParseAddr(value)
	case a == SNI:
		r.SNI = value
	case a == Host:
		r.Host = value
	case a == Method:
		r.Method = value
	case a == Path:
		r.Path = value
	default:
		return false
	}
	return err == nil
}

// BetweenIssuerAndSubject is in the one text that a request principal is for Set: neither of them has it.
const BetweenIssuerAndSubject = "\x1f"

// claim sets a claim, which may be within others: a text, or a list of several.
func (r *Request) claim(path, values []string) {
	if r.Claims == nil {
		r.Claims = map[string]any{}
	}
	in := r.Claims
	for _, name := range path[:len(path)-1] {
		inner, ok := in[name].(map[string]any)
		if !ok {
			inner = map[string]any{}
			in[name] = inner
		}
		in = inner
	}
	list := make([]any, len(values))
	for i, v := range values {
		list[i] = v
	}
	if in[path[len(path)-1]] = any(list); len(list) == 1 {
		in[path[len(path)-1]] = list[0]
	}
}

// Ports are the ports that the policy's rules name, in order.
func (p *Policy) Ports() (out []uint32) {
	for _, r := range p.Rules {
		for _, clauses := range slices.Concat(r.From, r.To, []Clauses{r.When}) {
			for _, c := range clauses {
				for _, m := range slices.Concat(c.Values, c.Not) {
					if n, err := strconv.ParseUint(m.Value, 10, 16); m.Kind == Port && err == nil {
						out = append(out, uint32(n))
					}
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
