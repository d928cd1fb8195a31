package authz

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// IssuerSubject takes a match of <issuer>/<subject> apart, at the last slash, as Istio does: an issuer is often a URL. Both have to match. Where a SPIFFE ID follows a
// slash, that is the subject: those of a mesh's own tokens are.
func (m Match) IssuerSubject() (issuer, subject Match) {
	i := strings.LastIndex(m.Value, "/")
	if of := strings.Index(m.Value, "/spiffe://"); of >= 0 {
		i = of
	}
	first, last := m.Value[:max(i, 0)], m.Value[i+1:]
	present := Match{Kind: Present}
	switch {
	case m.Kind == Suffix && i < 0:
		return present, Match{Suffix, m.Value}
	case m.Kind == Suffix && first == "":
		return present, Match{Exact, last}
	case m.Kind == Suffix:
		return Match{Suffix, first}, Match{Exact, last}
	case m.Kind == Prefix && i < 0:
		return Match{Prefix, m.Value}, present
	case m.Kind == Prefix && last == "":
		return Match{Exact, first}, present
	case m.Kind == Prefix:
		return Match{Exact, first}, Match{Prefix, last}
	case m.Kind == Exact:
		return Match{Exact, first}, Match{Exact, last}
	}
	return present, present
}

// parseRequestPrincipal reads <issuer>/<subject>, or the beginning or the end of one.
func parseRequestPrincipal(v string) ([]Match, error) {
	m := wildcard(v)
	if m.Kind != Present {
		issuer, subject := m.IssuerSubject()
		if m.Kind == Exact && (issuer.Value == "" || subject.Value == "") {
			return nil, fmt.Errorf("%q can never match: a request principal is <issuer>/<subject>, with one * at the beginning or at the end if any", v)
		}
		if issuer.Kind == Exact && (strings.HasSuffix(issuer.Value, ":/") || strings.HasSuffix(issuer.Value, ":")) {
			return nil, fmt.Errorf("%q can never match: what is before the last slash is the issuer; write %q for all of an issuer", v, strings.TrimSuffix(v, "*")+"/*")
		}
	}
	if strings.Contains(m.Value, "*") {
		return nil, fmt.Errorf("%q: only one * at the beginning or at the end stands for anything", v)
	}
	return []Match{m}, nil
}

// maxClaims bounds the depth of a claim within claims.
const maxClaims = 8

// ClaimPath takes the key of a claim apart: [a][b] is the claim b within a. It is nil if it is not a key of that form.
func ClaimPath(key string) []string {
	inner, ok := strings.CutPrefix(key, "[")
	inner, closed := strings.CutSuffix(inner, "]")
	path := strings.Split(inner, "][")
	if !ok || !closed || len(path) > maxClaims || slices.ContainsFunc(path, func(name string) bool {
		return name == "" || len(name) > MaxValueLength || strings.ContainsAny(name, "[]")
	}) {
		return nil
	}
	return path
}

func parseClaim(v string) ([]Match, error) {
	return []Match{wildcard(v)}, nil
}

// anyPrincipal says whether the token's issuer and subject are matched by one of several matches.
func anyPrincipal(matches []Match) predicate {
	type pair struct{ issuer, subject func(string) bool }
	var pairs []pair
	for _, m := range matches {
		issuer, subject := m.IssuerSubject()
		pairs = append(pairs, pair{issuer.matcher(), subject.matcher()})
	}
	return func(s *seen) bool {
		issuer, one := s.Claims["iss"].(string)
		subject, other := s.Claims["sub"].(string)
		return one && other && slices.ContainsFunc(pairs, func(p pair) bool { return p.issuer(issuer) && p.subject(subject) })
	}
}

// claimAt is a claim within claims, nil if there is none.
func claimAt(claims map[string]any, path []string) any {
	for _, name := range path[:len(path)-1] {
		inner, ok := claims[name].(map[string]any)
		if !ok {
			return nil
		}
		claims = inner
	}
	return claims[path[len(path)-1]]
}

// claimed says whether a claim is matched by one of several matches, or has an element that is if it is a list. A text is compared as all texts are; true, false and a number
// with what is written as such.
func claimed(matches []Match) func(any) bool {
	text := matcher(matches)
	one := func(value any) bool {
		switch v := value.(type) {
		case string:
			return text(v)
		case bool:
			return slices.ContainsFunc(matches, func(m Match) bool { return m.Kind == Present || m.Kind == Exact && m.Value == strconv.FormatBool(v) })
		case float64:
			return slices.ContainsFunc(matches, func(m Match) bool {
				n, ok := m.Number()
				return m.Kind == Present || ok && n == v
			})
		}
		return false
	}
	return func(value any) bool {
		if list, ok := value.([]any); ok {
			return slices.ContainsFunc(list, one)
		}
		return one(value)
	}
}

// Number is the number that a whole text is, as JSON writes it.
func (m Match) Number() (float64, bool) {
	if m.Kind != Exact || m.Value == "" || strings.Trim(m.Value, "-+.0123456789eE") != "" {
		return 0, false
	}
	n, err := strconv.ParseFloat(m.Value, 64)
	return n, err == nil
}
