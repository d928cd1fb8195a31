package sample

import (
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// Socket is one Unix socket that a container can see, and what came of connecting to it.
type Socket struct {
	Path  string `json:"path"`
	Error string `json:"error,omitempty"`
}

// Sockets returns the subcommand of an intruder: it walks a directory, by default everything, and connects to each
// socket that it finds.
func Sockets() *cobra.Command {
	return &cobra.Command{Use: "sockets [DIRECTORY]...", RunE: func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			args = []string{"/"}
		}
		found := []Socket{}
		for _, root := range args {
			_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
				switch {
				case path == "/proc" || path == "/sys":
					return fs.SkipDir
				case err != nil:
					return nil // a directory that is closed to us
				case entry.Type()&fs.ModeSocket != 0:
					found = append(found, try(path))
				}
				return nil
			})
		}
		return json.NewEncoder(os.Stdout).Encode(found)
	}}
}

func try(path string) Socket {
	conn, err := net.DialTimeout("unix", path, requestTimeout)
	if err != nil {
		return Socket{path, err.Error()}
	}
	_ = conn.Close()
	return Socket{Path: path}
}
