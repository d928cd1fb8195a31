package rbac

import (
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// What is known of a workload's ports reaches its proxy with the configuration of authorization, which comes by itself: in a
// filter chain it would cost connections whenever a Service comes or goes.

// ServicePrefix is before the names under which the audit filter notes what ServedBy finds.
const ServicePrefix = "service_"

// ServedBy finds the service by which a port is known, for metrics of connections that are not HTTP. It is a set of shadow rules, which decide nothing and
// leave the name of the rule that matches.
func ServedBy(w *compile.Workload) *rbac.RBAC {
	out := &rbac.RBAC{Action: rbac.RBAC_ALLOW, Policies: map[string]*rbac.Policy{}}
	for _, p := range w.Ports {
		if p.ServiceName == "" {
			continue
		}
		if out.Policies[p.ServiceName] == nil {
			out.Policies[p.ServiceName] = &rbac.Policy{Principals: []*rbac.Principal{anyone()}}
		}
		rule := out.Policies[p.ServiceName]
		rule.Permissions = append(rule.Permissions, portIs(p.Number))
	}
	if len(out.Policies) == 0 {
		return nil
	}
	return out
}

// PlaintextRule is the name under which a plaintext request to a port of mutual TLS is denied.
const PlaintextRule = "ns[bulwark-system]-policy[plaintext]-rule[0]"

// StrictPorts denies plaintext requests on ports that take mutual TLS alone. No new connection gets that far; one that was open
// when the mode changed does, until it is closed. Nil: there is no such port.
func StrictPorts(w *compile.Workload) *rbac.Policy {
	var strict, others []*rbac.Permission
	for _, p := range w.Ports {
		if p.Mode == authz.Strict {
			strict = append(strict, portIs(p.Number))
		} else {
			others = append(others, portIs(p.Number))
		}
	}
	if w.Other.Mode == authz.Strict {
		strict = []*rbac.Permission{anything()}
		if len(others) > 0 {
			strict = []*rbac.Permission{{Rule: &rbac.Permission_NotRule{NotRule: &rbac.Permission{
				Rule: &rbac.Permission_OrRules{OrRules: &rbac.Permission_Set{Rules: others}}}}}}
		}
	}
	if len(strict) == 0 {
		return nil
	}
	proven := &rbac.Principal{Identifier: &rbac.Principal_Authenticated_{Authenticated: &rbac.Principal_Authenticated{}}}
	return &rbac.Policy{Permissions: strict, Principals: []*rbac.Principal{{Identifier: &rbac.Principal_NotId{NotId: proven}}}}
}

func portIs(number uint32) *rbac.Permission {
	return &rbac.Permission{Rule: &rbac.Permission_DestinationPort{DestinationPort: number}}
}

// With adds a rule, if there is one, to what a filter denies.
func With(rules *rbac.RBAC, name string, rule *rbac.Policy) *rbac.RBAC {
	if rule == nil {
		return rules
	}
	if rules == nil {
		rules = &rbac.RBAC{Action: rbac.RBAC_DENY, Policies: map[string]*rbac.Policy{}}
	}
	rules.Policies[name] = rule
	return rules
}
