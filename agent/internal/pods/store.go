package pods

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// store remembers the volumes across restarts of the agent, one file each: names and a directory, no key or token.
type store struct{ dir string }

func newStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of the pods' state: %w", err)
	}
	return &store{dir}, nil
}

func (s *store) file(volumeID string) string { return filepath.Join(s.dir, volumeID+".json") }

func (s *store) save(v Volume) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("state of volume %s: %w", v.ID, err)
	}
	temporary := s.file(v.ID) + ".new"
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return fmt.Errorf("state of volume %s: %w", v.ID, err)
	}
	if err := os.Rename(temporary, s.file(v.ID)); err != nil {
		return fmt.Errorf("state of volume %s: %w", v.ID, err)
	}
	return nil
}

func (s *store) remove(volumeID string) error {
	if err := os.Remove(s.file(volumeID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("state of volume %s: %w", volumeID, err)
	}
	return nil
}

// load returns what can be read; a file that cannot is reported and left.
func (s *store) load() ([]Volume, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("state of the pods: %w", err)
	}
	var out []Volume
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		var v Volume
		b, err := os.ReadFile(filepath.Join(s.dir, e.Name()))
		if err == nil {
			err = json.Unmarshal(b, &v)
		}
		if err == nil && v.ID+".json" != e.Name() {
			err = errors.New("names another volume")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("state %s: %w", e.Name(), err))
			continue
		}
		out = append(out, v)
	}
	return out, errors.Join(errs...)
}
