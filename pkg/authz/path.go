package authz

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// AmbiguousPathRule is the name under which a request is denied whose path different servers read differently.
const AmbiguousPathRule = "ns[bulwark-system]-policy[ambiguous-path]-rule[0]"

// AmbiguousPath finds in a path what servers disagree about, so that no rule could know what it lets through: what one resolves and another does not (two
// slashes, backslashes, dot segments, escapes of those and of characters that need none), a parameter (;), an escape that is none, one that decodes to
// another, control characters, overlong UTF-8. Of a path that is normalised, next to nothing of the first kind is left.
const AmbiguousPath = `//|\\|/\.\.?(?:/|$)|` + ambiguousBytes

const ambiguousBytes = `(?i:;|%3b|%([^0-9a-f]|$)|%[0-9a-f]([^0-9a-f]|$)|%25[0-9a-f]{2}|%[01][0-9a-f]|%7f|%c[01]|%e0%[89]|%f0%8|%f[89a-f]` +
	`|%2[def]|%3[0-9]|%4[1-9a-f]|%5[0-9acf]|%6[1-9a-f]|%7[0-9ae])`

var ambiguousByte = regexp.MustCompile(ambiguousBytes)

// pathAlphabet are the characters that a URI's path may have (RFC 3986, section 3.3, and the brackets, which clients do not escape): of any other, some
// servers refuse the path and some take it for its escape.
const pathAlphabet = `[a-zA-Z0-9\-._~!$&'()*+,:=@\[\]/%;]*`

// clearPath is a path, or one with a query, that is certainly not ambiguous: no segment is empty or begins with a dot, and none has an escape or a parameter.
const clearPath = `(?:/[a-zA-Z0-9\-_~!$&'()*+,:=@\[\]][a-zA-Z0-9\-._~!$&'()*+,:=@\[\]]*)*/?(?:\?` + anyBytes + `)?`

// isClearPath reports whether it is one, with a query or without.
func isClearPath(path string) bool {
	for i := range len(path) {
		switch c := path[i]; {
		case c == '?':
			return true
		case i == 0 && c != '/', c == '/' && i > 0 && path[i-1] == '/', c == '.' && path[i-1] == '/', c != '/' && !inClearPath[c]:
			return false
		}
	}
	return true
}

var inClearPath = bytesOf("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,:=@[]")

func bytesOf(text string) (out [256]bool) {
	for i := range len(text) {
		out[text[i]] = true
	}
	return out
}

const (
	pathReserved = "!$&'()*+,:;=@[]" // may stand in a normalised path as they are or escaped
	pathEscaped  = "\"<>^`{|}"       // are escaped by the proxies
)

// IsAmbiguous reports whether a path, as rules see it, is one that servers read in different ways.
func IsAmbiguous(path string) bool { return pathAmbiguity.Finds(path) }

// WellFormed reports whether the proxies read a path at all.
func WellFormed(raw string) bool {
	return strings.HasPrefix(raw, "/") && !strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' })
}

// NormalizePath does to a request's path what the proxies of a workload that asks for it do before any rule sees it: the query is dropped, %2F and %5C and
// backslashes become slashes, escapes of unreserved characters are decoded, characters that a URI cannot hold are escaped,
// dot segments are removed, slashes merged. It returns false for a path that the proxies refuse to read.
func NormalizePath(raw string) (string, bool) {
	if !WellFormed(raw) {
		return "", false
	}
	raw, _, _ = strings.Cut(raw, "?")
	path := withoutDotParameters(unescapeSlashes(raw))
	if strings.Contains(path, "%00") {
		return "", false
	}
	return mergeSlashes(removeDots(path)), true
}

func unescapeSlashes(path string) string {
	return strings.NewReplacer("%2F", "/", "%2f", "/", "%5C", "\\", "%5c", "\\").Replace(path)
}

// withoutDotParameters makes "..;x" the dot segment that servers take it for which cut off a segment's parameters.
func withoutDotParameters(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if dots, _, ok := strings.Cut(p, ";"); ok && (dots == "." || dots == "..") {
			parts[i] = dots
		}
	}
	return strings.Join(parts, "/")
}

