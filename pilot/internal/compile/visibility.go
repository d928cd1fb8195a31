package compile

import (
	"iter"
	"slices"
	"strings"

	"github.com/bulwark-mesh/bulwark/pilot/internal/registry"
	"github.com/bulwark-mesh/bulwark/pkg/authz"
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

// SidecarOf returns the Sidecar that says which services a workload may know, or nil if none does: one of its namespace that selects it
// by labels, else one of its namespace without a selector, else one of the root namespace without a selector. Of several, it is the oldest.
// One that says neither which hosts they may know nor where they may connect is passed over, since its workloads have what they would have without it.
func SidecarOf(snap *registry.Snapshot, set Settings, namespace string, labels map[string]string) *registry.Sidecar {
	selects := func(s *registry.Sidecar) bool { return len(s.Selector) > 0 && authz.Selects(s.Selector, labels) }
	selectsAll := func(s *registry.Sidecar) bool { return len(s.Selector) == 0 }
	if s := oldestSidecar(snap.SidecarsIn(namespace), selects); s != nil {
		return s
	}
	if s := oldestSidecar(snap.SidecarsIn(namespace), selectsAll); s != nil {
		return s
	}
	return oldestSidecar(snap.SidecarsIn(set.RootNamespace), selectsAll)
}

// oldestSidecar returns the oldest of those that say something and meet a condition; of equally old ones, the first.
func oldestSidecar(sidecars iter.Seq[*registry.Sidecar], meets func(*registry.Sidecar) bool) (oldest *registry.Sidecar) {
	for s := range sidecars {
		if !s.Silent() && meets(s) && (oldest == nil || s.Created.Before(oldest.Created)) {
			oldest = s
		}
	}
	return oldest
}

// Imports reports whether a Sidecar, which may be nil, lets workloads of a namespace know a Service.
func Imports(sidecar *registry.Sidecar, namespace string, s *registry.Service) bool {
	return importsHost(sidecar, namespace, s.Namespace, Host(s))
}

// importsHost reports whether a Sidecar, which may be nil, lets workloads of a namespace know a host that is of another one. A host may have a wildcard: it is known only
// as a whole.
func importsHost(sidecar *registry.Sidecar, namespace, owner, host string) bool {
	if sidecar == nil || sidecar.Egress == nil {
		return true
	}
	names := func(h registry.EgressHost) bool {
		switch of := strings.TrimPrefix(h.Namespace, "~"); of {
		case "", "*":
		case ".":
			if owner != namespace {
				return false
			}
		default:
			if owner != of {
				return false
			}
		}
		return covers(h.Host, host) || h.Excludes() && covers(host, h.Host)
	}
	imported := false
	for _, h := range sidecar.Egress {
		if names(h) {
			if h.Excludes() {
				return false
			}
			imported = true
		}
	}
	return imported
}

// covers reports whether a host, which may have a wildcard, stands for another one.
func covers(host, other string) bool {
	end, wildcard := strings.CutPrefix(host, "*")
	return host == other || wildcard && strings.HasSuffix(other, end)
}
