package authz

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pkg/authorizer"
)

// Limits on what one policy may hold, so that nobody's policy is a burden to others.
const (
	MaxRules       = 512
	MaxFrom        = 512
	MaxValues      = 2048
	MaxValueLength = 2048
)

// Options are what a policy's meaning depends on beside its text.
type Options struct {
	TrustDomain        string
	TrustDomainAliases []string // of former or future names: an identity is the same under each of them
	RootNamespace      string
	// TrustedProxies is how many proxies before a workload append the address of their client to X-Forwarded-For, as one can rely on. With none, the
	// remote address is that of the TCP peer: a client writes what it likes into that header.
	TrustedProxies int
	// LoadBalancers are the networks of those whose word by the PROXY protocol counts for remote addresses, at ports of pods that ask for it.
	LoadBalancers []netip.Prefix
	Authorizers   []authorizer.Provider // whom policies of action CUSTOM may have asked
}

// FromAuthorizationPolicy makes the intermediate form. It never fails: what cannot be enforced is reported as problems,
// and the returned policy is on the safe side of each: an Allow rule matches nothing, any other rule more than it asked.
func FromAuthorizationPolicy(meta Meta, spec *security.AuthorizationPolicy, opts Options) (Policy, []Problem) {
	b := &builder{opts: opts, meta: meta}
	p := Policy{Meta: meta, Selector: spec.GetSelector().GetMatchLabels()}
	switch spec.GetAction() {
	case security.AuthorizationPolicy_ALLOW:
		p.Action = Allow
	case security.AuthorizationPolicy_DENY:
		p.Action = Deny
	case security.AuthorizationPolicy_AUDIT:
		p.Action = Audit
	case security.AuthorizationPolicy_CUSTOM:
		b.provider(&p, spec.GetProvider().GetName())
	default:
		p.Action = Deny
		b.problem("spec.action", fmt.Sprintf("unknown action %d", spec.GetAction()))
	}
	b.action = p.Action
	services, others, problems := Targets(meta.Namespace, p.Selector, spec.GetTargetRef(), spec.GetTargetRefs())
	p.Services = services
	for _, problem := range problems {
		b.problem(problem.Field, problem.Reason)
	}
	if others {
		p.Ignored = len(services) == 0
		b.at = "spec.targetRefs"
		b.warn("gateways, and what is outside of the cluster, have no policies enforced yet; there it has no effect")
	}
	before := len(b.problems)
	b.problems = append(b.problems, checkSelector(p.Selector)...)
	b.count = len(b.problems)
	p.Ignored = p.Ignored || b.count > before // it selects nothing
	if p.DryRun && p.Action == Audit {
		p.DryRun = false
		b.at = DryRunField
		b.warn("has no meaning here: AUDIT decides nothing")
	}
	rules := spec.GetRules()
	if len(rules) == 0 && spec.GetAction() != security.AuthorizationPolicy_ALLOW {
		b.problem("spec.rules", "a "+spec.GetAction().String()+" policy without rules matches nothing")
		if spec.GetAction() != security.AuthorizationPolicy_DENY && spec.GetAction() != security.AuthorizationPolicy_AUDIT {
			p.Rules = []Rule{{}}
		}
	}
	if len(rules) > MaxRules {
		b.problem("spec.rules", fmt.Sprintf("%d rules, at most %d", len(rules), MaxRules))
		rules = nil // an Allow policy allows nothing then
		if p.Action != Allow {
			p.Rules = []Rule{{}}
		}
	}
	for i, r := range rules {
		p.Rules = append(p.Rules, b.rule(i, r))
	}
	p.Warnings = b.warnings
	return p, b.problems
}

type builder struct {
	opts     Options
	meta     Meta
	action   Action
	custom   bool // its action is CUSTOM, whether or not there is an authorizer
	values   int
	count    int       // of problems, also of those that are not listed
	problems []Problem // the first maxProblems
	warnings []Problem
	at       string   // the field that is being read
	members  []Member // that the values read last can match; see Clause
	unnamed  bool     // they can match others, too
}

// provider reads which authorizer a Custom policy has asked. One whose authorizer is not there denies what it matches, until the installation has it.
func (b *builder) provider(p *Policy, name string) {
	p.Action, p.Provider, b.custom = Custom, name, true
	b.at = "spec.provider.name"
	switch {
	case name == "":
		p.Action = Deny
		b.problem(b.at, "is empty; name one of the installation's extensionProviders")
	case !slices.ContainsFunc(b.opts.Authorizers, func(p authorizer.Provider) bool { return p.Name == name }):
		p.Action = Deny
		b.warn(fmt.Sprintf("there is no external authorizer %q (extensionProviders of the installation): what this matches is denied", name))
	}
	if p.DryRun {
		p.DryRun = false
		b.problem(DryRunField, "an external authorizer cannot be tried out; this would be enforced")
	}
}

