package issue

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	securityapi "istio.io/api/security/v1alpha1"
	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedauthv1 "k8s.io/client-go/kubernetes/typed/authentication/v1"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/citadel/internal/auditlog"
)

func newCounter() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "limited"}, []string{"kind"})
}

func TestLimitsOfIdentitiesAndNodes(t *testing.T) {
	clock, counter := testclock.NewFakePassiveClock(start), newCounter()
	l := newLimits(clock, counter)
	for i := range nodeBurst {
		if err := l.take(fmt.Sprint("id", i), "node1"); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	err := l.take("id", "node1")
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("a node beyond its burst: %v", err)
	}
	var retry time.Duration
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			retry = info.GetRetryDelay().AsDuration()
		}
	}
	if retry <= 0 || retry > time.Second {
		t.Fatalf("to be tried again after %s", retry)
	}
	if err := l.take("id0", "node2"); err != nil {
		t.Fatalf("another node: %v", err)
	}
	clock.SetTime(start.Add(retry))
	if err := l.take("id", "node1"); err != nil {
		t.Fatalf("after the time that was told: %v", err)
	}
	clock.SetTime(start.Add(time.Hour))
	for i := range identityBurst {
		if err := l.take("busy", fmt.Sprint("node", i)); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	if err := l.take("busy", "node-x"); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("an identity beyond its burst: %v", err)
	}
	if err := l.take("other", "node1"); err != nil {
		t.Fatalf("another identity: %v", err)
	}
	if a, b := testutil.ToFloat64(counter.WithLabelValues("identity")), testutil.ToFloat64(counter.WithLabelValues("node")); a != 1 || b != 1 {
		t.Fatalf("counted %g of identities and %g of nodes", a, b)
	}
}

func TestLimitersAreBounded(t *testing.T) {
	l := newLimits(testclock.NewFakePassiveClock(start), newCounter())
	for i := range 3 * limitersOfKind {
		if err := l.take(fmt.Sprint("id", i), fmt.Sprint("node", i)); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := l.identities.Len(), l.nodes.Len(); a > limitersOfKind || b > limitersOfKind {
		t.Fatalf("%d identities and %d nodes are remembered", a, b)
	}
}

func TestServiceHoldsToItsLimits(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	for range nodeBurst {
		_ = s.limits[auditlog.CreateCertificate].take("someone", "node1")
	}
	_, err := s.CreateCertificate(as(c.signed(t, "payroll"), c.signed(t, "agent1")), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
	if status.Code(err) != codes.ResourceExhausted || len(status.Convert(err).Details()) != 1 {
		t.Fatalf("%v", err)
	}
	if n := testutil.ToFloat64(s.refused.WithLabelValues(auditlog.CreateCertificate, "ResourceExhausted")); n != 1 {
		t.Fatalf("%g refusals counted", n)
	}
}

func TestPlacesGoToWhoHoldsTheFewest(t *testing.T) {
	turns := newTurns(newCounter())
	ctx := context.Background()
	var held []func()
	for range fromOne {
		done, err := turns.take(ctx, "greedy")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, done)
	}
	waiting := func() int { turns.mu.Lock(); defer turns.mu.Unlock(); return len(turns.waiting) }
	var wg sync.WaitGroup
	order := make(chan string, 10)
	wait := func(from string) {
		before := waiting()
		wg.Go(func() {
			done, err := turns.take(ctx, from)
			if err != nil {
				t.Error(err)
				return
			}
			order <- from
			done()
		})
		eventually(t, "it waits", func() bool { return waiting() == before+1 })
	}
	wait("greedy")
	for _, other := range []string{"a", "b", "c"} { // they fill the rest, so that one more of each has to wait
		for range fromOne {
			done, err := turns.take(ctx, other)
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, done)
		}
	}
	wait("modest")
	held[fromOne]() // one of a's: greedy waits for longer, but it holds its share
	if first := <-order; first != "modest" {
		t.Fatalf("the place went to %s", first)
	}
	for _, done := range append(held[:fromOne:fromOne], held[fromOne+1:]...) {
		done()
	}
	wg.Wait()
	if turns.all != 0 || len(turns.held)+len(turns.queued)+len(turns.waiting) != 0 {
		t.Fatalf("left over: %+v", turns)
	}
}

func TestWaitingIsBoundedAndEndsWithTheCall(t *testing.T) {
	counter := newCounter()
	turns := newTurns(counter)
	ctx, cancel := context.WithCancel(context.Background())
	for range fromOne {
		if _, err := turns.take(ctx, "greedy"); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range waitingOne {
		wg.Go(func() {
			if _, err := turns.take(ctx, "greedy"); status.Code(err) != codes.Canceled {
				t.Errorf("after the call was given up: %v", err)
			}
		})
	}
	eventually(t, "all wait", func() bool { turns.mu.Lock(); defer turns.mu.Unlock(); return len(turns.waiting) == waitingOne })
	if _, err := turns.take(ctx, "greedy"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	if n := testutil.ToFloat64(counter.WithLabelValues("address")); n != 1 {
		t.Errorf("counted %g", n)
	}
	cancel()
	wg.Wait()
	if len(turns.waiting) != 0 || turns.all != fromOne {
		t.Errorf("%d wait, %d are held", len(turns.waiting), turns.all)
	}
}

func from(ctx context.Context, a, b byte) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(10, 0, a, b), Port: 1}})
}

