package namespace

import (
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestForwardPassesOnTheEndOfARequest(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a network namespace, even one's own, takes root")
	}
	target := listen(t)
	go func() {
		conn, err := target.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		request, _ := io.ReadAll(conn) // ends only when the half-close comes through
		_, _ = conn.Write(append(request, '!'))
	}()
	dialer, err := NewDialer(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	front := listen(t)
	go func() { _ = Forward(front, dialer, target.Addr().String()) }()

	conn, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || string(answer) != "hello!" {
		t.Errorf("got %q, %v", answer, err)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}
