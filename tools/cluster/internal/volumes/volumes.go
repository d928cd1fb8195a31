// Package volumes gives a cluster a default StorageClass and a few local volumes on its first node. There is no
// provisioner: a volume that was released is emptied and made available again by the next `up`.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/kubeapi"
)

const (
	count  = 6
	onNode = "/var/lib/bulwark/volumes" // as the node sees it
	gone   = 10 * time.Second
)

const class = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: kubernetes.io/no-provisioner
reclaimPolicy: Retain
volumeBindingMode: WaitForFirstConsumer
`

const volume = `
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-%[1]d}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {path: %[2]s/%[1]d}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions:
        - {key: kubernetes.io/hostname, operator: In, values: [%[3]s]}
`

// Ensure makes what is missing. Dir is the machine's directory that the node sees as /var/lib/bulwark.
func Ensure(ctx context.Context, client *kubeapi.Client, node, dir string) error {
	if err := client.Apply(ctx, "/apis/storage.k8s.io/v1/storageclasses/local", []byte(class)); err != nil {
		return fmt.Errorf("apply the StorageClass: %w", err)
	}
	for i := range count {
		if err := ensure(ctx, client, node, dir, i); err != nil {
			return fmt.Errorf("local volume %d: %w", i, err)
		}
	}
	return nil
}

func ensure(ctx context.Context, client *kubeapi.Client, node, dir string, i int) error {
	path := fmt.Sprintf("/api/v1/persistentvolumes/local-%d", i)
	files := filepath.Join(dir, "volumes", fmt.Sprint(i))
	var current struct {
		Status struct{ Phase string }
	}
	err := client.Get(ctx, path, &current)
	if err != nil && !notFound(err) {
		return err
	}
	if err == nil && current.Status.Phase != "Released" && current.Status.Phase != "Failed" {
		return nil
	}
	if err == nil {
		if err := remove(ctx, client, path); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(files); err != nil {
		return err
	}
	if err := os.MkdirAll(files, 0o770); err != nil {
		return err
	}
	return client.Apply(ctx, path, fmt.Appendf(nil, volume, i, onNode, node))
}

// remove deletes an object and returns when it is gone.
func remove(ctx context.Context, client *kubeapi.Client, path string) error {
	ctx, cancel := context.WithTimeout(ctx, gone)
	defer cancel()
	if err := client.Delete(ctx, path); err != nil && !notFound(err) {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var ignored struct{}
		if err := client.Get(ctx, path, &ignored); notFound(err) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is still there: %w", path, ctx.Err())
		}
	}
}

func notFound(err error) bool {
	var status *kubeapi.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}
