package kube_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
)

// Who waits in vain is told what was missing, also when the last look failed because there was no time left for it.
func TestPollSaysWhatWasMissing(t *testing.T) {
	refused := errors.New("rate: Wait(n=1) would exceed context deadline")
	for _, c := range []struct {
		name string
		left time.Duration
		want string
	}{
		{"the client refuses a call just before the end", 500 * time.Millisecond, "0 of 1 ready"},
		{"a call fails while there is time", time.Hour, refused.Error()},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), c.left)
		defer cancel()
		looks := 0
		err := kube.Poll(ctx, func(context.Context) (string, error) {
			if looks++; looks == 1 {
				return "0 of 1 ready", nil
			}
			return "", refused
		})
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}
