package csi

import (
	"context"
	"errors"
	"fmt"
	"os"

	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// registration tells kubelet of the driver, which it does through a socket of its own in kubelet's directory of plugins.
type registration struct {
	registerapi.UnimplementedRegistrationServer
	driver   *Driver
	endpoint string
}

// ServeRegistration announces the driver until ctx ends.
func (d *Driver) ServeRegistration(ctx context.Context) error {
	return serveUnix(ctx, d.config.RegistrationSocket, func(s *grpc.Server) {
		registerapi.RegisterRegistrationServer(s, &registration{driver: d, endpoint: d.config.Endpoint})
	})
}

// GetInfo implements pluginregistration.RegistrationServer.
func (r *registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.CSIPlugin, Name: mesh.CSIDriver, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus implements pluginregistration.RegistrationServer.
func (r *registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	r.driver.registered.Store(s.GetPluginRegistered())
	if !s.GetPluginRegistered() {
		r.driver.log.Error("kubelet refused the CSI driver", "error", s.GetError())
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

// Alive returns why kubelet cannot reach the driver: somebody took its sockets away, and only a restart brings them back.
func (d *Driver) Alive() error {
	for _, socket := range []string{d.config.Socket, d.config.RegistrationSocket} {
		if _, err := os.Stat(socket); err != nil {
			return fmt.Errorf("the driver's socket is gone: %w", err)
		}
	}
	return nil
}

// Registered returns nil once kubelet knows the driver.
func (d *Driver) Registered() error {
	if !d.registered.Load() {
		return errors.New("kubelet has not registered the CSI driver yet")
	}
	return nil
}
