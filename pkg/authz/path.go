package authz

import (
	"fmt"
	"regexp"
	"strings"
)

// AmbiguousPathRule is the name under which a request is denied whose path different servers read differently.
const AmbiguousPathRule = "ns[bulwark-system]-policy[ambiguous-path]-rule[0]"

// AmbiguousPath is what a path must not contain where a rule looks at paths, after Envoy has decoded and merged slashes
// and removed dot segments: path parameters, twice-encoded bytes, control characters and overlong UTF-8. Servers
// disagree about each of them, so no rule could know what it lets through.
const AmbiguousPath = `(?i:;|%3b|%25[0-9a-f]{2}|%[01][0-9a-f]|%7f|%c[01]|%e0%[89]|%f0%8|%f[89a-f])`

var ambiguous = regexp.MustCompile(AmbiguousPath)

// IsAmbiguous reports whether a normalised path is one that AmbiguousPath refuses.
func IsAmbiguous(path string) bool { return ambiguous.MatchString(path) }

// NormalizePath does to a request's path what the proxies do before any rule sees it: query dropped, %2F and %5C and
// backslashes made slashes, escapes of unreserved characters decoded, slashes merged, dot segments removed.
func NormalizePath(raw string) string {
	if i := strings.IndexAny(raw, "?#"); i >= 0 {
		raw = raw[:i]
	}
	var sb strings.Builder
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' && i+2 < len(raw) {
			if d, ok := unhex(raw[i+1], raw[i+2]); ok {
				if d == '/' || d == '\\' {
					sb.WriteByte('/')
					i += 2
					continue
				}
				if unreserved(d) {
					sb.WriteByte(d)
					i += 2
					continue
				}
			}
		}
		if c == '\\' {
			c = '/'
		}
		sb.WriteByte(c)
	}
	return removeDots(sb.String())
}

func removeDots(path string) string {
	var out []string
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, p := range parts {
		last := i == len(parts)-1
		switch p {
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		case "":
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, p)
		}
	}
	return "/" + strings.Join(out, "/")
}

func unhex(a, b byte) (byte, bool) {
	h, ok1 := hexDigit(a)
	l, ok2 := hexDigit(b)
	return h<<4 | l, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// parseTemplate checks a path with the operators {*} (one segment) and {**} (any number) by Istio's rules.
func parseTemplate(v string) ([]Match, error) {
	if !strings.HasPrefix(v, "/") {
		return nil, fmt.Errorf("template %q does not begin with /", v)
	}
	rest := false
	for _, seg := range strings.Split(v[1:], "/") {
		switch {
		case seg == "{*}" || seg == "{**}":
			if rest {
				return nil, fmt.Errorf("template %q has an operator after {**}", v)
			}
			rest = seg == "{**}"
		case strings.ContainsAny(seg, "{}*"):
			return nil, fmt.Errorf("template %q: %q is neither an operator ({*}, {**}) nor plain text", v, seg)
		case strings.IndexFunc(seg, func(r rune) bool { return !segmentByte(r) }) >= 0:
			return nil, fmt.Errorf("template %q: %q has characters a template cannot hold", v, seg)
		}
	}
	return []Match{{Template, v}}, nil
}

// segmentByte reports whether a template, or the segment its operator matches, may hold r (RFC 3986 pchar, less * and =
// in literals, which Envoy reserves).
func segmentByte(r rune) bool {
	return r < 128 && (unreserved(byte(r)) || strings.ContainsRune("%!$&'()+,;:@", r))
}

// templateMatch is the evaluation of a template: as Envoy's, {*} takes a segment of at least one byte, {**} any bytes.
func templateMatch(template, path string) bool {
	re, err := regexp.Compile(TemplateRegexp(template))
	return err == nil && re.MatchString(path)
}

// TemplateRegexp is the meaning of a checked template.
func TemplateRegexp(template string) string {
	var sb strings.Builder
	sb.WriteString("^")
	for _, seg := range strings.Split(template[1:], "/") {
		sb.WriteString("/")
		switch seg {
		case "{*}":
			sb.WriteString(`[a-zA-Z0-9\-._~%!$&'()+,;:@=*]+`)
		case "{**}":
			sb.WriteString(`[a-zA-Z0-9\-._~%!$&'()+,;:@=*/]*`)
		default:
			sb.WriteString(regexp.QuoteMeta(seg))
		}
	}
	return sb.String() + "$"
}
