package protocol

import "testing"

func TestProtocol(t *testing.T) {
	for _, c := range []struct {
		app, name string
		number    uint32
		want      Protocol
		first     bool
	}{
		{"", "http", 80, HTTP, false}, {"", "http-web", 80, HTTP, false}, {"", "grpc-web-x", 80, HTTP, false}, {"", "grpc", 80, HTTP2, false},
		{"", "https", 443, TCP, false}, {"", "web", 80, Auto, false}, {"kubernetes.io/h2c", "tcp", 80, HTTP2, false}, {"http", "tcp", 80, HTTP, false},
		{"unknown.example/x", "http", 80, Auto, false}, {"", "", 3306, TCP, true}, {"", "mysql", 1, TCP, true}, {"", "tcp-x", 3306, TCP, true},
		{"", "nats", 4222, TCP, true}, {"", "amqp", 1, TCP, false}, {"", "imap-tls", 1, TCP, true}, {"ssh", "x", 1, TCP, true}, {"", "client", 4222, TCP, true},
		{Greeting, "http", 80, TCP, true}, {"", "http", 25, HTTP, false},
	} {
		if got := Of(c.app, c.name, c.number); got != c.want || ServerFirst(c.app, c.name, c.number) != c.first {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}
