// Package envoy has the smallest pieces of Envoy's messages, of which others are made.
package envoy

import (
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rawbuffer "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Typed packs a message so that equal messages have equal bytes; a resource's version is the hash of its bytes.
func Typed(m proto.Message) *anypb.Any {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("marshalling a message of our own making: " + err.Error()) // only invalid UTF-8 could do that, and inputs are checked
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: b}
}

// Extension is a configuration under a name.
func Extension(name string, config proto.Message) *core.TypedExtensionConfig {
	return &core.TypedExtensionConfig{Name: name, TypedConfig: Typed(config)}
}

// NetworkFilter sees the bytes of a connection.
func NetworkFilter(name string, config proto.Message) *listener.Filter {
	return &listener.Filter{Name: name, ConfigType: &listener.Filter_TypedConfig{TypedConfig: Typed(config)}}
}

// ListenerFilter looks at a new connection before a filter chain is chosen for it.
func ListenerFilter(name string, config proto.Message) *listener.ListenerFilter {
	return &listener.ListenerFilter{Name: name, ConfigType: &listener.ListenerFilter_TypedConfig{TypedConfig: Typed(config)}}
}

// HTTPFilter sees the requests of a connection manager.
func HTTPFilter(name string, config proto.Message) *hcm.HttpFilter {
	return &hcm.HttpFilter{Name: name, ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: Typed(config)}}
}

// TransportSocket is what is between a connection's bytes and the wire, such as TLS.
func TransportSocket(name string, config proto.Message) *core.TransportSocket {
	return &core.TransportSocket{Name: name, ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: Typed(config)}}
}

// RawBuffer puts nothing between them: plaintext.
func RawBuffer() *core.TransportSocket {
	return TransportSocket("envoy.transport_sockets.raw_buffer", &rawbuffer.RawBuffer{})
}

// GRPCService is a service of gRPC that Envoy calls, behind one of its clusters.
func GRPCService(cluster string) *core.GrpcService {
	return &core.GrpcService{TargetSpecifier: &core.GrpcService_EnvoyGrpc_{EnvoyGrpc: &core.GrpcService_EnvoyGrpc{ClusterName: cluster}}}
}

// Flagged passes requests and connections that have one of Envoy's response flags.
func Flagged(flag string) *accesslog.AccessLogFilter {
	return &accesslog.AccessLogFilter{FilterSpecifier: &accesslog.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslog.ResponseFlagFilter{Flags: []string{flag}}}}
}

// Address is an IP address and a port.
func Address(ip string, port uint32) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: ip, PortSpecifier: &core.SocketAddress_PortValue{PortValue: port}}}}
}

// Format is a text in which Envoy replaces %COMMANDS% by what it knows of a request or of a connection.
func Format(s string) *core.SubstitutionFormatString {
	return &core.SubstitutionFormatString{Format: &core.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &core.DataSource{Specifier: &core.DataSource_InlineString{InlineString: s}}}}
}

// JSON is an object in one line, of such texts.
func JSON(fields map[string]string) *core.SubstitutionFormatString {
	object := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for name, format := range fields {
		object.Fields[name] = structpb.NewStringValue(format)
	}
	return &core.SubstitutionFormatString{Format: &core.SubstitutionFormatString_JsonFormat{JsonFormat: object}}
}

// Seconds is a duration. Where Envoy has a timeout by default, zero says that there is none.
func Seconds(s float64) *durationpb.Duration {
	return durationpb.New(time.Duration(s * float64(time.Second)))
}

// U32 is a number where Envoy tells zero from no number at all.
func U32(v uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(v) }

// Yes is true where Envoy tells false from no word about it.
func Yes() *wrapperspb.BoolValue { return wrapperspb.Bool(true) }

// No is false, said explicitly, where Envoy would take true otherwise.
func No() *wrapperspb.BoolValue { return wrapperspb.Bool(false) }

// Exact matches one text.
func Exact(v string) *matcher.StringMatcher {
	return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Exact{Exact: v}}
}

// Prefix matches texts by their beginning.
func Prefix(v string) *matcher.StringMatcher {
	return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Prefix{Prefix: v}}
}

// Suffix matches texts by their end.
func Suffix(v string) *matcher.StringMatcher {
	return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_Suffix{Suffix: v}}
}

// Pattern matches whole texts by a regular expression of RE2.
func Pattern(re string) *matcher.StringMatcher {
	return &matcher.StringMatcher{MatchPattern: &matcher.StringMatcher_SafeRegex{SafeRegex: &matcher.RegexMatcher{Regex: re}}}
}