// maxProblems bounds how many problems of a policy are kept. What a rule matches never depends on what is kept.
const maxProblems = 50

func (b *builder) problem(field, reason string) {
	b.count++
	if len(b.problems) < maxProblems {
		b.problems = append(b.problems, Problem{field, reason})
	}
}

// warn notes a reason to look again at the field that is being read.
func (b *builder) warn(reason string) {
	if len(b.warnings) < maxProblems {
		b.warnings = append(b.warnings, Problem{b.at, reason})
	}
}

func checkSelector(labels map[string]string) []Problem {
	return CheckLabels("spec.selector.matchLabels", labels)
}

// CheckLabels finds what no workload's labels can meet in the labels that a field demands.
func CheckLabels(field string, labels map[string]string) []Problem {
	var out []Problem
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		reasons := append(validation.IsQualifiedName(k), validation.IsValidLabelValue(labels[k])...)
		if len(reasons) > 0 && len(out) < maxProblems {
			out = append(out, Problem{field, fmt.Sprintf("%q: %q can never match: %s", k, labels[k], reasons[0])})
		}
	}
	return out
}

func (b *builder) rule(i int, r *security.Rule) Rule {
	out := Rule{Index: i}
	field := fmt.Sprintf("spec.rules[%d]", i)
	before := b.count
	if r == nil {
		b.problem(field, "empty rule; write {} to match everything")
	}
	if len(r.GetFrom()) > MaxFrom {
		b.problem(field+".from", fmt.Sprintf("%d entries, at most %d", len(r.GetFrom()), MaxFrom))
	}
	for j, from := range r.GetFrom() {
		f := fmt.Sprintf("%s.from[%d]", field, j)
		if from.GetSource() == nil {
			b.problem(f+".source", "missing")
		}
		out.From = append(out.From, b.source(f+".source", from.GetSource()))
	}
	for j, to := range r.GetTo() {
		f := fmt.Sprintf("%s.to[%d]", field, j)
		if to.GetOperation() == nil {
			b.problem(f+".operation", "missing")
		}
		out.To = append(out.To, b.operation(f+".operation", to.GetOperation()))
	}
	for j, when := range r.GetWhen() {
		if c, ok := b.condition(fmt.Sprintf("%s.when[%d]", field, j), when); ok {
			out.When = append(out.When, c)
		}
	}
	// What was dropped above made the rule wider. An Allow rule must not be wider than what was asked.
	if b.count > before && b.action == Allow {
		out.Never = true
	}
	return out
}

// add appends a clause of values and their negations, dropping what cannot be parsed.
func (b *builder) add(clauses *Clauses, attr Attribute, key, field string, values, not []string) {
	if len(values) == 0 && len(not) == 0 {
		return
	}
	if b.custom && (attr == RequestPrincipal || attr == Claim) {
		b.problem(field, "is of the token, which is verified after external authorizers are asked; demand it by an ALLOW or DENY policy")
		return
	}
	c := Clause{Attribute: attr, Key: key, Asked: Asked{Field: field}}
	good := true
	b.members, b.unnamed = []Member{}, !attr.Identity()
	for i, v := range values {
		m, ok := b.match(attr, key, false, fmt.Sprintf("%s[%d]", field, i), v)
		good = good && ok
		c.Values = append(c.Values, m...)
		c.Asked.Values = append(c.Asked.Values, Written{v, m})
	}
	if good && len(values) > 0 && !b.unnamed {
		c.Members = b.members
	}
	if !good {
		c.Values, c.Asked.Values = nil, nil // some value is not understood: demand nothing (the rule gets wider)
	}
	negated := "not" + strings.ToUpper(field[strings.LastIndex(field, ".")+1:][:1]) + field[strings.LastIndex(field, ".")+2:]
	for i, v := range not {
		m, ok := b.match(attr, key, true, fmt.Sprintf("%s.%s[%d]", field[:strings.LastIndex(field, ".")], negated, i), v)
		if ok {
			c.Not = append(c.Not, m...)
			c.Asked.Not = append(c.Asked.Not, Written{v, m})
		}
	}
	if len(c.Values) > 0 || len(c.Not) > 0 {
		*clauses = append(*clauses, c)
	}
}

