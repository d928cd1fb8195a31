package mtls

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func TestOneAddressHasOnlySoManyConnections(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := l.(*bounded)
	b.most = 10
	accepted := make(chan net.Conn, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	// dial says whether the connection is let live.
	dial := func(from string) bool {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		select {
		case in := <-accepted:
			t.Cleanup(func() { in.Close() })
			return true
		case <-ended(c):
			return false
		}
	}
	for range b.most {
		if !dial("127.0.0.1") {
			t.Fatal("refused below the bound")
		}
	}
	if dial("127.0.0.1") {
		t.Fatal("let in above the bound")
	}
	if !dial("127.0.0.2") {
		t.Fatal("another address is refused")
	}
}

func TestAConnectionThatClosedMakesRoom(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := l.(*bounded)
	b.most = 1
	for range 3 {
		out, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		in.Close()
		in.Close() // as servers do; it counts once
		out.Close()
		b.mu.Lock()
		if len(b.open) != 0 {
			t.Fatalf("%v are counted as open", b.open)
		}
		b.mu.Unlock()
	}
}

// ended is closed when the other side has closed the connection.
func ended(c net.Conn) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			_, _ = io.Copy(io.Discard, c)
		}
	}()
	return done
}
