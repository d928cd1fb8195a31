package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
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
			out, err := s.Meshctl(ctx, append([]string{"authz"}, args...)...)
			if err != nil || !strings.Contains(string(out), "account-auditor") || !strings.Contains(string(out), "/accounts/") {
				return "", fmt.Errorf("%v: %w\n%s", args, err, out)
			}
		}
		return "the auditor and its paths", nil
	})
}
