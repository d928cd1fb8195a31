// Package deltaxds serves the incremental (delta) variant of xDS to one client at a time. It holds the protocol's
// state and nothing else: what resources exist is the business of a Source. The node agent serves Envoys with it.
//
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
package deltaxds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Type URLs in the order in which they are sent: what is referred to goes before what refers to it.
const (
	ClusterType         = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType        = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	SecretType          = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ExtensionConfigType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	ListenerType        = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType           = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

var order = []string{ClusterType, EndpointType, SecretType, ExtensionConfigType, ListenerType, RouteType}

// Resource is one xDS resource, marshalled once and shared, unchanged, by every stream that takes it.
type Resource struct {
	Name    string
	Version string // hash of the content, so that it survives a restart of the server
	wire    *discovery.Resource
	frame   mem.Buffer // wire as a field of a response; it holds the only copy of the body
}

// NewResource marshals msg. The same message always yields the same version.
func NewResource(name string, msg proto.Message) (*Resource, error) {
	bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("marshalling xDS resource %s: %w", name, err)
	}
	sum := sha256.Sum256(bytes)
	return Received(name, hex.EncodeToString(sum[:12]), "type.googleapis.com/"+string(msg.ProtoReflect().Descriptor().FullName()), bytes), nil
}

// Received returns a resource that another server has marshalled, of a type (the URL of its message), to be shared by those to whom it is
// passed on.
func Received(name, version, typeURL string, bytes []byte) *Resource {
	body := &anypb.Any{TypeUrl: typeURL}
	r := FromWire(&discovery.Resource{Name: name, Version: version, Resource: body})
	var field []byte
	field, body.Value = frame(name, version, typeURL, bytes)
	r.frame = mem.SliceBuffer(field)
	return r
}

// FromWire wraps a resource that came from another server; a relay passes it on as it is.
func FromWire(wire *discovery.Resource) *Resource {
	return &Resource{Name: wire.GetName(), Version: wire.GetVersion(), wire: wire}
}

// Frame is the resource as field 2 of a message, with its tag. Nil after FromWire.
func (r *Resource) Frame() mem.Buffer { return r.frame }

// Body returns the marshalled message.
func (r *Resource) Body() *anypb.Any { return r.wire.GetResource() }
