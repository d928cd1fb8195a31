package open

import (
	"encoding/binary"
	"math"
	"net/netip"
	"regexp/syntax"
	"slices"
	"strconv"
	"unicode"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// An expression is written for the filter as its operator and then its operands. It has one of three values, as not all that a rule asks for is known of what is
// judged: on a connection that carries requests one may still come that is allowed.
var (
	no     = []byte("N")
	maybe  = []byte("M")
	yes    = []byte("Y")
	proven = isText(peerURI, authz.Match{Kind: authz.Present}) // the client has proved an identity
)

func not(x []byte) []byte {
	switch string(x) {
	case string(yes):
		return no
	case string(no):
		return yes
	}
	return append([]byte("!"), x...)
}

func both(all ...[]byte) []byte { return several('&', yes, no, all) }

func either(all ...[]byte) []byte { return several('|', no, yes, all) }

// several joins expressions: neutral ones and repetitions are left out, and a decisive one is the outcome.
func several(operator byte, neutral, decisive []byte, given [][]byte) []byte {
	var all [][]byte
	seen := map[string]bool{string(neutral): true}
	for _, x := range given {
		if !seen[string(x)] {
			seen[string(x)] = true
			all = append(all, x)
		}
	}
	switch {
	case seen[string(decisive)]:
		return decisive
	case len(all) == 0:
		return neutral
	case len(all) == 1:
		return all[0]
	case len(all) > most:
		return maybe
	}
	joined := slices.Concat(all...)
	out := binary.LittleEndian.AppendUint16([]byte{operator}, uint16(len(all)))
	return append(binary.LittleEndian.AppendUint32(out, uint32(len(joined))), joined...)
}

const most = 1<<16 - 1 // operands, and bytes of a name

func portIs(number uint32) []byte {
	return binary.LittleEndian.AppendUint16([]byte("d"), uint16(number))
}

// The texts that the filter knows. A header is followed by its name, a claim by the names of those that it is within and its own.
const (
	peerURI    = "p"
	serial     = "z"
	serverName = "n"
	host       = "h"
	method     = "m"
	path       = "u"
	header     = "x"
	claim      = "c"
	claimText  = "i" // a claim that is a text, and no list
)

var texts = map[authz.Attribute]string{authz.SNI: serverName, authz.Host: host, authz.Method: method, authz.Path: path}

var kinds = map[authz.Kind]string{authz.Exact: "=", authz.Prefix: "^", authz.Suffix: "$", authz.Present: "+", authz.Regexp: "~"}

// isText compares a text.
func isText(what string, m authz.Match) []byte {
	with := []byte(m.Value)
	if m.Kind == authz.Regexp {
		var ok bool
		if with, ok = program(m.Value); !ok {
			return maybe
		}
	}
	kind, ok := kinds[m.Kind]
	if !ok {
		return maybe
	}
	return slices.Concat([]byte("t"+what+kind), binary.LittleEndian.AppendUint32(nil, uint32(len(with))), with)
}

// named is a kind of text with a name; false if the name is too long.
func named(what string, name []byte) (string, bool) {
	return string(slices.Concat([]byte(what), binary.LittleEndian.AppendUint16(nil, uint16(len(name))), name)), len(name) <= most
}

// isClaim compares a claim of a token, or the elements of one that is a list. What is written as a number is compared with those, too.
func isClaim(kind string, names []string, m authz.Match) []byte {
	var path []byte
	for _, n := range names {
		path = append(binary.LittleEndian.AppendUint16(path, uint16(len(n))), n...)
	}
	what, ok := named(kind, path)
	if !ok || len(names) == 0 {
		return maybe
	}
	is := isText(what, m)
	if n, ok := m.Number(); ok && kind == claim {
		with := binary.LittleEndian.AppendUint32([]byte("t"+what+"#"), 8)
		is = either(is, binary.LittleEndian.AppendUint64(with, math.Float64bits(n)))
	}
	return is
}

// believed is a token of an issuer that is known.
func believed(issuers []compile.Issuer) []byte {
	var all [][]byte
	for _, i := range issuers {
		all = append(all, isClaim(claimText, []string{"iss"}, authz.Match{Kind: authz.Exact, Value: i.Issuer}))
	}
	return either(all...)
}

// value is one match of a clause.
func value(c authz.Clause, m authz.Match) []byte {
	switch {
	case c.Attribute == authz.DestinationPort:
		if number, err := strconv.ParseUint(m.Value, 10, 16); err == nil && m.Kind == authz.Port {
			return portIs(uint32(number))
		}
	case c.Attribute == authz.SourceIP, c.Attribute == authz.RemoteIP, c.Attribute == authz.DestinationIP:
		return addressIn(c.Attribute, m)
	case c.Attribute.Identity():
		return isText(peerURI, m)
	case c.Attribute == authz.Header:
		if what, ok := named(header, []byte(c.Key)); ok {
			return isText(what, m)
		}
	case c.Attribute == authz.Claim:
		return isClaim(claim, authz.ClaimPath(c.Key), m)
	case c.Attribute == authz.RequestPrincipal:
		issuer, subject := m.IssuerSubject()
		return both(isClaim(claimText, []string{"iss"}, issuer), isClaim(claimText, []string{"sub"}, subject))
	case texts[c.Attribute] != "":
		return isText(texts[c.Attribute], m)
	}
	return maybe
}

var addresses = map[authz.Attribute]byte{authz.SourceIP: 's', authz.RemoteIP: 'r', authz.DestinationIP: 'd'}

func addressIn(of authz.Attribute, m authz.Match) []byte {
	network, err := netip.ParsePrefix(m.Value)
	if err != nil || m.Kind != authz.CIDR {
		return maybe
	}
	bytes := network.Addr().AsSlice()
	return append([]byte{'a', addresses[of], byte(len(bytes)), byte(network.Bits())}, bytes...)
}

// What an instruction of a program does, as the filter has it.
const (
	opMatch = iota
	opAlternative
	opNothing
	opRanges
	opBegin
	opEnd
)

const mostInstructions = 4096

// program writes a regular expression for whole texts as a program, which is Go's: a line of characters' ranges follows its instructions. It is false if it
// has something that none of those has that policies are made into.
func program(expression string) ([]byte, bool) {
	parsed, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return nil, false
	}
	p, err := syntax.Compile(parsed.Simplify())
	if err != nil || len(p.Inst) > mostInstructions {
		return nil, false
	}
	var code, ranges []byte
	for _, in := range p.Inst {
		op, arg, of := opNothing, in.Arg, uint32(0)
		switch in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			op = opAlternative
		case syntax.InstCapture, syntax.InstNop:
		case syntax.InstMatch:
			op = opMatch
		case syntax.InstFail:
			op = opRanges
		case syntax.InstEmptyWidth:
			switch syntax.EmptyOp(in.Arg) {
			case syntax.EmptyBeginText:
				op = opBegin
			case syntax.EmptyEndText:
				op = opEnd
			default:
				return nil, false
			}
		default:
			op, arg = opRanges, uint32(len(ranges)/8)
			for _, r := range characters(in) {
				ranges = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(ranges, uint32(r[0])), uint32(r[1]))
				of++
			}
		}
		code = append(code, byte(op), 0)
		for _, n := range []uint32{in.Out, arg, of} {
			code = binary.LittleEndian.AppendUint16(code, uint16(n))
		}
	}
	if len(ranges)/8 > most {
		return nil, false
	}
	var out []byte
	for _, n := range []int{len(p.Inst), p.Start, len(ranges) / 8} {
		out = binary.LittleEndian.AppendUint16(out, uint16(n))
	}
	return slices.Concat(out, code, ranges), true
}

// characters are the ranges of characters that an instruction takes.
func characters(in syntax.Inst) (out [][2]rune) {
	switch {
	case in.Op == syntax.InstRuneAny:
		return [][2]rune{{0, unicode.MaxRune}}
	case in.Op == syntax.InstRuneAnyNotNL:
		return [][2]rune{{0, '\n' - 1}, {'\n' + 1, unicode.MaxRune}}
	case len(in.Rune) == 1: // maybe in either case
		out = append(out, [2]rune{in.Rune[0], in.Rune[0]})
		if syntax.Flags(in.Arg)&syntax.FoldCase != 0 {
			for r := unicode.SimpleFold(in.Rune[0]); r != in.Rune[0]; r = unicode.SimpleFold(r) {
				out = append(out, [2]rune{r, r})
			}
		}
		return out
	}
	for i := 0; i+1 < len(in.Rune); i += 2 {
		out = append(out, [2]rune{in.Rune[i], in.Rune[i+1]})
	}
	return out
}
