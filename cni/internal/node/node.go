// Package node keeps the plugin in the CNI configuration of one node: its program in the directory of plugins, and its entry in
// the configuration that the container runtime uses, which is the first of the directory.
//
// Every step is one renaming or one removal, and the node's network works after each of them, so it does not matter where this
// is killed. Whatever is found half done is finished by the next call.
package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/bulwark-mesh/bulwark/cni/internal/chain"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Node is the directories of a node.
type Node struct {
	ConfDir string // CNI configurations
	BinDir  string // CNI plugins
	Program string // the plugin, to be copied there
}

const (
	// saved ends the name of a configuration of a single plugin, which no runtime reads any more, while a list made of it is in
	// its place.
	saved = ".before-bulwark"
	// temporary begins the names of what is not finished. No runtime reads what does not end as a configuration does.
	temporary = ".bulwark-cni-"
	listEnd   = ".conflist"
	maxConfig = 1 << 20

	programMode = os.FileMode(0o755)
)

// Install brings the node to have the plugin in force, and says whether it had to change anything.
func (n Node) Install() (changed bool, err error) {
	if err := n.clean(); err != nil {
		return false, err
	}
	copied, err := n.copyProgram()
	if err != nil {
		return copied, err
	}
	first, err := n.first()
	if err != nil {
		return copied, err
	}
	chained, err := n.put(first)
	if err != nil {
		return copied || chained, err
	}
	// Where another configuration was the first before, the plugin is of no use.
	tidied, err := n.takeOut(func(path string) bool { return path == listOf(first.path) })
	return copied || chained || tidied, err
}

// Installed returns nil if the plugin is in force, and otherwise why it is not. It changes nothing.
func (n Node) Installed() error {
	if !sameProgram(n.Program, n.target()) {
		return fmt.Errorf("the plugin's program is not in the node's %s as it should be", mesh.CNIPlugin)
	}
	first, err := n.first()
	if err != nil {
		return err
	}
	with, err := chain.With(first.list)
	if err != nil {
		return err
	}
	if !first.isList || !bytes.Equal(with, first.list) {
		return fmt.Errorf("the plugin is not in %s, which is the node's CNI configuration", filepath.Base(first.path))
	}
	return nil
}

// Remove takes the plugin off the node. What was there before is there again, as it was.
func (n Node) Remove() error {
	if err := n.clean(); err != nil {
		return err
	}
	if _, err := n.takeOut(func(string) bool { return false }); err != nil {
		return err
	}
	// Last: as long as a configuration names it, each pod's network would fail without it.
	if err := os.Remove(n.target()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the plugin's program: %w", err)
	}
	return nil
}

// configuration is one that a runtime would take.
type configuration struct {
	path   string
	isList bool
	list   []byte // what the file has, or a list of it
}

// first is what the runtime uses: the first file, by name, that it can read.
func (n Node) first() (configuration, error) {
	files, err := n.configurations()
	if err != nil {
		return configuration{}, err
	}
	var refused []error
	for _, path := range files {
		c := configuration{path: path, isList: strings.HasSuffix(path, listEnd)}
		text, err := read(path)
		if err == nil && c.isList {
			c.list, err = text, listError(text)
		} else if err == nil {
			c.list, err = chain.FromSingle(text)
		}
		if err == nil {
			return c, nil
		}
		refused = append(refused, fmt.Errorf("%s cannot be used: %w", filepath.Base(path), err))
	}
	none := errors.New("the node has no CNI configuration where it is looked for (setting cniDirs.conf)")
	return configuration{}, errors.Join(append([]error{none}, refused...)...)
}

// listError is an error if the text is no list, not if it is one that the plugin cannot be put into.
func listError(text []byte) error {
	_, err := chain.Without(text)
	return err
}

func (n Node) configurations() ([]string, error) {
	files, err := libcni.ConfFiles(n.ConfDir, []string{".conf", listEnd, ".json"})
	if err != nil {
		return nil, fmt.Errorf("looking for the node's CNI configuration: %w", err)
	}
	slices.Sort(files)
	return files, nil
}

func listOf(path string) string { return strings.TrimSuffix(path, filepath.Ext(path)) + listEnd }

