// Package operatorv1 has the types of the operator API, for the components that serve it and for meshctl.
package operatorv1

// Reach is what a workload may call.
type Reach struct {
	Pod            string      `json:"pod"` // namespace/name
	ServiceAccount string      `json:"serviceAccount"`
	Proxied        bool        `json:"proxied"` // without a proxy, nothing keeps it from sending to any address
	Services       []Reachable `json:"services"`
	Sidecar        string      `json:"sidecar,omitempty"`     // namespace/name of the one that holds for it
	Hidden         []string    `json:"hidden,omitempty"`      // services that it could reach but for the Sidecar
	NotExported    []string    `json:"notExported,omitempty"` // services that it could reach if they were exported to its namespace
	Outside        []External  `json:"outside,omitempty"`     // what is known to it by name outside of the mesh; all else there passes as it is, unless it is confined
	Confined       bool        `json:"confined,omitempty"`    // the Sidecar keeps it from all that neither a Service nor a ServiceEntry names
}

// External is a port of a host outside of the mesh.
type External struct {
	Host         string `json:"host"`
	Port         Port   `json:"port"`
	ServiceEntry string `json:"serviceEntry"`              // that names it, namespace/name
	Rule         string `json:"destinationRule,omitempty"` // that says how it is spoken with, namespace/name
	TLS          string `json:"tls,omitempty"`             // the mode in which proxies speak TLS; empty: what clients send is sent as it is
	Closed       bool   `json:"closed,omitempty"`          // it is not spoken with, as the rule cannot be enforced
}

// Reachable is a service that a workload may call.
type Reachable struct {
	Service  string   `json:"service"` // namespace/name
	Ports    []Port   `json:"ports"`
	By       []string `json:"by,omitempty"`       // the policies that admit it, namespace/name
	Open     string   `json:"open,omitempty"`     // or why policies leave nobody out
	Everyone bool     `json:"everyone,omitempty"` // everyone may call it; else those of the namespaces to which it is exported
}

// Port is a TCP port of a Service.
type Port struct {
	Name     string `json:"name,omitempty"`
	Number   uint32 `json:"number"`
	Protocol string `json:"protocol"`
}

// Audience is who may call a service.
type Audience struct {
	Service  string   `json:"service"` // namespace/name
	Ports    []Port   `json:"ports"`
	Everyone bool     `json:"everyone"`
	Open     string   `json:"open,omitempty"` // why policies leave nobody out, if they do not
	Members  []Member `json:"members"`        // who may, if not everyone
	ExportTo []string `json:"exportTo,omitempty"`
	Hidden   []Hidden `json:"hidden,omitempty"` // from pods that could reach it otherwise
}

// Member is a service account or, without one, all of a namespace.
type Member struct {
	Namespace      string   `json:"namespace"`
	ServiceAccount string   `json:"serviceAccount,omitempty"`
	By             []string `json:"by,omitempty"` // the policies that admit it, namespace/name
}

// Hidden says how many pods a Sidecar keeps a service from.
type Hidden struct {
	Sidecar string `json:"sidecar"` // namespace/name
	Pods    int    `json:"pods"`
}
