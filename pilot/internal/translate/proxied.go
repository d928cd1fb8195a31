package translate

import (
	"slices"

	xdscore "github.com/cncf/xds/go/xds/core/v3"
	xds "github.com/cncf/xds/go/xds/type/matcher/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	originaldst "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	setfilterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/set_filter_state/v3"
	network "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	ip "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/ip/v3"
	xdstype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
)

// Where load balancers connect to a workload, they may say by the PROXY protocol for whom they do (version 1 and 2 of HAProxy's specification). Envoy's filter for it believes
// whoever sends such a header, of the destination, too. So what the connection was is noted before, the destination is asked of the kernel again behind it, and when both are known a
// connection is refused whose header names another destination than it has, or that names a client though it is no load balancer's.

// Where it is noted.
const (
	ownSource      = "bulwark.own_source"
	ownDestination = "bulwark.own_destination"
	headerKey      = "bulwark.proxy_header"
)

// What is said of a connection's header in the end. A header that names nobody, and none, is none. Nothing is said of who says nothing for as long as filters wait for its header.
const (
	headerNamesClient = "client"
	headerMisleads    = "misleads"
	headerUnknown     = "-" // as Envoy writes what an expression fails to say
)

// headerVerdict is an expression of CEL. To it, what is noted are bytes.
const headerVerdict = `%CEL(bytes(destination.address) != filter_state['` + ownDestination + `'] ? '` + headerMisleads + `' : ` +
	`bytes(source.address) != filter_state['` + ownSource + `'] ? '` + headerNamesClient + `' : 'none')%`

// proxied reports whether the PROXY protocol is read at any port of a workload.
func proxied(set compile.Settings, w *compile.Workload) bool {
	return len(w.Class.ProxyProtocol) > 0 && len(set.LoadBalancers) > 0
}

// headerFilters read the header, at the ports of the workload that ask for it.
func headerFilters(w *compile.Workload) []*listener.ListenerFilter {
	note := func(values ...*filterstate.FilterStateValue) *listener.ListenerFilter {
		return envoy.ListenerFilter("envoy.filters.listener.set_filter_state", &setfilterstate.Config{OnAccept: values})
	}
	read := envoy.ListenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocol.ProxyProtocol{AllowRequestsWithoutProxyProtocol: true, StatPrefix: "inbound"})
	read.FilterDisabled = elsewhere(w.Class.ProxyProtocol)
	return []*listener.ListenerFilter{ // of which those behind it cannot be for some ports: the header may have named another
		note(noted(ownSource, "%DOWNSTREAM_REMOTE_ADDRESS%"), noted(ownDestination, "%DOWNSTREAM_LOCAL_ADDRESS%")),
		read,
		envoy.ListenerFilter("envoy.filters.listener.original_dst", &originaldst.OriginalDst{}),
		note(noted(headerKey, headerVerdict)),
	}
}

// elsewhere is any port but these.
func elsewhere(ports []uint32) *listener.ListenerFilterChainMatchPredicate {
	var these []*listener.ListenerFilterChainMatchPredicate
	for _, p := range ports {
		these = append(these, &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_DestinationPortRange{
			DestinationPortRange: &xdstype.Int32Range{Start: int32(p), End: int32(p) + 1}}})
	}
	return &listener.ListenerFilterChainMatchPredicate{Rule: &listener.ListenerFilterChainMatchPredicate_NotMatch{NotMatch: anyOf(these)}}
}

// believed refuses connections whose header is not to be believed; all others go on as they would.
func believed(set compile.Settings, w *compile.Workload, m *xds.Matcher) *xds.Matcher {
	if !proxied(set, w) {
		return m
	}
	var balancers []*core.CidrRange
	for _, p := range set.LoadBalancers {
		balancers = append(balancers, &core.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))})
	}
	stranger := &xds.Matcher_MatcherList_Predicate{MatchType: &xds.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: &xds.Matcher_MatcherList_Predicate{
		MatchType: &xds.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: &xds.Matcher_MatcherList_Predicate_SinglePredicate{
			Input: &xdscore.TypedExtensionConfig{Name: "peer", TypedConfig: envoy.Typed(&network.DirectSourceIPInput{})},
			Matcher: &xds.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch{
				CustomMatch: &xdscore.TypedExtensionConfig{Name: "balancers", TypedConfig: envoy.Typed(&ip.Ip{CidrRanges: balancers, StatPrefix: "balancers"})}}}}}}}
	named := &xds.Matcher{MatcherType: &xds.Matcher_MatcherList_{MatcherList: &xds.Matcher_MatcherList{
		Matchers: []*xds.Matcher_MatcherList_FieldMatcher{{Predicate: stranger, OnMatch: takenBy(refused)}}}}, OnNoMatch: nested(m)}
	return tree("header", &network.FilterStateInput{Key: headerKey}, map[string]*xds.Matcher_OnMatch{
		headerMisleads: takenBy(refused), headerUnknown: takenBy(refused), headerNamesClient: nested(named)}, nested(m))
}

// inspectors are the filters that look at a connection's first bytes, after the header.
func inspectors(l *listener.Listener) []*listener.ListenerFilter {
	return slices.DeleteFunc(slices.Clone(l.GetListenerFilters()), func(f *listener.ListenerFilter) bool {
		return !slices.Contains([]string{"envoy.filters.listener.tls_inspector", "envoy.filters.listener.http_inspector"}, f.GetName())
	})
}
