// Package logging sets up structured logging for the components.
package logging

import (
	"fmt"
	"io"
	"log/slog"
)

// New returns a JSON logger at the named level (debug, info, warn, error) that names its component.
func New(w io.Writer, component, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: use debug, info, warn or error", level)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})).With("component", component), nil
}
