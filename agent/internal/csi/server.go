// Package csi is the CSI driver csi.bulwark.dev. Its volumes are ephemeral, inline, and hold one socket: kubelet hands
// over the pod's facts and bound token with each, and nothing is mounted: the socket is made in the very directory that
// kubelet asks for, so the driver needs no right to mount. Package files says what a volume may ask for beside.
package csi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	csiapi "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/bulwark-mesh/bulwark/agent/internal/files"
	"github.com/bulwark-mesh/bulwark/agent/internal/identity"
	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/mtls"
	"github.com/bulwark-mesh/bulwark/pkg/version"
)

// Pods is what volumes are made for.
type Pods interface {
	Publish(v pods.Volume, token string, expires time.Time) error
	Begun(uid string) bool
	Unpublish(volumeID, target string) error
}

// Driver serves CSI's identity and node services.
type Driver struct {
	csiapi.UnimplementedIdentityServer
	csiapi.UnimplementedNodeServer
	pods       Pods
	config     Config
	log        *slog.Logger
	registered atomic.Bool
}

// Config says where the driver and kubelet find each other.
type Config struct {
	Node               string // name of the node
	PodsDir            string // kubelet's directory of pods
	Socket             string // where the driver listens
	Endpoint           string // the same place as kubelet sees it
	RegistrationSocket string // where kubelet learns of the driver
	// PluginReady returns why the node's CNI plugin is not in force, nil if it is. A pod whose volume asks for it gets its
	// volume, which kubelet waits for, before it gets a network: so no such pod has a network that the plugin had no part in.
	PluginReady func(context.Context) error
}

// New returns a driver.
func New(p Pods, c Config, log *slog.Logger) *Driver {
	return &Driver{pods: p, config: c, log: log}
}

// Serve answers kubelet until ctx ends.
func (d *Driver) Serve(ctx context.Context) error {
	return serveUnix(ctx, d.config.Socket, func(s *grpc.Server) {
		csiapi.RegisterIdentityServer(s, d)
		csiapi.RegisterNodeServer(s, d)
	})
}

func serveUnix(ctx context.Context, socket string, register func(*grpc.Server)) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("socket %s: %w", socket, err), l.Close())
	}
	server := grpc.NewServer(append(mtls.BoundedOptions(mtls.Limits{}), grpc.WaitForHandlers(true))...)
	register(server)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(l); err != nil {
		return fmt.Errorf("socket %s: %w", socket, err)
	}
	return nil
}

// GetPluginInfo implements csi.IdentityServer.
func (d *Driver) GetPluginInfo(context.Context, *csiapi.GetPluginInfoRequest) (*csiapi.GetPluginInfoResponse, error) {
	return &csiapi.GetPluginInfoResponse{Name: mesh.CSIDriver, VendorVersion: version.Version}, nil
}

// GetPluginCapabilities implements csi.IdentityServer.
func (d *Driver) GetPluginCapabilities(context.Context, *csiapi.GetPluginCapabilitiesRequest) (*csiapi.GetPluginCapabilitiesResponse, error) {
	return &csiapi.GetPluginCapabilitiesResponse{}, nil
}

// Probe implements csi.IdentityServer.
func (d *Driver) Probe(context.Context, *csiapi.ProbeRequest) (*csiapi.ProbeResponse, error) {
	return &csiapi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csiapi.NodeGetInfoRequest) (*csiapi.NodeGetInfoResponse, error) {
	return &csiapi.NodeGetInfoResponse{NodeId: d.config.Node}, nil
}

// NodeGetCapabilities implements csi.NodeServer.
func (d *Driver) NodeGetCapabilities(context.Context, *csiapi.NodeGetCapabilitiesRequest) (*csiapi.NodeGetCapabilitiesResponse, error) {
	return &csiapi.NodeGetCapabilitiesResponse{}, nil
}

