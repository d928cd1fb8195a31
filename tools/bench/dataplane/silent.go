package dataplane

import (
	"fmt"
	"maps"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
)

// silent returns the same configuration without telemetry: no access logger of any kind, which is where Bulwark's
// metrics and audit are.
func silent(r resources) (resources, error) {
	out := maps.Clone(r)
	for _, url := range []string{deltaxds.ListenerType, deltaxds.ExtensionConfigType} {
		out[url] = map[string]*deltaxds.Resource{}
		for name, res := range r[url] {
			msg, err := res.Body().UnmarshalNew()
			if err != nil {
				return nil, fmt.Errorf("resource %s: %w", name, err)
			}
			if err := withoutLogs(msg); err != nil {
				return nil, fmt.Errorf("resource %s: %w", name, err)
			}
			made, err := deltaxds.NewResource(name, msg)
			if err != nil {
				return nil, err
			}
			out[url][name] = made
		}
	}
	return out, nil
}

// withoutLogs takes them from a listener, or from the configuration of a filter that comes apart from listeners.
func withoutLogs(msg proto.Message) error {
	switch m := msg.(type) {
	case *core.TypedExtensionConfig:
		return silence(m.GetTypedConfig())
	case *listener.Listener:
		m.AccessLog = nil
		for _, chain := range append(m.GetFilterChains(), m.GetDefaultFilterChain()) {
			for _, filter := range chain.GetFilters() {
				if err := silence(filter.GetTypedConfig()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func silence(config *anypb.Any) error {
	var m hcm.HttpConnectionManager
	var t tcpproxy.TcpProxy
	switch {
	case config.MessageIs(&m):
		if err := config.UnmarshalTo(&m); err != nil {
			return err
		}
		m.AccessLog = nil
		return config.MarshalFrom(&m)
	case config.MessageIs(&t):
		if err := config.UnmarshalTo(&t); err != nil {
			return err
		}
		t.AccessLog = nil
		return config.MarshalFrom(&t)
	}
	return nil
}
