package node

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

const (
	calico = `{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "plugins": [
    {"type": "calico", "mtu": 0},
    {"type": "portmap"}
  ]
}
`
	flannel = `{"name":"cbr0","cniVersion":"0.3.1","plugins":[{"type":"flannel"}]}`
	multus  = "{\n  \"name\": \"multus\", \"cniVersion\": \"0.3.1\", \"type\": \"multus\"\n}\n"
)

// aNode has files in its directory of configurations.
func aNode(t *testing.T, files map[string]string) Node {
	t.Helper()
	dir := t.TempDir()
	n := Node{ConfDir: filepath.Join(dir, "conf"), BinDir: filepath.Join(dir, "bin"), Program: filepath.Join(dir, "program")}
	for _, d := range []string{n.ConfDir, n.BinDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, n.Program, "the plugin, version 1")
	put(t, filepath.Join(n.BinDir, "bridge"), "another plugin")
	for name, content := range files {
		put(t, filepath.Join(n.ConfDir, name), content)
	}
	return n
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func install(t *testing.T, n Node, changed bool) {
	t.Helper()
	if got, err := n.Install(); err != nil || got != changed {
		t.Fatalf("installing: changed %v, %v; want %v", got, err, changed)
	}
	if err := n.Installed(); err != nil {
		t.Fatal(err)
	}
}

// tree is every file of both directories with its content.
func tree(t *testing.T, n Node) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range []string{n.ConfDir, n.BinDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			out[e.Name()] = fmt.Sprintf("%s %s", info.Mode(), content)
		}
	}
	return out
}

// inForce is the file that a runtime uses, and the plugins that it runs.
func inForce(n Node) (file, plugins string, err error) {
	files, err := libcni.ConfFiles(n.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return "", "", err
	}
	slices.Sort(files)
	for _, file := range files {
		var types []string
		text, e := os.ReadFile(file)
		if e != nil {
			return "", "", e
		}
		if strings.HasSuffix(file, ".conflist") {
			var list *libcni.NetworkConfigList
			if list, err = libcni.NetworkConfFromBytes(text); err == nil {
				for _, p := range list.Plugins {
					types = append(types, p.Network.Type)
				}
			}
		} else {
			var single *libcni.PluginConfig
			if single, err = libcni.NetworkPluginConfFromBytes(text); err == nil {
				types = []string{single.Network.Type}
			}
		}
		if err == nil {
			return filepath.Base(file), strings.Join(types, " "), nil
		}
	}
	return "", "", fmt.Errorf("the node has no network: %w", err)
}

func expect(t *testing.T, n Node, file, plugins string) {
	t.Helper()
	if gotFile, got, err := inForce(n); err != nil || gotFile != file || got != plugins {
		t.Fatalf("in force is %s with %s, %v; want %s with %s", gotFile, got, err, file, plugins)
	}
}

func TestInstallTwiceUpgradeAndRemove(t *testing.T) {
	for name, c := range map[string]struct {
		files                   map[string]string
		file, plugins, original string
	}{
		"a list":                 {map[string]string{"10-calico.conflist": calico, "calico-kubeconfig": "x"}, "10-calico.conflist", "calico portmap bulwark-cni", "calico portmap"},
		"the first of two lists": {map[string]string{"10-calico.conflist": calico, "20-flannel.conflist": flannel}, "10-calico.conflist", "calico portmap bulwark-cni", "calico portmap"},
		"a single plugin":        {map[string]string{"00-multus.conf": multus, "10-calico.conflist": calico}, "00-multus.conflist", "multus bulwark-cni", "multus"},
		"a single .json":         {map[string]string{"30-x.json": multus}, "30-x.conflist", "multus bulwark-cni", "multus"},
		"behind what is broken":  {map[string]string{"00-broken.conflist": "{", "01-list.conf": calico, "10-calico.conflist": calico}, "10-calico.conflist", "calico portmap bulwark-cni", "calico portmap"},
	} {
		t.Run(name, func(t *testing.T) {
			n := aNode(t, c.files)
			before := tree(t, n)
			if n.Installed() == nil {
				t.Fatal("it is there already")
			}
			install(t, n, true)
			expect(t, n, c.file, c.plugins)
			if info, err := os.Stat(n.target()); err != nil || info.Mode() != 0o755 {
				t.Fatalf("the program: %v, %v", info, err)
			}
			installed := tree(t, n)
			install(t, n, false)
			if again := tree(t, n); !equal(again, installed) {
				t.Errorf("installed twice: %v", again)
			}
			put(t, n.Program, "the plugin, version 2") // of the same size
			if n.Installed() == nil {
				t.Error("the old program will do")
			}
			install(t, n, true)
			expect(t, n, c.file, c.plugins)
			for range 2 {
				if err := n.Remove(); err != nil {
					t.Fatal(err)
				}
				if after := tree(t, n); !equal(after, before) {
					t.Errorf("after removal there is\n%v\nwas\n%v", after, before)
				}
			}
			_, plugins, err := inForce(n)
			if err != nil || plugins != c.original {
				t.Errorf("after removal: %s, %v", plugins, err)
			}
		})
	}
}

