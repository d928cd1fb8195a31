package authz

import (
	"fmt"
	"maps"
	"slices"

	security "istio.io/api/security/v1beta1"
)

// TLSMode says what an inbound port takes.
type TLSMode string

// The modes.
const (
	Strict     TLSMode = "STRICT"     // mutual TLS only
	Permissive TLSMode = "PERMISSIVE" // mutual TLS and plaintext
	Disable    TLSMode = "DISABLE"    // plaintext, no TLS offered
)

// PeerPolicy is a PeerAuthentication; an empty mode is inherited.
type PeerPolicy struct {
	Meta
	Selector map[string]string
	Mode     TLSMode
	Ports    map[uint32]TLSMode
	Ignored  bool // it selects workloads in the root namespace, or what no workload is: it holds for none, as in Istio
}

// FromPeerAuthentication makes the intermediate form. What cannot be understood is a problem, and makes the
// policy Strict.
func FromPeerAuthentication(meta Meta, spec *security.PeerAuthentication, opts Options) (PeerPolicy, []Problem) {
	problems := checkSelector(spec.GetSelector().GetMatchLabels())
	p := PeerPolicy{Meta: meta, Selector: spec.GetSelector().GetMatchLabels(), Ports: map[uint32]TLSMode{}, Ignored: len(problems) > 0}
	mode := func(field string, m *security.PeerAuthentication_MutualTLS) TLSMode {
		switch m.GetMode() {
		case security.PeerAuthentication_MutualTLS_UNSET:
			return ""
		case security.PeerAuthentication_MutualTLS_STRICT:
			return Strict
		case security.PeerAuthentication_MutualTLS_PERMISSIVE:
			return Permissive
		case security.PeerAuthentication_MutualTLS_DISABLE:
			return Disable
		}
		problems = append(problems, Problem{field, fmt.Sprintf("unknown mode %d", m.GetMode())})
		return Strict
	}
	p.Mode = mode("spec.mtls.mode", spec.GetMtls())
	for _, port := range slices.Sorted(maps.Keys(spec.GetPortLevelMtls())) {
		field := fmt.Sprintf("spec.portLevelMtls[%d]", port)
		if port == 0 || port > 65535 {
			problems = append(problems, Problem{field, "not a port"})
			p.Mode = Strict
			continue
		}
		if m := mode(field+".mode", spec.GetPortLevelMtls()[port]); m != "" {
			p.Ports[port] = m
		}
	}
	if len(spec.GetPortLevelMtls()) > 0 && len(p.Selector) == 0 {
		problems = append(problems, Problem{"spec.portLevelMtls", "needs a selector: ports belong to workloads"})
		p.Mode = Strict
	}
	if len(p.Selector) > 0 && meta.Namespace == opts.RootNamespace {
		problems = append(problems, Problem{"spec.selector", "has no effect in the root namespace, whose policies are mesh-wide"})
		p.Ignored = true
	}
	return p, problems
}

// Before reports whether of two policies of one scope p holds, and not q: the older one, or of equally old ones the first by name.
func (p *PeerPolicy) Before(q *PeerPolicy) bool {
	return p.Created.Before(q.Created) || p.Created.Equal(q.Created) && p.Name < q.Name
}

// PeerModes is the outcome for one workload.
type PeerModes struct {
	Default TLSMode
	Ports   map[uint32]TLSMode
	by      *PeerPolicy // which has the Default; nil if none has
	portsBy *PeerPolicy // which has the Ports
}

// Mode returns the mode of one of the workload's ports.
func (m PeerModes) Mode(port uint32) TLSMode {
	if mode, ok := m.Ports[port]; ok {
		return mode
	}
	return m.Default
}

// By is the policy that says the mode of one of the workload's ports, nil where none does.
func (m PeerModes) By(port uint32) *PeerPolicy {
	if _, ok := m.Ports[port]; ok {
		return m.portsBy
	}
	return m.by
}

// ComposePeer finds the modes of a workload: port over workload over namespace over mesh over Permissive. Where two
// policies have the same scope the older holds. A policy with a selector in the root namespace holds for nothing, as in
// Istio.
func ComposePeer(policies []PeerPolicy, rootNamespace, namespace string, labels map[string]string) PeerModes {
	var meshWide, inNamespace, workload *PeerPolicy
	older := func(current, p *PeerPolicy) *PeerPolicy {
		if current == nil || p.Before(current) {
			return p
		}
		return current
	}
	for i := range policies {
		p := &policies[i]
		switch {
		case p.Ignored:
		case len(p.Selector) > 0:
			if p.Namespace == namespace && namespace != rootNamespace && Selects(p.Selector, labels) {
				workload = older(workload, p)
			}
		case p.Namespace == rootNamespace:
			meshWide = older(meshWide, p)
		case p.Namespace == namespace:
			inNamespace = older(inNamespace, p)
		}
	}
	out := PeerModes{Default: Permissive, Ports: map[uint32]TLSMode{}}
	for _, p := range []*PeerPolicy{meshWide, inNamespace, workload} {
		if p != nil && p.Mode != "" {
			out.Default, out.by = p.Mode, p
		}
	}
	if workload != nil {
		maps.Copy(out.Ports, workload.Ports)
		out.portsBy = workload
	}
	return out
}