// put brings the plugin into the configuration in force.
func (n Node) put(c configuration) (changed bool, err error) {
	with, err := chain.With(c.list)
	if err != nil {
		return false, fmt.Errorf("putting the plugin into %s: %w", filepath.Base(c.path), err)
	}
	if c.isList {
		if bytes.Equal(with, c.list) {
			return false, nil
		}
		return true, replace(c.path, with)
	}
	// A runtime takes more than one plugin from a list only. The list waits behind the file that it is made of, until that is out
	// of the way.
	list := listOf(c.path)
	if other, err := read(list); err == nil && !chain.Has(other) {
		return false, fmt.Errorf("%s is in force, and the list that it had to become, %s, is there already: remove the one that is not used",
			filepath.Base(c.path), filepath.Base(list))
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	if err := replace(list, with); err != nil {
		return false, err
	}
	if err := os.Rename(c.path, c.path+saved); err != nil {
		return true, fmt.Errorf("setting %s aside: %w", filepath.Base(c.path), err)
	}
	return true, nil
}

// takeOut takes the plugin out of all configurations but those that are kept.
func (n Node) takeOut(keep func(path string) bool) (changed bool, err error) {
	files, err := n.configurations()
	if err != nil {
		return false, err
	}
	for _, path := range files {
		text, err := read(path)
		if !strings.HasSuffix(path, listEnd) || keep(path) || err != nil || !chain.Has(text) {
			continue // also what cannot be read: no runtime reads it either
		}
		if err := n.restore(path, text); err != nil {
			return changed, fmt.Errorf("taking the plugin out of %s: %w", filepath.Base(path), err)
		}
		changed = true
	}
	return changed, nil
}

// restore makes of a list what it was before.
func (n Node) restore(path string, text []byte) error {
	without, err := chain.Without(text)
	if err != nil {
		return err
	}
	stem := strings.TrimSuffix(path, listEnd)
	for _, single := range []string{stem + ".conf", stem + ".json"} {
		aside := single + saved
		there, here := madeOf(aside), madeOf(single)
		if !bytes.Equal(there, without) && !bytes.Equal(here, without) {
			if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) { // the list has become another since
				return err
			}
			continue
		}
		// The list is the plugin's own. What it was made of is in force before the list is gone.
		if here != nil {
			err = os.Remove(aside)
		} else {
			err = os.Rename(aside, single)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return os.Remove(path)
	}
	return replace(path, without)
}

// madeOf is the list that is made of a file, nil if there is none or it is no configuration.
func madeOf(path string) []byte {
	text, err := read(path)
	if err != nil {
		return nil
	}
	list, err := chain.FromSingle(text)
	if err != nil {
		return nil
	}
	return list
}

func (n Node) target() string { return filepath.Join(n.BinDir, mesh.CNIPlugin) }

// copyProgram says whether it had to.
func (n Node) copyProgram() (bool, error) {
	if sameProgram(n.Program, n.target()) {
		return false, nil
	}
	in, err := os.Open(n.Program)
	if err != nil {
		return false, fmt.Errorf("the plugin's program: %w", err)
	}
	defer in.Close()
	err = write(n.target(), programMode, func(out *os.File) error {
		_, err := io.Copy(out, in)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("copying the plugin's program: %w", err)
	}
	return true, nil
}

// sameProgram compares the content: images are made without times, and two versions may have the same size.
func sameProgram(from, to string) bool {
	info, err := os.Stat(to)
	if err != nil || info.Mode() != programMode {
		return false
	}
	a, err := os.Open(from)
	if err != nil {
		return false
	}
	defer a.Close()
	b, err := os.Open(to)
	if err != nil {
		return false
	}
	defer b.Close()
	if is, err := a.Stat(); err != nil || is.Size() != info.Size() {
		return false
	}
	here, there := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, endHere := io.ReadFull(a, here)
		m, endThere := io.ReadFull(b, there)
		if n != m || !bytes.Equal(here[:n], there[:m]) {
			return false
		}
		if endHere != nil || endThere != nil {
			ended := func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
			return ended(endHere) && ended(endThere)
		}
	}
}

// clean removes what was not finished.
func (n Node) clean() error {
	for _, dir := range []string{n.ConfDir, n.BinDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("directory of the node: %w", err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), temporary) {
				if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("removing what was not finished: %w", err)
				}
			}
		}
	}
	return nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(text) > maxConfig {
		err = fmt.Errorf("%s is longer than %d bytes", filepath.Base(path), maxConfig)
	}
	return text, err
}

// replace gives a file another content, and leaves its mode. A link stays one.
func replace(path string, content []byte) error {
	mode := os.FileMode(0o644)
	if at, err := filepath.EvalSymlinks(path); err == nil {
		path = at
		if info, err := os.Stat(path); err == nil {
			mode = info.Mode().Perm()
		}
	}
	err := write(path, mode, func(out *os.File) error {
		_, err := out.Write(content)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	return nil
}

// write makes a file that is there whole or not at all, also after a crash of the machine.
func write(path string, mode os.FileMode, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = errors.Join(fill(f), f.Chmod(mode), f.Sync())
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
