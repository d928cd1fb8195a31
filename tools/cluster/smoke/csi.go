package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	driverName   = "smoke.bulwark.dev"
	driverDir    = "/var/lib/kubelet/plugins/" + driverName
	registryDir  = "/var/lib/kubelet/plugins_registry"
	tokensKey    = "csi.storage.k8s.io/serviceAccount.tokens"
	publishedTag = "pod"
)

// driver publishes an ephemeral inline volume: a tmpfs with a file that says for which pod, and whether its token came.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer
}

func csiDriver() error {
	if err := os.MkdirAll(driverDir, 0o750); err != nil {
		return fmt.Errorf("make the driver's directory: %w", err)
	}
	server := grpc.NewServer()
	csi.RegisterIdentityServer(server, driver{})
	csi.RegisterNodeServer(server, driver{})
	registrar := grpc.NewServer()
	registration.RegisterRegistrationServer(registrar, driver{})
	failed := make(chan error, 2)
	for socket, s := range map[string]*grpc.Server{
		filepath.Join(driverDir, "csi.sock"):               server,
		filepath.Join(registryDir, driverName+"-reg.sock"): registrar,
	} {
		if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an old socket: %w", err)
		}
		listener, err := net.Listen("unix", socket)
		if err != nil {
			return err
		}
		go func() { failed <- s.Serve(listener) }()
	}
	return <-failed
}

func (driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: "CSIPlugin", Name: driverName, Endpoint: filepath.Join(driverDir, "csi.sock"), SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (driver) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	fmt.Println("registered:", status.PluginRegistered, status.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

func (driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: "1"}, nil
}

func (driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

func (driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: os.Getenv("NODE")}, nil
}

func (driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func (driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	file := filepath.Join(r.GetTargetPath(), publishedTag)
	if _, err := os.Stat(file); err == nil {
		return &csi.NodePublishVolumeResponse{}, nil // asked again, to bring a new token
	}
	if err := os.MkdirAll(r.GetTargetPath(), 0o750); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", r.GetTargetPath(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	context := r.GetVolumeContext()
	content := fmt.Sprintf("%s token=%t", context["csi.storage.k8s.io/pod.name"], context[tokensKey] != "")
	return &csi.NodePublishVolumeResponse{}, os.WriteFile(file, []byte(content), 0o644)
}

func (driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := unix.Unmount(r.GetTargetPath(), 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("unmount: %w", err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, os.RemoveAll(r.GetTargetPath())
}
