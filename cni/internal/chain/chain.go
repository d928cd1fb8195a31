// Package chain puts Bulwark's plugin at the end of a CNI configuration and takes it out again. It edits text: whatever else
// stands in a configuration stays as it was written, byte by byte, also what this version of CNI's library does not know.
package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// entry is the plugin in a list. The capability has the container runtime hand over the pod's annotations: by them the plugin
// knows what to do, and needs neither the API server nor anybody of the node to be there.
const entry = `{"type": "` + mesh.CNIPlugin + `", "capabilities": {"io.kubernetes.cri.pod-annotations": true}}`

// Has says whether a list has the plugin.
func Has(list []byte) bool {
	l, err := parse(list)
	return err == nil && slices.ContainsFunc(l.plugins, part.ours)
}

// With returns the list with the plugin in it, once and after another one: as it is, if it is so already.
func With(list []byte) ([]byte, error) {
	l, err := parse(list)
	if err != nil {
		return nil, err
	}
	if err := spoken(l.version); err != nil {
		return nil, err
	}
	var ours []part
	for i, p := range l.plugins {
		if p.ours() {
			ours = append(ours, p)
			if len(ours) == 1 && i > 0 && p.current() {
				continue
			}
			if list, err = Without(list); err != nil {
				return nil, err
			}
			return With(list)
		}
	}
	if len(ours) == 1 {
		return list, nil
	}
	last := l.plugins[len(l.plugins)-1]
	return splice(list, last.end, last.end, ","+string(list[last.gap:last.start])+entry), nil
}

// Without returns the list without the plugin: exactly what With was given, if nobody else has changed it.
func Without(list []byte) ([]byte, error) {
	for {
		l, err := parse(list)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(l.plugins, part.ours)
		switch {
		case i < 0:
			return list, nil
		case len(l.plugins) == 1:
			return nil, errors.New("there is no other plugin in the list")
		case i == 0:
			list = splice(list, l.plugins[0].start, l.plugins[1].start, "")
		default:
			list = splice(list, l.plugins[i-1].end, l.plugins[i].end, "")
		}
	}
}

// FromSingle makes a list of the configuration of one plugin, as CNI's library does when it is given one, and the plugin's text
// stands in it as it was.
func FromSingle(conf []byte) ([]byte, error) {
	parsed, err := libcni.NetworkPluginConfFromBytes(conf)
	if err != nil {
		return nil, err
	}
	head, err := json.Marshal(map[string]string{"name": parsed.Network.Name, "cniVersion": parsed.Network.CNIVersion})
	if err != nil {
		return nil, fmt.Errorf("making a list of plugin %q: %w", parsed.Network.Type, err)
	}
	list := slices.Concat(bytes.TrimSuffix(head, []byte("}")), []byte(`,"plugins":[`), bytes.TrimSpace(conf), []byte("]}\n"))
	if _, err := parse(list); err != nil {
		return nil, err
	}
	return list, nil
}

// spoken refuses a version of CNI that the plugin does not speak: it would fail for every pod of the node.
func spoken(v string) error {
	if v != "" && !slices.Contains(version.All.SupportedVersions(), v) {
		return fmt.Errorf("the list is of CNI %s, which the plugin does not speak", v)
	}
	return nil
}

// list is what is to be known of a list's text.
type list struct {
	version string
	plugins []part // at least one
}

// part is the configuration of one plugin in a list's text.
type part struct {
	gap, start, end int // where what stands before it begins, after a bracket or comma, and where it is
	text            json.RawMessage
}

func (p part) ours() bool {
	var plugin struct {
		Type string `json:"type"`
	}
	return json.Unmarshal(p.text, &plugin) == nil && plugin.Type == mesh.CNIPlugin
}

// current says whether this version would have written it so.
func (p part) current() bool {
	var is, want bytes.Buffer
	return json.Compact(&is, p.text) == nil && json.Compact(&want, []byte(entry)) == nil && bytes.Equal(is.Bytes(), want.Bytes())
}

// parse accepts what a container runtime would, if the plugins stand in the list itself.
func parse(text []byte) (list, error) {
	known, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		return list{}, err
	}
	l := list{version: known.CNIVersion}
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil { // the brace, as it has been parsed
		return list{}, err
	}
	found := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return list{}, err
		}
		if key != "plugins" {
			var skipped json.RawMessage
			if err := d.Decode(&skipped); err != nil {
				return list{}, err
			}
			continue
		}
		if found {
			return list{}, errors.New("there are several lists of plugins")
		}
		found = true
		if l.plugins, err = elements(d, text); err != nil {
			return list{}, err
		}
	}
	if len(l.plugins) == 0 {
		return list{}, errors.New("there is no plugin in the list")
	}
	for _, p := range l.plugins {
		if _, err := libcni.NetworkPluginConfFromBytes(p.text); err != nil {
			return list{}, err
		}
	}
	return l, nil
}

// elements reads an array.
func elements(d *json.Decoder, text []byte) ([]part, error) {
	open, err := d.Token()
	if err != nil {
		return nil, err
	}
	if open != json.Delim('[') {
		return nil, errors.New("the plugins are no list")
	}
	var out []part
	gap := int(d.InputOffset())
	for d.More() {
		if len(out) > 0 { // the decoder has not passed the comma
			gap += bytes.IndexByte(text[gap:], ',') + 1
		}
		p := part{gap: gap}
		if err := d.Decode(&p.text); err != nil {
			return nil, err
		}
		p.end = int(d.InputOffset())
		p.start, gap = p.end-len(p.text), p.end
		out = append(out, p)
	}
	_, err = d.Token()
	return out, err
}

func splice(text []byte, from, to int, with string) []byte {
	return slices.Concat(text[:from], []byte(with), text[to:])
}
