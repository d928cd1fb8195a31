// Package jwt is what Bulwark means by a RequestAuthentication: whose tokens a workload takes, where in a request they are, and by which keys
// they are verified.
package jwt

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Limits on what one policy may hold, so that nobody's policy is a burden to others.
const (
	maxRules  = 64
	maxValues = 64 // of each list of a rule
	maxText   = 2048
	maxDepth  = 8 // of a claim within claims
)

// DefaultTimeout bounds the fetching of keys, unless the rule says otherwise; longer ones are cut to MaxTimeout.
const (
	DefaultTimeout = 5 * time.Second
	MaxTimeout     = 30 * time.Second
)

// Policy is a RequestAuthentication in the intermediate form.
type Policy struct {
	authz.Meta
	Selector map[string]string // empty: every workload in scope
	Services []string          // of its namespace, that it targets; see authz.Policy
	Ignored  bool              // it targets or selects something that is no workload, so it touches none
	Rules    []Rule
}

// Rule says how the tokens of an issuer are verified.
type Rule struct {
	Issuer         string
	Audiences      []string // one of which a token must be for; empty: any will do
	Source         Source
	Keys           string   // the key set, if it is in the policy; see ReadKeys
	Headers        []Header // where tokens are; nowhere: in the header Authorization after "Bearer ", and in the parameter access_token
	Params         []string
	Cookies        []string
	Forward        bool   // the application gets the token, too
	PayloadHeader  string // in which the application gets the claims, in JSON in base64url
	Claims         []ClaimHeader
	SpaceDelimited []string // claims that are lists, written as one text, beside scope and permission
	Timeout        time.Duration
}

// Header is where a token is, after a prefix.
type Header struct{ Name, Prefix string }

// ClaimHeader hands a claim to the application in a header.
type ClaimHeader struct {
	Header string
	Claim  []string // its name, within the claims that are named before it
}

// Source is where keys are to be had that a policy does not have itself: from a URI, or by discovery from the issuer (OpenID Connect
// Discovery 1.0, section 4). A zero one is nowhere.
type Source struct {
	URI       string
	Discovery bool // URI is the issuer's
}

// IsZero reports whether there is nothing to fetch.
func (s Source) IsZero() bool { return s.URI == "" }

// String is the address that is asked first.
func (s Source) String() string {
	if s.Discovery {
		return strings.TrimSuffix(s.URI, "/") + "/.well-known/openid-configuration"
	}
	return s.URI
}

// Unprotected reports whether keys come over a connection that anybody on the way could answer.
func Unprotected(s Source) bool { return strings.HasPrefix(s.URI, "http://") }

// Places are where in a request the tokens of a rule are looked for, in an order without meaning.
func (r Rule) Places() (out []string) {
	for _, h := range r.Headers {
		out = append(out, "header "+strings.ToLower(h.Name))
	}
	for _, p := range r.Params {
		out = append(out, "parameter "+p)
	}
	for _, c := range r.Cookies {
		out = append(out, "cookie "+c)
	}
	if len(out) == 0 {
		return []string{"header authorization", "parameter access_token"}
	}
	return out
}

// OfMesh reports whether the keys are those of a mesh's own tokens, its JWT-SVIDs, which are the trust bundle's.
func OfMesh(s Source) bool { return strings.HasPrefix(s.URI, "spiffe://") }

// FromRequestAuthentication makes the intermediate form. What cannot be enforced is reported as problems; the policy is then not to be relied on: who
// enforces it denies all that it selects.
func FromRequestAuthentication(meta authz.Meta, spec *security.RequestAuthentication, opts authz.Options) (Policy, []authz.Problem) {
	r := &reader{trustDomains: opts.TrustDomains()}
	p := Policy{Meta: meta, Selector: spec.GetSelector().GetMatchLabels()}
	r.problems = authz.CheckLabels("spec.selector.matchLabels", p.Selector)
	p.Ignored = len(r.problems) > 0
	services, others, problems := authz.Targets(meta.Namespace, p.Selector, spec.GetTargetRef(), spec.GetTargetRefs())
	r.problems = append(r.problems, problems...)
	p.Services, p.Ignored = services, p.Ignored || others && len(services) == 0
	rules := spec.GetJwtRules()
	if len(rules) > maxRules {
		r.problem("spec.jwtRules", fmt.Sprintf("%d rules, at most %d", len(rules), maxRules))
		rules = rules[:maxRules]
	}
	for i, rule := range rules {
		p.Rules = append(p.Rules, r.rule(fmt.Sprintf("spec.jwtRules[%d]", i), rule))
	}
	return p, r.problems
}

type reader struct {
	trustDomains []string
	problems     []authz.Problem
}

func (r *reader) problem(field, reason string) {
	r.problems = append(r.problems, authz.Problem{Field: field, Reason: reason})
}

