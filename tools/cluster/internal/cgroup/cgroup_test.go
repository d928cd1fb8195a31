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
	for _, tc := range []struct {
		name, mounts string
		want         []string
	}{
		{"v1 and hybrid use v1", v1Mounts + v2Mount, []string{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/systemd"}},
		{"unified", v2Mount, []string{"/sys/fs/cgroup/unified"}},
		{"none", "1 0 8:1 / / rw - ext4 /dev/vda rw\n", nil},
	} {
		if got := hierarchies(tc.mounts); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}
