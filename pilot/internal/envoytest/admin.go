package envoytest

import (
	"fmt"
	"io"
	"net/http"
	"testing"
)

// Admin returns what an Envoy answers at a path of its admin port.
func Admin(t testing.TB, port uint32, path string) []byte {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
