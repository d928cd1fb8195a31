package authz

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// match parses one value of an attribute. One value may become several matches, any of which will do. Wide are the matches
// that deny: a Deny rule's values, an Allow rule's notValues. They take whatever an application may take for the value.
func (b *builder) match(attr Attribute, key string, negated bool, field, v string) ([]Match, bool) {
	if b.values++; b.values > MaxValues {
		if b.values == MaxValues+1 {
			b.problem(field, fmt.Sprintf("the policy has more than %d values", MaxValues))
		}
		b.count++ // each of them, for the rule that it is in
		return nil, false
	}
	if reason := checkText(v); reason != "" {
		b.problem(field, reason)
		return nil, false
	}
	b.at = field
	m, err := attributes[attr].parse(b, v, (b.action == Allow) == negated)
	if err != nil {
		b.problem(field, err.Error())
		return nil, false
	}
	return m, true
}

func checkText(v string) string {
	switch {
	case v == "":
		return "empty value"
	case len(v) > MaxValueLength:
		return fmt.Sprintf("value of %d bytes, at most %d", len(v), MaxValueLength)
	case !utf8.ValidString(v):
		return "value is not UTF-8"
	case strings.ContainsFunc(v, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return "value has control characters"
	}
	return ""
}

// wildcard reads "*", "abc*", "*abc" and "abc", as all string fields are written.
func wildcard(v string) Match {
	switch {
	case v == "*":
		return Match{Present, ""}
	case strings.HasPrefix(v, "*"):
		return Match{Suffix, v[1:]}
	case strings.HasSuffix(v, "*"):
		return Match{Prefix, v[:len(v)-1]}
	}
	return Match{Exact, v}
}

// Wildcard reads a text as policies write it: with one * at the beginning or at the end, or alone, for anything.
func Wildcard(v string) Match { return wildcard(v) }

func parseCIDR(v string) ([]Match, error) {
	if !strings.Contains(v, "/") {
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%q is neither an IP address nor a CIDR", v)
		}
		return []Match{{CIDR, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()).String()}}, nil
	}
	p, err := netip.ParsePrefix(v)
	if err != nil || p.Addr().Is4In6() {
		return nil, fmt.Errorf("%q is neither an IP address nor a CIDR", v)
	}
	return []Match{{CIDR, p.Masked().String()}}, nil
}

func parsePort(v string) ([]Match, error) {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("%q is not a port", v)
	}
	return []Match{{Port, strconv.FormatUint(n, 10)}}, nil
}

var sniText = regexp.MustCompile(`^[a-z0-9._-]+$`)

// parseSNI reads a server name, which the proxies compare in lower case.
func parseSNI(v string) ([]Match, error) {
	m := wildcard(v)
	switch {
	case m.Kind == Present || sniText.MatchString(m.Value):
		return []Match{m}, nil
	case sniText.MatchString(strings.ToLower(m.Value)):
		return nil, fmt.Errorf("%q can never match: server names are compared in lower case", v)
	}
	return nil, fmt.Errorf("%q can never match: it is not the name of a server, with one * at the beginning or at the end if any", v)
}

// AmbiguousMethodRule is the name under which a request is denied whose method is not spelt as HTTP has it.
const AmbiguousMethodRule = "ns[bulwark-system]-policy[ambiguous-method]-rule[0]"

// AmbiguousMethod finds in a method what no registered one has: methods are case-sensitive, and there are none in lower
// case, but applications that fold them serve "delete" as DELETE.
const AmbiguousMethod = `[^A-Z0-9!#$%&'+.^_|~\x60-]`

// TunnelRule is the name under which CONNECT is denied. A proxy that takes it passes on whatever bytes come, and a server that is none but answers with 200 reads them as
// requests, which nobody has judged.
const TunnelRule = "ns[bulwark-system]-policy[tunnel]-rule[0]"

var methodText = regexp.MustCompile(`^[A-Z0-9!#$%&'+.^_|~\x60-]+$`)

func parseMethod(v string) ([]Match, error) {
	m := wildcard(v)
	switch {
	case m.Kind == Present || methodText.MatchString(m.Value):
		return []Match{m}, nil
	case methodText.MatchString(strings.ToUpper(m.Value)):
		return nil, fmt.Errorf("%q can never match: methods are in upper case; write %q", v, strings.ToUpper(v))
	case strings.ContainsAny(v, ", "):
		return nil, fmt.Errorf("%q can never match: one value is one method; write a list", v)
	case strings.Contains(v, "/"):
		return nil, fmt.Errorf("%q can never match: the method of all gRPC is POST, and a gRPC method is the path of its request; use paths", v)
	}
	return nil, fmt.Errorf("%q can never match: it is not a method, with one * at the beginning or at the end if any", v)
}

// parseHeader decides how a header with several values is looked at. Where a match denies any element of a line will do;
// where it lets pass, a whole line must match.
func parseHeader(v string, wide bool) ([]Match, error) {
	m := wildcard(v)
	if m.Kind != Suffix && strings.HasPrefix(m.Value, " ") || m.Kind != Prefix && strings.HasSuffix(m.Value, " ") {
		return nil, fmt.Errorf("%q can never match: a header's value neither begins nor ends with a blank", v)
	}
	if !wide || m.Kind == Present {
		return []Match{m}, nil
	}
	const begin, end = `(?:` + anyBytes + `,)?[ \t]*`, `[ \t]*(?:,` + anyBytes + `)?`
	q := regexp.QuoteMeta(m.Value)
	switch m.Kind {
	case Prefix:
		return []Match{{Regexp, begin + q + anyBytes}}, nil
	case Suffix:
		return []Match{{Regexp, anyBytes + q + end}}, nil
	}
	return []Match{{Regexp, begin + q + end}}, nil
}

// unseen are headers that no rule sees, with what to do instead: the proxies take them off first.
var unseen = map[string]string{
	"host":              "is never seen by a rule; use to.operation.hosts",
	"connection":        "is of one connection, and never seen by a rule",
	"keep-alive":        "is of one connection, and never seen by a rule",
	"proxy-connection":  "is of one connection, and never seen by a rule",
	"transfer-encoding": "is of one connection, and never seen by a rule",
	"x-envoy-internal":  "is taken off by the proxy, and never seen by a rule",
}

// notHeader says why no header that a rule sees has the lower-case name.
func notHeader(name string) string {
	if name == "" || len(name) > 256 {
		return "is not the name of a header"
	}
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0 {
			continue
		}
		return "is not the name of a header"
	}
	return unseen[name]
}

// DryRunField is where the annotation is that has a policy tried out.
const DryRunField = "metadata.annotations[istio.io/dry-run]"

// DryRun reads the annotation's value; set says whether there is one. What is neither true nor false is a problem, and the
// policy is enforced.
func DryRun(value string, set bool) (bool, []Problem) {
	dry, err := strconv.ParseBool(value)
	if set && err != nil {
		return false, []Problem{{DryRunField, fmt.Sprintf("%q is neither true nor false", value)}}
	}
	return dry, nil
}
