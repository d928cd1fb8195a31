// Package cleanup removes what the agent keeps on a node, when the mesh is uninstalled.
package cleanup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Settings say where the agent's directories are.
type Settings struct {
	StateDir  string `mapstructure:"stateDir" usage:"the agent's state directory"`
	TokenDir  string `mapstructure:"tokenDir" usage:"the agent's directory of tokens"`
	PluginDir string `mapstructure:"pluginDir" usage:"the CSI driver's directory"`
}

// Defaults are the paths of the agent's manifest.
func Defaults() Settings {
	return Settings{StateDir: "/var/lib/bulwark", TokenDir: "/run/bulwark/tokens", PluginDir: "/csi"}
}

// Run removes the agent's own files. What others put beside them stays, and so does a directory that is mounted.
func Run(_ context.Context, s Settings) error {
	var errs []error
	for _, path := range []string{filepath.Join(s.StateDir, "spool"), filepath.Join(s.StateDir, "pods"), s.TokenDir, filepath.Join(s.PluginDir, "csi.sock")} {
		if err := os.RemoveAll(path); err != nil {
			errs = append(errs, fmt.Errorf("removing the agent's state: %w", err))
		}
	}
	for _, dir := range []string{s.StateDir, filepath.Dir(s.TokenDir), s.PluginDir} {
		err := os.Remove(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.EROFS) {
			errs = append(errs, fmt.Errorf("removing the agent's directory: %w", err))
		}
	}
	return errors.Join(errs...)
}
