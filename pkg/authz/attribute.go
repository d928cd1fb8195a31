package authz

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// attribute is all that is known of an attribute. Admission, the proxies' configuration and the evaluation follow from it:
// parse knows which texts the attribute can have and turns a policy's value into matches of them, or says why none can
// ever match; text and address find the attribute in a request, in the form that the proxies compare, where that is one.
type attribute struct {
	parse func(b *builder, v string, wide bool) ([]Match, error) // wide: where the match denies
	text
	address
	http bool // only HTTP has it
	peer bool // it comes from the peer's certificate
}

var attributes = map[Attribute]attribute{
	Principal:        {parse: narrow((*builder).parsePrincipal), peer: true},
	Namespace:        {parse: narrow((*builder).parseNamespace), peer: true},
	ServiceAccount:   {parse: narrow((*builder).parseAccount), peer: true},
	TrustDomain:      {parse: narrow((*builder).parseTrustDomain), peer: true},
	SourceIP:         {parse: plain(parseCIDR), address: func(s *seen) netip.Addr { return s.SourceIP }},
	RemoteIP:         {parse: plain(parseCIDR), address: func(s *seen) netip.Addr { return s.RemoteIP }},
	DestinationIP:    {parse: plain(parseCIDR), address: func(s *seen) netip.Addr { return s.DestinationIP }},
	DestinationPort:  {parse: plain(parsePort)},
	SNI:              {parse: plain(parseSNI), text: func(s *seen) string { return s.SNI }},
	Host:             {parse: either(parseHost), text: func(s *seen) string { return s.Host }, http: true},
	Method:           {parse: tunnelled(parseMethod), text: func(s *seen) string { return s.Method }, http: true},
	Path:             {parse: literalStar(parsePath), text: func(s *seen) string { return s.Path }, http: true},
	Header:           {parse: literalStar(parseHeader), http: true},
	RequestPrincipal: {parse: plain(parseRequestPrincipal), http: true},
	Claim:            {parse: plain(parseClaim), http: true},
}

func narrow(parse func(*builder, string) ([]Match, error)) func(*builder, string, bool) ([]Match, error) {
	return func(b *builder, v string, _ bool) ([]Match, error) { return parse(b, v) }
}

func plain(parse func(string) ([]Match, error)) func(*builder, string, bool) ([]Match, error) {
	return func(_ *builder, v string, _ bool) ([]Match, error) { return parse(v) }
}

// tunnelled warns of a rule that is to let CONNECT pass, which a rule about methods cannot.
func tunnelled(parse func(string) ([]Match, error)) func(*builder, string, bool) ([]Match, error) {
	return func(b *builder, v string, wide bool) ([]Match, error) {
		if v == "CONNECT" && !wide {
			b.warn("CONNECT is denied where a rule looks at requests, as nothing sees what follows it; admit who may use a forward proxy by identity, address and port alone")
		}
		return parse(v)
	}
}

func either(parse func(string, bool) ([]Match, error)) func(*builder, string, bool) ([]Match, error) {
	return func(_ *builder, v string, wide bool) ([]Match, error) { return parse(v, wide) }
}

// literalStar is of attributes whose texts may have a * themselves: it is legal in the middle of a value, and stands for itself.
func literalStar(parse func(string, bool) ([]Match, error)) func(*builder, string, bool) ([]Match, error) {
	return func(b *builder, v string, wide bool) ([]Match, error) {
		m, err := parse(v, wide)
		if err != nil {
			return nil, err
		}
		if strings.Contains(wildcard(v).Value, "*") && !strings.ContainsAny(v, "{}") {
			b.warn(fmt.Sprintf("%q: only one * at the beginning or at the end stands for anything; the other one is taken as it is", v))
		}
		if strings.Contains(v, ",/") {
			b.warn(fmt.Sprintf("%q is one value; write a list if it is to be several", v))
		}
		return m, nil
	}
}

// Ambiguity is a text of an attribute of which no rule could know what it lets through, as servers read it in different ways. Where a rule looks at what it
// makes uncertain, it is denied.
type Ambiguity struct {
	Attribute Attribute
	Rule      string // the name of the rule that denies it
	Reason    string // why it is denied
	Exact     string // the one text that is ambiguous; where there is one, there is nothing below
	Pattern   string // of RE2: what is found in a text makes it ambiguous
	Alphabet  string // of RE2: a text that is not wholly so is ambiguous, too; empty if any characters will do
	// Clear is an expression of RE2 for the whole of a text that is certainly not ambiguous, as nearly all are. It is asked first, so that they cost next to nothing.
	Clear string

	isClear           func(string) bool // whether it is one of Clear, in less time
	pattern, alphabet *regexp.Regexp
}

// Within is what is ambiguous, but for characters outside of the alphabet, as a match of whole texts.
func (a Ambiguity) Within() Match {
	if a.Exact != "" {
		return Match{Exact, a.Exact}
	}
	return Match{Regexp, anyBytes + "(?:" + a.Pattern + ")" + anyBytes}
}

// Finds reports whether a text is ambiguous.
func (a Ambiguity) Finds(text string) bool {
	if a.Exact != "" {
		return text == a.Exact
	}
	return !a.isClear(text) && a.expressed(text)
}

// expressed is what the expressions say that are asked of a text that is not clear.
func (a Ambiguity) expressed(text string) bool {
	return a.pattern.MatchString(text) || !a.alphabet.MatchString(text)
}

func ambiguity(of Attribute, rule, pattern, alphabet, clear string, isClear func(string) bool) Ambiguity {
	whole := alphabet
	if whole == "" {
		whole = anyBytes
	}
	return Ambiguity{Attribute: of, Rule: rule, Reason: fmt.Sprintf("servers read the %s in different ways, and a rule depends on it", of), Pattern: pattern, Alphabet: alphabet, Clear: clear,
		isClear: isClear, pattern: regexp.MustCompile(pattern), alphabet: regexp.MustCompile("^(?:" + whole + ")$")}
}

var pathAmbiguity = ambiguity(Path, AmbiguousPathRule, AmbiguousPath, pathAlphabet, clearPath, isClearPath)

var usualMethods = []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"}

// Ambiguities are all there are.
var Ambiguities = []Ambiguity{
	pathAmbiguity,
	ambiguity(Method, AmbiguousMethodRule, AmbiguousMethod, "", strings.Join(usualMethods, "|"), func(m string) bool { return slices.Contains(usualMethods, m) }),
	{Attribute: Method, Rule: TunnelRule, Exact: "CONNECT", Reason: "what follows CONNECT is read by no rule, and a rule depends on requests"},
}

// Concerns reports whether a rule of a policy looks at what the ambiguity makes uncertain: at the attribute, or, of a tunnel, at anything that requests have.
func (a Ambiguity) Concerns(p Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.uses(func(of Attribute) bool { return of == a.Attribute || a.Rule == TunnelRule && attributes[of].http })
	})
}
