// Package plugin is what a container runtime runs for each pod of the node: the plugin at the end of the CNI chain, which
// redirects the traffic of pods that have a proxy.
//
// What it is to do stands in the pod's annotations, which the runtime hands over, so it works while the API server, or
// everything else of Bulwark, is away, and has no part in pods without a proxy. Where it should do something and cannot, the
// pod's network fails, and kubelet tries again.
package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/ns"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/redirect"
)

// maxInput is more than Kubernetes lets a pod have in annotations, and a result of other plugins.
const maxInput = 2 << 20

// Main answers the runtime and ends the process. The library takes what it reads from os.Stdin.
func Main() {
	in, err := bounded(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Stdin = in
	nothing := func(*skel.CmdArgs) error { return nil }
	// What is redirected goes with the pod's network namespace: there is nothing to delete.
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: check, Del: nothing, GC: nothing, Status: nothing}, version.All, "Bulwark's redirection of pods with a proxy")
}

// bounded hands on what comes up to the bound; what is longer is cut there, and then is no JSON.
func bounded(in io.Reader) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	go func() {
		_, _ = io.CopyN(w, in, maxInput) // what is missing then shows in what is read
		_ = w.Close()
	}()
	return r, nil
}

// call is what the runtime asks.
type call struct {
	types.PluginConf
	RuntimeConfig struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`
}

// parse reads a call. Options are nil for a pod that is not to be redirected.
func parse(stdin []byte) (*call, *redirect.Options, error) {
	var c call
	if err := json.Unmarshal(stdin, &c); err != nil {
		return nil, nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, nil, fmt.Errorf("reading what the plugins before have done: %w", err)
	}
	if c.PrevResult == nil {
		return nil, nil, errors.New(mesh.CNIPlugin + " makes no network: it has to come after another plugin")
	}
	text, ok := c.RuntimeConfig.Annotations[mesh.RedirectAnnotation]
	if !ok {
		return &c, nil, nil
	}
	o, err := redirect.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("annotation %s of the pod, which only injection should write: %w", mesh.RedirectAnnotation, err)
	}
	return &c, &o, nil
}

func add(args *skel.CmdArgs) error {
	c, o, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if o != nil {
		if err := ns.WithNetNSPath(args.Netns, func(ns.NetNS) error { return redirect.Apply(*o) }); err != nil {
			return fmt.Errorf("redirecting the pod's traffic to its proxy: %w", err)
		}
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

func check(args *skel.CmdArgs) error {
	_, o, err := parse(args.StdinData)
	if err != nil || o == nil {
		return err
	}
	return ns.WithNetNSPath(args.Netns, func(ns.NetNS) error {
		there, err := redirect.Applied()
		if err == nil && !there {
			err = errors.New("the pod's traffic is not redirected to its proxy")
		}
		return err
	})
}
