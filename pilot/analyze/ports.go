package analyze

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	security "istio.io/api/security/v1beta1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// http finds rules that ask for something of HTTP at ports that are declared to speak something else: an ALLOW rule never matches there, a DENY rule matches more.
func http(w *world, r *report) {
	for _, p := range w.policies {
		if !p.enforced() || p.Action == authz.Audit {
			continue
		}
		for _, rule := range p.Rules {
			if rule.Never || p.dead[rule.Index] || !usesHTTP(rule) {
				continue
			}
			field := fmt.Sprintf("spec.rules[%d]", rule.Index)
			switch p.Action {
			case authz.Allow:
				if text := p.neverHTTP(rule); text != "" {
					r.say(HTTPOnTCP, p.object, field, "it asks for something of HTTP, and so never matches: %s", text)
				}
			case authz.Deny:
				if wider := p.widened(rule); len(wider) > 0 {
					r.say(HTTPOnTCP, p.object, field, "what it asks of HTTP is left out at ports that are declared to speak something else, so it denies more there: %s", some(distinct(wider)))
				}
			}
		}
	}
}

// neverHTTP says at which ports a rule may match, if none of them can be HTTP; nothing if one may be.
func (p *policy) neverHTTP(rule authz.Rule) string {
	var at []string
	for _, c := range p.classes {
		for _, port := range c.Ports {
			if !mayMatch(rule, port.Number) {
				continue
			}
			if port.Protocol != protocol.TCP {
				return ""
			}
			at = append(at, fmt.Sprintf("port %d of %s is %s", port.Number, c.name(), port.Protocol))
		}
		if undeclared(rule, c) {
			return ""
		}
	}
	return some(distinct(at))
}

// undeclared reports whether a rule may be meant for a port of a workload that no Service names, and of which nothing is known.
func undeclared(rule authz.Rule, c *class) bool {
	if len(c.Ports) == 0 {
		return true
	}
	for _, port := range c.Class.Ports {
		named := slices.ContainsFunc(c.Ports, func(p compile.InboundPort) bool { return p.Number == port.Number })
		if !named && mayMatch(rule, port.Number) {
			return true
		}
	}
	return false
}

// widened are the ports at which a DENY rule loses what it asks of HTTP.
func (p *policy) widened(rule authz.Rule) (out []string) {
	for _, c := range p.classes {
		for _, port := range c.Ports {
			if port.Protocol == protocol.TCP && losesHTTP(rule, port.Number) {
				out = append(out, fmt.Sprintf("port %d of %s", port.Number, c.name()))
			}
		}
	}
	return out
}

func usesHTTP(rule authz.Rule) bool {
	return anyClause(rule.When, httpOnly) || slices.ContainsFunc(slices.Concat(rule.From, rule.To), func(c authz.Clauses) bool { return anyClause(c, httpOnly) })
}

func httpOnly(c authz.Clause) bool { return c.Attribute.HTTPOnly() }

func anyClause(clauses authz.Clauses, is func(authz.Clause) bool) bool {
	return slices.ContainsFunc(clauses, is)
}

// mayMatch reports whether a rule may match at a port.
func mayMatch(rule authz.Rule, port uint32) bool {
	return atPort(rule.When, port) && (len(rule.To) == 0 || slices.ContainsFunc(rule.To, func(to authz.Clauses) bool { return atPort(to, port) }))
}

// losesHTTP reports whether a rule may match at a port, and each way in which it does asks for something of HTTP.
func losesHTTP(rule authz.Rule, port uint32) bool {
	if !atPort(rule.When, port) {
		return false
	}
	asks := anyClause(rule.When, httpOnly) || len(rule.From) > 0 && !slices.ContainsFunc(rule.From, func(c authz.Clauses) bool { return !anyClause(c, httpOnly) })
	if len(rule.To) == 0 {
		return asks
	}
	matches, all := false, true
	for _, to := range rule.To {
		if atPort(to, port) {
			matches, all = true, all && anyClause(to, httpOnly)
		}
	}
	return matches && (asks || all)
}

// atPort reports whether what clauses say of the port holds of one.
func atPort(clauses authz.Clauses, port uint32) bool {
	is := authz.Match{Kind: authz.Port, Value: strconv.FormatUint(uint64(port), 10)}
	return !anyClause(clauses, func(c authz.Clause) bool {
		return c.Attribute == authz.DestinationPort && (len(c.Values) > 0 && !slices.Contains(c.Values, is) || slices.Contains(c.Not, is))
	})
}

// servicePorts finds numbers that are a Service's, where policies look at the workload's.
func servicePorts(w *world, r *report) {
	for _, p := range w.policies {
		if p.Ignored {
			continue
		}
		for v := range values(p.spec) {
			if !v.aboutPorts() {
				continue
			}
			if number, err := strconv.ParseUint(v.text, 10, 16); err == nil {
				w.servicePort(r, p.object, v.field, uint32(number), p.classes)
			}
		}
	}
	for p := range w.snap.PeerAuths() {
		if p.Ignored || len(p.Selector) == 0 {
			continue
		}
		var held []*class
		for i := range w.classes {
			if c := &w.classes[i]; c.pods[0].Proxied && c.Class.Namespace == p.Namespace && authz.Selects(p.Selector, c.Class.Labels) {
				held = append(held, c)
			}
		}
		o := Object{registry.PeerAuths.Resource().Kind, p.Namespace, p.Name}
		spec := &security.PeerAuthentication{}
		decode(w.byName[o], spec)
		for _, number := range slices.Sorted(maps.Keys(spec.GetPortLevelMtls())) {
			w.servicePort(r, o, fmt.Sprintf("spec.portLevelMtls[%d]", number), number, held)
		}
	}
}

// servicePort says of a number that a Service of a workload has it and no workload, with what the workload has.
func (w *world) servicePort(r *report, o Object, field string, number uint32, held []*class) {
	said := ""
	for _, c := range held {
		if slices.ContainsFunc(c.Class.Ports, func(p registry.PodPort) bool { return p.Number == number }) {
			return
		}
		for _, s := range w.snap.ServicesFor(c.Class.Namespace, c.Class.Labels) {
			for _, port := range s.Ports {
				switch target := targetOf(c, port); {
				case target == number:
					return
				case port.Number == number && target != 0 && said == "":
					said = fmt.Sprintf("%d is a port of Service %s, which is port %d of its pods; it is the workload's port that is compared", number, s.ID, target)
				}
			}
		}
	}
	if said != "" {
		r.say(ServicePort, o, field, "%s", said)
	}
}

// targetOf is the port of a workload that is behind a Service's; 0 if that cannot be told.
func targetOf(c *class, p registry.ServicePort) uint32 {
	if p.TargetName == "" {
		return p.Target
	}
	i := slices.IndexFunc(c.Class.Ports, func(port registry.PodPort) bool { return port.Name == p.TargetName })
	if i < 0 {
		return 0
	}
	return c.Class.Ports[i].Number
}
