package keyserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulwark-mesh/bulwark/pkg/jwt"
)

// names has names resolved by a server of the test's own, which is asked for the addresses of each question anew.
func names(t *testing.T, addresses func() []netip.Addr) {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	was := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	done := make(chan struct{})
	t.Cleanup(func() { net.DefaultResolver = was; _ = server.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			if q.Type == dnsmessage.TypeA {
				for _, a := range addresses() {
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: a.As4()}})
				}
			}
			if packed, err := m.Pack(); err == nil {
				_, _ = server.WriteTo(packed, from)
			}
		}
	}()
}

// TestNameThatComesToMeanThisMachineIsNotAsked has a name that is of an address which may be asked when it is resolved first, and of this machine later, or of both at once.
func TestNameThatComesToMeanThisMachineIsNotAsked(t *testing.T) {
	var came, asked atomic.Int32
	victim := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { came.Add(1) }))
	defer victim.Close()
	public, here := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("127.0.0.1")
	var answers atomic.Pointer[[][]netip.Addr]
	names(t, func() []netip.Addr {
		n := int(asked.Add(1)) - 1
		all := *answers.Load()
		return all[min(n, len(all)-1)]
	})
	for name, of := range map[string][][]netip.Addr{"this machine": {{here}}, "first another": {{public}, {here}}, "both": {{public, here}}, "both, this machine first": {{here, public}}} {
		asked.Store(0)
		answers.Store(&of)
		c := newClient([]string{"rebound.example"}, none)
		seen := map[netip.Addr]error{}
		c.judge = func(host string, at netip.Addr) error {
			seen[at] = c.mayAsk(host, at)
			if at == public {
				return errors.New("nobody is there") // and nothing leaves this machine
			}
			return seen[at]
		}
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_, _, _, err := c.fetch(ctx, jwt.Source{URI: fmt.Sprintf("http://rebound.example:%d/keys", victim.Listener.Addr().(*net.TCPAddr).Port)})
			cancel()
			if err == nil || !strings.Contains(err.Error(), "is of this machine") && !strings.Contains(err.Error(), "nobody is there") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if seen[here] == nil || seen[public] != nil {
			t.Errorf("%s: %v", name, seen)
		}
	}
	if n := came.Load(); n > 0 {
		t.Errorf("this machine was asked %d times", n)
	}
}