// removeDots decodes and escapes each segment, and resolves dot segments; an empty segment is a segment here.
func removeDots(path string) string {
	var out []string
	parts := strings.Split(strings.ReplaceAll(path, "\\", "/")[1:], "/")
	for i, p := range parts {
		p = recode(p)
		if p != "." && p != ".." {
			out = append(out, p)
			continue
		}
		if p == ".." && len(out) > 0 {
			out = out[:len(out)-1]
		}
		if i == len(parts)-1 {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}

// recode decodes the escapes of unreserved characters and escapes what a path cannot hold.
func recode(segment string) string {
	var out []byte
	percent := -4 // where in out the last % is that begins no escape
	for i := 0; i < len(segment); i++ {
		c := segment[i]
		b, escape := escapeAt(segment, i)
		switch {
		case escape && unreserved(b):
			i += 2
			out = append(out, b)
			if len(out)-percent <= 3 && becomesEscape(out[percent:], segment[i+1:]) {
				out = slices.Insert(out, percent+1, '2', '5')
			}
		case escape:
			out = append(out, segment[i:i+3]...)
			i += 2
		case c == '%':
			percent = len(out)
			out = append(out, c)
		case strings.IndexByte(pathEscaped, c) >= 0 || c <= ' ' || c >= 0x7f:
			out = fmt.Appendf(out, "%%%02X", c)
		default:
			out = append(out, c)
		}
	}
	return string(out)
}

// becomesEscape reports whether decoding has made an escape of a % that began none.
func becomesEscape(decoded []byte, rest string) bool {
	if len(decoded) == 2 && rest != "" {
		decoded = append(slices.Clone(decoded), rest[0])
	}
	_, ok := escapeAt(string(decoded), 0)
	return ok
}

func mergeSlashes(path string) string {
	if !strings.Contains(path, "//") {
		return path
	}
	out := "/" + strings.Join(strings.FieldsFunc(path, func(r rune) bool { return r == '/' }), "/")
	if strings.HasSuffix(path, "/") {
		out += "/"
	}
	return out
}

// escapeAt returns the byte that is escaped at s[i:], if there is an escape.
func escapeAt(s string, i int) (byte, bool) {
	if i+2 >= len(s) || s[i] != '%' {
		return 0, false
	}
	h, ok1 := hexDigit(s[i+1])
	l, ok2 := hexDigit(s[i+2])
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

// parsePath reads a path of a policy, which must be one that normalisation can yield, or a part of one at the end that has
// no wildcard.
func parsePath(v string, wide bool) ([]Match, error) {
	if strings.ContainsAny(v, "{}") {
		return parseTemplate(v, wide)
	}
	m := wildcard(v)
	if m.Kind == Present {
		return []Match{m}, nil
	}
	if m.Kind != Suffix && !strings.HasPrefix(m.Value, "/") {
		return nil, fmt.Errorf("%q can never match: a path begins with /", v)
	}
	if strings.ContainsAny(v, "?#") {
		return nil, fmt.Errorf("%q can never match: paths are compared without query and fragment", v)
	}
	if reason := notNormal(m.Kind, m.Value); reason != "" {
		return nil, fmt.Errorf("%q can never match: %s%s", v, reason, instead(m))
	}
	text, plain := pathText(m.Value, wide)
	if plain {
		return []Match{m}, nil
	}
	switch m.Kind {
	case Prefix:
		text += anyBytes
	case Suffix:
		text = anyBytes + text
	}
	return []Match{{Kind: Regexp, Value: text}}, nil
}

// notNormal says why no normalised path is, begins with or ends with the text.
func notNormal(kind Kind, text string) string {
	segments := strings.Split(text, "/")
	for i, s := range segments {
		first, last := i == 0, i == len(segments)-1
		open := first && kind == Suffix || last && kind == Prefix // more of the segment may follow or precede
		switch {
		case s == "" && !first && !last:
			return "two slashes are merged before paths are compared, or denied as ambiguous"
		case (s == "." || s == "..") && !open:
			return "dot segments are removed before paths are compared, or denied as ambiguous"
		}
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		b, escape := escapeAt(text, i)
		switch {
		case c == '%' && !escape:
			return "it has a % without two hexadecimal digits, and such paths are denied as ambiguous"
		case escape && (unreserved(b) || b == '/' || b == '\\'):
			return fmt.Sprintf("%s is decoded before paths are compared, or denied as ambiguous", text[i:i+3])
		case escape && b == 0:
			return "a path with %00 is refused"
		case c != '%' && c != '/' && !unreserved(c) && strings.IndexByte(pathReserved, c) < 0:
			return fmt.Sprintf("%q is not a character of paths, which have it escaped", character(text[i:]))
		}
	}
	if ambiguousByte.MatchString(text) {
		return "such a path is denied as ambiguous wherever a rule looks at paths (parameters, twice escaped bytes, control characters)"
	}
	return ""
}

func character(s string) string {
	for _, r := range s {
		return string(r)
	}
	return ""
}

// instead proposes what to write for a text that is not normal, if there is something.
func instead(m Match) string {
	var sb strings.Builder
	for i := range len(m.Value) {
		if c := m.Value[i]; c <= ' ' || c >= 0x7f {
			fmt.Fprintf(&sb, "%%%02X", c)
		} else {
			sb.WriteByte(c)
		}
	}
	text, added := sb.String(), ""
	if !strings.HasPrefix(text, "/") {
		text, added = "/"+text, "/"
	}
	normal, ok := NormalizePath(text)
	if normal = strings.TrimPrefix(normal, added); !ok || normal == "" || normal == m.Value || notNormal(m.Kind, normal) != "" {
		return ""
	}
	switch m.Kind {
	case Prefix:
		normal += "*"
	case Suffix:
		normal = "*" + normal
	}
	return fmt.Sprintf("; write %q", normal)
}

// pathText is an expression for a normal path or a part of one. The case of an escape's digits has no meaning. Where a match
// denies (wide), an escaped character is the character: applications take them for the same. Plain says that the
// expression is nothing but the text.
func pathText(text string, wide bool) (expression string, plain bool) {
	var sb strings.Builder
	plain = true
	for i := 0; i < len(text); i++ {
		c, b := text[i:i+1], text[i]
		escaped, isEscape := escapeAt(text, i)
		if isEscape {
			c, b = text[i:i+3], escaped
			i += 2
		}
		both := wide && strings.IndexByte(pathReserved, b) >= 0
		switch {
		case both:
			plain = false
			fmt.Fprintf(&sb, "(?:%s|(?i:%%%02x))", regexp.QuoteMeta(string(rune(b))), b)
		case isEscape && strings.ToLower(c) != strings.ToUpper(c):
			plain = false
			fmt.Fprintf(&sb, "(?i:%s)", strings.ToLower(c))
		default:
			sb.WriteString(regexp.QuoteMeta(c))
		}
	}
	return sb.String(), plain
}

// parseTemplate reads a path with the operators {*} (one segment) and {**} (any number) by Istio's rules.
func parseTemplate(v string, wide bool) ([]Match, error) {
	if !strings.HasPrefix(v, "/") {
		return nil, fmt.Errorf("template %q does not begin with /", v)
	}
	rest := false
	segments := strings.Split(v[1:], "/")
	literals := make([]string, 0, len(segments))
	for _, seg := range segments {
		switch {
		case seg == "{*}" || seg == "{**}":
			if rest {
				return nil, fmt.Errorf("template %q has an operator after {**}", v)
			}
			rest = seg == "{**}"
			literals = append(literals, "x")
		case strings.ContainsAny(seg, "{}*"):
			return nil, fmt.Errorf("template %q: %q is neither an operator ({*}, {**}) nor plain text", v, seg)
		case strings.IndexFunc(seg, func(r rune) bool { return !templateByte(r) }) >= 0:
			return nil, fmt.Errorf("template %q: %q has characters a template cannot hold", v, seg)
		default:
			literals = append(literals, seg)
		}
	}
	if reason := notNormal(Exact, "/"+strings.Join(literals, "/")); reason != "" {
		return nil, fmt.Errorf("%q can never match: %s", v, reason)
	}
	return []Match{{Kind: Regexp, Value: templateText(segments, wide)}}, nil
}

// templateByte reports whether the literals of a template may hold r (RFC 3986 pchar, less * and =, which Envoy reserves).
func templateByte(r rune) bool {
	return r < 128 && (unreserved(byte(r)) || strings.ContainsRune("%!$&'()+,:@", r))
}

// templateText is an expression for a template. Where it admits, {*} takes a segment and {**} any bytes as Envoy's templates
// do: characters of RFC 3986. Where it denies (wide), whatever a segment can hold, and {**} between slashes also nothing.
func templateText(segments []string, wide bool) string {
	one, many := `[a-zA-Z0-9\-._~%!$&'()+,;:@=*]+`, `/[a-zA-Z0-9\-._~%!$&'()+,;:@=*/]*`
	if wide {
		one, many = `[^/]+`, `/`+anyBytes
	}
	var sb strings.Builder
	for i, seg := range segments {
		switch {
		case seg == "{*}":
			sb.WriteString("/" + one)
		case seg == "{**}" && wide && i < len(segments)-1:
			sb.WriteString("(?:" + many + ")?")
		case seg == "{**}":
			sb.WriteString(many)
		default:
			text, _ := pathText(seg, wide)
			sb.WriteString("/" + text)
		}
	}
	return sb.String()
}
