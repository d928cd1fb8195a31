package envoytest

import (
	"net"
	"testing"
)

// FreePorts returns ports of 127.0.0.1 that nothing listens on.
func FreePorts(t testing.TB, n int) []uint32 {
	t.Helper()
	var out []uint32
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all at once, so that no port comes twice
		out = append(out, uint32(l.Addr().(*net.TCPAddr).Port))
	}
	return out
}
