package translate

import (
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	filterstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	httprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	netrbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	netstate "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	"google.golang.org/protobuf/proto"

	"github.com/bulwark-mesh/bulwark/pilot/internal/compile"
	"github.com/bulwark-mesh/bulwark/pilot/internal/envoy"
	"github.com/bulwark-mesh/bulwark/pilot/internal/rbac"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
	"github.com/bulwark-mesh/bulwark/pkg/revocation"
)

// Revocations are a configuration of their own before every policy, the same for all proxies of the mesh: a change of the
// list touches these resources, and no listener. As with policies, requests on open connections follow it at once, and
// what is open is ended.
const (
	httpRevocations = "revocations/http"
	tcpRevocations  = "revocations/tcp"
)

// RevocationNames are the names of the mesh's revocation resources.
func RevocationNames() []string { return []string{httpRevocations, tcpRevocations, OpenRevocations} }

// Revocations is the configuration by which the revocations hold, nil if there is none of the name. Their results are told
// as those of a DENY policy. What ends what is open needs its module from somewhere.
func Revocations(set compile.Settings, list []revocation.Revocation, name string, in ModuleSource) proto.Message {
	rules := rbac.Revoked(set, list)
	switch name {
	case httpRevocations:
		return envoy.Extension(name, &httprbac.RBAC{Rules: rules, RulesStatPrefix: rbac.Prefix(authz.Deny)})
	case tcpRevocations:
		return envoy.Extension(name, &netrbac.RBAC{Rules: rules, StatPrefix: rbac.Prefix(authz.Deny)})
	case OpenRevocations:
		return envoy.Extension(name, forbiddenToRevoked(set, list, in))
	}
	return nil
}

// notedPeer notes who the client is once the handshake is done, and its certificate's serial number, for every request of the connection.
func notedPeer() *listener.Filter {
	return envoy.NetworkFilter("envoy.filters.network.set_filter_state", &netstate.Config{
		OnDownstreamTlsHandshake: []*filterstate.FilterStateValue{
			noted(peerKey, "%DOWNSTREAM_PEER_URI_SAN%"), noted(rbac.PeerSerialKey, "%DOWNSTREAM_PEER_SERIAL%")}})
}
