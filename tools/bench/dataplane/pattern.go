package dataplane

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/bulwark-mesh/bulwark/tools/bench/traffic"
)

// pattern is one way in which the configurations are loaded: "http1", "http1/64" over 64 connections, "http1/16@half" at half the rate
// that Bulwark's configuration can do with them.
type pattern struct {
	text        string
	kind        traffic.Kind
	connections int
	half        bool
}

func patternOf(text string) (pattern, error) {
	p := pattern{text: text, connections: 16}
	rest, half := strings.CutSuffix(text, "@half")
	kind, connections, many := strings.Cut(rest, "/")
	p.kind, p.half = traffic.Kind(kind), half
	if !slices.Contains(traffic.Kinds, p.kind) {
		return p, fmt.Errorf("there is no kind of traffic %q: want one of %v", kind, traffic.Kinds)
	}
	if p.kind == traffic.Bulk {
		p.connections = 1
	}
	if many {
		var err error
		if p.connections, err = strconv.Atoi(connections); err != nil || p.connections < 1 {
			return p, fmt.Errorf("traffic %q: %q is no number of connections", text, connections)
		}
	}
	return p, nil
}
