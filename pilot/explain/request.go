package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
	"github.com/bulwark-mesh/bulwark/pkg/spiffe"
)

// Ask is a request as somebody describes it who asks about it. What is empty is not known, and what is needed of it is assumed in the open.
type Ask struct {
	Namespace string // of what is named without one
	From      string // see Mesh.Identity
	Plaintext bool   // without mutual TLS
	To        string // see Mesh.Find
	Port      uint32 // the workload's, or the service's if that has none of the number
	TCP       bool   // a connection that is not HTTP
	Method    string
	Path      string
	Host      string
	SNI       string
	Headers   map[string][]string
	SourceIP  netip.Addr
	RemoteIP  netip.Addr     // of the client that load balancers or trusted proxies have named
	Claims    map[string]any // of the request's token, which is taken for a good one; nil without one
}

// asked is a request with what it comes to.
type asked struct {
	workload Workload
	compiled compile.Workload
	port     compile.InboundPort
	service  *registry.Service // by which it is called; nil if that is not known
	from     spiffe.ID         // who calls, whether the server sees it or not
	request  authz.Request
	notes    []string
}

func (a *asked) note(format string, args ...any) {
	a.notes = append(a.notes, fmt.Sprintf(format, args...))
}

// resolve finds out what an Ask is about.
func (m *Mesh) resolve(ask Ask) (*asked, error) {
	a := &asked{}
	var err error
	if a.workload, a.service, err = m.Find(ask.Namespace, ask.To); err != nil {
		return nil, err
	}
	a.compiled = m.compiled(a.workload)
	m.others(a)
	if err := m.client(a, ask); err != nil {
		return nil, err
	}
	if err := m.findPort(a, ask.Port, ask.TCP); err != nil {
		return nil, err
	}
	a.request = authz.Request{
		Source: a.from, SourceIP: ask.SourceIP, RemoteIP: ask.RemoteIP, Claims: ask.Claims, DestinationPort: a.port.Number, SNI: ask.SNI,
		Host: ask.Host, Method: ask.Method, Path: ask.Path, Headers: map[string][]string{}, NormalizesPaths: a.compiled.Class.NormalizePaths,
	}
	for name, values := range ask.Headers {
		a.request.Headers[strings.ToLower(name)] = values
	}
	if len(a.workload.pod.IPs) > 0 {
		a.request.DestinationIP, _ = netip.ParseAddr(a.workload.pod.IPs[0])
	}
	switch {
	case a.port.Mode == authz.Disable && !a.from.IsZero():
		a.request.Source = spiffe.ID{}
		a.note("port %d takes no mutual TLS (PeerAuthentication, mode DISABLE): nobody has an identity there", a.port.Number)
	case !a.from.IsZero() && ask.SNI == "" && a.service != nil:
		a.request.SNI = istiocompat.SNI(servicePort(a), "", compile.Host(a.service))
	}
	if ask.RemoteIP.IsValid() && m.options.TrustedProxies == 0 && len(m.options.LoadBalancers) == 0 {
		a.request.RemoteIP = netip.Addr{}
		a.note("the installation believes nobody who names the clients for whom he connects (trustedProxies, loadBalancers): the remote address is that of the peer")
	}
	a.protocol(ask)
	a.token()
	return a, nil
}

// token notes what is to be said of the request's token, or of there being none.
func (a *asked) token() {
	asks := slices.ContainsFunc(a.compiled.Policies, func(p authz.Policy) bool { return p.Uses(authz.RequestPrincipal) || p.Uses(authz.Claim) })
	var issuers []string
	for _, i := range a.compiled.Issuers {
		issuers = append(issuers, i.Issuer)
	}
	switch issuer, _ := a.request.Claims["iss"].(string); {
	case !a.request.HTTP:
	case a.request.Claims != nil && issuer == "":
		a.note("the token has no issuer (--claim iss=…), so that no RequestAuthentication verifies it")
		a.request.Claims = nil
	case a.request.Claims != nil && !slices.Contains(issuers, issuer):
		a.note("no RequestAuthentication verifies tokens of %s here: rules see no token", issuer)
		a.request.Claims = nil
	case a.request.Claims == nil && asks && len(issuers) == 0:
		a.note("rules look at tokens, and no RequestAuthentication selects the workload: none is ever verified")
	case a.request.Claims == nil && asks:
		a.note("rules look at tokens, and the request has none (--claim iss=… and others); verified are those of %s", strings.Join(slices.Compact(issuers), ", "))
	}
}

// others notes the other workloads behind the service that is asked about.
func (m *Mesh) others(a *asked) {
	if a.service == nil {
		return
	}
	var names []string
	for p := range m.snap.PodsSelected(a.service.Namespace, a.service.Selector) {
		if name := m.workload(p).Name; name != a.workload.Name && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		a.note("other workloads are behind Service %s, too, and may decide otherwise: %s", a.service.ID, strings.Join(names, ", "))
	}
}

