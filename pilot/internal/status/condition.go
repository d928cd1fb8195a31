// Package status tells the author of a stored policy, in the policy's own status, whether Pilot can enforce it, and how many proxies do.
package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/enforcement"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	operatorv1 "github.com/bulwark-mesh/bulwark/pkg/api/operator/v1"
)

// The types of the conditions that Pilot writes.
const (
	Type         = operatorv1.EnforceableCondition // what of the policy can be enforced; only on policies of which something could not be
	EnforcedType = operatorv1.EnforcedCondition    // by how many proxies it is
)

// Reasons of the conditions.
const (
	FailsClosed = "FailsClosed" // what cannot be enforced denies
	LeftOut     = "LeftOut"     // what cannot be enforced is left out, and the rest holds
	NoEffect    = "NoEffect"    // it holds for no workload
	Enforced    = "Enforced"
	ProxiesLag  = "ProxiesLag"
	NoProxies   = "NoProxies" // it selects none that is connected
)

// Wanted returns the conditions that a policy should have, given those it has, and whether that makes a difference. A policy
// that never was unenforceable is left alone, and so are conditions of other types.
func Wanted(v registry.Verdict, have []any, now time.Time) (want []any, differs bool) {
	if of(Type, have) == nil && len(v.Problems) == 0 {
		return have, false
	}
	return with(condition(v), have, now)
}

// WantedEnforced is Wanted for what a count of proxies says.
func WantedEnforced(v registry.Verdict, n enforcement.Count, have []any, now time.Time) (want []any, differs bool) {
	return with(enforced(v, n), have, now)
}

// with returns the conditions with c in the place of those of its type, and whether that makes a difference.
func with(c map[string]any, have []any, now time.Time) (want []any, differs bool) {
	old := of(c["type"], have)
	for _, h := range have {
		if m, ok := h.(map[string]any); !ok || m["type"] != c["type"] {
			want = append(want, h)
		}
	}
	c["lastTransitionTime"] = now.UTC().Format(time.RFC3339)
	if since, ok := old["lastTransitionTime"].(string); ok && old["status"] == c["status"] {
		c["lastTransitionTime"] = since
	}
	return append(want, c), len(want)+1 != len(have) || !same(old, c)
}

// of returns the first condition of a type, or nil.
func of(typ any, conditions []any) map[string]any {
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == typ {
			return m
		}
	}
	return nil
}

// maxNamed is how many of the proxies that lag a condition names. The operator API has all.
const maxNamed = 3

func enforced(v registry.Verdict, n enforcement.Count) map[string]any {
	message := fmt.Sprintf("enforced by %d of %d proxies", n.Taken, n.Proxies)
	if len(v.Problems) > 0 {
		message += ", as far as it can be (see " + Type + ")"
	}
	c := map[string]any{"type": EnforcedType, "status": "True", "reason": Enforced, "observedGeneration": v.Generation}
	switch lag := n.Proxies - n.Taken; {
	case v.Idle:
		c["status"], c["reason"] = "False", NoEffect
		message = fmt.Sprintf("it denies nothing, being on trial, without rules or overruled; known to %d of %d proxies", n.Taken, n.Proxies)
	case n.Proxies == 0:
		c["status"], c["reason"] = "Unknown", NoProxies
		message += ": it selects no pod whose proxy is connected"
	case lag > 0:
		c["status"], c["reason"] = "False", ProxiesLag
		var names []string
		for _, l := range n.Lagging[:min(maxNamed, len(n.Lagging))] {
			names = append(names, l.Proxy)
		}
		message += "; not yet by " + strings.Join(names, ", ")
		if more := lag - len(names); more > 0 {
			message += fmt.Sprintf(" and %d more", more)
		}
	}
	c["message"] = message
	return c
}

func condition(v registry.Verdict) map[string]any {
	c := map[string]any{
		"type": Type, "status": "True", "reason": Enforced, "message": "Enforced as it is written.", "observedGeneration": v.Generation,
	}
	switch {
	case len(v.Problems) == 0:
	case v.Idle:
		c["status"], c["reason"], c["message"] = "False", NoEffect, "It holds for no workload: "+v.Summary()
	case v.Partly:
		c["status"], c["reason"], c["message"] = "False", LeftOut, "What cannot be enforced is left out: "+v.Summary()
	default:
		c["status"], c["reason"], c["message"] = "False", FailsClosed, "What cannot be enforced fails closed: "+v.Summary()
	}
	return c
}

// same compares what matters; the API server may return a number as another type than it was given.
func same(a, b map[string]any) bool {
	return !slices.ContainsFunc([]string{"status", "reason", "message", "observedGeneration", "lastTransitionTime"}, func(k string) bool {
		return fmt.Sprint(a[k]) != fmt.Sprint(b[k])
	})
}
