package als

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/testing/protocmp"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
)

// A trial is told of where it would have changed the verdict, and nowhere else.
func TestTrials(t *testing.T) {
	const closing, wider, none = "ns[a]-policy[closing]-rule[1]", "ns[a]-policy[wider]-rule[0]", "rbac_access_denied_matched_policy[none]"
	byClosing := &telemetryv1.Trial{Verdict: denied, Policy: "a/closing rule 1", Reason: "a DENY policy on trial matched"}
	byDefault := &telemetryv1.Trial{Verdict: denied, Reason: "no ALLOW policy on trial matched"}
	byWider := &telemetryv1.Trial{Verdict: allowed, Policy: "a/wider rule 0", Reason: "an ALLOW policy on trial matched"}
	for name, c := range map[string]struct {
		text map[string]string
		want *telemetryv1.Trial
	}{
		"nothing is on trial":                        {nil, nil},
		"an ALLOW policy alone admits it":            {map[string]string{"bulwark.trial_allow": "allowed", "bulwark.trial_allow_policy": wider}, nil},
		"an ALLOW policy alone does not":             {map[string]string{"bulwark.trial_allow": "denied"}, byDefault},
		"a DENY policy outweighs what allows":        {map[string]string{"bulwark.trial_allow": "allowed", "bulwark.trial_allow_policy": wider, "bulwark.trial_deny_policy": closing}, byClosing},
		"both deny":                                  {map[string]string{"bulwark.trial_allow": "denied", "bulwark.trial_deny_policy": closing}, byClosing},
		"an enforced one allows, which one widens":   {map[string]string{"bulwark.allow_policy": wider, "bulwark.trial_allow": "allowed"}, nil},
		"none that is enforced allows, one on trial": {map[string]string{"details": none, "bulwark.trial_allow": "allowed", "bulwark.trial_allow_policy": wider}, byWider},
		"none at all":                                {map[string]string{"details": none, "bulwark.trial_allow": "allowed"}, nil},
		"one on trial allows and another denies":     {map[string]string{"details": none, "bulwark.trial_allow": "allowed", "bulwark.trial_allow_policy": wider, "bulwark.trial_deny_policy": closing}, nil},
		"a DENY policy denies":                       {map[string]string{"details": "rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[2]]", "bulwark.trial_deny_policy": closing}, nil},
		"a token is refused":                         {map[string]string{"details": "jwt_authn_access_denied{Jwt_is_expired}", "bulwark.trial_allow_policy": wider}, nil},
		"the handshake failed":                       {map[string]string{"downstream_failure": "TLS_error", "bulwark.trial_deny_policy": closing}, nil},
	} {
		for _, kind := range []string{"http", "tcp"} {
			text := map[string]string{"bulwark.direction": "inbound", "bulwark.kind": kind}
			maps.Copy(text, c.text)
			text[map[string]string{"http": "response_code_details", "tcp": "termination_details"}[kind]] = text["details"]
			if kind == "tcp" && name == "a token is refused" {
				continue // that is a request's
			}
			if diff := cmp.Diff(c.want, record{text: text}.event().GetTrial(), protocmp.Transform()); diff != "" {
				t.Errorf("%s, %s: %s", name, kind, diff)
			}
		}
	}
}

func TestTrialsAreCounted(t *testing.T) {
	var would []telemetryv1.Verdict
	counter := func() prometheus.Counter { return prometheus.NewCounter(prometheus.CounterOpts{Name: "c"}) }
	s := &server{observer: &telemetryv1.Workload{PodUid: "u"}, sink: nowhere{}, received: counter(), dropped: counter(),
		hears: Hears{Tried: func(uid string, v telemetryv1.Verdict) {
			if uid == "u" {
				would = append(would, v)
			}
		}}}
	for _, text := range []map[string]string{{"bulwark.trial_allow": "denied"}, {"bulwark.trial_allow": "allowed"}, {}} {
		text["bulwark.direction"], text["bulwark.kind"] = "inbound", "http"
		if _, err := s.export(wire(t, 1, text)); err != nil {
			t.Fatal(err)
		}
	}
	if len(would) != 1 || would[0] != denied {
		t.Errorf("%v", would)
	}
}
