package compile

import (
	"slices"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
)

// Exported reports whether a Service is to be known in a namespace, as its annotation says: in all without one or with a "*", then
// in none with a "~", else in those that are named, of which "." is the Service's own. A text that is not the name of a namespace
// names none.
func Exported(s *registry.Service, namespace string) bool {
	switch {
	case s.ExportTo == nil || slices.Contains(s.ExportTo, "*"):
		return true
	case slices.Contains(s.ExportTo, "~"):
		return false
	case namespace == s.Namespace && slices.Contains(s.ExportTo, "."):
		return true
	}
	return slices.Contains(s.ExportTo, namespace)
}
