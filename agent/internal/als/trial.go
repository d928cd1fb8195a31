package als

import telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"

// trial is what would have been decided about an event's request if the policies on trial were enforced, too; nil if that is what was decided. Envoy says of
// these of each action by itself, and of ALLOW where one that is enforced has let the request in that it denies nothing.
//
// What something else than policies has denied, or a DENY policy, stays denied whatever is on trial: that can add denials, and what admits where nothing did.
func trial(e *telemetryv1.Event, r record) *telemetryv1.Trial {
	deny, allow := r.tag("trial_deny_policy"), r.tag("trial_allow_policy")
	denied := &telemetryv1.Trial{Verdict: telemetryv1.Verdict_VERDICT_DENIED}
	switch e.GetVerdict() {
	case telemetryv1.Verdict_VERDICT_ALLOWED:
		switch {
		case deny != "":
			denied.Policy, denied.Reason = Policy(deny), "a DENY policy on trial matched"
			return denied
		case r.tag("trial_allow") == "denied":
			denied.Reason = "no ALLOW policy on trial matched"
			return denied
		}
	case telemetryv1.Verdict_VERDICT_DENIED:
		if e.GetReason() == telemetryv1.ReasonNoAllow && deny == "" && allow != "" {
			return &telemetryv1.Trial{Verdict: telemetryv1.Verdict_VERDICT_ALLOWED, Policy: Policy(allow), Reason: "an ALLOW policy on trial matched"}
		}
	}
	return nil
}
