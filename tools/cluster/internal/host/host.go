// Package host installs the few programs that a cluster takes from Debian.
package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// needed maps a program to the package that has it. runc comes from Debian because one built from its Go module lacks
// seccomp unless libseccomp and cgo are there; kube-proxy and the portmap plugin call nft, kubelet mount and umount.
var needed = []struct{ program, pkg string }{
	{"runc", "runc"},
	{"nft", "nftables"},
	{"mount", "mount"},
	{"umount", "mount"},
}

const installTimeout = 5 * time.Minute

// Missing lists the packages to install.
func Missing() []string {
	var missing []string
	for _, n := range needed {
		if _, err := exec.LookPath(n.program); err != nil {
			missing = append(missing, n.pkg)
		}
	}
	return missing
}

// Install installs packages with apt-get.
func Install(ctx context.Context, packages []string) error {
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	if err := run(ctx, "apt-get", "update"); err != nil {
		return err
	}
	return run(ctx, "apt-get", append([]string{"install", "--yes", "--no-install-recommends"}, packages...)...)
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}
