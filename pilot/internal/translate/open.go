package translate

import (
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	netwasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/open"
)

// openConnections is the filter that closes connections which new policies and modes forbid. It comes with the configuration of authorization. If its sandbox fails, connections
// go on: all other filters decide without it.
const openConnections = "authorization/open"

func openFilter() *listener.Filter {
	return &listener.Filter{Name: openConnections, ConfigType: &listener.Filter_ConfigDiscovery{ConfigDiscovery: discovered(&netwasm.Wasm{})}}
}

func closer(w *compile.Workload) *netwasm.Wasm {
	return &netwasm.Wasm{Config: &wasm.PluginConfig{
		Name: "bulwark", RootId: "open", FailurePolicy: wasm.FailurePolicy_FAIL_OPEN, Configuration: envoy.Typed(wrapperspb.Bytes(open.Rules(w))),
		Vm: &wasm.PluginConfig_VmConfig{VmConfig: &wasm.VmConfig{VmId: "bulwark", Runtime: "envoy.wasm.runtime.v8",
			Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Local{Local: &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: open.Closer}}}}}},
	}}
}
