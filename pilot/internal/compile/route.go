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
	Retried bool     // what certainly has not reached an application is tried again
	Rules   []Rule
}

// Rule sends requests to a cluster.
type Rule struct {
	Name    string
	Cluster string // empty: that of the service that was called
}

// DefaultRoutes is what becomes of requests to services of which nothing else is declared: whatever host they name, they go to the service
// whose address was called. All such services have one table.
func DefaultRoutes() Table {
	return toAny("outbound", "any", "")
}

// OwnRoutes is what becomes of requests to the frontend, if that is something else than the default. A pod of a headless service is called at
// the pod's own port, of which no cluster has a name, and where proxies speak TLS with applications the cluster has another one.
func (f *Frontend) OwnRoutes() (t Table, ok bool) {
	if f.Pod == nil && f.Service.TLS == nil {
		return Table{}, false
	}
	return toAny(f.Service.Cluster(), fmt.Sprintf("%s:%d", f.Service.Host, f.Service.Number), f.Backend()), true
}

func toAny(table, host, cluster string) Table {
	return Table{Name: table, Hosts: []VirtualHost{{Name: host, Domains: []string{"*"}, Retried: true, Rules: []Rule{{Name: "default", Cluster: cluster}}}}}
}
