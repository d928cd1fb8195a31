package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pkg/deltaxds"
	"github.com/bulwark-mesh/bulwark/tools/bench/stage"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/agents"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/ca"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/fleet"
	"github.com/bulwark-mesh/bulwark/tools/xdsload/pilot"
)

const captureWithin = time.Minute

// resources are what Pilot gives one proxy, by type and name.
type resources map[string]map[string]*deltaxds.Resource

// capture asks Pilot for the configuration of the two pods, as it is on the wire, and returns it by pod.
func capture(ctx context.Context, o Options, authority *ca.CA, pods map[string]*core.Pod, args ...string) (_ map[string]resources, err error) {
	ctx, cancel := context.WithTimeout(ctx, captureWithin)
	defer cancel()
	citadel, err := authority.Serve()
	if err != nil {
		return nil, err
	}
	defer citadel.Stop()
	dir, err := os.MkdirTemp("", "bench-pilot")
	if err != nil {
		return nil, fmt.Errorf("directory for Pilot: %w", err)
	}
	defer os.RemoveAll(dir)
	p, err := pilot.New(pilot.Options{Binary: o.Pilot, Kubeconfig: o.Kubeconfig, Citadel: citadel.Address, Token: citadel.Token, Dir: dir, Args: args})
	if err != nil {
		return nil, err
	}
	if err := p.Start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	var members []fleet.Member
	for name, ip := range map[string]string{stage.Client: clientIP, stage.Server: serverIP} {
		members = append(members, fleet.Member{Namespace: stage.Namespace, Pod: name, UID: string(pods[name].UID), IP: ip, Node: stage.Node,
			ServiceAccount: name, Workload: name})
	}
	settings, err := agents.For(authority, p.Address, dir, members)
	if err != nil {
		return nil, err
	}
	relays, err := agents.New(settings)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, relays.Close()) }()
	relays.Follow()
	f := fleet.New(members)
	all := map[string]resources{stage.Client: {}, stage.Server: {}}
	var mu sync.Mutex
	f.Tap = func(m fleet.Member, resp *discovery.DeltaDiscoveryResponse) {
		mu.Lock()
		defer mu.Unlock()
		kept := all[m.Pod][resp.GetTypeUrl()]
		if kept == nil {
			kept = map[string]*deltaxds.Resource{}
			all[m.Pod][resp.GetTypeUrl()] = kept
		}
		for _, r := range resp.GetResources() {
			kept[r.GetName()] = deltaxds.FromWire(r)
		}
	}
	defer f.Disconnect()
	if _, err := f.Connect(ctx); err != nil {
		return nil, fmt.Errorf("asking Pilot: %w", err)
	}
	if err := f.Quiet(ctx, time.Second); err != nil {
		return nil, err
	}
	return all, nil
}
