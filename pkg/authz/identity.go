package authz

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// An identity is spiffe://<trust domain>/ns/<namespace>/sa/<service account>; principals leave out the scheme. Every
// attribute of a peer is a demand on the parts of its identity, and is compared with the whole URI.
const (
	partTrustDomain = iota
	partNS
	partNamespace
	partSA
	partAccount
	parts
)

// part is what a value demands of one part of an identity. Present demands nothing.
type part = Match

// TrustDomains returns the mesh's trust domain and its aliases. An identity is the same under each of them.
func (o Options) TrustDomains() []string {
	return append([]string{o.TrustDomain}, o.TrustDomainAliases...)
}

// parsePrincipal reads td/ns/x/sa/y, or the beginning or the end of one.
func (b *builder) parsePrincipal(v string) ([]Match, error) {
	if strings.HasPrefix(v, "spiffe://") {
		return nil, fmt.Errorf("%q: principals are written without spiffe://", v)
	}
	m := wildcard(v)
	var demands [parts]part
	for i := range demands {
		demands[i] = part{Kind: Present}
	}
	if m.Kind != Present {
		pieces := strings.Split(m.Value, "/")
		first, partial := 0, -1
		switch m.Kind {
		case Prefix:
			partial = len(pieces) - 1
		case Suffix:
			first, partial = parts-len(pieces), 0
		}
		if len(pieces) > parts || m.Kind == Exact && len(pieces) != parts {
			return nil, notPrincipal(v)
		}
		for i, text := range pieces {
			d := part{Kind: Exact, Value: text}
			if i == partial {
				d.Kind = m.Kind
			}
			if !partCan(first+i, d) {
				return nil, notPrincipal(v)
			}
			demands[first+i] = d
		}
	}
	return b.identities(v, demands), nil
}

func notPrincipal(v string) error {
	return fmt.Errorf("%q can never match: a principal is <trust domain>/ns/<namespace>/sa/<service account>, "+
		"with one * at the beginning or at the end if any", v)
}

// parseNamespace and parseTrustDomain read the name of one part.
func (b *builder) parseNamespace(v string) ([]Match, error) {
	d := wildcard(v)
	if d.Kind != Present && !partCan(partNamespace, d) {
		return nil, fmt.Errorf("%q can never match: %w", v, notName("namespace", v))
	}
	return b.identities(v, [parts]part{{Kind: Present}, {Kind: Present}, d, {Kind: Present}, {Kind: Present}}), nil
}

func (b *builder) parseTrustDomain(v string) ([]Match, error) {
	d := wildcard(v)
	if d.Kind != Present && !partCan(partTrustDomain, d) {
		return nil, fmt.Errorf("%q can never match: %w", v, notName("trust domain", v))
	}
	b.unnamed = true
	domains := b.opts.TrustDomains()
	if d.Kind != Exact {
		domains = slices.DeleteFunc(domains, func(other string) bool { return !d.matcher()(other) })
	} else if !slices.Contains(domains, d.Value) {
		domains = nil
	}
	if len(domains) == 0 {
		b.foreign(v)
		return []Match{{Kind: Regexp, Value: uri(partText(partTrustDomain, d), anyNamespace, anyAccount)}}, nil
	}
	return []Match{{Kind: Regexp, Value: uri(oneOf(domains), anyNamespace, anyAccount)}}, nil
}

func notName(what, v string) error {
	switch {
	case strings.Contains(strings.Trim(v, "*"), "*") || strings.HasPrefix(v, "*") && strings.HasSuffix(v, "*"):
		return errors.New("only one * at the beginning or at the end stands for anything")
	case strings.ContainsAny(v, ", "):
		return fmt.Errorf("one value is one %s; write a list", what)
	}
	return fmt.Errorf("it is not the name of a %s", what)
}

// parseAccount reads <service account>, of the policy's own namespace, or <namespace>/<service account>.
func (b *builder) parseAccount(v string) ([]Match, error) {
	ns, sa, ok := strings.Cut(v, "/")
	if !ok {
		ns, sa = b.meta.Namespace, v
	}
	account := part{Kind: Exact, Value: sa}
	if !partCan(partNamespace, part{Kind: Exact, Value: ns}) || !partCan(partAccount, account) {
		return nil, fmt.Errorf("%q is neither <service account> nor <namespace>/<service account>, which have no wildcards", v)
	}
	return b.identities(v, [parts]part{{Kind: Present}, {Kind: Present}, {Kind: Exact, Value: ns}, {Kind: Present}, account}), nil
}

