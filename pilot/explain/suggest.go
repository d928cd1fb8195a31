package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	telemetryv1 "github.com/bulwark-mesh/bulwark/pkg/api/telemetry/v1"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	istio "istio.io/api/security/v1beta1"
	typev1beta1 "istio.io/api/type/v1beta1"
)

// Suggestion is a policy that admits what was seen, and no more than what its rules make of it.
type Suggestion struct {
	Workload string         `json:"workload"`
	Policy   map[string]any `json:"policy,omitempty"`
	From     int            `json:"from"`     // allowed requests that it was made of
	Admitted int            `json:"admitted"` // of these, when they are decided again by it
	Left     []string       `json:"left,omitempty"`
	Rules    []string       `json:"rules"` // by which paths became templates
	Notes    []string       `json:"notes,omitempty"`
}

// use is what one identity did at one port.
type use struct {
	port  uint32
	http  bool
	paths map[string]map[string]bool // by method
}

// Suggest makes a policy of what was seen, and decides all that was seen again by it alone beside the policies that deny. With denied, what was denied counts, too.
func (m *Mesh) Suggest(namespace, ref string, records []*telemetryv1.Record, denied bool) (*Suggestion, error) {
	w, _, err := m.Find(namespace, ref)
	if err != nil {
		return nil, err
	}
	out := &Suggestion{Workload: w.Name, Rules: Rules}
	s := &sight{mesh: m, targets: map[string]*target{}}
	var seen []observed
	left := map[string]int{}
	audited := false
	for _, record := range records {
		o, why := s.see(record)
		if why != "" || o.workload.Name != w.Name || !o.allowed && !denied {
			continue
		}
		audited = audited || o.audited
		path, ok := authz.SeenPath(o.request)
		switch {
		case o.from.IsZero():
			left["clients without identity: a policy could only admit all of them, or addresses"]++
		case o.cut:
			left[fmt.Sprintf("paths of more than %d bytes, of which the rest is not recorded", telemetryv1.MaxPath)]++
		case o.request.HTTP && (!ok || authz.IsAmbiguous(path)):
			left["paths that servers read in different ways: they are denied wherever a rule looks at paths"]++
		case o.request.HTTP && strings.HasSuffix(path, "*"):
			left["paths that end with *, where policies have it stand for anything"]++
		default:
			seen = append(seen, o)
		}
	}
	for _, why := range slices.Sorted(maps.Keys(left)) {
		out.Left = append(out.Left, fmt.Sprintf("%d requests: %s", left[why], why))
	}
	out.From = len(seen)
	if len(seen) == 0 {
		out.Notes = append(out.Notes, "nothing was seen that was allowed: is there an AUDIT policy that selects the workload, and was the time long enough?")
		return out, nil
	}
	spec, err := specOf(w, seen)
	if err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(w.Name, "/")
	_, name, _ = strings.Cut(name, "/")
	name, _, _ = strings.Cut(name, " ")
	meta := authz.Meta{Namespace: w.pod.Namespace, Name: name + "-observed"}
	policy, problems := authz.FromAuthorizationPolicy(meta, spec, m.options)
	if len(problems) > 0 {
		return nil, fmt.Errorf("what was seen cannot be written as a policy: %w", problems[0])
	}
	if out.Policy, err = m.object(authz.Spec{Meta: meta, AuthorizationPolicy: spec}); err != nil {
		return nil, err
	}
	m.check(out, w, policy, seen)
	if !audited {
		out.Notes = append(out.Notes, "no AUDIT policy selects the workload: what was allowed is known in parts at most")
	}
	return out, nil
}

