// Package logging sets up structured logging for the components.
package logging

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

// New returns a JSON logger at the named level (debug, info, warn, error) that names its component. What it logs may quote what
// strangers sent: no control byte, line break or override of direction passes into the log.
func New(w io.Writer, component, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: use debug, info, warn or error", level)
	}
	return slog.New(slog.NewJSONHandler(printable.JSONWriter(w), &slog.HandlerOptions{Level: l})).With("component", component), nil
}
