package mtls

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/peer"
)

func TestStreamsOfOneAddressArePacedAndThoseOfOthersAreNot(t *testing.T) {
	p, now := newPace(), time.Now()
	for range streamsAtOnce {
		if delay, refused := p.take("10.0.0.1", now); delay != 0 || refused {
			t.Fatalf("within the burst: %s, refused %v", delay, refused)
		}
	}
	for n := 1; n <= streamsASecond*int(longestPause/time.Second); n++ { // as many connections as that, each with one stream that waits
		if delay, refused := p.take("10.0.0.1", now); refused || delay < time.Duration(n-1)*time.Second/streamsASecond || delay > longestPause {
			t.Fatalf("stream %d after the burst: %s, refused %v", n, delay, refused)
		}
	}
	for range 10 {
		if delay, refused := p.take("10.0.0.1", now); !refused || delay != longestPause {
			t.Fatalf("a turn further away than %s: %s, refused %v", longestPause, delay, refused)
		}
	}
	if delay, refused := p.take("10.0.0.2", now); delay != 0 || refused {
		t.Fatalf("another address: %s, refused %v", delay, refused)
	}
	if delay, refused := p.take("10.0.0.1", now.Add(2*longestPause)); delay != 0 || refused {
		t.Fatalf("after a rest: %s, refused %v", delay, refused)
	}
}

func TestPortDoesNotMakeAnotherAddress(t *testing.T) {
	of := func(a net.Addr) string { return addressOf(peer.NewContext(context.Background(), &peer.Peer{Addr: a})) }
	for want, a := range map[string]net.Addr{
		"10.0.0.1": &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 4711}, "fd00::1": &net.TCPAddr{IP: net.ParseIP("fd00::1"), Port: 1},
		"@": &net.UnixAddr{Name: "@", Net: "unix"},
	} {
		if got := of(a); got != want {
			t.Errorf("%s: %q, want %q", a, got, want)
		}
	}
}
