package identities

import (
	"fmt"
	"slices"
	"strings"
)

// Filter chooses entries; what is empty chooses all.
type Filter struct {
	Namespace string // of the holder
	Identity  string // or a part of it; namespace/account will do
	State     string
	HeldBy    string // kind of the holder
	Issuer    string // key ID, or its beginning
}

// Validate returns what cannot be filtered by.
func (f Filter) Validate() error {
	if kinds := []string{Pod, Secret, Component}; f.HeldBy != "" && !slices.Contains(kinds, f.HeldBy) {
		return fmt.Errorf("--held-by %s: use %s", f.HeldBy, strings.Join(kinds, ", "))
	}
	states := []string{"pending", StateValid, StateDue, "late", StateExpired, StateDamaged, StateRevoked}
	if f.State != "" && !slices.Contains(states, f.State) {
		return fmt.Errorf("--state %s: use %s", f.State, strings.Join(states, ", "))
	}
	return nil
}

// Wants says whether entries of a kind of holder can pass.
func (f Filter) Wants(kind string) bool { return f.HeldBy == "" || f.HeldBy == kind }

// Apply returns the entries that pass.
func (f Filter) Apply(entries []Entry) []Entry {
	out := []Entry{}
	for _, e := range entries {
		if f.pass(e) {
			out = append(out, e)
		}
	}
	return out
}

func (f Filter) pass(e Entry) bool {
	switch {
	case f.Namespace != "" && e.HeldBy.Namespace != f.Namespace,
		f.Identity != "" && !strings.Contains(e.Identity, f.Identity) && !strings.Contains(Short(e.Identity), f.Identity),
		!f.Wants(e.HeldBy.Kind),
		f.Issuer != "" && !strings.HasPrefix(e.IssuerKeyID, strings.ToLower(f.Issuer)):
		return false
	case f.State == StateRevoked:
		return e.RevokedBy != ""
	default:
		return f.State == "" || e.State == f.State
	}
}

// Short drops what is the same in every identity of a mesh: namespace/account is left.
func Short(identity string) string {
	_, rest, ok := strings.Cut(strings.TrimPrefix(identity, "spiffe://"), "/ns/")
	if !ok {
		return identity
	}
	return strings.Replace(rest, "/sa/", "/", 1)
}
