package csi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csiapi "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/bulwark-mesh/bulwark/agent/internal/files"
	"github.com/bulwark-mesh/bulwark/agent/internal/pods"
)

type recorded struct {
	volume  pods.Volume
	token   string
	expires time.Time
	gone    []string
	answer  error
	begun   bool
	plugin  error // why the node's CNI plugin is not in force
}

func (r *recorded) Begun(string) bool { return r.begun }

func (r *recorded) Publish(v pods.Volume, token string, expires time.Time) error {
	r.volume, r.token, r.expires = v, token, expires
	return r.answer
}

func (r *recorded) Unpublish(id, target string) error {
	r.gone = append(r.gone, id+" "+target)
	return nil
}

const (
	uid    = "a5d52806-4eb3-4f62-8dfc-d9aa595f63e5"
	target = "/var/lib/kubelet/pods/" + uid + "/volumes/kubernetes.io~csi/bulwark-identity/mount"
)

var id = "csi-" + strings.Repeat("0a", 32)

func request() *csiapi.NodePublishVolumeRequest {
	return &csiapi.NodePublishVolumeRequest{
		VolumeId: id, TargetPath: target, Readonly: true,
		VolumeContext: map[string]string{
			"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "payroll-1", "csi.storage.k8s.io/pod.namespace": "finance",
			"csi.storage.k8s.io/pod.uid": uid, "csi.storage.k8s.io/serviceAccount.name": "payroll",
			"csi.storage.k8s.io/serviceAccount.tokens": `{"bulwark.dev/citadel":{"token":"t0ken","expirationTimestamp":"2026-01-02T03:04:05Z"},"other":{"token":"x"}}`,
		},
	}
}

func newDriver() (*Driver, *recorded) {
	return newDriverIn("")
}

func newDriverIn(dir string) (*Driver, *recorded) {
	r := &recorded{}
	return New(r, Config{
		Node: "node1", PodsDir: "/var/lib/kubelet/pods", Socket: filepath.Join(dir, "csi.sock"), Endpoint: "/host/csi.sock", RegistrationSocket: filepath.Join(dir, "reg.sock"),
		PluginReady: func(context.Context) error { return r.plugin },
	}, slog.New(slog.NewTextHandler(io.Discard, nil))), r
}

func TestPublishTakesFactsAndTokenFromKubelet(t *testing.T) {
	d, r := newDriver()
	if _, err := d.NodePublishVolume(context.Background(), request()); err != nil {
		t.Fatal(err)
	}
	f := r.volume.Facts
	if f.Namespace != "finance" || f.Pod != "payroll-1" || f.UID != uid || f.ServiceAccount != "payroll" || r.volume.Target != target || r.volume.Any {
		t.Fatalf("%+v", r.volume)
	}
	if r.token != "t0ken" || !r.expires.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Fatalf("%q until %s", r.token, r.expires)
	}
	secret := request()
	secret.Secrets = map[string]string{"csi.storage.k8s.io/serviceAccount.tokens": `{"bulwark.dev/citadel":{"token":"as a secret"}}`}
	secret.VolumeContext["access"] = "any"
	if _, err := d.NodePublishVolume(context.Background(), secret); err != nil || r.token != "as a secret" || !r.volume.Any {
		t.Fatalf("%q, %v", r.token, err)
	}
}

func TestFilesAreWaitedForByKubelet(t *testing.T) {
	d, r := newDriver()
	r.answer = fmt.Errorf("%w: no SVID yet", files.ErrNotWritten)
	req := request()
	req.VolumeContext["files"], req.VolumeContext["uid"], req.VolumeContext["gid"] = "certs", "1000", "1001"
	// Of this code kubelet knows that the volume may be there in part: it tries again, and unpublishes it in the end.
	if _, err := d.NodePublishVolume(context.Background(), req); status.Code(err) != codes.Unavailable {
		t.Fatalf("%v", err)
	}
	if want := (files.Spec{Volume: "certs", Mode: 0o400, UID: 1000, GID: 1001}); r.volume.Files != want {
		t.Fatalf("%+v", r.volume.Files)
	}
}

// Kubelet makes a pod's network when it has the pod's volumes, and not again: who gets one before the plugin is there would never
// be redirected. A pod that runs is not disturbed.
func TestAPodWaitsForTheCNIPlugin(t *testing.T) {
	d, r := newDriver()
	r.plugin = errors.New("not in force")
	if _, err := d.NodePublishVolume(t.Context(), request()); err != nil {
		t.Errorf("a pod that is redirected otherwise: %v", err)
	}
	r.volume = pods.Volume{}
	req := request()
	req.VolumeContext["redirect"] = "cni"
	_, err := d.NodePublishVolume(t.Context(), req)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not in force") || !strings.Contains(err.Error(), "get daemonset bulwark-cni") {
		t.Errorf("without the plugin: %v", err)
	}
	if r.volume.ID != "" {
		t.Error("the pod has its volume without the plugin")
	}
	r.plugin = nil
	if _, err := d.NodePublishVolume(t.Context(), req); err != nil || r.volume.ID == "" {
		t.Errorf("with the plugin: %v", err)
	}
	r.plugin, r.begun = errors.New("away"), true
	if _, err := d.NodePublishVolume(t.Context(), req); err != nil {
		t.Errorf("a pod that runs: %v", err)
	}
	req.VolumeContext["redirect"] = "otherwise"
	if _, err := d.NodePublishVolume(t.Context(), req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another way: %v", err)
	}
}

