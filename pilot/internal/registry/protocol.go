package registry

import "strings"

// Protocol is what a port speaks.
type Protocol string

// The protocols. Auto is found out per connection.
const (
	HTTP  Protocol = "HTTP"
	HTTP2 Protocol = "HTTP2" // gRPC, h2c: HTTP/2 with prior knowledge
	TCP   Protocol = "TCP"
	Auto  Protocol = "AUTO"
)

// IsHTTP reports whether the port is declared to speak HTTP.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 }

var byName = map[string]Protocol{
	"http": HTTP, "http2": HTTP2, "h2c": HTTP2, "grpc": HTTP2, "grpc-web": HTTP, "ws": HTTP,
	"kubernetes.io/h2c": HTTP2, "kubernetes.io/ws": HTTP, "kubernetes.io/wss": TCP,
	"tcp": TCP, "https": TCP, "tls": TCP, "wss": TCP, "mongo": TCP, "mysql": TCP, "redis": TCP, "postgres": TCP, "postgresql": TCP,
}

// serverFirst are ports whose servers speak first, so that waiting for the client's first bytes would only delay.
var serverFirst = map[uint32]bool{21: true, 22: true, 25: true, 110: true, 143: true, 587: true, 3306: true}

// ProtocolOf finds a port's protocol from appProtocol, the port's name (up to the first "-"), or the well-known number.
func ProtocolOf(appProtocol, name string, number uint32) Protocol {
	if p, ok := byName[strings.ToLower(appProtocol)]; ok {
		return p
	}
	if appProtocol == "" {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "grpc-web") {
			return HTTP
		}
		head, _, _ := strings.Cut(name, "-")
		if p, ok := byName[head]; ok {
			return p
		}
	}
	if serverFirst[number] {
		return TCP
	}
	return Auto
}
