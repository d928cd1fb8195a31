package workloadapi

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
)

func TestTokenIsGivenOutUntilHalfOfItsLifeAndLongerWhileCitadelIsAway(t *testing.T) {
	n := identitytest.New(t, clock.RealClock{}, identitytest.Quiet)
	p, err := n.Issuer.New(identity.Facts{Namespace: "finance", Pod: "p", UID: "u", ServiceAccount: "payroll"})
	if err != nil {
		t.Fatal(err)
	}
	n.Citadel.Account("token", p.ID)
	p.SetToken("token", time.Time{})
	c := testclock.NewFakeClock(time.Now())
	tokens := newTokens(p, n.Bundle, c)
	get := func() string {
		t.Helper()
		got, err := tokens.get(t.Context(), []string{"ledger"})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := get()
	c.Step(29 * time.Minute) // of an hour
	if get() != first || n.Citadel.Tokens() != 1 {
		t.Fatal("another before half of its life")
	}
	c.Step(2 * time.Minute)
	second := get()
	if n.Citadel.Tokens() != 2 || second == first {
		t.Fatal("not renewed after half of its life")
	}
	n.Citadel.Fail(status.Error(codes.Unavailable, "away"))
	c.Step(20 * time.Minute)
	if get() != second {
		t.Fatal("the last one is not given out while Citadel is away")
	}
	c.Step(time.Hour)
	if _, err := tokens.get(t.Context(), []string{"ledger"}); status.Code(err) != codes.Unavailable {
		t.Fatalf("after its end: %v", err)
	}
	n.Citadel.Fail(status.Error(codes.PermissionDenied, "revoked"))
	c.SetTime(time.Now().Add(50 * time.Minute))
	if _, err := tokens.get(t.Context(), []string{"ledger"}); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("an identity that is denied: %v", err)
	}
}
