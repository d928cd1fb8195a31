package e2e

import (
	"testing"

	"github.com/bulwark-mesh/bulwark/e2e/claims"
)

func TestADenialIsExplainedByItsRecordAndAdmittedByWhatIsPrinted(t *testing.T) {
	prove(t, "explained", claims.ADenialIsExplained)
}
