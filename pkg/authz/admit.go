package authz

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
)

// exactly are what tells a request, or a connection, from all others that policies can tell by identity, port, method and path, as policies write it.
type exactly struct {
	principal, port, method, path string
	token                         string // request principal; empty without one
}

// theseAlone says how policies write exactly this request, or why they cannot.
func theseAlone(req Request) (exactly, error) {
	e := exactly{port: strconv.FormatUint(uint64(req.DestinationPort), 10)}
	if !req.Source.IsZero() {
		e.principal = req.Source.Principal()
	}
	if !req.HTTP {
		return e, nil
	}
	path, ok := SeenPath(req)
	if !ok {
		return e, errors.New("the proxies refuse to read the path, whatever the policies")
	}
	e.method, e.path = req.Method, path
	issuer, _ := req.Claims["iss"].(string)
	subject, _ := req.Claims["sub"].(string)
	if token := (Match{Exact, issuer + "/" + subject}); issuer != "" && subject != "" && !strings.Contains(token.Value, "*") {
		if first, last := token.IssuerSubject(); first.Value == issuer && last.Value == subject {
			e.token = token.Value
		}
	}
	for _, a := range Ambiguities {
		if text := map[Attribute]string{Method: req.Method, Path: path}[a.Attribute]; a.Finds(text) {
			return e, fmt.Errorf("%s, and no policy changes that", a.Reason)
		}
	}
	if m := wildcard(path); m.Kind != Exact {
		return e, fmt.Errorf("the path %q has a * where policies have it stand for anything", path)
	}
	return e, nil
}

// Admitting is the spec of an ALLOW policy that admits, to workloads that have the labels, exactly what a request has of identity, token, port, method and path. A
// request without identity is told from others by its client's address, which is not the peer's where that connects for others; it is an error if it is not known.
func Admitting(labels map[string]string, req Request) (*security.AuthorizationPolicy, error) {
	e, err := theseAlone(req)
	if err != nil {
		return nil, err
	}
	source := &security.Source{}
	switch {
	case e.principal != "":
		source.Principals = []string{e.principal}
	case req.RemoteIP.IsValid():
		source.RemoteIpBlocks = []string{req.RemoteIP.Unmap().String()}
		source.NotPrincipals = []string{"*"}
	case req.SourceIP.IsValid():
		source.IpBlocks = []string{req.SourceIP.Unmap().String()}
		source.NotPrincipals = []string{"*"}
	default:
		return nil, errors.New("the client has no identity, and its address is not known: whatever admits it admits everybody")
	}
	if e.token != "" {
		source.RequestPrincipals = []string{e.token}
	}
	operation := &security.Operation{Ports: []string{e.port}}
	if req.HTTP {
		operation.Methods, operation.Paths = []string{e.method}, []string{e.path}
	}
	out := &security.AuthorizationPolicy{
		Action: security.AuthorizationPolicy_ALLOW,
		Rules: []*security.Rule{{
			From: []*security.Rule_From{{Source: source}},
			To:   []*security.Rule_To{{Operation: operation}},
		}},
	}
	if len(labels) > 0 {
		out.Selector = &typev1beta1.WorkloadSelector{MatchLabels: labels}
	}
	return out, nil
}

// Excepting is the spec of a policy that does what it did before, but that its rule of an index no longer matches what has exactly the request's identity, port,
// method and path. The rule becomes one for each of these, that does not match it: together they match whatever differs in any. What has no identity is
// told from others by its client's address.
func Excepting(spec *security.AuthorizationPolicy, rule int, req Request) (*security.AuthorizationPolicy, error) {
	e, err := theseAlone(req)
	if err != nil {
		return nil, err
	}
	if rule < 0 || rule >= len(spec.GetRules()) || spec.GetRules()[rule] == nil {
		return nil, fmt.Errorf("it has no rule %d", rule)
	}
	was := spec.GetRules()[rule]
	var instead []*security.Rule
	// Copies add is a copy of the rule that does not match where a condition, or a field of each operation, has the value.
	condition := func(key, value string) {
		r, _ := proto.Clone(was).(*security.Rule)
		r.When = append(r.When, &security.Condition{Key: key, NotValues: []string{value}})
		instead = append(instead, r)
	}
	operation := func(add func(*security.Operation)) {
		r, _ := proto.Clone(was).(*security.Rule)
		if len(r.To) == 0 {
			r.To = []*security.Rule_To{{Operation: &security.Operation{}}}
		}
		for _, to := range r.To {
			if to.Operation == nil {
				to.Operation = &security.Operation{}
			}
			add(to.Operation)
		}
		instead = append(instead, r)
	}
	switch {
	case e.principal != "":
		condition("source.principal", e.principal)
	case req.RemoteIP.IsValid(), req.SourceIP.IsValid():
		if req.RemoteIP.IsValid() {
			condition("remote.ip", req.RemoteIP.Unmap().String())
		} else {
			condition("source.ip", req.SourceIP.Unmap().String())
		}
		r, _ := proto.Clone(was).(*security.Rule)
		r.When = append(r.When, &security.Condition{Key: "source.principal", Values: []string{"*"}})
		instead = append(instead, r)
	default:
		return nil, errors.New("the client has no identity, and its address is not known: whatever excepts it excepts everybody")
	}
	if e.token != "" {
		condition("request.auth.principal", e.token)
	}
	if !pins(was, e.port) {
		operation(func(o *security.Operation) { o.NotPorts = append(o.NotPorts, e.port) })
	}
	if req.HTTP {
		operation(func(o *security.Operation) { o.NotMethods = append(o.NotMethods, e.method) })
		operation(func(o *security.Operation) { o.NotPaths = append(o.NotPaths, e.path) })
	}
	out, _ := proto.Clone(spec).(*security.AuthorizationPolicy)
	out.Rules = slices.Concat(spec.GetRules()[:rule], instead, spec.GetRules()[rule+1:])
	return out, nil
}