func equal(a, b map[string]string) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// What other programs of a node do to its configuration.
func TestChangesByOthers(t *testing.T) {
	list := func(n Node, name string) string { return filepath.Join(n.ConfDir, name) }
	t.Run("replaced", func(t *testing.T) {
		n := aNode(t, map[string]string{"10-calico.conflist": calico})
		install(t, n, true)
		put(t, list(n, "10-calico.conflist"), flannel)
		if n.Installed() == nil {
			t.Error("nothing is missing")
		}
		install(t, n, true)
		expect(t, n, "10-calico.conflist", "flannel bulwark-cni")
		if err := n.Remove(); err != nil || !strings.HasSuffix(tree(t, n)["10-calico.conflist"], flannel) {
			t.Errorf("%v, %v", err, tree(t, n))
		}
	})
	t.Run("another becomes the first", func(t *testing.T) {
		n := aNode(t, map[string]string{"10-calico.conflist": calico})
		install(t, n, true)
		put(t, list(n, "05-cilium.conflist"), flannel)
		install(t, n, true)
		expect(t, n, "05-cilium.conflist", "flannel bulwark-cni")
		if !strings.HasSuffix(tree(t, n)["10-calico.conflist"], calico) {
			t.Errorf("the one of before is not as it was: %v", tree(t, n))
		}
		if err := os.Remove(list(n, "05-cilium.conflist")); err != nil {
			t.Fatal(err)
		}
		install(t, n, true)
		expect(t, n, "10-calico.conflist", "calico portmap bulwark-cni")
	})
	t.Run("a single plugin written again", func(t *testing.T) {
		n := aNode(t, map[string]string{"00-multus.conf": multus})
		install(t, n, true)
		changed := strings.Replace(multus, "multus\"\n", "multus2\"\n", 1)
		put(t, list(n, "00-multus.conf"), changed)
		install(t, n, true)
		expect(t, n, "00-multus.conflist", "multus2 bulwark-cni")
		if err := n.Remove(); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, n); len(got) != 2 || !strings.HasSuffix(got["00-multus.conf"], changed) {
			t.Errorf("%v", got)
		}
	})
	t.Run("a single plugin written again, then removal", func(t *testing.T) {
		n := aNode(t, map[string]string{"00-multus.conf": multus})
		install(t, n, true)
		changed := strings.Replace(multus, "multus\"\n", "multus2\"\n", 1)
		put(t, list(n, "00-multus.conf"), changed)
		if err := n.Remove(); err != nil {
			t.Fatal(err)
		}
		if got := tree(t, n); !strings.HasSuffix(got["00-multus.conf"], changed) {
			t.Errorf("what another program wrote last is not there: %v", got)
		}
		expect(t, n, "00-multus.conf", "multus2")
	})
	t.Run("a list beside a single plugin", func(t *testing.T) {
		n := aNode(t, map[string]string{"00-multus.conf": multus, "00-multus.conflist": flannel})
		before := tree(t, n)
		if _, err := n.Install(); err == nil || !strings.Contains(err.Error(), "remove the one that is not used") {
			t.Errorf("%v", err)
		}
		delete(before, "bulwark-cni")
		after := tree(t, n)
		delete(after, "bulwark-cni")
		if !equal(before, after) {
			t.Errorf("it has changed something: %v", after)
		}
	})
	t.Run("nothing to be put into", func(t *testing.T) {
		n := aNode(t, map[string]string{"calico-kubeconfig": "x", "00-broken.conflist": "{"})
		if _, err := n.Install(); err == nil || !strings.Contains(err.Error(), "no CNI configuration") || !strings.Contains(err.Error(), "00-broken.conflist") {
			t.Errorf("%v", err)
		}
	})
	t.Run("the program is gone", func(t *testing.T) {
		n := aNode(t, map[string]string{"10-calico.conflist": calico})
		install(t, n, true)
		if err := os.Remove(n.target()); err != nil {
			t.Fatal(err)
		}
		if n.Installed() == nil {
			t.Error("nothing is missing")
		}
		install(t, n, true)
	})
	t.Run("a link", func(t *testing.T) {
		n := aNode(t, map[string]string{"elsewhere": calico})
		if err := os.Symlink("elsewhere", list(n, "10-calico.conflist")); err != nil {
			t.Fatal(err)
		}
		install(t, n, true)
		if to, err := os.Readlink(list(n, "10-calico.conflist")); err != nil || to != "elsewhere" {
			t.Errorf("%s, %v", to, err)
		}
		if err := n.Remove(); err != nil || !strings.HasSuffix(tree(t, n)["elsewhere"], calico) {
			t.Errorf("%v, %v", err, tree(t, n))
		}
	})
	t.Run("a configuration of a later CNI", func(t *testing.T) {
		n := aNode(t, map[string]string{"10-calico.conflist": strings.Replace(calico, "1.0.0", "7.0.0", 1)})
		if _, err := n.Install(); err == nil || !strings.Contains(err.Error(), "7.0.0") {
			t.Errorf("%v", err)
		}
	})
}

