package compile

import "fmt"

// Table says where the requests of a listener go: by the host that a request names, then by the first rule that matches it. What the
// mesh does by itself is the first producer of tables; those that users declare are to be others.
type Table struct {
	Name  string
	Hosts []VirtualHost
}

// VirtualHost has the rules for requests to some hosts.
type VirtualHost struct {
	Name    string
	Domains []string // as Envoy has them; "*" is any
	Rules   []Rule
}

// Rule sends requests to a cluster.
type Rule struct {
	Name    string
	Cluster string
	Retried bool // what certainly has not reached an application is tried again
}

// Routes is what becomes of requests to the frontend: whatever host they name, they go to what answers at the address.
func (f *Frontend) Routes() Table {
	p := &f.Service
	return Table{Name: p.Cluster(), Hosts: []VirtualHost{{
		Name: fmt.Sprintf("%s:%d", p.Host, p.Number), Domains: []string{"*"},
		Rules: []Rule{{Name: "default", Cluster: f.Backend(), Retried: true}},
	}}}
}
