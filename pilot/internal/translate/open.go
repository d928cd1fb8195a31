package translate

import (
	"path"
	"slices"

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
	"github.com/bulwark-mesh/bulwark/pkg/closer"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// What is open and forbidden is ended by filters that share one sandbox, a part of Envoy's for each of its threads. Two of them know what is open, and never change. The rules are the
// configuration of two others, by which nothing passes: so nothing that is open holds them, and rules that come back are configured anew. They come as that of
// authorization does. If the sandbox fails, connections go on: all other filters decide without it.
const (
	OpenConnections = "open/connections" // knows connections
	OpenRequests    = "open/requests"    // knows requests
	OpenRevocations = "revocations/open"
	OpenRules       = "authorization/open" // of a workload
)

// ModuleSource is where a proxy has the filter's module from, for each of its configurations. Envoy knows a module by its content, wherever it comes from.
type ModuleSource bool

// The module is sent with each configuration, or is in the pod's directory.
const (
	ModuleSent     ModuleSource = false
	ModuleByThePod ModuleSource = true
)

// ModuleLeft is where proxies have it from whose agent has left a version of it in each pod's directory. One of another version is no use.
func ModuleLeft(version string) ModuleSource { return version == closer.Version }

func (in ModuleSource) data() *core.DataSource {
	if in == ModuleByThePod {
		return &core.DataSource{Specifier: &core.DataSource_Filename{Filename: path.Join(mesh.IdentityMountPath, closer.File(closer.Version))}}
	}
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: closer.Module}}
}

// NeedsModule says whether the resource of a name brings the module along, or names its file.
func NeedsModule(name string) bool {
	return slices.Contains([]string{OpenConnections, OpenRequests, OpenRules, OpenRevocations}, name)
}

// KnowConnections is the configuration of the filter that knows of connections.
func KnowConnections(in ModuleSource) *core.TypedExtensionConfig {
	return envoy.Extension(OpenConnections, &netwasm.Wasm{Config: sandboxed(in, nil)})
}

// KnowRequests is that of the filter that knows of requests, those that all other filters have let pass.
func KnowRequests(in ModuleSource) *core.TypedExtensionConfig {
	return envoy.Extension(OpenRequests, &httpwasm.Wasm{Config: sandboxed(in, nil)})
}

// sandboxed is a filter in the sandbox, with rules or without.
func sandboxed(in ModuleSource, rules []byte) *wasm.PluginConfig {
	out := &wasm.PluginConfig{
		Name: "bulwark", RootId: "open", FailurePolicy: wasm.FailurePolicy_FAIL_OPEN,
		Vm: &wasm.PluginConfig_VmConfig{VmConfig: &wasm.VmConfig{VmId: "bulwark", Runtime: "envoy.wasm.runtime.v8",
			Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Local{Local: in.data()}}}},
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
	for _, name := range []string{OpenRequests, OpenRules, OpenRevocations} {
		out = append(out, &hcm.HttpFilter{Name: name, Disabled: name != OpenRequests, ConfigType: &hcm.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(&httpwasm.Wasm{})}})
	}
	return out
}

func forbiddenByPolicies(w *compile.Workload, in ModuleSource) *httpwasm.Wasm {
	return &httpwasm.Wasm{Config: sandboxed(in, open.Rules(w))}
}

func forbiddenToRevoked(set compile.Settings, list []revocation.Revocation, in ModuleSource) *httpwasm.Wasm {
	return &httpwasm.Wasm{Config: sandboxed(in, open.Revoked(set, list))}
}