func TestPublishRefuses(t *testing.T) {
	const p = "csi.storage.k8s.io/"
	for name, spoil := range map[string]func(*csiapi.NodePublishVolumeRequest){
		"a writable volume":       func(r *csiapi.NodePublishVolumeRequest) { r.Readonly = false },
		"a persistent volume":     func(r *csiapi.NodePublishVolumeRequest) { delete(r.VolumeContext, p+"ephemeral") },
		"an ID with a path":       func(r *csiapi.NodePublishVolumeRequest) { r.VolumeId = "../../etc/x" },
		"no pod":                  func(r *csiapi.NodePublishVolumeRequest) { delete(r.VolumeContext, p+"pod.uid") },
		"no tokens":               func(r *csiapi.NodePublishVolumeRequest) { delete(r.VolumeContext, p+"serviceAccount.tokens") },
		"tokens that are no JSON": func(r *csiapi.NodePublishVolumeRequest) { r.VolumeContext[p+"serviceAccount.tokens"] = "s3cret" },
		"a token for another": func(r *csiapi.NodePublishVolumeRequest) {
			r.VolumeContext[p+"serviceAccount.tokens"] = `{"x":{"token":"y"}}`
		},
		"another pod's directory":   func(r *csiapi.NodePublishVolumeRequest) { r.TargetPath = strings.Replace(target, "a5d5", "ffff", 1) },
		"a directory of the host":   func(r *csiapi.NodePublishVolumeRequest) { r.TargetPath = "/etc" },
		"a path that climbs":        func(r *csiapi.NodePublishVolumeRequest) { r.TargetPath = target + "/../../../../mount" },
		"another kind of volume":    func(r *csiapi.NodePublishVolumeRequest) { r.TargetPath = strings.Replace(target, "~csi", "~secret", 1) },
		"files of nobody":           func(r *csiapi.NodePublishVolumeRequest) { r.VolumeContext["files"] = "certs" },
		"an owner of no files":      func(r *csiapi.NodePublishVolumeRequest) { r.VolumeContext["uid"] = "1000" },
		"an attribute nobody reads": func(r *csiapi.NodePublishVolumeRequest) { r.VolumeContext["acces"] = "any" },
		"an access nobody defined":  func(r *csiapi.NodePublishVolumeRequest) { r.VolumeContext["access"] = "everyone" },
	} {
		d, r := newDriver()
		req := request()
		spoil(req)
		_, err := d.NodePublishVolume(context.Background(), req)
		if status.Code(err) != codes.InvalidArgument || r.volume.ID != "" {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error quotes the token", name)
		}
	}
}

func TestUnpublishHoldsToKubeletsDirectories(t *testing.T) {
	d, r := newDriver()
	for _, bad := range []string{"/etc", "/var/lib/kubelet/pods", target + "/..", "/var/lib/kubelet/pods/../../../etc/x/volumes/kubernetes.io~csi/y/mount"} {
		if _, err := d.NodeUnpublishVolume(context.Background(), &csiapi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: bad}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := d.NodeUnpublishVolume(context.Background(), &csiapi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target}); err != nil {
		t.Fatal(err)
	}
	if len(r.gone) != 1 || r.gone[0] != id+" "+target {
		t.Fatalf("%q", r.gone)
	}
}

func TestKubeletFindsTheDriver(t *testing.T) {
	dir := t.TempDir()
	d, _ := newDriverIn(dir)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- d.Serve(ctx) }()
	go func() { done <- d.ServeRegistration(ctx) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()
	dial := func(name string) *grpc.ClientConn {
		conn, err := grpc.NewClient("unix://"+filepath.Join(dir, name), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	call, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	registration := registerapi.NewRegistrationClient(dial("reg.sock"))
	info, err := registration.GetInfo(call, &registerapi.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.GetType() != "CSIPlugin" || info.GetName() != "csi.bulwark.dev" || info.GetEndpoint() != "/host/csi.sock" {
		t.Fatalf("%v, %v", info, err)
	}
	if d.Registered() == nil {
		t.Fatal("registered before kubelet said so")
	}
	if _, err := registration.NotifyRegistrationStatus(call, &registerapi.RegistrationStatus{PluginRegistered: true}); err != nil || d.Registered() != nil {
		t.Fatalf("%v, %v", err, d.Registered())
	}
	node := csiapi.NewNodeClient(dial("csi.sock"))
	if got, err := node.NodeGetInfo(call, &csiapi.NodeGetInfoRequest{}, grpc.WaitForReady(true)); err != nil || got.GetNodeId() != "node1" {
		t.Fatalf("%v, %v", got, err)
	}
	if err := d.Alive(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "csi.sock")); err != nil {
		t.Fatal(err)
	}
	if d.Alive() == nil {
		t.Fatal("alive without its socket")
	}
}
