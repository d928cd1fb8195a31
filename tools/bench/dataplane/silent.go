package dataplane

import (
	"fmt"
	"maps"

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
	out[deltaxds.ListenerType] = map[string]*deltaxds.Resource{}
	for name, res := range r[deltaxds.ListenerType] {
		var l listener.Listener
		if err := res.Body().UnmarshalTo(&l); err != nil {
			return nil, fmt.Errorf("listener %s: %w", name, err)
		}
		l.AccessLog = nil
		for _, chain := range append(l.GetFilterChains(), l.GetDefaultFilterChain()) {
			for _, filter := range chain.GetFilters() {
				if err := silence(filter); err != nil {
					return nil, fmt.Errorf("listener %s: %w", name, err)
				}
			}
		}
		made, err := deltaxds.NewResource(name, &l)
		if err != nil {
			return nil, err
		}
		out[deltaxds.ListenerType][name] = made
	}
	return out, nil
}

func silence(f *listener.Filter) error {
	var m hcm.HttpConnectionManager
	var t tcpproxy.TcpProxy
	var quiet proto.Message
	switch config := f.GetTypedConfig(); {
	case config.MessageIs(&m):
		if err := config.UnmarshalTo(&m); err != nil {
			return err
		}
		m.AccessLog, quiet = nil, &m
	case config.MessageIs(&t):
		if err := config.UnmarshalTo(&t); err != nil {
			return err
		}
		t.AccessLog, quiet = nil, &t
	default:
		return nil
	}
	packed, err := anypb.New(quiet)
	if err != nil {
		return err
	}
	f.ConfigType = &listener.Filter_TypedConfig{TypedConfig: packed}
	return nil
}
