// Package protocol is what ports of Services are declared to speak.
package protocol

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
	"tcp": TCP, "https": TCP, "tls": TCP, "wss": TCP, "mongo": TCP, "mongodb": TCP, "mysql": TCP, "mariadb": TCP, "redis": TCP, "postgres": TCP, "postgresql": TCP,
	"smtp": TCP, "smtps": TCP, "submission": TCP, "lmtp": TCP, "ftp": TCP, "ssh": TCP, "sftp": TCP, "pop3": TCP, "pop3s": TCP, "imap": TCP, "imaps": TCP, "nntp": TCP, "vnc": TCP, "rfb": TCP, "rsync": TCP,
	"nats": TCP, "amqp": TCP, "amqps": TCP, "mqtt": TCP, "mqtts": TCP, "stomp": TCP, "kafka": TCP, "zookeeper": TCP, "cassandra": TCP, "cql": TCP, "memcache": TCP, "memcached": TCP,
	"ldap": TCP, "ldaps": TCP, "mssql": TCP, "dns": TCP, "rediss": TCP, "xmpp": TCP, "irc": TCP, "rtsp": TCP, "syslog": TCP, Greeting: TCP,
}

// Greeting is the appProtocol of a port whose server speaks first in a protocol we have no name for.
const Greeting = "bulwark.dev/server-first"

var greets = map[string]bool{"mysql": true, "mariadb": true, "smtp": true, "submission": true, "lmtp": true, "ftp": true, "ssh": true, "sftp": true, "pop3": true, "imap": true, "nntp": true,
	"vnc": true, "rfb": true, "rsync": true, "nats": true, Greeting: true}

// serverFirst are ports whose servers speak first, so that waiting for the client's first bytes would only delay.
var serverFirst = map[uint32]bool{21: true, 22: true, 25: true, 110: true, 119: true, 143: true, 587: true, 873: true, 3306: true, 4222: true, 5900: true}

// Of finds a port's protocol from appProtocol, the port's name (up to the first "-"), or the well-known number.
func Of(appProtocol, name string, number uint32) Protocol {
	if p, ok := byName[strings.ToLower(appProtocol)]; ok {
		return p
	}
	if appProtocol == "" {
		if p, ok := byName[family(name)]; ok {
			return p
		}
	}
	if serverFirst[number] {
		return TCP
	}
	return Auto
}

// family is what a port's name says of its protocol: what is before the first "-".
func family(name string) string {
	name = strings.ToLower(name)
	if strings.HasPrefix(name, "grpc-web") {
		return "grpc-web"
	}
	head, _, _ := strings.Cut(name, "-")
	return head
}

// Named reports whether a port's name says that it speaks a protocol, such as "tls".
func Named(protocol, name string) bool { return family(name) == protocol }

// ServerFirst reports whether a port's server is known to speak before its client does.
func ServerFirst(appProtocol, name string, number uint32) bool {
	if Of(appProtocol, name, number) != TCP {
		return false
	}
	return serverFirst[number] || greets[strings.ToLower(appProtocol)] || appProtocol == "" && greets[family(name)]
}
