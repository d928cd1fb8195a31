// Package version holds the version stamped into every binary at build time.
package version

import "runtime"

// Version and Commit are set by the linker (-X); they stay "dev" in a plain go build.
var (
	Version = "dev"
	Commit  = "unknown"
)

// String returns the one-line form that `--version` prints.
func String() string { return Version + " (" + Commit + ", " + runtime.Version() + ")" }
