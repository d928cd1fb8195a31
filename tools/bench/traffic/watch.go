package traffic

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// Verdict is an answer that differs from the one before.
type Verdict struct {
	Code int       `json:"code"` // zero: no answer
	At   time.Time `json:"at"`   // when it came
}

func watchCommand() *cobra.Command {
	var t Target
	every := time.Millisecond
	cmd := &cobra.Command{Use: "watch", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		out := json.NewEncoder(cmd.OutOrStdout())
		return watch(cmd.Context(), t, every, func(v Verdict) error { return out.Encode(v) })
	}}
	t.addFlags(cmd.Flags())
	cmd.Flags().DurationVar(&every, "every", every, "")
	return cmd
}

// watch asks again and again, over one connection as long as the server keeps it, and tells of each answer that differs from the last.
func watch(ctx context.Context, t Target, every time.Duration, tell func(Verdict) error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := -1
	var conn *connection
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		code := 0
		var err error
		if conn == nil {
			if conn, err = t.connect(ctx); err != nil {
				conn = nil
			}
		}
		if conn != nil {
			if code, err = conn.get(io.Discard); err != nil {
				conn.Close()
				conn, code = nil, 0
			} else if conn.ended {
				conn.Close()
				conn = nil
			}
		}
		if code != last {
			last = code
			if err := tell(Verdict{code, time.Now()}); err != nil {
				return err
			}
		}
	}
}
