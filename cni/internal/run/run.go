// Package run puts the keeper of a node's plugin together from its settings.
package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/bulwark-mesh/bulwark/cni/internal/node"
	"github.com/bulwark-mesh/bulwark/pkg/cniready"
	"github.com/bulwark-mesh/bulwark/pkg/kubeobject"
	"github.com/bulwark-mesh/bulwark/pkg/logging"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Settings of the keeper.
type Settings struct {
	ConfDir    string `mapstructure:"confDir" usage:"the node's directory of CNI configurations"`
	BinDir     string `mapstructure:"binDir" usage:"the node's directory of CNI plugins"`
	Program    string `mapstructure:"program" usage:"the plugin's program"`
	Socket     string `mapstructure:"socket" usage:"where it says whether the plugin is in force"`
	Kubeconfig string `mapstructure:"kubeconfig" usage:"kubeconfig file; empty inside a cluster"`
	LogLevel   string `mapstructure:"logLevel" usage:"debug, info, warn or error"`
}

// Defaults fit the DaemonSet of the chart.
func Defaults() Settings {
	return Settings{ConfDir: "/host/conf", BinDir: "/host/bin", Program: "/usr/bin/cni", Socket: mesh.CNISocket, LogLevel: "info"}
}

func (s Settings) node() node.Node {
	return node.Node{ConfDir: s.ConfDir, BinDir: s.BinDir, Program: s.Program}
}

// Run keeps the plugin in force until ctx ends. When it ends because its DaemonSet was deleted, it takes the plugin off the
// node; in a restart or an upgrade it leaves it, and in doubt as well: without a pod that asks for it, the plugin does nothing.
func Run(ctx context.Context, s Settings) error {
	log, err := logging.New(os.Stderr, "cni", s.LogLevel)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(log)
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		return fmt.Errorf("configuration of the Kubernetes client: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("Kubernetes client: %w", err)
	}
	keeper := &node.Keeper{Node: s.node(), Log: log}
	var unwanted atomic.Bool
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return keeper.Run(ctx) })
	group.Go(func() error { return cniready.Serve(ctx, s.Socket, keeper.Ready) })
	group.Go(func() error {
		kubeobject.WatchDaemonSet(ctx, client, mesh.Namespace, mesh.CNIPlugin, func(d *appsv1.DaemonSet) {
			unwanted.Store(d == nil || d.DeletionTimestamp != nil)
		})
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if unwanted.Load() {
		log.Info("the DaemonSet was deleted: the plugin is taken off the node")
		return Remove(context.Background(), s)
	}
	return nil
}

// Remove takes the plugin off the node.
func Remove(_ context.Context, s Settings) error {
	if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the socket: %w", err)
	}
	return s.node().Remove()
}

// ReadySettings of `cni ready`.
type ReadySettings struct {
	Socket string `mapstructure:"socket" usage:"the keeper's socket"`
}

// ReadyDefaults fit the DaemonSet of the chart.
func ReadyDefaults() ReadySettings { return ReadySettings{Socket: mesh.CNISocket} }

// Ready returns nil if the plugin is in force, for kubelet's probe.
func Ready(ctx context.Context, s ReadySettings) error { return cniready.Ask(ctx, s.Socket) }
