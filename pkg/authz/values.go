package authz

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// match parses one value of an attribute. One value may become several matches, any of which will do.
func (b *builder) match(attr Attribute, negated bool, field, v string) ([]Match, bool) {
	if b.values++; b.values > MaxValues {
		if b.values == MaxValues+1 {
			b.problem(field, fmt.Sprintf("the policy has more than %d values", MaxValues))
		}
		return nil, false
	}
	if reason := checkText(v); reason != "" {
		b.problem(field, reason)
		return nil, false
	}
	var m []Match
	var err error
	switch attr {
	case SourceIP, DestinationIP:
		m, err = parseCIDR(v)
	case DestinationPort:
		m, err = parsePort(v)
	case ServiceAccount:
		m, err = b.parseAccount(v)
	case Principal:
		m, err = b.parsePrincipal(v)
	case Path:
		m, err = parsePath(v)
	case Host:
		m = parseHost(v)
	case Header:
		m = b.parseHeader(v, negated)
	default:
		m = []Match{wildcard(v)}
	}
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

func (b *builder) parseAccount(v string) ([]Match, error) {
	if len(v) > 320 || strings.Contains(v, "*") {
		return nil, fmt.Errorf("%q is neither <service account> nor <namespace>/<service account>", v)
	}
	ns, sa, ok := strings.Cut(v, "/")
	if !ok {
		ns, sa = b.meta.Namespace, v
	}
	if ns == "" || sa == "" || strings.Contains(sa, "/") {
		return nil, fmt.Errorf("%q is neither <service account> nor <namespace>/<service account>", v)
	}
	return []Match{{Account, ns + "/" + sa}}, nil
}

// parsePrincipal turns td/ns/x/sa/y into a match of the whole URI. The default trust domain in a policy means the mesh's.
func (b *builder) parsePrincipal(v string) ([]Match, error) {
	if strings.HasPrefix(v, "spiffe://") {
		return nil, fmt.Errorf("%q: principals are written without spiffe://", v)
	}
	m := wildcard(v)
	if m.Kind == Exact || m.Kind == Prefix {
		m.Value = "spiffe://" + m.Value
	}
	out := []Match{m}
	own := mesh.DefaultTrustDomain + "/"
	if rest, ok := strings.CutPrefix(m.Value, "spiffe://"+own); ok && b.opts.TrustDomain != mesh.DefaultTrustDomain {
		out = append(out, Match{m.Kind, "spiffe://" + b.opts.TrustDomain + "/" + rest})
	}
	return out, nil
}

func parsePath(v string) ([]Match, error) {
	if strings.ContainsAny(v, "{}") {
		return parseTemplate(v)
	}
	if !strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "*") {
		return nil, fmt.Errorf("%q can never match: a path begins with /", v)
	}
	if strings.ContainsAny(v, "?#") {
		return nil, fmt.Errorf("%q can never match: paths are compared without query and fragment", v)
	}
	return []Match{wildcard(v)}, nil
}

// parseHost makes a host that names no port match whatever port, and the absolute form with a final dot.
func parseHost(v string) []Match {
	m := wildcard(strings.ToLower(v))
	if m.Kind == Present || m.Kind == Prefix || strings.Contains(m.Value, ":") {
		return []Match{m}
	}
	if m.Kind == Suffix {
		return []Match{{HostSuffix, m.Value}}
	}
	return []Match{m, {Exact, m.Value + "."}, {Prefix, m.Value + ":"}, {Prefix, m.Value + ".:"}}
}

// parseHeader decides how a header with several values is looked at. Where a match denies (a Deny rule's values, an
// Allow rule's notValues) any element of a line will do; where it lets pass, a whole line must match.
func (b *builder) parseHeader(v string, negated bool) []Match {
	m := wildcard(v)
	if (b.action == Allow) == negated {
		switch m.Kind {
		case Exact:
			m.Kind = ElementExact
		case Prefix:
			m.Kind = ElementPrefix
		case Suffix:
			m.Kind = ElementSuffix
		}
	}
	return []Match{m}
}
