package identity_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bulwark-mesh/bulwark/agent/internal/identity/identitytest"
	"github.com/bulwark-mesh/bulwark/pkg/svid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A node whose clock is wrong by up to five minutes gets certificates and renews them, and says that its clock is wrong.
func TestNodeWithAWrongClockRenewsAndIsReported(t *testing.T) {
	for _, ahead := range []time.Duration{-290 * time.Second, 0, 290 * time.Second} {
		clk := testclock.NewFakeClock(time.Now().Add(ahead))
		n := identitytest.New(t, clk, identitytest.Quiet)
		p := n.Pod("finance", "payroll", "payroll")
		n.Ready(p)
		if got := testutil.ToFloat64(n.Issuer.Metrics.Skew); got < ahead.Seconds()-10 || got > ahead.Seconds()+10 {
			t.Errorf("%s ahead: %.0f s are reported", ahead, got)
		}
		first, err := p.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		clk.Step(40 * time.Minute) // the certificate is of an hour
		n.Eventually("another certificate", func() bool {
			now, err := p.GetX509SVID()
			if !clk.HasWaiters() {
				return false
			}
			clk.Step(time.Second)
			return err == nil && now.Certificates[0].SerialNumber.Cmp(first.Certificates[0].SerialNumber) != 0
		})
		if st := p.Status(); st.State != svid.Valid {
			t.Errorf("%s ahead: %s after the renewal: %v", ahead, st.State, st.LastError)
		}
	}
}
