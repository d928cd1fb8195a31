package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/authz/space"
)

// entrance is one way into a workload: a port, by requests or by connections.
type entrance struct {
	port  uint32 // 0 is any that nobody names
	http  bool
	label string
}

// entrances are all ways into workloads: the ports that Services, policies and modes name, and one that stands for all others.
func entrances(of ...compile.Workload) (out []entrance) {
	ports := map[uint32]map[bool]bool{}
	add := func(p compile.InboundPort) {
		if ports[p.Number] == nil {
			ports[p.Number] = map[bool]bool{}
		}
		if p.Protocol != protocol.TCP {
			ports[p.Number][true] = true
		}
		if !p.Protocol.IsHTTP() {
			ports[p.Number][false] = true
		}
	}
	for _, w := range of {
		for _, p := range w.EveryPort() {
			add(p)
		}
		for _, p := range w.Policies {
			for _, number := range p.Ports() {
				add(portOf(w, number))
			}
		}
	}
	var numbers []uint32
	for n := range ports {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		for _, http := range []bool{true, false} {
			if !ports[n][http] {
				continue
			}
			label := fmt.Sprintf("%d %s", n, map[bool]string{true: "HTTP", false: "TCP"}[http])
			switch {
			case n == 0 && len(numbers) == 1:
				label = strings.Replace(label, "0", "any", 1)
			case n == 0:
				label = strings.Replace(label, "0", "any other", 1)
			}
			out = append(out, entrance{n, http, label})
		}
	}
	return out
}

// side is what holds at an entrance of a workload.
func side(w compile.Workload, e entrance) space.Side {
	p := portOf(w, e.port)
	return space.Side{Policies: w.Policies, Port: e.port, HTTP: e.http, Mode: p.Mode}
}

// Access is who may do what, in the words of the policies. Each list has alternatives.
type Access struct {
	Workload   string   `json:"workload"`
	Ports      []string `json:"ports"`
	Clients    []string `json:"clients"`
	Methods    []string `json:"methods,omitempty"`
	Paths      []string `json:"paths,omitempty"`
	Conditions []string `json:"conditions,omitempty"` // what else it depends on, all of it
	Note       string   `json:"note,omitempty"`
}

// accessOf puts a region in words.
func accessOf(workload string, e entrance, r space.Region) Access {
	out := Access{Workload: workload, Ports: []string{e.label}, Clients: []string{"any"}}
	if e.http {
		out.Methods, out.Paths = []string{"any"}, []string{"any"}
	}
	for _, p := range r.Parts {
		words := p.Describe()
		switch p.Axis.Attribute {
		case authz.Principal:
			out.Clients = words
		case authz.Method:
			out.Methods = words
		case authz.Path:
			out.Paths = words
		default:
			out.Conditions = append(out.Conditions, p.Axis.Name()+": "+strings.Join(words, " | "))
		}
	}
	return out
}

// key tells accesses apart but for their ports.
func (a Access) key() string {
	return fmt.Sprintf("%q", [][]string{{a.Workload, a.Note}, a.Clients, a.Methods, a.Paths, a.Conditions})
}

// Untold is what could not be found out, and why.
type Untold struct {
	Workload string `json:"workload"`
	Port     string `json:"port"`
	Why      string `json:"why"`
}
