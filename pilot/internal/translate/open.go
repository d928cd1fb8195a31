package translate

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httpwasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netwasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/open"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// What is open and forbidden is ended by filters that share one sandbox, a part of Envoy's for each of its threads. Two of them know what is open, and never change. The rules are the
// configuration of two others, by which nothing passes: so nothing that is open holds them, and rules that come back are configured anew. They come as that of
// authorization does. If the sandbox fails, connections go on: all other filters decide without it.
const (
	OpenConnections = "open/connections" // knows connections
	OpenRequests    = "open/requests"    // knows requests
	openRules       = "authorization/open"
	openRevocations = "revocations/open"
)

// KnowConnections is the configuration of the filter that knows of connections.
func KnowConnections() *core.TypedExtensionConfig {
	return envoy.Extension(OpenConnections, &netwasm.Wasm{Config: closer(nil)})
}

// KnowRequests is that of the filter that knows of requests, those that all other filters have let pass.
func KnowRequests() *core.TypedExtensionConfig {
	return envoy.Extension(OpenRequests, &httpwasm.Wasm{Config: closer(nil)})
}

// closer is a filter in the sandbox, with rules or without.
func closer(rules []byte) *wasm.PluginConfig {
	out := &wasm.PluginConfig{
		Name: "bulwark", RootId: "open", FailurePolicy: wasm.FailurePolicy_FAIL_OPEN,
		Vm: &wasm.PluginConfig_VmConfig{VmConfig: &wasm.VmConfig{VmId: "bulwark", Runtime: "envoy.wasm.runtime.v8",
			Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Local{Local: &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: open.Closer}}}}}},
	}
	if rules != nil {
		out.Configuration = envoy.Typed(wrapperspb.Bytes(rules))
	}
	return out
}

// openFilters note what is to be known of a connection when it comes, and have it known.
func openFilters(more ...*filterstate.FilterStateValue) []*listener.Filter {
	return []*listener.Filter{
		envoy.NetworkFilter("envoy.filters.network.set_filter_state", connectionState(append(more, noted(open.SourceKey, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"))...)),
		{Name: OpenConnections, ConfigType: &listener.Filter_ConfigDiscovery{ConfigDiscovery: discovered(&netwasm.Wasm{})}},
	}
}

// openHTTPFilters have a request known, and hold the rules.
func openHTTPFilters() (out []*hcm.HttpFilter) {
	for _, name := range []string{OpenRequests, openRules, openRevocations} {
		out = append(out, &hcm.HttpFilter{Name: name, Disabled: name != OpenRequests, ConfigType: &hcm.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(&httpwasm.Wasm{})}})
	}
	return out
}

func forbiddenByPolicies(w *compile.Workload) *httpwasm.Wasm {
	return &httpwasm.Wasm{Config: closer(open.Rules(w))}
}

func forbiddenToRevoked(set compile.Settings, list []revocation.Revocation) *httpwasm.Wasm {
	return &httpwasm.Wasm{Config: closer(open.Revoked(set, list))}
}
