package plugin

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/cni/internal/chain"
	"github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// TestMain makes of the test's program the plugin, when a runtime runs it.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		Main()
		return
	}
	os.Exit(m.Run())
}

// aNamespace is the path of a new network namespace.
func aNamespace(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	path, end := make(chan string), make(chan struct{})
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("network namespace: %v", err)
		}
		path <- fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		<-end
	}()
	t.Cleanup(func() { close(end) })
	return <-path
}

func redirected(t *testing.T, namespace string) (there bool) {
	t.Helper()
	if err := ns.WithNetNSPath(namespace, func(ns.NetNS) (err error) {
		there, err = redirect.Applied()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return there
}

// aRuntime is CNI's library, as container runtimes use it, with another plugin before this one, in a configuration of a version.
func aRuntime(t *testing.T, version string) (*libcni.CNIConfig, *libcni.NetworkConfigList) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "bulwark-cni")); err != nil {
		t.Fatal(err)
	}
	ips := `[{"version":"4","address":"10.1.2.3/24"}]`
	if strings.HasPrefix(version, "1.") {
		ips = `[{"address":"10.1.2.3/24"}]`
	}
	first := "#!/bin/sh\n" + `case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}';;
ADD) echo '{"cniVersion":"` + version + `","ips":` + ips + `,"dns":{"domain":"of the first"}}';;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "first"), []byte(first), 0o755); err != nil {
		t.Fatal(err)
	}
	list, err := chain.With([]byte(`{"name":"n","cniVersion":"` + version + `","plugins":[{"type":"first"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := libcni.NetworkConfFromBytes(list)
	if err != nil {
		t.Fatal(err)
	}
	return libcni.NewCNIConfigWithCacheDir([]string{dir}, t.TempDir(), nil), parsed
}

func pod(namespace string, annotations map[string]string) *libcni.RuntimeConf {
	conf := &libcni.RuntimeConf{ContainerID: "c1", NetNS: namespace, IfName: "eth0"}
	if annotations != nil {
		conf.CapabilityArgs = map[string]any{"io.kubernetes.cri.pod-annotations": annotations}
	}
	return conf
}

func TestARuntimeHasPodsRedirected(t *testing.T) {
	ctx := context.Background()
	const proxied = "a pod with a proxy"
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		runtime, list := aRuntime(t, version)
		for name, annotations := range map[string]map[string]string{
			proxied:             {"bulwark.dev/redirect": `{"excludeInboundPorts":[22]}`, "x": "y"},
			"a pod without one": {"x": "y"},
			"a runtime that hands over no annotations":    nil,
			"an annotation that is only nearly of a name": {"Bulwark.dev/redirect": `{}`},
		} {
			if name != proxied && version != "1.0.0" {
				continue // one version is enough to see who is left alone
			}
			conf := pod(aNamespace(t), annotations)
			result, err := runtime.AddNetworkList(ctx, list, conf)
			if err != nil {
				t.Fatalf("CNI %s, %s: %v", version, name, err)
			}
			if text := fmt.Sprint(result); !strings.Contains(text, "10.1.2.3") || !strings.Contains(text, "of the first") {
				t.Errorf("CNI %s, %s: what the first plugin said is not passed on: %s", version, name, text)
			}
			if got := redirected(t, conf.NetNS); got != (name == proxied) {
				t.Errorf("CNI %s, %s: redirected %v", version, name, got)
			}
			if version != "0.3.1" { // which has no CHECK
				checked(t, runtime, list, conf, name == proxied)
			}
			for range 2 { // also for a namespace that is gone
				if err := runtime.DelNetworkList(ctx, list, conf); err != nil {
					t.Errorf("CNI %s, %s: deletion: %v", version, name, err)
				}
				conf.NetNS = ""
			}
		}
	}
}

// checked has the runtime look at a pod that is as it should be, and at one whose rules are gone.
func checked(t *testing.T, runtime *libcni.CNIConfig, list *libcni.NetworkConfigList, conf *libcni.RuntimeConf, proxied bool) {
	t.Helper()
	if err := runtime.CheckNetworkList(t.Context(), list, conf); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if !proxied {
		return
	}
	if err := ns.WithNetNSPath(conf.NetNS, func(ns.NetNS) error { return redirect.Remove() }); err != nil {
		t.Fatal(err)
	}
	if err := runtime.CheckNetworkList(t.Context(), list, conf); err == nil || !strings.Contains(err.Error(), "not redirected") {
		t.Errorf("CHECK without the rules: %v", err)
	}
}

// A pod that should be redirected and cannot has no network, and so does not start.
func TestWhatCannotBeDoneFailsThePod(t *testing.T) {
	runtime, list := aRuntime(t, "1.0.0")
	for name, c := range map[string]struct{ annotation, says string }{
		"something that injection does not write": {`{"excludeEverything":true}`, "which only injection should write"},
		"no JSON":           {`yes`, "which only injection should write"},
		"more than is read": {strings.Repeat(" ", maxInput), "unexpected end of JSON input"},
	} {
		namespace := aNamespace(t)
		_, err := runtime.AddNetworkList(context.Background(), list, pod(namespace, map[string]string{"bulwark.dev/redirect": c.annotation}))
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %.300v, want %q", name, err, c.says)
		}
		if redirected(t, namespace) {
			t.Errorf("%s: the rules are there", name)
		}
	}
	_, err := runtime.AddNetworkList(context.Background(), list, pod("/proc/self/no-such-namespace", map[string]string{"bulwark.dev/redirect": "{}"}))
	if err == nil {
		t.Error("a namespace that is not there")
	}
	list.Plugins = list.Plugins[1:]
	if _, err := runtime.AddNetworkList(context.Background(), list, pod(aNamespace(t), nil)); err == nil || !strings.Contains(err.Error(), "has to come after another plugin") {
		t.Errorf("as the only plugin: %v", err)
	}
}

func FuzzStdin(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","type":"bulwark-cni","prevResult":{"cniVersion":"1.0.0","ips":[]},"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"bulwark.dev/redirect":"{}"}}}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","prevResult":{"ip4":{"ip":"10.0.0.1/8"}},"runtimeConfig":null}`))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		c, o, err := parse(stdin)
		if err != nil {
			return
		}
		if c.PrevResult == nil {
			t.Error("nothing to pass on")
		}
		if _, asked := c.RuntimeConfig.Annotations["bulwark.dev/redirect"]; asked != (o != nil) {
			t.Errorf("asked %v, to be redirected %v", asked, o != nil)
		}
		if o != nil {
			if _, err := redirect.Parse(o.String()); err != nil {
				t.Error(err)
			}
		}
	})
}
