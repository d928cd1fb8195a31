package cgroup

import (
	"slices"
	"testing"
)

const (
	v1Mounts = `31 24 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
33 31 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
`
	v2Mount = `34 31 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`
)

func TestHierarchies(t *testing.T) {
	onV1, onV2 := []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/systemd"}, []string{"/sys/fs/cgroup/unified"}
	for _, tc := range []struct {
		name, mounts string
		v1, v2       []string
	}{
		{"v1", v1Mounts, onV1, nil},
		{"hybrid", v1Mounts + v2Mount, onV1, onV2},
		{"unified", v2Mount, nil, onV2},
		{"none", "1 0 8:1 / / rw - ext4 /dev/vda rw\n", nil, nil},
	} {
		if v1, v2 := hierarchies(tc.mounts); !slices.Equal(v1, tc.v1) || !slices.Equal(v2, tc.v2) {
			t.Errorf("%s: got %v and %v, want %v and %v", tc.name, v1, v2, tc.v1, tc.v2)
		}
	}
}
