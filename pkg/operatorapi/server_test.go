package operatorapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktest "k8s.io/client-go/testing"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/svid/svidtest"
)

func TestOnlyTheOperatorsTokenOpens(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(a ktest.Action) (bool, runtime.Object, error) {
		review := a.(ktest.CreateAction).GetObject().(*authv1.TokenReview)
		switch review.Spec.Token {
		case "good":
			review.Status = authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{Username: operatorUser}, Audiences: []string{mesh.OperatorAudience}}
		case "other-account":
			review.Status = authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{Username: "system:serviceaccount:default:default"}, Audiences: []string{mesh.OperatorAudience}}
		case "other-audience":
			review.Status = authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{Username: operatorUser}, Audiences: []string{"api"}}
		case "away":
			return true, nil, errors.New("no API server")
		}
		return true, review, nil
	})
	s := New(client.AuthenticationV1().TokenReviews(), slog.New(slog.DiscardHandler))
	s.HandleJSON("GET /v1/x", func(*http.Request) (any, error) { return "x", nil })
	for token, want := range map[string]int{"": 401, "bad": 403, "other-account": 403, "other-audience": 403, "away": 403, "good": 200} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/x", nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("token %q: status %d, want %d", token, w.Code, want)
		}
	}
}

func TestStrangersTokensCostTheAPIServerNoMoreThanALittle(t *testing.T) {
	client, reviews := fake.NewClientset(), 0
	client.PrependReactor("create", "tokenreviews", func(a ktest.Action) (bool, runtime.Object, error) {
		reviews++
		review := a.(ktest.CreateAction).GetObject().(*authv1.TokenReview)
		if review.Spec.Token == "good" {
			review.Status = authv1.TokenReviewStatus{Authenticated: true, User: authv1.UserInfo{Username: operatorUser}, Audiences: []string{mesh.OperatorAudience}}
		}
		return true, review, nil
	})
	s := New(client.AuthenticationV1().TokenReviews(), slog.New(slog.DiscardHandler))
	s.HandleJSON("GET /v1/x", func(*http.Request) (any, error) { return "x", nil })
	call := func(from, token string) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/x", nil)
		r.RemoteAddr = from
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w.Code
	}
	answers := map[int]int{}
	for i := range 1000 {
		answers[call(fmt.Sprintf("192.0.2.1:%d", i+1), fmt.Sprint("made-up-", i))]++
	}
	if answers[403]+answers[429] != 1000 || answers[403] != reviews || reviews > 2*reviewBurst {
		t.Fatalf("%v, %d reviews", answers, reviews)
	}
	if code := call("192.0.2.2:1", "good"); code != 200 {
		t.Fatalf("the operator at another address: %d", code)
	}
	if code := call("192.0.2.1:1", "good"); code != 200 {
		t.Fatalf("a token that was accepted before, from the stranger's address: %d", code)
	}
}

// HTTP/2 is spoken by nobody who calls here, so it is not offered: not in the handshake, and not to who begins it anyway.
func TestHTTP2IsNotSpoken(t *testing.T) {
	ca := svidtest.New(t, "cluster.local")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		s := New(fake.NewClientset().AuthenticationV1().TokenReviews(), slog.New(slog.DiscardHandler))
		done <- s.Serve(ctx, addr, mtls.ServerWithoutClientCert(ca.SVID(ca.ID("a", "b"), time.Now().Add(time.Hour))))
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	// With TLS, without a word about what is spoken in it; and without TLS.
	conn := dial(t, addr)
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is not the server that is tested for
	for what, c := range map[string]struct {
		net.Conn
		want string
	}{"with TLS": {secure, "HTTP/1.1 401 "}, "without TLS": {dial(t, addr), ""}} {
		if _, err := io.WriteString(c, preface); err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(c)
		if !strings.HasPrefix(string(got), c.want) || c.want == "" && len(got) > 0 {
			t.Errorf("%s: HTTP/2 is answered with %.40q", what, got)
		}
	}
	only := tls.Client(dial(t, addr), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // as above
	if err := only.Handshake(); err == nil {
		t.Errorf("who speaks HTTP/2 only is taken, with %q", only.ConnectionState().NegotiatedProtocol)
	}
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
