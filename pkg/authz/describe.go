package authz

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Describe is a request in a line, for people.
func (r Request) Describe() string {
	var out []string
	if r.HTTP {
		out = append(out, fmt.Sprintf("%s %s, host %s", r.Method, r.Path, r.Host))
	} else {
		out = append(out, "TCP connection")
	}
	out = append(out, fmt.Sprintf("to port %d", r.DestinationPort))
	if r.SourceIP.IsValid() {
		out = append(out, "from "+r.SourceIP.String())
	}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		out = append(out, fmt.Sprintf("%s: %s", name, strings.Join(r.Headers[name], " | ")))
	}
	return strings.Join(out, ", ")
}
