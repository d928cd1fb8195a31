package translate_test

import (
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pilot/internal/translate"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// inlineAuthorization puts the authorization resources where a chain asks for them, as an Envoy with Pilot has them.
func inlineAuthorization(t *testing.T, c *listener.FilterChain, policies []authz.Policy, revoked ...*registry.Revocation) {
	t.Helper()
	config := func(name string) *core.TypedExtensionConfig {
		if m, ok := translate.Revocations(revoked, name).(*core.TypedExtensionConfig); ok {
			return m
		}
		out := translate.Authorization(policies, settings.TrustDomain, name)
		if out == nil {
			t.Fatalf("no authorization resource %q", name)
		}
		return out
	}
	for _, f := range c.GetFilters() {
		if f.GetConfigDiscovery() != nil {
			f.ConfigType = &listener.Filter_TypedConfig{TypedConfig: config(f.GetName()).GetTypedConfig()}
			continue
		}
		if f.GetName() != "envoy.filters.network.http_connection_manager" {
			continue
		}
		repack(t, f.GetTypedConfig(), func(m any) {
			for _, h := range m.(*hcm.HttpConnectionManager).GetHttpFilters() {
				if h.GetConfigDiscovery() != nil {
					h.ConfigType = &hcm.HttpFilter_TypedConfig{TypedConfig: config(h.GetName()).GetTypedConfig()}
				}
			}
		})
	}
}