// NodePublishVolume implements csi.NodeServer. Kubelet calls it again every minute or so (requiresRepublish), with the
// pod's token as it is then.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csiapi.NodePublishVolumeRequest) (*csiapi.NodePublishVolumeResponse, error) {
	v, err := d.volume(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	token, expires, err := tokenOf(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if r.GetVolumeContext()[mesh.RedirectAttribute] == mesh.RedirectByCNI && !d.pods.Begun(v.Facts.UID) {
		if err := d.config.PluginReady(ctx); err != nil {
			return nil, status.Errorf(codes.Unavailable, "the pod waits for %s, which is to redirect its traffic on node %s (kubectl -n %s get daemonset %s): %v",
				mesh.CNIPlugin, d.config.Node, mesh.Namespace, mesh.CNIPlugin, err)
		}
	}
	err = d.pods.Publish(v, token, expires)
	if errors.Is(err, files.ErrNotWritten) {
		// This code has kubelet try again, and unpublish the volume if the pod goes meanwhile.
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	if err != nil {
		d.log.Error("publishing a volume", "pod", v.Facts.Namespace+"/"+v.Facts.Pod, "error", err)
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csiapi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume implements csi.NodeServer.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *csiapi.NodeUnpublishVolumeRequest) (*csiapi.NodeUnpublishVolumeResponse, error) {
	if !volumeID.MatchString(r.GetVolumeId()) || !d.inside(r.GetTargetPath(), "") {
		return nil, status.Error(codes.InvalidArgument, "volume ID or target path is not one of kubelet's")
	}
	if err := d.pods.Unpublish(r.GetVolumeId(), r.GetTargetPath()); err != nil {
		d.log.Error("removing a volume", "volume", r.GetVolumeId(), "error", err)
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csiapi.NodeUnpublishVolumeResponse{}, nil
}

// volumeID is how kubelet names inline volumes; it becomes a file name.
var volumeID = regexp.MustCompile(`^csi-[0-9a-f]{64}$`)

// volume reads who the volume is for. Kubelet overwrites what a pod's author put into these keys.
func (d *Driver) volume(r *csiapi.NodePublishVolumeRequest) (pods.Volume, error) {
	attr := r.GetVolumeContext()
	v := pods.Volume{
		ID: r.GetVolumeId(), Target: filepath.Clean(r.GetTargetPath()), Any: attr[accessAttribute] == "any",
		Facts: identity.Facts{
			Namespace: attr[kubeletPrefix+"pod.namespace"], Pod: attr[kubeletPrefix+"pod.name"], UID: attr[kubeletPrefix+"pod.uid"],
			ServiceAccount: attr[kubeletPrefix+"serviceAccount.name"],
		},
	}
	if unknown := unknownAttribute(attr); unknown != "" {
		return v, fmt.Errorf("volume attribute %q is not known; there are %s", unknown, strings.Join(attributes, ", "))
	}
	var badFiles error
	v.Files, badFiles = files.ParseSpec(attr)
	switch f := v.Facts; {
	case !volumeID.MatchString(v.ID):
		return v, fmt.Errorf("volume ID %q is not one of kubelet's", v.ID)
	case attr[kubeletPrefix+"ephemeral"] != "true":
		return v, errors.New("only inline volumes are supported")
	case !r.GetReadonly():
		return v, errors.New("the volume must be readOnly: true")
	case attr[accessAttribute] != "" && attr[accessAttribute] != "any" && attr[accessAttribute] != "proxy":
		return v, fmt.Errorf("volume attribute access is %q; use proxy or any", attr[accessAttribute])
	case attr[mesh.RedirectAttribute] != "" && attr[mesh.RedirectAttribute] != mesh.RedirectByCNI:
		return v, fmt.Errorf("volume attribute %s is %q; injection writes %s", mesh.RedirectAttribute, attr[mesh.RedirectAttribute], mesh.RedirectByCNI)
	case badFiles != nil:
		return v, badFiles
	case f.Namespace == "" || f.Pod == "" || f.UID == "" || f.ServiceAccount == "":
		return v, errors.New("kubelet did not say which pod it is for (the CSIDriver needs podInfoOnMount: true)")
	case !d.inside(v.Target, f.UID):
		return v, fmt.Errorf("target path %s is not in the pod's directory", v.Target)
	}
	return v, nil
}

// kubeletPrefix begins the attributes that kubelet sets itself.
const kubeletPrefix = "csi.storage.k8s.io/"

// attributes are those that a pod's author, or injection, may set.
var attributes = []string{accessAttribute, mesh.RedirectAttribute, files.VolumeAttribute, files.ModeAttribute, files.UIDAttribute, files.GIDAttribute}

const accessAttribute = "access"

// unknownAttribute returns the first attribute, in order, that nobody reads: a misspelt one would be ignored, and the pod would
// have another access than its author meant.
func unknownAttribute(attr map[string]string) string {
	for _, name := range slices.Sorted(maps.Keys(attr)) {
		if !strings.HasPrefix(name, kubeletPrefix) && !slices.Contains(attributes, name) {
			return name
		}
	}
	return ""
}

// inside says whether target is a CSI volume's directory below kubelet's directory of the pod, of any pod if uid is empty.
func (d *Driver) inside(target, uid string) bool {
	rest, ok := strings.CutPrefix(target, d.config.PodsDir+"/")
	if !ok || filepath.Clean(target) != target {
		return false
	}
	parts := strings.Split(rest, "/")
	return len(parts) == 5 && (uid == "" || parts[0] == uid) && parts[1] == "volumes" && parts[2] == "kubernetes.io~csi" && parts[4] == "mount"
}

// tokenOf returns the pod's bound token for Citadel, which kubelet hands over as a secret or in the volume's context.
func tokenOf(r *csiapi.NodePublishVolumeRequest) (string, time.Time, error) {
	const key = "csi.storage.k8s.io/serviceAccount.tokens"
	raw := r.GetSecrets()[key]
	if raw == "" {
		raw = r.GetVolumeContext()[key]
	}
	if raw == "" {
		return "", time.Time{}, fmt.Errorf("kubelet handed over no token (the CSIDriver needs tokenRequests with the audience %s)", mesh.CitadelAudience)
	}
	var tokens map[string]struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expirationTimestamp"`
	}
	if err := json.Unmarshal([]byte(raw), &tokens); err != nil {
		return "", time.Time{}, errors.New("the tokens that kubelet handed over are no JSON") // the error would quote them
	}
	t := tokens[mesh.CitadelAudience]
	if t.Token == "" {
		return "", time.Time{}, fmt.Errorf("kubelet handed over no token for the audience %s", mesh.CitadelAudience)
	}
	return t.Token, t.Expires, nil
}