// identities are the matches of the URIs that meet the demands. A trust domain of the mesh, or Istio's default, means all
// trust domains of the mesh; another one is kept as it is written.
func (b *builder) identities(written string, demands [parts]part) []Match {
	domains := b.opts.TrustDomains()
	td := demands[partTrustDomain]
	own := td.Kind == Present || td == part{Kind: Exact, Value: mesh.DefaultTrustDomain} || slices.ContainsFunc(domains, td.matcher())
	if !own {
		b.foreign(written)
	}
	ns, sa := demands[partNamespace], demands[partAccount]
	switch {
	case !own: // nobody of the mesh
	case ns.Kind != Exact:
		b.unnamed = true
	case sa.Kind == Exact:
		b.members = append(b.members, Member{ns.Value, sa.Value})
	default: // some of the namespace, if not all
		b.members = append(b.members, Member{Namespace: ns.Value})
	}
	if ns.Kind == Exact && sa.Kind == Exact && (own || td.Kind == Exact) {
		if !own {
			domains = []string{td.Value}
		}
		var out []Match
		for _, d := range domains {
			out = append(out, Match{Kind: Exact, Value: spiffe.ID{TrustDomain: d, Namespace: ns.Value, ServiceAccount: sa.Value}.String()})
		}
		return out
	}
	domain := oneOf(domains)
	if !own {
		domain = partText(partTrustDomain, td)
	}
	return []Match{{Kind: Regexp, Value: uri(domain, partText(partNamespace, ns), partText(partAccount, sa))}}
}

// foreign warns of a trust domain whose members cannot connect.
func (b *builder) foreign(written string) {
	b.warn(fmt.Sprintf("%q names a trust domain that is neither the mesh's (%s) nor an alias of it, so that no peer has it",
		written, strings.Join(b.opts.TrustDomains(), ", ")))
}

// The handshake has made sure of the form of the names, so that these say only where they end.
const (
	anyNamespace = `[-a-z0-9]+`
	anyAccount   = `[-a-z0-9.]+`
)

func uri(trustDomain, namespace, account string) string {
	return "spiffe://" + trustDomain + "/ns/" + namespace + "/sa/" + account
}

func oneOf(names []string) string {
	quoted := make([]string, 0, len(names))
	for _, n := range names {
		quoted = append(quoted, regexp.QuoteMeta(n))
	}
	if len(quoted) == 1 {
		return quoted[0]
	}
	return "(?:" + strings.Join(quoted, "|") + ")"
}

// partBytes are what the parts of an identity that are no literals consist of.
var partBytes = [parts]string{partTrustDomain: `[-a-z0-9._]*`, partNamespace: `[-a-z0-9]*`, partAccount: `[-a-z0-9.]*`}

var partAny = [parts]string{partTrustDomain: `[-a-z0-9._]+`, partNamespace: anyNamespace, partAccount: anyAccount}

func partText(i int, d part) string {
	switch q := regexp.QuoteMeta(d.Value); d.Kind {
	case Exact:
		return q
	case Prefix:
		return q + partBytes[i]
	case Suffix:
		return partBytes[i] + q
	}
	return partAny[i]
}

// partCan reports whether a part of an identity can be, begin or end as demanded.
func partCan(i int, d part) bool {
	switch i {
	case partNS, partSA:
		literal := [parts]string{partNS: "ns", partSA: "sa"}[i]
		return d.Kind == Exact && literal == d.Value || d.Kind == Prefix && strings.HasPrefix(literal, d.Value) ||
			d.Kind == Suffix && strings.HasSuffix(literal, d.Value)
	case partTrustDomain:
		_, err := spiffe.New(d.Value, "n", "s")
		return err == nil || d.Kind != Exact && d.Value == ""
	}
	// What a name lacks at its open end is filled up with a letter.
	name := d.Value
	switch d.Kind {
	case Prefix:
		name += "a"
	case Suffix:
		name = "a" + name
	}
	if i == partNamespace {
		return len(validation.IsDNS1123Label(name)) == 0
	}
	return len(validation.IsDNS1123Subdomain(name)) == 0
}
