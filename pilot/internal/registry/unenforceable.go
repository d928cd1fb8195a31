package registry

import (
	"iter"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// Verdict says how much of a stored policy can be enforced.
type Verdict struct {
	Kind       string          `json:"kind"`
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	Generation int64           `json:"generation,omitempty"`
	Idle       bool            `json:"idle,omitempty"` // it touches no workload, whatever it says
	Problems   []authz.Problem `json:"problems"`
}

func (p *Policy) verdict() Verdict {
	idle := p.Ignored || p.DryRun || p.Action != authz.Allow && len(p.Rules) == 0
	return Verdict{"AuthorizationPolicy", p.Namespace, nameIn(p.Namespace, p.ID), p.Generation, idle, p.Problems}
}

func (p *PeerAuth) verdict() Verdict {
	return Verdict{"PeerAuthentication", p.Namespace, nameIn(p.Namespace, p.ID), p.Generation, p.Ignored, p.Problems}
}

func (j *JWTRule) verdict() Verdict {
	return Verdict{"RequestAuthentication", j.Namespace, nameIn(j.Namespace, j.ID), j.Generation, false, j.Problems}
}

func nameIn(namespace, id string) string { return id[len(namespace)+1:] }

// Verdicts goes through every policy.
func Verdicts(s *Snapshot) iter.Seq2[Kind, Verdict] {
	return func(yield func(Kind, Verdict) bool) {
		for p := range s.Policies() {
			if !yield(Policies, p.verdict()) {
				return
			}
		}
		for p := range s.PeerAuths() {
			if !yield(PeerAuths, p.verdict()) {
				return
			}
		}
		for j := range s.JWTRules() {
			if !yield(JWTRules, j.verdict()) {
				return
			}
		}
	}
}

// VerdictOn returns the verdict on one policy.
func VerdictOn(s *Snapshot, k Kind, id string) (Verdict, bool) {
	switch k {
	case Policies:
		if p := one[Policy](s, k, id); p != nil {
			return p.verdict(), true
		}
	case PeerAuths:
		if p := one[PeerAuth](s, k, id); p != nil {
			return p.verdict(), true
		}
	case JWTRules:
		if j := one[JWTRule](s, k, id); j != nil {
			return j.verdict(), true
		}
	}
	return Verdict{}, false
}

// Unenforceable lists the policies that admission would refuse today.
func Unenforceable(s *Snapshot) []Verdict {
	out := []Verdict{}
	for _, v := range Verdicts(s) {
		if len(v.Problems) > 0 {
			out = append(out, v)
		}
	}
	return out
}
