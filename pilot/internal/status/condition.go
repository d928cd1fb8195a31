// Package status tells the author of a stored policy, in the policy's own status, that Pilot cannot enforce it.
package status

import (
	"fmt"
	"slices"
	"time"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// Type is the type of the one condition that Pilot writes.
const Type = "bulwark.dev/Enforceable"

// Reasons of the condition.
const (
	FailsClosed = "FailsClosed" // what cannot be enforced denies
	LeftOut     = "LeftOut"     // what cannot be enforced is left out, and the rest holds
	NoEffect    = "NoEffect"    // it holds for no workload
	Enforced    = "Enforced"
)

// Wanted returns the conditions that a policy should have, given those it has, and whether that makes a difference. A policy
// that never was unenforceable is left alone, and so are conditions of other types.
func Wanted(v registry.Verdict, have []any, now time.Time) (want []any, differs bool) {
	var old map[string]any
	for _, c := range have {
		m, ok := c.(map[string]any)
		if !ok || m["type"] != Type {
			want = append(want, c)
		} else if old == nil {
			old = m
		}
	}
	if old == nil && len(v.Problems) == 0 {
		return have, false
	}
	c := condition(v)
	c["lastTransitionTime"] = now.UTC().Format(time.RFC3339)
	if since, ok := old["lastTransitionTime"].(string); ok && old["status"] == c["status"] {
		c["lastTransitionTime"] = since
	}
	return append(want, c), len(want)+1 != len(have) || !same(old, c)
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
