// Package files gives a pod its certificate, key and trust bundle as files, for applications that can neither speak the
// Workload API nor stand behind a proxy. A pod asks for it in the attributes of its CSI volume.
//
// A key never touches a disk. The CSI volume itself is a directory on the node's disk, and mounting something better
// there would take CAP_SYS_ADMIN, which the agent does without. So the pod brings the place along: an emptyDir volume
// of medium Memory, which kubelet mounts as tmpfs, named by the attribute. A directory that is not in memory is refused.
//
// Nobody is signalled: the agent neither sees the processes of pods nor may it signal them, and a right to do so would
// be a right to stop any of them. Applications watch the link ..data (inotify), which changes with each renewal in one
// step, as with Kubernetes' own projected volumes.
package files

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Attributes of the CSI volume.
const (
	VolumeAttribute = "files"    // name of the pod's emptyDir
	ModeAttribute   = "fileMode" // of the key, octal; 0400 or 0440
	UIDAttribute    = "uid"      // owner of the files
	GIDAttribute    = "gid"      // and their group
)

// Spec says where a pod wants its files, and whose they are. The zero value asks for none.
type Spec struct {
	Volume string `json:"volume"`
	Mode   uint32 `json:"mode"`
	UID    int    `json:"uid"`
	GID    int    `json:"gid"`
}

// ParseSpec reads the attributes of a volume.
func ParseSpec(attributes map[string]string) (Spec, error) {
	s := Spec{Volume: attributes[VolumeAttribute], Mode: 0o400}
	if s.Volume == "" {
		for _, other := range []string{ModeAttribute, UIDAttribute, GIDAttribute} {
			if attributes[other] != "" {
				return Spec{}, fmt.Errorf("volume attribute %s means nothing without %s", other, VolumeAttribute)
			}
		}
		return Spec{}, nil
	}
	if len(validation.IsDNS1123Label(s.Volume)) > 0 {
		return Spec{}, fmt.Errorf("volume attribute %s is %q; it must be the name of an emptyDir volume of this pod with medium: Memory", VolumeAttribute, s.Volume)
	}
	if text := attributes[ModeAttribute]; text != "" {
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil || (mode != 0o400 && mode != 0o440) {
			return Spec{}, fmt.Errorf("volume attribute %s is %q; the key's mode is 0400 or 0440", ModeAttribute, text)
		}
		s.Mode = uint32(mode)
	}
	var errs error
	for name, to := range map[string]*int{UIDAttribute: &s.UID, GIDAttribute: &s.GID} {
		id, err := strconv.ParseUint(attributes[name], 10, 31)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("volume attribute %s is %q; say by number who reads the files (runAsUser and runAsGroup of the container)", name, attributes[name]))
		}
		*to = int(id)
	}
	if errs != nil {
		return Spec{}, errs
	}
	return s, nil
}

// Dir returns where kubelet has the emptyDir of the pod whose CSI volume is at target
// (<pods>/<uid>/volumes/kubernetes.io~csi/<name>/mount).
func (s Spec) Dir(target string) string {
	return filepath.Join(target, "..", "..", "..", "kubernetes.io~empty-dir", s.Volume)
}