// Strangers make up tokens: what the API server is asked for them is bounded, and nobody else feels it. What an agent asks for
// on a node that starts again is within the bound.
func TestReviewsAreBoundedByAddressAndInAll(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	made := 0
	ask := func(ctx context.Context) codes.Code {
		made++
		_, err := s.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{})
		return status.Code(err)
	}
	word := func(a, b byte) codes.Code { return ask(from(as(fmt.Sprint("word", made)), a, b)) }
	otherIssuer := func(a, b byte) codes.Code {
		return ask(from(as(c.signed(t, "payroll", set("iss", fmt.Sprint("https://other/", made)))), a, b))
	}
	for range 2*250 + 100 {
		if code := word(0, 1); code != codes.Unauthenticated {
			t.Fatalf("token %d of a node: %s", made, code)
		}
	}
	if n := c.reviews.Load(); int(n) != made {
		t.Fatalf("%d reviews of %d tokens", n, made)
	}
	before := c.reviews.Load()
	for range 100 {
		if code := word(0, 1); code != codes.ResourceExhausted {
			t.Fatalf("beyond the bound: %s", code)
		}
		if code := otherIssuer(0, 1); code != codes.ResourceExhausted {
			t.Fatalf("a signed one of another issuer, beyond the bound: %s", code)
		}
	}
	if n := c.reviews.Load() - before; n != 0 {
		t.Fatalf("%d reviews beyond the bound", n)
	}
	if code := otherIssuer(0, 2); code != codes.Unauthenticated {
		t.Errorf("another address: %s", code)
	}
	resp, err := s.CreateCertificate(from(as(c.signed(t, "payroll"), c.signed(t, "agent1")), 0, 1), &securityapi.IstioCertificateRequest{Csr: goodCSR(t)})
	if err != nil || len(resp.GetCertChain()) == 0 {
		t.Errorf("a token that needs no review, from the same address: %v", err)
	}
	s.clock.SetTime(s.clock.Now().Add(time.Second))
	passed := 0
	for range 100 {
		if word(0, 1) == codes.Unauthenticated {
			passed++
		}
	}
	if passed != reviewsASecond {
		t.Errorf("a second later %d are reviewed", passed)
	}

	s.Authorizer.Tokens.Reviewer = NewReviewer(c.AuthenticationV1().TokenReviews(), s.clock)
	before = c.reviews.Load()
	for i := range allReviewsBurst + 100 {
		if code, want := word(byte(i%50), 2), codes.Unauthenticated; i < allReviewsBurst && code != want {
			t.Fatalf("token %d of 50 nodes: %s", i, code)
		}
	}
	if n := c.reviews.Load() - before; n != allReviewsBurst {
		t.Errorf("%d reviews in all", n)
	}
}

// hanging reviews nothing until its end.
type hanging struct {
	typedauthv1.TokenReviewInterface
	calls atomic.Int32
	end   chan struct{}
}

func (h *hanging) Create(context.Context, *authv1.TokenReview, metav1.CreateOptions) (*authv1.TokenReview, error) {
	h.calls.Add(1)
	<-h.end
	return nil, errAway
}

// A node whose calls all hang at the API server must not keep others from their certificates.
func TestStormOfOneNodeStarvesNoOther(t *testing.T) {
	c := newCluster(t)
	s := newService(t, c)
	api := &hanging{end: make(chan struct{})}
	s.Authorizer.Tokens.Reviewer = NewReviewer(api, s.clock)
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			_, _ = s.CreateCertificate(from(as("rubbish"), 0, 1), &securityapi.IstioCertificateRequest{})
		})
	}
	eventually(t, "the storm holds all it can", func() bool { return api.calls.Load() == fromOne })
	ctx, cancel := context.WithTimeout(from(as(c.signed(t, "payroll"), c.signed(t, "agent1")), 0, 2), 10*time.Second)
	defer cancel()
	for range 20 {
		if _, err := s.CreateCertificate(ctx, &securityapi.IstioCertificateRequest{Csr: goodCSR(t)}); err != nil {
			t.Fatalf("another node: %v", err)
		}
	}
	if n := api.calls.Load(); n != fromOne {
		t.Errorf("the storm holds %d places, more than %d", n, fromOne)
	}
	close(api.end)
	wg.Wait()
}
