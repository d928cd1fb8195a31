package inject

import (
	"fmt"
	"maps"
	"slices"

	core "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/delivery"
	"github.com/bulwark-mesh/bulwark/pilot/internal/handshake"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// secretVolume is the name of the volume with the account's Secret.
const secretVolume = "bulwark-secret"

// mountSecret puts the account's Secret into the proxy, and beside it what tells Envoy of it, which comes by way of
// annotations. The pod waits until Citadel has made the Secret.
func mountSecret(pod *core.Pod, proxy *core.Container) error {
	files := handshake.SecretFiles()
	downward := &core.DownwardAPIProjection{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text, err := reproducible(files[name])
		if err != nil {
			return fmt.Errorf("file %s of the proxy: %w", name, err)
		}
		annotation := delivery.Label + "." + name
		pod.Annotations[annotation] = text
		downward.Items = append(downward.Items, core.DownwardAPIVolumeFile{Path: name,
			FieldRef: &core.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.annotations['" + annotation + "']"}})
	}
	secret := &core.SecretProjection{LocalObjectReference: core.LocalObjectReference{Name: mesh.SecretName(accountOf(pod))}, Optional: ptr(false)}
	for _, entry := range []string{mesh.CertChainKey, mesh.PrivateKeyKey, mesh.RootCertKey} {
		secret.Items = append(secret.Items, core.KeyToPath{Key: entry, Path: entry})
	}
	pod.Annotations[delivery.Label] = string(delivery.BySecret)
	pod.Spec.Volumes = append(pod.Spec.Volumes, core.Volume{Name: secretVolume, VolumeSource: core.VolumeSource{Projected: &core.ProjectedVolumeSource{
		DefaultMode: ptr(int32(0o444)), // the proxy, which is not root, is the only container that has it
		Sources:     []core.VolumeProjection{{Secret: secret}, {DownwardAPI: downward}},
	}}})
	proxy.VolumeMounts = append(proxy.VolumeMounts, core.VolumeMount{Name: secretVolume, MountPath: handshake.FilesPath, ReadOnly: true})
	return nil
}
