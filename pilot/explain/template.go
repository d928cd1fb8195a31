package explain

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Rules are how paths that were observed are made templates, for people to judge.
var Rules = []string{
	"a segment that is a number, a UUID, or 8 or more hexadecimal digits is {*}",
	"more than 8 other segments in one place, where what is before and after is the same, are {*}",
	"queries are left out",
}

// crowded is how many segments in one place are listed before they are taken for names of things.
const crowded = 8

var thing = regexp.MustCompile(`^(?:[0-9]+|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|[0-9a-fA-F]{8,})$`)

const one = "{*}"

// templateOf has an operator in the place of each segment that names a thing.
func templateOf(path string) string {
	path, _, _ = strings.Cut(path, "?")
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if thing.MatchString(s) {
			segments[i] = one
		}
	}
	return strings.Join(segments, "/")
}

// generalised are templates for paths, by the Rules.
func generalised(paths []string) []string {
	var out []string
	for _, p := range paths {
		out = append(out, templateOf(p))
	}
	for changed := true; changed; {
		slices.Sort(out)
		out = slices.Compact(out)
		changed = false
		groups := map[string][]int{}
		for i, p := range out {
			segments := strings.Split(p, "/")
			for at := 1; at < len(segments); at++ {
				if s := segments[at]; s != one && s != "" {
					segments[at] = "\x00"
					key := strings.Join(segments, "/")
					groups[key] = append(groups[key], i)
					segments[at] = s
				}
			}
		}
		for _, key := range slices.Sorted(maps.Keys(groups)) {
			if len(groups[key]) > crowded {
				for _, i := range groups[key] {
					out[i] = strings.Replace(key, "\x00", one, 1)
				}
				changed = true
				break
			}
		}
	}
	return out
}