// pins reports whether a rule is for one port alone.
func pins(r *security.Rule, port string) bool {
	for _, to := range r.GetTo() {
		if p := to.GetOperation().GetPorts(); len(p) != 1 || p[0] != port {
			return false
		}
	}
	return len(r.GetTo()) > 0
}

// RuleOf is the index in its policy of the rule that a decision names, and whose policy that is; false if no policy's rule decided.
func RuleOf(policies []Policy, id string) (policy *Policy, index int, ok bool) {
	for i := range policies {
		for _, r := range policies[i].Rules {
			if policies[i].RuleID(r) == id {
				return &policies[i], r.Index, true
			}
		}
	}
	return nil, 0, false
}

// Short is how people are told of a rule: <namespace>/<name> rule <n>; another name is as it is.
func Short(policies []Policy, id string) string {
	if p, index, ok := RuleOf(policies, id); ok {
		return fmt.Sprintf("%s/%s rule %d", p.Namespace, p.Name, index)
	}
	return strings.TrimSpace(id)
}

// Spec is an AuthorizationPolicy as its author has it.
type Spec struct {
	Meta
	*security.AuthorizationPolicy
}

// Admit is the smallest change of policies that admits exactly what a request has of identity, port, method and path: the policies that change, and an ALLOW
// policy of the given name, for workloads with the labels, if none matches. What has another identity, port, method or path is decided as before. The
// policies in scope are given as they decide; specs are those of the ones that somebody wrote.
func Admit(scope []Policy, specs []Spec, req Request, name Meta, labels map[string]string, opts Options) ([]Spec, error) {
	scope, changed := slices.Clone(scope), []Spec{}
	for range len(scope) + MaxRules { // each step takes away a rule that denies, or adds the one policy that allows
		d := Evaluate(scope, req)
		if d.Allowed {
			return changed, nil
		}
		if d.Policy == "" {
			spec, err := Admitting(labels, req)
			if err != nil {
				return nil, err
			}
			p, problems := FromAuthorizationPolicy(name, spec, opts)
			if len(problems) > 0 || slices.ContainsFunc(changed, func(c Spec) bool { return same(c.Meta, name) }) {
				return nil, fmt.Errorf("no policy admits exactly this: %s", d.Reason)
			}
			scope, changed = append(scope, p), append(changed, Spec{name, spec})
			continue
		}
		by, index, ok := RuleOf(scope, d.Policy)
		if !ok {
			return nil, fmt.Errorf("%s, and no policy changes that", d.Reason)
		}
		all := append(slices.Clone(changed), specs...) // a policy that is changed twice is changed as it is by then
		at := slices.IndexFunc(all, func(s Spec) bool { return same(s.Meta, by.Meta) })
		if at < 0 {
			return nil, fmt.Errorf("what denies it, %s/%s, is no AuthorizationPolicy", by.Namespace, by.Name)
		}
		if _, problems := FromAuthorizationPolicy(by.Meta, all[at].AuthorizationPolicy, opts); len(problems) > 0 {
			return nil, fmt.Errorf("AuthorizationPolicy %s/%s denies what it cannot enforce; mend it first: %w", by.Namespace, by.Name, problems[0])
		}
		spec, err := Excepting(all[at].AuthorizationPolicy, index, req)
		if err != nil {
			return nil, err
		}
		p, problems := FromAuthorizationPolicy(by.Meta, spec, opts)
		if len(problems) > 0 {
			return nil, fmt.Errorf("AuthorizationPolicy %s/%s with an exception could not be enforced: %w", by.Namespace, by.Name, problems[0])
		}
		scope[slices.IndexFunc(scope, func(p Policy) bool { return same(p.Meta, by.Meta) })] = p
		if at < len(changed) {
			changed[at].AuthorizationPolicy = spec
		} else {
			changed = append(changed, Spec{by.Meta, spec})
		}
	}
	return nil, errors.New("no small change of the policies admits it")
}

func same(a, b Meta) bool { return a.Namespace == b.Namespace && a.Name == b.Name }
