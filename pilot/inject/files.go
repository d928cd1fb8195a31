package inject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// Files of a pod's author for the proxy, such as the certificates that a DestinationRule names. They come from the namespace's Secrets and ConfigMaps, which the author may
// mount anyway, and the proxy alone has them.

const (
	userVolume      = "sidecar.istio.io/userVolume"
	userVolumeMount = "sidecar.istio.io/userVolumeMount"
	maxUserVolumes  = 10
)

// volumes reads the annotation userVolume: a JSON object of volumes by their names, or a list of volumes.
func volumes(c *choices, value string) error {
	all, err := byNames(value, func(name string, v core.VolumeSource) core.Volume { return core.Volume{Name: name, VolumeSource: v} })
	if err != nil {
		return fmt.Errorf("%w; it is an object of volumes by name, such as "+`{"certs": {"secret": {"secretName": "certs"}}}`, err)
	}
	names := map[string]bool{mesh.IdentityVolume: true, secretVolume: true}
	for _, v := range all {
		switch {
		case len(validation.IsDNS1123Label(v.Name)) > 0 || names[v.Name]:
			return fmt.Errorf("%q is no name for a volume, or another one has it", v.Name)
		case !ofNamespace(v.VolumeSource):
			return fmt.Errorf("volume %q: only a secret, a configMap, or a projection of these", v.Name)
		}
		names[v.Name] = true
	}
	c.volumes = all
	return nil
}

// ofNamespace reports whether a volume has nothing but Secrets and ConfigMaps of the pod's namespace.
func ofNamespace(v core.VolumeSource) bool {
	switch {
	case v.Secret != nil:
		return v == core.VolumeSource{Secret: v.Secret}
	case v.ConfigMap != nil:
		return v == core.VolumeSource{ConfigMap: v.ConfigMap}
	case v.Projected != nil:
		return v == core.VolumeSource{Projected: v.Projected} && !slices.ContainsFunc(v.Projected.Sources, func(p core.VolumeProjection) bool {
			return p.Secret == nil && p.ConfigMap == nil || p.ServiceAccountToken != nil || p.DownwardAPI != nil || p.ClusterTrustBundle != nil || p.PodCertificate != nil
		})
	}
	return false
}

// mounts reads the annotation userVolumeMount: a JSON object of mounts by the names of their volumes, or a list of mounts.
func mounts(c *choices, value string) error {
	all, err := byNames(value, func(name string, m core.VolumeMount) core.VolumeMount { m.Name = name; return m })
	if err != nil {
		return fmt.Errorf("%w; it is an object of mounts by the names of volumes, such as "+`{"certs": {"mountPath": "/etc/certs"}}`, err)
	}
	paths := map[string]bool{}
	for i, m := range all {
		if !forUsers(m.MountPath) || paths[m.MountPath] {
			return fmt.Errorf("mountPath %q: give each a directory of its own below /etc, such as /etc/certs, that is not the proxy's own", m.MountPath)
		}
		if m.SubPath != "" || m.SubPathExpr != "" || m.MountPropagation != nil {
			return fmt.Errorf("mountPath %q: has more than name, mountPath and readOnly", m.MountPath)
		}
		paths[m.MountPath] = true
		all[i].ReadOnly = true
	}
	c.mounts = all
	return nil
}

// forUsers reports whether files of a pod's author may be in a directory of the proxy's container. What the proxy itself reads is elsewhere.
func forUsers(dir string) bool {
	rest, ok := strings.CutPrefix(dir, "/etc/")
	first, _, _ := strings.Cut(rest, "/")
	return ok && path.Clean(dir) == dir && first != "" && !slices.Contains([]string{"bulwark", "ssl", "passwd", "group", "nsswitch.conf", "hosts", "hostname", "resolv.conf"}, first)
}

// byNames reads a JSON object by names, or a list of what has names, in the order of names.
func byNames[S, T any](value string, of func(name string, s S) T) (out []T, err error) {
	if strings.HasPrefix(strings.TrimSpace(value), "[") {
		err = strictly(value, &out)
	} else {
		var by map[string]S
		err = strictly(value, &by)
		for _, name := range slices.Sorted(maps.Keys(by)) {
			out = append(out, of(name, by[name]))
		}
	}
	if err == nil && len(out) > maxUserVolumes {
		err = fmt.Errorf("has more than %d elements", maxUserVolumes)
	}
	return out, err
}

func strictly(value string, into any) error {
	d := json.NewDecoder(bytes.NewReader([]byte(value)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("cannot be read as JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("has more than one JSON value")
	}
	return nil
}

// unmounted says what does not fit of volumes, mounts and what a pod has itself.
func (c *choices) unmounted(pod *core.Pod) error {
	own, theirs := map[string]bool{}, map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		theirs[v.Name] = true
	}
	for _, v := range c.volumes {
		if theirs[v.Name] {
			return fmt.Errorf("annotation %s: the pod has a volume %q itself; choose another name", userVolume, v.Name)
		}
		own[v.Name] = true
	}
	for _, m := range c.mounts {
		if !own[m.Name] {
			return fmt.Errorf("annotation %s: no volume %q is in the annotation %s", userVolumeMount, m.Name, userVolume)
		}
	}
	return nil
}

// mountFiles gives the proxy the files that were chosen.
func mountFiles(pod *core.Pod, proxy *core.Container, ch choices) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, ch.volumes...)
	proxy.VolumeMounts = append(proxy.VolumeMounts, ch.mounts...)
}