// killed names the directory in which a child process of the test installs and removes until it is killed.
const killed = "BULWARK_TEST_KILLED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(killed); dir != "" {
		n := Node{ConfDir: filepath.Join(dir, "conf"), BinDir: filepath.Join(dir, "bin"), Program: filepath.Join(dir, "program")}
		fmt.Println("begun")
		for {
			if _, err := n.Install(); err != nil {
				panic(err)
			}
			if err := n.Remove(); err != nil {
				panic(err)
			}
		}
	}
	os.Exit(m.Run())
}

// Whenever it is killed, the node has a network: a runtime finds a configuration, with the plugins that were there, and every
// plugin has its program. Whoever comes next finishes either way.
func TestKilledAtAnyMoment(t *testing.T) {
	for round := range 60 {
		files, plugins := map[string]string{"10-calico.conflist": calico, "20-flannel.conflist": flannel}, "calico portmap"
		if round%2 == 1 {
			files, plugins = map[string]string{"00-multus.conf": multus, "10-calico.conflist": calico}, "multus"
		}
		n := aNode(t, files)
		before := tree(t, n)
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), killed+"="+filepath.Dir(n.ConfDir))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		<-time.After(rand.N(8 * time.Millisecond)) // the moment is what is tried
		_ = child.Process.Kill()
		_ = child.Wait()
		_, got, err := inForce(n)
		if rest, chained := strings.CutSuffix(got, " bulwark-cni"); err != nil || rest != plugins {
			t.Fatalf("killed, it leaves %q, %v: %v", got, err, tree(t, n))
		} else if _, err := os.Stat(n.target()); chained && err != nil {
			t.Fatalf("the configuration names a plugin that is not there: %v", err)
		}
		if round%3 == 0 {
			if _, err := n.Install(); err != nil {
				t.Fatal(err)
			}
			if err := n.Installed(); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.Remove(); err != nil {
			t.Fatal(err)
		}
		if after := tree(t, n); !equal(after, before) {
			t.Fatalf("after removal there is\n%v\nwas\n%v", after, before)
		}
	}
}
