package namespace

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

const dialTimeout = 5 * time.Second

// Forward hands every connection on listener to target inside the dialer's namespace. It returns when listener fails.
func Forward(listener net.Listener, dialer *Dialer, target string) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
			defer cancel()
			upstream, err := dialer.DialContext(ctx, "tcp", target)
			if err != nil {
				return // the client sees a closed connection, as it would of a server that is away
			}
			defer upstream.Close()
			splice(conn.(*net.TCPConn), upstream.(*net.TCPConn))
		}()
	}
}

// splice copies both ways until both are done; the end of one direction is passed on as a half-close.
func splice(a, b *net.TCPConn) {
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].CloseWrite()
		})
	}
	both.Wait()
}