func (r *reader) rule(field string, rule *security.JWTRule) Rule {
	out := Rule{
		Issuer: rule.GetIssuer(), Audiences: r.texts(field+".audiences", rule.GetAudiences()), Params: r.texts(field+".fromParams", rule.GetFromParams()),
		Cookies: r.texts(field+".fromCookies", rule.GetFromCookies()), Forward: rule.GetForwardOriginalToken(),
		SpaceDelimited: r.texts(field+".spaceDelimitedClaims", rule.GetSpaceDelimitedClaims()), Timeout: DefaultTimeout,
	}
	r.text(field+".issuer", out.Issuer)
	r.keys(field, rule, &out)
	for i, h := range r.bounded(field+".fromHeaders", len(rule.GetFromHeaders())) {
		from := rule.GetFromHeaders()[i]
		r.header(fmt.Sprintf("%s[%d].name", h, i), from.GetName())
		if hidden := hiddenHeaders[strings.ToLower(from.GetName())]; hidden {
			r.problem(fmt.Sprintf("%s[%d].name", h, i), fmt.Sprintf("%q is of the connection, and carries no token", from.GetName()))
		}
		if from.GetPrefix() != "" {
			r.text(fmt.Sprintf("%s[%d].prefix", h, i), from.GetPrefix())
		}
		out.Headers = append(out.Headers, Header{from.GetName(), from.GetPrefix()})
	}
	if name := rule.GetOutputPayloadToHeader(); name != "" {
		out.PayloadHeader = name
		r.output(field+".outputPayloadToHeader", name)
	}
	for i, f := range r.bounded(field+".outputClaimToHeaders", len(rule.GetOutputClaimToHeaders())) {
		c := rule.GetOutputClaimToHeaders()[i]
		r.output(fmt.Sprintf("%s[%d].header", f, i), c.GetHeader())
		path := strings.Split(c.GetClaim(), ".")
		if r.text(fmt.Sprintf("%s[%d].claim", f, i), c.GetClaim()); len(path) > maxDepth || slices.Contains(path, "") {
			r.problem(fmt.Sprintf("%s[%d].claim", f, i), fmt.Sprintf("%q is not the name of a claim, nor names separated by dots", c.GetClaim()))
		}
		out.Claims = append(out.Claims, ClaimHeader{c.GetHeader(), path})
	}
	if t := rule.GetTimeout(); t != nil {
		if out.Timeout = min(t.AsDuration(), MaxTimeout); out.Timeout < time.Millisecond {
			r.problem(field+".timeout", "is shorter than a millisecond")
		}
	}
	return out
}

// keys reads where a rule's keys are.
func (r *reader) keys(field string, rule *security.JWTRule, out *Rule) {
	switch {
	case rule.GetJwks() != "" && rule.GetJwksUri() != "":
		r.problem(field+".jwks", "there is jwksUri, too; leave one of them out")
	case rule.GetJwks() != "":
		keys, problems, err := ReadKeys([]byte(rule.GetJwks()))
		if err != nil {
			problems = append(problems, err.Error())
		}
		for _, p := range problems {
			r.problem(field+".jwks", p)
		}
		out.Keys = keys.Text
	case rule.GetJwksUri() != "":
		out.Source = Source{URI: rule.GetJwksUri()}
		if err := CheckURI(rule.GetJwksUri()); err != nil {
			r.problem(field+".jwksUri", err.Error())
		}
	case slices.ContainsFunc(r.trustDomains, func(td string) bool { return rule.GetIssuer() == spiffe.TokenIssuer(td) }):
		out.Source = Source{URI: rule.GetIssuer()}
	default:
		out.Source = Source{URI: rule.GetIssuer(), Discovery: true}
		if err := CheckURI(rule.GetIssuer()); err != nil && rule.GetIssuer() != "" {
			r.problem(field+".issuer", "has no keys to be discovered: "+err.Error()+"; give jwksUri or jwks")
		}
	}
}

// CheckURI says why keys cannot be fetched from a URI.
func CheckURI(text string) error {
	if len(text) > maxText {
		return fmt.Errorf("the URL has %d bytes, at most %d", len(text), maxText)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a URL", text)
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return fmt.Errorf("%q is not a URL of http or https with a host", text)
	case u.User != nil:
		return fmt.Errorf("the URL has a user or a password, which everybody who may read the policy would know")
	case u.Fragment != "":
		return fmt.Errorf("%q has a fragment, which no server sees", text)
	}
	return nil
}

func (r *reader) bounded(field string, n int) []string {
	if n > maxValues {
		r.problem(field, fmt.Sprintf("%d entries, at most %d", n, maxValues))
		n = maxValues
	}
	return slices.Repeat([]string{field}, n)
}

func (r *reader) texts(field string, values []string) []string {
	for i := range r.bounded(field, len(values)) {
		r.text(fmt.Sprintf("%s[%d]", field, i), values[i])
	}
	return values[:min(len(values), maxValues)]
}

func (r *reader) text(field, v string) {
	switch {
	case v == "":
		r.problem(field, "is empty")
	case len(v) > maxText:
		r.problem(field, fmt.Sprintf("has %d bytes, at most %d", len(v), maxText))
	case strings.ContainsFunc(v, func(c rune) bool { return c < ' ' || c == 0x7f }):
		r.problem(field, "has control characters")
	}
}

// token is the name of a header (RFC 9110, section 5.6.2).
var token = regexp.MustCompile("^[0-9A-Za-z!#$%&'*+.^_`|~-]{1,256}$")

func (r *reader) header(field, name string) {
	if !token.MatchString(name) {
		r.problem(field, fmt.Sprintf("%q is not the name of a header", name))
	}
}

// hiddenHeaders are of one connection, or a request's own.
var hiddenHeaders = map[string]bool{"host": true, "connection": true, "keep-alive": true, "proxy-connection": true, "transfer-encoding": true, "content-length": true, "te": true,
	"upgrade": true}

// output reads the name of a header that is set for the application, and is taken off requests that come with it.
func (r *reader) output(field, name string) {
	r.header(field, name)
	if lower := strings.ToLower(name); hiddenHeaders[lower] || strings.HasPrefix(lower, "x-envoy-") || lower == "authorization" || lower == "cookie" || lower == "content-type" {
		r.problem(field, fmt.Sprintf("%q has a meaning of its own; requests would lose it", name))
	}
}
