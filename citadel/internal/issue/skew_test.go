package issue

import (
	"context"
	"crypto/x509"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

// A node's clock may be wrong by five minutes either way (mesh.Backdate). Its agent still gets certificates, which are good
// by both clocks, by token and by certificate, and renews them while they are.
func TestClockSkewOfFiveMinutesCostsNoIdentity(t *testing.T) {
	const ttl = 12 * time.Minute
	for name, ahead := range map[string]time.Duration{"Citadel's clock is ahead": 290 * time.Second, "the node's clock is ahead": -290 * time.Second} {
		t.Run(name, func(t *testing.T) {
			node := testclock.NewFakeClock(time.Now()) // TLS knows no other clock than the machine's: it is the node's
			c := newCluster(t)
			s := newServiceAt(t, c, node.Now().Add(ahead))
			authorities := s.Keeper.Current().Roots
			bundle := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("cluster.local"), authorities)
			agent, err := svid.NewRequester(s.listen(t), "cluster.local", bundle)
			if err != nil {
				t.Fatal(err)
			}
			defer agent.Close()
			// The API server's clock is the node's, as its tokens are made for the node.
			token := func(name string) string {
				at := func(d time.Duration) int64 { return node.Now().Add(d).Unix() }
				return c.signed(t, name, set("iat", at(0)), set("nbf", at(0)), set("exp", at(time.Hour)))
			}
			tokens := svid.Tokens{Workload: token("payroll"), Agent: token("agent1")}
			good := func(got *x509svid.SVID) {
				t.Helper()
				for whose, now := range map[string]time.Time{"Citadel": s.clock.Now(), "the node": node.Now()} {
					if _, _, err := x509svid.Verify(got.Certificates, bundle, x509svid.WithTime(now)); err != nil {
						t.Errorf("by the clock of %s: %v", whose, err)
					}
				}
			}

			var rotator *svid.Rotator
			rotator = svid.NewRotator(func(ctx context.Context) (*x509svid.SVID, error) {
				current, _ := rotator.GetX509SVID()
				return agent.Obtain(ctx, tokens, current, ttl, node.Now())
			}, node, slog.New(slog.NewTextHandler(io.Discard, nil)), nil)
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			defer running.Wait()
			defer cancel()
			running.Go(func() { rotator.Run(ctx) })
			var leaf *x509.Certificate
			renewed := func() bool {
				got, err := rotator.GetX509SVID()
				if err != nil || leaf != nil && got.Certificates[0].Equal(leaf) {
					return false
				}
				leaf = got.Certificates[0]
				good(got)
				return true
			}
			eventually(t, "there is a certificate", renewed)
			first, err := rotator.GetX509SVID()
			if err != nil {
				t.Fatal(err)
			}
			byCertificate, err := agent.Renew(t.Context(), first, ttl, node.Now())
			if err != nil {
				t.Fatalf("renewal by certificate: %v", err)
			}
			good(byCertificate)

			for range 3 {
				before := leaf
				for !renewed() {
					if left := before.NotAfter.Sub(node.Now()); left < ttl/10 {
						t.Fatalf("not renewed %s before its end", left)
					}
					eventually(t, "it waits for its time, or has come to it", func() bool { return node.HasWaiters() || renewed() })
					if !leaf.Equal(before) {
						break
					}
					node.Step(5 * time.Second)
					s.clock.SetTime(node.Now().Add(ahead))
				}
			}
		})
	}
}
