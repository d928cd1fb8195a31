package authz

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Authority is what the proxies take as a request's authority: a name or an address, maybe with a port, or nothing.
// Anything else is answered with 400 before a rule sees it: user information, a port that is no number, two Host headers,
// escapes. Names are compared without regard to case.
const Authority = `(?:(?:\[[0-9a-fA-F:.]+\]|[0-9a-zA-Z._-]+)(?::[0-9]{1,5})?)?`

var (
	authority = regexp.MustCompile("^" + Authority + "$")
	hostForms = map[Kind]*regexp.Regexp{
		Exact:  regexp.MustCompile(`^(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:[0-9]{1,5})?$`),
		Prefix: regexp.MustCompile(`^(\[[0-9a-f:.]*(\](:[0-9]{0,5})?)?|[0-9a-z._-]+(:[0-9]{0,5})?)$`),
		Suffix: regexp.MustCompile(`^([0-9a-f:.]*\](:[0-9]{1,5})?|[0-9a-z._-]*(:[0-9]{1,5})?)$`),
	}
)

// IsAuthority reports whether the proxies take the authority of a request.
func IsAuthority(host string) bool {
	for i := range len(host) {
		if !inName[host[i]] {
			return authority.MatchString(host)
		}
	}
	return true // a name, or nothing
}

var inName = bytesOf("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

// parseHost reads a host of a policy. Where it admits, the authority must equal what is written, port included, as in
// Istio. Where it denies (wide), a dot may follow the name, and a port if none is written.
func parseHost(v string, wide bool) ([]Match, error) {
	m := wildcard(strings.ToLower(v))
	if m.Kind == Present {
		return []Match{m}, nil
	}
	if !hostForms[m.Kind].MatchString(m.Value) {
		return nil, fmt.Errorf("%q can never match: %w", v, notHost(v))
	}
	if !wide || m.Kind == Prefix && !strings.Contains(m.Value, ":") {
		return []Match{m}, nil
	}
	return []Match{{Kind: Regexp, Value: wideHost(m)}}, nil
}

func notHost(v string) error {
	switch {
	case strings.ContainsAny(v, "/?#"):
		return errors.New("a host has neither scheme nor path")
	case strings.Contains(v, "@"):
		return errors.New("requests with user information are refused")
	case strings.ContainsAny(v, ", \t"):
		return errors.New("one value names one host; write a list")
	case strings.Contains(strings.Trim(v, "*"), "*") || strings.HasPrefix(v, "*") && strings.HasSuffix(v, "*"):
		return errors.New("only one * at the beginning or at the end stands for anything")
	}
	return errors.New("it is no host with or without a port (names in other scripts have a form in ASCII, xn--…)")
}

// wideHost is an expression for the authorities that a server may take for the host.
func wideHost(m Match) string {
	name, port, hasPort := m.Value, "", false
	i, closed := strings.LastIndexByte(m.Value, ':'), strings.LastIndexByte(m.Value, ']')
	if i > closed && (closed >= 0 || !strings.HasPrefix(m.Value, "[")) { // not one of an IPv6 address
		name, port, hasPort = m.Value[:i], m.Value[i+1:], true
	}
	text := regexp.QuoteMeta(strings.TrimSuffix(name, "."))
	if m.Kind == Suffix {
		text = anyBytes + text
	}
	switch {
	case m.Kind == Prefix && !hasPort:
		return "(?i)" + text + anyBytes
	case m.Kind == Prefix:
		return "(?i)" + text + `\.?:0*` + port + anyBytes
	case hasPort:
		return "(?i)" + text + `\.?:0*` + strings.TrimLeft(port, "0")
	}
	return "(?i)" + text + `\.?(?::[0-9]*)?`
}
