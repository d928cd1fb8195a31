package translate

import (
	"fmt"
	"slices"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xds "github.com/cncf/xds/go/xds/type/matcher/v3"
	network "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/protocol"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/istiocompat"
)

var httpProtocols = []string{"http/1.0", "http/1.1", "h2c"} // as http_inspector calls what it sees

// inboundMatcher finds the filter chain of a connection, by port, then by what the port takes:
//
//	STRICT      mutual TLS; TLS of whom is no proxy is taken for a mesh client, too
//	PERMISSIVE  mutual TLS from proxies; plaintext; other TLS, passed on as the application's own
//	DISABLE     everything as plaintext
func inboundMatcher(set compile.Settings, w *compile.Workload) *xds.Matcher {
	m := matching{w: w, restricted: greeted(set, w) != nil, verdict: enforced(w.Policies), identity: authz.ByIdentity(w.Policies)}
	ports := map[string]*xds.Matcher_OnMatch{}
	for _, p := range w.Ports {
		ports[fmt.Sprint(p.Number)] = m.port(p)
	}
	other := m.port(w.Other)
	if len(ports) == 0 {
		return other.GetMatcher()
	}
	return tree("port", &network.DestinationPortInput{}, ports, other)
}

// plaintextGroups name the sets of chains that take plaintext: one for all ports that follow the workload's mode, and one
// for each port that takes plaintext by a mode of its own while the workload does not, so that they end with that mode.
func plaintextGroups(w *compile.Workload) []string {
	var out []string
	for _, p := range w.EveryPort() {
		if group := plaintextGroup(w, p); p.Mode != authz.Strict && !slices.Contains(out, group) {
			out = append(out, group)
		}
	}
	return out
}

func plaintextGroup(w *compile.Workload, p compile.InboundPort) string {
	if w.Other.Mode != authz.Strict {
		return ""
	}
	return fmt.Sprintf("-%d", p.Number)
}

// refused is the name of no filter chain.
const refused = "refused"

type matching struct {
	w          *compile.Workload
	restricted bool // ports whose server speaks first have a chain of their own
	verdict    bool // TCP waits for the policies
	identity   bool // of TCP, the handshake decides all
}

func (m matching) port(p compile.InboundPort) *xds.Matcher_OnMatch {
	// Where a nested matcher finds nothing, Envoy goes on with what is outside of it: what a port refuses is named.
	plaintext := takenBy(refused)
	if p.Mode != authz.Strict {
		plaintext = m.plaintext(p)
	}
	return nested(tree("transport", &network.TransportProtocolInput{}, map[string]*xds.Matcher_OnMatch{
		"tls": m.tls(p), "raw_buffer": plaintext}, takenBy(refused)))
}

func (m matching) tls(p compile.InboundPort) *xds.Matcher_OnMatch {
	var foreign *xds.Matcher_OnMatch
	switch {
	case p.Mode == authz.Disable:
		return m.passed(p)
	case p.Mode == authz.Permissive:
		foreign = m.passed(p)
	case p.Protocol == protocol.TCP:
		foreign = takenBy(m.tlsTCP(p))
	default:
		foreign = takenBy(tlsHTTP)
	}
	proxied, opaque := takenBy(tlsHTTP), takenBy(m.tlsTCP(p))
	switch {
	case p.Protocol.IsHTTP() || nothingButHTTP(m.w, p): // whatever a client says, policies about requests hold
		opaque = proxied
	case p.Protocol == protocol.TCP:
		proxied = opaque
	}
	return nested(tree("alpn", &network.ApplicationProtocolInput{}, map[string]*xds.Matcher_OnMatch{
		quoted(istiocompat.ALPN): proxied, quoted(istiocompat.ALPNOpaque): opaque}, foreign))
}

// nothingButHTTP reports whether no connection to a port of no declared protocol can be admitted but for its requests. Then each is taken for HTTP: a client that let a
// moment pass before its request, which its own proxy took for TCP, is heard.
func nothingButHTTP(w *compile.Workload, p compile.InboundPort) bool {
	return p.Protocol == protocol.Auto && enforced(w.Policies) && !authz.AdmitsTCP(w.Policies, p.Number)
}

// mayGreet reports whether a port's server may speak before its client: it is declared to, or nothing is declared and policies need no word of the client's.
func mayGreet(p compile.InboundPort, identity bool) bool {
	return p.ServerFirst || p.Protocol == protocol.Auto && identity
}

func (m matching) tlsTCP(p compile.InboundPort) string {
	switch {
	case mayGreet(p, m.identity) && m.restricted:
		return tlsGreeting + askSeveral(m.w)
	case p.ServerFirst || !m.verdict:
		return tlsTCP + askSeveral(m.w)
	}
	return tlsTCP + awaitedVerdict + askSeveral(m.w)
}

func (m matching) plaintext(p compile.InboundPort) *xds.Matcher_OnMatch {
	http := takenBy(plainHTTP + plaintextGroup(m.w, p))
	switch {
	case p.Protocol.IsHTTP() || nothingButHTTP(m.w, p):
		return http
	case p.Protocol == protocol.TCP:
		return m.passed(p)
	}
	sniffed := map[string]*xds.Matcher_OnMatch{}
	for _, name := range httpProtocols {
		sniffed[quoted(name)] = http
	}
	return nested(tree("protocol", &network.ApplicationProtocolInput{}, sniffed, m.passed(p)))
}

// greetsStrangers reports whether clients in plaintext are let through to a port before there is a verdict. One that waits for a server that speaks first would wait forever for a verdict
// that waits for its client; so its connection is made at once, if anybody without an identity can be admitted at all.
func greetsStrangers(w *compile.Workload, p compile.InboundPort, identity bool) bool {
	return p.Mode != authz.Strict && mayGreet(p, identity) && authz.AdmitsStrangers(w.Policies, p.Number)
}

// passed is for bytes that go to the application as they are.
func (m matching) passed(p compile.InboundPort) *xds.Matcher_OnMatch {
	name := plainTCP
	if m.verdict && !greetsStrangers(m.w, p, m.identity) {
		name += awaitedVerdict
	}
	return takenBy(name + plaintextGroup(m.w, p) + askSeveral(m.w))
}

// quoted is one protocol as the input of Envoy's matcher lists protocols.
func quoted(protocol string) string { return "'" + protocol + "'" }

func tree(name string, input proto.Message, values map[string]*xds.Matcher_OnMatch, otherwise *xds.Matcher_OnMatch) *xds.Matcher {
	return &xds.Matcher{OnNoMatch: otherwise, MatcherType: &xds.Matcher_MatcherTree_{MatcherTree: &xds.Matcher_MatcherTree{
		Input:    &xdscore.TypedExtensionConfig{Name: name, TypedConfig: envoy.Typed(input)},
		TreeType: &xds.Matcher_MatcherTree_ExactMatchMap{ExactMatchMap: &xds.Matcher_MatcherTree_MatchMap{Map: values}}}}}
}

func nested(m *xds.Matcher) *xds.Matcher_OnMatch {
	return &xds.Matcher_OnMatch{OnMatch: &xds.Matcher_OnMatch_Matcher{Matcher: m}}
}

// takenBy ends at a filter chain.
func takenBy(chain string) *xds.Matcher_OnMatch {
	return &xds.Matcher_OnMatch{OnMatch: &xds.Matcher_OnMatch_Action{
		Action: &xdscore.TypedExtensionConfig{Name: chain, TypedConfig: envoy.Typed(wrapperspb.String(chain))}}}
}
