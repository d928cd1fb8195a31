// Package redirect is what the agent's program does in a pod about redirection: `agent redirect` sets it up where an init
// container has the privilege, `agent prove` finds out that the node's CNI plugin has done so.
package redirect

import (
	"context"

	"github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// Settings of `agent redirect`.
type Settings struct {
	Options string `mapstructure:"options" usage:"what is not redirected, as injection writes it (JSON)"`
	Remove  bool   `mapstructure:"remove" usage:"take the rules out instead"`
}

// Defaults exclude nothing.
func Defaults() Settings { return Settings{Options: redirect.Options{}.String()} }

// Validate implements config.Validator.
func (s Settings) Validate() error {
	_, err := redirect.Parse(s.Options)
	return err
}

// Run applies the settings to the network namespace it runs in.
func Run(_ context.Context, s Settings) error {
	if s.Remove {
		return redirect.Remove()
	}
	o, err := redirect.Parse(s.Options)
	if err != nil {
		return err
	}
	return redirect.Apply(o)
}
