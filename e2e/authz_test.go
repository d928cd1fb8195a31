package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
	"github.com/bulwark-mesh/bulwark/e2e/internal/lab"
)

func TestADenialIsExplainedByItsRecordAndAdmittedByWhatIsPrinted(t *testing.T) {
	prove(t, "explained", claims.ADenialIsExplained)
}

// Who may do what is told of a live cluster, and a policy of what was seen there.
func TestWhoCanAndWhatWasSeenAreTold(t *testing.T) {
	prove(t, "who-can", func(ctx context.Context, s *claims.Scene) (string, error) {
		if _, err := claims.OnlyTheAuditorMayRead(ctx, s); err != nil {
			return "", err
		}
		for _, args := range [][]string{
			{"who-can", "-n", s.Namespace, "deploy/payroll"}, {"what-can", s.Namespace + "/account-auditor", "-n", s.Namespace},
			{"suggest", "-n", s.Namespace, "--workload", "payroll", "--since", "10m"},
		} {
			// What has just been asked takes about a second to be in the trail, from which suggest goes.
			if err := lab.PollFor(ctx, 20*time.Second, func(ctx context.Context) error {
				out, err := s.Meshctl(ctx, append([]string{"authz"}, args...)...)
				if err == nil && (!strings.Contains(string(out), "account-auditor") || !strings.Contains(string(out), "/accounts/")) {
					err = errors.New("nothing of the auditor and its paths")
				}
				if err != nil {
					return fmt.Errorf("%v: %w\n%s", args, err, out)
				}
				return nil
			}); err != nil {
				return "", err
			}
		}
		return "the auditor and its paths", nil
	})
}