// remote is the attribute that is a client's address as far as anybody vouches for it.
func (b *builder) remote(field string, asked bool) Attribute {
	if b.opts.TrustedProxies > 0 || len(b.opts.LoadBalancers) > 0 {
		return RemoteIP
	}
	if b.at = field; asked {
		b.warn("is the address of the TCP peer, as no proxy before workloads is trusted (trustedProxies and loadBalancers of the installation)")
	}
	return SourceIP
}

func (b *builder) source(field string, s *security.Source) Clauses {
	var c Clauses
	before := b.count
	b.add(&c, Principal, "", field+".principals", s.GetPrincipals(), s.GetNotPrincipals())
	b.add(&c, Namespace, "", field+".namespaces", s.GetNamespaces(), s.GetNotNamespaces())
	b.add(&c, ServiceAccount, "", field+".serviceAccounts", s.GetServiceAccounts(), s.GetNotServiceAccounts())
	b.add(&c, TrustDomain, "", field+".trustDomains", s.GetTrustDomains(), s.GetNotTrustDomains())
	b.add(&c, SourceIP, "", field+".ipBlocks", s.GetIpBlocks(), s.GetNotIpBlocks())
	b.add(&c, RequestPrincipal, "", field+".requestPrincipals", s.GetRequestPrincipals(), s.GetNotRequestPrincipals())
	b.add(&c, b.remote(field+".remoteIpBlocks", len(s.GetRemoteIpBlocks())+len(s.GetNotRemoteIpBlocks()) > 0), "", field+".remoteIpBlocks",
		s.GetRemoteIpBlocks(), s.GetNotRemoteIpBlocks())
	if len(s.GetServiceAccounts())+len(s.GetNotServiceAccounts()) > 0 &&
		len(s.GetPrincipals())+len(s.GetNotPrincipals())+len(s.GetNamespaces())+len(s.GetNotNamespaces()) > 0 {
		b.problem(field+".serviceAccounts", "cannot be combined with principals or namespaces")
	}
	if s != nil && len(c) == 0 && b.count == before {
		b.problem(field, "sets no field")
	}
	return c
}

func (b *builder) operation(field string, o *security.Operation) Clauses {
	var c Clauses
	before := b.count
	b.add(&c, Host, "", field+".hosts", o.GetHosts(), o.GetNotHosts())
	b.add(&c, Method, "", field+".methods", o.GetMethods(), o.GetNotMethods())
	b.add(&c, Path, "", field+".paths", o.GetPaths(), o.GetNotPaths())
	b.add(&c, DestinationPort, "", field+".ports", o.GetPorts(), o.GetNotPorts())
	if o != nil && len(c) == 0 && b.count == before {
		b.problem(field, "sets no field")
	}
	return c
}

var conditions = map[string]Attribute{
	"source.ip": SourceIP, "source.namespace": Namespace, "source.principal": Principal,
	"source.serviceAccount": ServiceAccount, "source.trustDomain": TrustDomain,
	"destination.ip": DestinationIP, "destination.port": DestinationPort, "connection.sni": SNI,
	"request.auth.principal": RequestPrincipal, "request.auth.audiences": Claim, "request.auth.presenter": Claim,
}

// claims are conditions that ask for a claim by another name.
var claims = map[string]string{"request.auth.audiences": "[aud]", "request.auth.presenter": "[azp]"}

func (b *builder) condition(field string, w *security.Condition) (Clause, bool) {
	key := w.GetKey()
	attr, known := conditions[key]
	name := claims[key]
	if inner, ok := strings.CutPrefix(key, "request.headers["); ok && strings.HasSuffix(inner, "]") {
		attr, known, name = Header, true, strings.ToLower(strings.TrimSuffix(inner, "]"))
		if reason := notHeader(name); reason != "" {
			b.problem(field+".key", fmt.Sprintf("%q %s", name, reason))
			return Clause{}, false
		}
	}
	if key == "remote.ip" {
		attr, known = b.remote(field+".key", true), true
	}
	if path, ok := strings.CutPrefix(key, "request.auth.claims"); ok {
		attr, known, name = Claim, true, path
		if ClaimPath(path) == nil {
			b.problem(field+".key", fmt.Sprintf("%q is not request.auth.claims[NAME], nor with the name of a claim within it in brackets of its own", key))
			return Clause{}, false
		}
	}
	switch {
	case len(w.GetValues()) == 0 && len(w.GetNotValues()) == 0:
		b.problem(field, "has neither values nor notValues")
		return Clause{}, false
	case !known:
		b.problem(field+".key", fmt.Sprintf("%q is not supported", key))
		return Clause{}, false
	}
	var c Clauses
	b.add(&c, attr, name, field+".values", w.GetValues(), w.GetNotValues())
	if len(c) == 0 {
		return Clause{}, false
	}
	return c[0], true
}
