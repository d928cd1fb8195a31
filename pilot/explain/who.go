package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/authz/space"
)

// Accesses are the answer to one question, and what could not be told of it.
type Accesses struct {
	Access []Access `json:"access"`
	Untold []Untold `json:"untold,omitempty"`
	Notes  []string `json:"notes,omitempty"`
}

// WhoCan says who may send what to a workload; with a port, a method or a path, that alone. A method or a path asks for HTTP.
func (m *Mesh) WhoCan(ask Ask) (*Accesses, error) {
	w, service, err := m.Find(ask.Namespace, ask.To)
	if err != nil {
		return nil, err
	}
	a := &asked{workload: w, service: service, compiled: m.compiled(w)}
	m.others(a)
	if ask.Port != 0 {
		if err := m.findPort(a, ask.Port, ask.TCP); err != nil {
			return nil, err
		}
	}
	out := &Accesses{Access: []Access{}}
	if !w.pod.Proxied {
		out.Access = append(out.Access, Access{Workload: w.Name, Ports: []string{"any"}, Clients: []string{"any"}, Note: Unprotected + ": nothing decides about what comes to it"})
		return out, nil
	}
	m.list(out, w.Name, a.compiled, ask, a.port.Number, nil)
	out.Notes = append(a.notes, alsoAsked(a.compiled)...)
	return out, nil
}

// WhatCan says what a client may send to whom, of a namespace if one is given.
func (m *Mesh) WhatCan(ask Ask, namespace string) (*Accesses, error) {
	a := &asked{}
	if err := m.client(a, ask); err != nil {
		return nil, err
	}
	out := &Accesses{Access: []Access{}}
	if !a.from.IsZero() && slices.ContainsFunc(m.set.Same(a.from.String()), m.snap.Revoked) {
		out.Notes = append(a.notes, fmt.Sprintf("the identity %s is revoked: nothing admits it", a.from.Principal()))
		return out, nil
	}
	client := ""
	if !a.from.IsZero() {
		client = a.from.String()
	}
	for _, w := range m.Workloads(namespace) {
		before := len(out.Access)
		compiled := m.compiled(w)
		m.list(out, w.Name, compiled, ask, ask.Port, &client)
		if len(out.Access) > before {
			for _, note := range alsoAsked(compiled) {
				if !slices.Contains(a.notes, note) { // a policy may be for several of them
					a.notes = append(a.notes, note)
				}
			}
		}
		for i := before; i < len(out.Access); i++ {
			out.Access[i].Note = m.unknownTo(a, w)
		}
	}
	out.Notes = a.notes
	return out, nil
}

// unknownTo says if the client's proxy knows none of the services by which a workload is called.
func (m *Mesh) unknownTo(a *asked, w Workload) string {
	services := m.snap.ServicesFor(w.pod.Namespace, w.pod.Labels)
	for _, s := range services {
		a.service = s
		if m.outOfReach(a) == "" {
			return ""
		}
	}
	if len(services) == 0 || a.from.IsZero() {
		return ""
	}
	return "its own proxy knows none of the workload's services: " + m.outOfReach(a)
}

// list adds what is admitted at a workload's ports, or at one. Client is nil for any, empty for one without identity.
func (m *Mesh) list(out *Accesses, name string, w compile.Workload, ask Ask, port uint32, client *string) {
	at := map[string]int{}
	for i, a := range out.Access {
		at[a.key()] = i
	}
	for _, e := range entrances(w) {
		http := ask.Method != "" || ask.Path != ""
		if port != 0 && e.port != port || http && !e.http || ask.TCP && e.http {
			continue
		}
		of := side(w, e)
		regions, err := m.regions(of, ask, client, w)
		if err != nil {
			out.Untold = append(out.Untold, Untold{name, e.label, err.Error()})
			continue
		}
		for _, r := range regions {
			if !r.Allowed[0] {
				continue
			}
			access := accessOf(name, e, r)
			if client != nil {
				access.Clients = []string{strings.TrimPrefix(*client, "spiffe://")}
				if *client == "" {
					access.Clients = []string{space.NoIdentity}
				}
			}
			if ask.Method != "" {
				access.Methods = []string{ask.Method}
			}
			if ask.Path != "" {
				access.Paths = []string{ask.Path}
			}
			if i, ok := at[access.key()]; ok {
				out.Access[i].Ports = append(out.Access[i].Ports, e.label)
				continue
			}
			at[access.key()] = len(out.Access)
			out.Access = append(out.Access, access)
		}
	}
}

// regions divides what may come to a side, as far as it is asked about.
func (m *Mesh) regions(of space.Side, ask Ask, client *string, w compile.Workload) ([]space.Region, error) {
	s, err := space.Divide([]space.Side{of}, m.set.TrustDomains(), false)
	if err != nil {
		return nil, err
	}
	can := true
	if client != nil {
		can = s.Fix(authz.Principal, *client)
	}
	if ask.Method != "" {
		can = s.Fix(authz.Method, ask.Method) && can
	}
	if ask.Path != "" {
		path, ok := authz.SeenPath(authz.Request{Method: ask.Method, Path: ask.Path, NormalizesPaths: w.Class.NormalizePaths})
		if !ok {
			return nil, fmt.Errorf("--path %s: the proxies refuse to read it", ask.Path)
		}
		can = s.Fix(authz.Path, path) && can
	}
	if !can {
		return nil, nil
	}
	return s.Regions()
}

// alsoAsked says of which policies an external authorizer can deny what the others admit.
func alsoAsked(w compile.Workload) (out []string) {
	for _, p := range w.Policies {
		if p.Action == authz.Custom && !p.Ignored {
			out = append(out, fmt.Sprintf("what %s/%s matches is admitted only if the external authorizer %s allows it, too", p.Namespace, p.Name, p.Provider))
		}
	}
	return out
}