// check decides what was seen by the suggestion.
func (m *Mesh) check(out *Suggestion, w Workload, policy authz.Policy, seen []observed) {
	scope := []authz.Policy{policy}
	var others []string
	for _, p := range m.compiled(w).Policies {
		if p.Action != authz.Allow {
			scope = append(scope, p)
		} else if !p.DryRun {
			others = append(others, p.Namespace+"/"+p.Name)
		}
	}
	program := authz.Compile(authz.Assume(scope, unrecorded, true))
	by := map[string]int{}
	for _, o := range seen {
		if d := program.Decide(o.request); d.Allowed {
			out.Admitted++
		} else {
			by[d.Reason]++
		}
	}
	for _, why := range slices.Sorted(maps.Keys(by)) {
		out.Notes = append(out.Notes, fmt.Sprintf("%d of the requests would be denied, or might: %s", by[why], why))
	}
	if len(others) > 0 {
		out.Notes = append(out.Notes, "it narrows nothing beside these ALLOW policies, which hold for the workload, too: "+strings.Join(others, ", "))
	} else {
		out.Notes = append(out.Notes, "no ALLOW policy holds for the workload so far: with this one, whatever it does not admit is denied")
	}
}

// specOf is a rule for each identity, and another one for its connections that are not HTTP, with an operation for each port and set of paths.
func specOf(w Workload, seen []observed) (*istio.AuthorizationPolicy, error) {
	byClient := map[string]map[string]*use{}
	for _, o := range seen {
		client := o.from.Principal()
		key := fmt.Sprintf("%05d %v", o.request.DestinationPort, o.request.HTTP)
		if byClient[client] == nil {
			byClient[client] = map[string]*use{}
		}
		u := byClient[client][key]
		if u == nil {
			u = &use{o.request.DestinationPort, o.request.HTTP, map[string]map[string]bool{}}
			byClient[client][key] = u
		}
		if u.http {
			if u.paths[o.request.Method] == nil {
				u.paths[o.request.Method] = map[string]bool{}
			}
			path, _ := authz.SeenPath(o.request)
			u.paths[o.request.Method][path] = true
		}
	}
	spec := &istio.AuthorizationPolicy{Action: istio.AuthorizationPolicy_ALLOW}
	if len(w.labels) > 0 {
		spec.Selector = &typev1beta1.WorkloadSelector{MatchLabels: w.labels}
	}
	for _, client := range slices.Sorted(maps.Keys(byClient)) {
		// A rule that asks for something of HTTP anywhere never matches a connection that is not HTTP, so that those have one of their own.
		for _, http := range []bool{true, false} {
			r := &istio.Rule{From: []*istio.Rule_From{{Source: &istio.Source{Principals: []string{client}}}}}
			for _, key := range slices.Sorted(maps.Keys(byClient[client])) {
				if u := byClient[client][key]; u.http == http {
					r.To = append(r.To, u.operations()...)
				}
			}
			if len(r.GetTo()) > 0 {
				spec.Rules = append(spec.Rules, r)
			}
		}
	}
	return spec, nil
}

// operations has methods with the same paths together.
func (u *use) operations() (out []*istio.Rule_To) {
	port := []string{fmt.Sprint(u.port)}
	if !u.http {
		return []*istio.Rule_To{{Operation: &istio.Operation{Ports: port}}}
	}
	methods := map[string][]string{} // by paths
	written := map[string][]string{}
	for _, method := range slices.Sorted(maps.Keys(u.paths)) {
		paths := writable(slices.Sorted(maps.Keys(u.paths[method])))
		key := strings.Join(paths, "\x00")
		methods[key], written[key] = append(methods[key], method), paths
	}
	for _, key := range slices.Sorted(maps.Keys(methods)) {
		out = append(out, &istio.Rule_To{Operation: &istio.Operation{Ports: port, Methods: methods[key], Paths: written[key]}})
	}
	return out
}

// writable are templates for paths; a path whose template policies cannot hold is written as it is.
func writable(paths []string) []string {
	var out []string
	var templates []string
	for _, p := range paths {
		if strings.ContainsAny(p, "*=[];{}") {
			out = append(out, p)
		} else {
			templates = append(templates, p)
		}
	}
	out = append(out, generalised(templates)...)
	slices.Sort(out)
	return slices.Compact(out)
}
