package cleanup

import (
	"os"
	"path/filepath"
	"testing"
)

func TestOnlyTheAgentsFilesGo(t *testing.T) {
	state, run, plugin := filepath.Join(t.TempDir(), "bulwark"), filepath.Join(t.TempDir(), "bulwark"), filepath.Join(t.TempDir(), "csi")
	for _, path := range []string{state + "/spool/1/x", state + "/pods/y", state + "/volumes/keep", run + "/tokens/uid.json", run + "/tokens/.new", plugin + "/csi.sock"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // also when there is nothing left
		if err := Run(t.Context(), Settings{StateDir: state, TokenDir: run + "/tokens", PluginDir: plugin}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(state + "/volumes/keep"); err != nil {
		t.Error(err)
	}
	for _, path := range []string{state + "/spool", state + "/pods", run, plugin} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}
