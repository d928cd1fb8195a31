package mtls

import (
	"context"
	"net"
	"sync"
)

// perAddress is how many connections one address may have to one port: many times what a node with all its pods needs, and
// at some 60 KiB each, idle ones with a handshake behind them, no more than a server can bear of several such.
const perAddress = 1000

// Listen listens on a TCP address for a server that strangers can reach. One address can take a part of the server's
// memory by connections that it leaves idle, and no more: what it opens above the bound is closed at once.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &bounded{Listener: l, most: perAddress, open: map[string]int{}}, nil
}

// Host is the address without its port, by which those who call are told apart. One that has no port, as that of a Unix
// socket, is returned whole.
func Host(address string) string {
	if host, _, _ := net.SplitHostPort(address); host != "" {
		return host
	}
	return address
}

type bounded struct {
	net.Listener
	most int

	mu   sync.Mutex
	open map[string]int // connections by remote host
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if host := Host(c.RemoteAddr().String()); b.admit(host) {
			return &counted{Conn: c, gone: sync.OnceFunc(func() { b.leave(host) })}, nil
		}
		_ = c.Close() // there is nothing to do about an error
	}
}

func (b *bounded) admit(host string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[host] >= b.most {
		return false
	}
	b.open[host]++
	return true
}

func (b *bounded) leave(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[host]--; b.open[host] == 0 {
		delete(b.open, host)
	}
}

type counted struct {
	net.Conn
	gone func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.gone()
	return c.Conn.Close()
}