func (m *Mesh) client(a *asked, ask Ask) (err error) {
	switch {
	case ask.Plaintext && ask.From != "":
		return fmt.Errorf("--plaintext is of a client without identity; leave out --from or --plaintext")
	case ask.Plaintext:
		return nil
	case ask.From == "":
		return fmt.Errorf("who asks? --from NAMESPACE/ACCOUNT, or --plaintext for a client without identity")
	}
	if a.from, err = m.Identity(ask.Namespace, ask.From); err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	if !slices.Contains(m.set.TrustDomains(), a.from.TrustDomain) {
		a.note("%s is of another trust domain than the mesh's (%s): its certificate is refused in the handshake", a.from, strings.Join(m.set.TrustDomains(), ", "))
	}
	if known := m.Accounts(); !slices.Contains(known, a.from.Namespace+"/"+a.from.ServiceAccount) {
		a.note("no pod runs as %s/%s: is it spelt so?", a.from.Namespace, a.from.ServiceAccount)
	}
	return nil
}

// findPort finds the workload's port, by its number or a service's.
func (m *Mesh) findPort(a *asked, number uint32, tcp bool) error {
	ports := a.compiled.Ports
	if number == 0 {
		if len(ports) == 0 {
			return fmt.Errorf("%s has no port that a Service names: give --port", a.workload.Name)
		}
		var names []string
		for _, p := range ports {
			names = append(names, fmt.Sprintf("%d %s", p.Number, p.Protocol))
		}
		a.port = m.likeliest(a, tcp)
		if len(ports) > 1 {
			a.note("no port is given: %d is assumed, of %s", a.port.Number, strings.Join(names, ", "))
		}
		m.callBy(a)
		return nil
	}
	services := m.snap.ServicesFor(a.workload.pod.Namespace, a.workload.pod.Labels)
	if a.service != nil {
		services = []*registry.Service{a.service}
	}
	declared := slices.ContainsFunc(ports, func(p compile.InboundPort) bool { return p.Number == number })
	if !declared || a.service != nil {
		for _, s := range services {
			for _, sp := range s.Ports {
				if target := compile.TargetPort(a.compiled.Class, sp); sp.Number == number && target != 0 {
					if target != number {
						a.note("port %d is Service %s's; the workload's, which policies name, is %d", number, s.ID, target)
					}
					a.service, a.port = s, portOf(a.compiled, target)
					return nil
				}
			}
		}
	}
	if !declared {
		a.note("no Service names port %d: it is reached by the pod's address alone, and its protocol is found out for each connection", number)
	}
	a.port = portOf(a.compiled, number)
	m.callBy(a)
	return nil
}

// likeliest is the port that is meant if none is given: the first, in the order of the services, that speaks what is asked for.
func (m *Mesh) likeliest(a *asked, tcp bool) compile.InboundPort {
	services := m.snap.ServicesFor(a.workload.pod.Namespace, a.workload.pod.Labels)
	if a.service != nil {
		services = []*registry.Service{a.service}
	}
	var found *compile.InboundPort
	for _, s := range services {
		for _, sp := range s.Ports {
			p := portOf(a.compiled, compile.TargetPort(a.compiled.Class, sp))
			if fits := p.Protocol.IsHTTP() != tcp; found == nil || fits && found.Protocol.IsHTTP() == tcp {
				found = &p
			}
		}
	}
	if found == nil {
		return a.compiled.Ports[0]
	}
	return *found
}

// callBy finds the service by which the port is called.
func (m *Mesh) callBy(a *asked) {
	for _, s := range m.snap.ServicesFor(a.workload.pod.Namespace, a.workload.pod.Labels) {
		for _, sp := range s.Ports {
			if a.service == nil && compile.TargetPort(a.compiled.Class, sp) == a.port.Number {
				a.service = s
			}
		}
	}
}

// servicePort is the number by which clients of the service call the port.
func servicePort(a *asked) uint32 {
	for _, sp := range a.service.Ports {
		if compile.TargetPort(a.compiled.Class, sp) == a.port.Number {
			return sp.Number
		}
	}
	return a.port.Number
}

// protocol decides whether rules see a request or a connection.
func (a *asked) protocol(ask Ask) {
	http := ask.Method != "" || ask.Path != "" || ask.Host != "" || len(ask.Headers) > 0
	switch {
	case a.port.Protocol == protocol.TCP:
		if http && !ask.TCP {
			a.note("port %d is declared to speak TCP: rules see a connection there, and nothing of HTTP", a.port.Number)
		}
		return
	case ask.TCP && a.port.Protocol.IsHTTP():
		a.note("port %d is declared to speak HTTP: a connection that does not is refused, whatever the policies", a.port.Number)
		return
	case ask.TCP:
		return
	case a.port.Protocol == protocol.Auto:
		a.note("port %d has no declared protocol: what speaks HTTP is judged as requests, what does not as a connection (--tcp)", a.port.Number)
	}
	a.request.HTTP = true
	assume := func(field *string, flag, value string) {
		if *field == "" {
			*field = value
			a.note("%s is not given: %s is assumed", flag, value)
		}
	}
	assume(&a.request.Method, "--method", "GET")
	if a.request.Method != "CONNECT" {
		assume(&a.request.Path, "--path", "/")
	}
	if a.request.Host == "" {
		a.request.Host = "localhost"
		if a.service != nil {
			a.request.Host = a.service.Name + "." + a.service.Namespace
		}
		if slices.ContainsFunc(a.compiled.Policies, func(p authz.Policy) bool { return p.Uses(authz.Host) }) {
			a.note("--host is not given, and a rule looks at it: %s is assumed", a.request.Host)
		}
	}
}
