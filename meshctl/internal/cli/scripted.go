package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

// status is an outcome for scripts that is no failure, or a failure that has a status of its own.
type status struct {
	code int
	error
}

// Error implements error, also where there is nothing to say.
func (s status) Error() string {
	if s.error == nil {
		return ""
	}
	return s.error.Error()
}

// Unwrap serves errors.Is and errors.As.
func (s status) Unwrap() error { return s.error }

// no is the answer of a command that has said it already.
var no = status{code: 1}

// scripted gives failures of a command, also those of its flags and arguments, the status 2: 1 is an answer.
func scripted(cmd *cobra.Command) {
	failing := func(err error) error {
		var s status
		if err == nil || errors.As(err, &s) {
			return err
		}
		return status{2, err}
	}
	run, args := cmd.RunE, cmd.Args
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return failing(run(cmd, args)) }
	cmd.Args = func(cmd *cobra.Command, given []string) error { return failing(args(cmd, given)) }
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return failing(err) })
}
