package translate_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/bulwark-mesh/bulwark/pkg/authz"
)

// TestFewBytesBecomeNoLargeHead sends, over HTTP/2, few bytes that stand for a head of many megabytes, in one header and in many cookies, which a proxy joins into one. Neither
// reaches the application, nor the memory of the proxy, and others are served meanwhile.
func TestFewBytesBecomeNoLargeHead(t *testing.T) {
	v := newVerifying(t, 1)
	port := v.workload(nil)
	v.start()
	before := allocated(t, v.ports[1])
	for _, name := range []string{"cookie", "x-filler"} {
		for _, c := range []struct{ size, times int }{{3000, 15_000}, {16, 100_000}, {1, 200_000}} {
			t.Run(fmt.Sprintf("%s, %d bytes %d times", name, c.size, c.times), func(t *testing.T) {
				if status := bomb(t, port, hpack.HeaderField{Name: name, Value: strings.Repeat("a", c.size)}, 10); status != 200 {
					t.Errorf("ten times, the answer is %d", status)
				}
				v.forget()
				if status := bomb(t, port, hpack.HeaderField{Name: name, Value: strings.Repeat("a", c.size)}, c.times); status != 0 && status != http.StatusRequestHeaderFieldsTooLarge {
					t.Errorf("the answer is %d", status)
				}
				if _, _, arrived := v.ask(port, "GET", "/other"); arrived == nil || arrived.URL.Path != "/other" {
					t.Error("another request is not served, or the large one was")
				}
			})
		}
	}
	if grown := allocated(t, v.ports[1]) - before; grown > 32<<20 {
		t.Errorf("the proxy has %d MB more", grown>>20)
	}
}

// bomb makes a request with a header that is written once and then named by its index, in as many frames as it takes (RFC 7541, section 6.1), and returns the status; 0 if there is
// no answer.
func bomb(t *testing.T, port uint32, field hpack.HeaderField, times int) int {
	t.Helper()
	conn := connect(t, port, authz.Request{}, nil)
	defer conn.Close()
	c, err := newFrames(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":authority", Value: "h"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/large"}, field} {
		if err := c.encoder.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	const last = 62 // the first index of what is written last
	block := append(c.block.Bytes(), bytes.Repeat([]byte{0x80 | last}, times)...)
	const frame = 16_000
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:min(frame, len(block))], EndHeaders: len(block) <= frame, EndStream: true}); err != nil {
		return 0
	}
	for block = block[min(frame, len(block)):]; len(block) > 0; block = block[min(frame, len(block)):] {
		if err := c.framer.WriteContinuation(1, len(block) <= frame, block[:min(frame, len(block))]); err != nil {
			return 0
		}
	}
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			return 0
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			status, err := strconv.Atoi(f.PseudoValue("status"))
			if err != nil {
				t.Fatal(err)
			}
			return status
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0
		}
	}
}

// allocated is how much memory an Envoy has taken, in bytes.
func allocated(t *testing.T, admin uint32) int64 {
	t.Helper()
	return memory(t, admin)["allocated"]
}

// memory is what an Envoy says of its own, in bytes.
func memory(t *testing.T, admin uint32) map[string]int64 {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/memory", admin))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var said map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for name, value := range said {
		if out[name], err = strconv.ParseInt(value, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return out
}
