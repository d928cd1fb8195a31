package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/state"
	"github.com/bulwark-mesh/bulwark/tools/oci"
)

const loadLimit = 3 * time.Minute

// Load imports image archives into every node that does not have them yet.
func (c *Cluster) Load(ctx context.Context, archives []string) error {
	record, err := c.Running()
	if err != nil {
		return err
	}
	return load(ctx, record, archives, c.log)
}

func load(ctx context.Context, record state.Record, archives []string, log *Progress) error {
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range record.Nodes {
		group.Go(func() error {
			images := store{ctr: record.Binaries.Path("containerd", "ctr"), socket: node.Socket}
			loaded, err := images.load(ctx, archives)
			if err != nil {
				return fmt.Errorf("load images into %s: %w", node.Name, err)
			}
			log.Note("%s: %d images loaded, %d already there", node.Name, loaded, len(archives)-loaded)
			return nil
		})
	}
	return group.Wait()
}

// store is the image store of one node.
type store struct{ ctr, socket string }

func (s store) load(ctx context.Context, archives []string) (loaded int, err error) {
	have, err := s.digests(ctx)
	if err != nil {
		return 0, err
	}
	for _, archive := range archives {
		entries, err := oci.List(archive)
		if err != nil {
			return loaded, err
		}
		if contains(have, entries) {
			continue
		}
		if _, err := s.run(ctx, "import", archive); err != nil {
			return loaded, err
		}
		loaded++
	}
	return loaded, nil
}

func contains(have map[string]string, entries []oci.Entry) bool {
	for _, entry := range entries {
		if have[entry.Ref] != entry.Digest {
			return false
		}
	}
	return true
}

// digests of all images on the node, by name.
func (s store) digests(ctx context.Context) (map[string]string, error) {
	list, err := s.run(ctx, "list")
	if err != nil {
		return nil, err
	}
	return parseList(list), nil
}

// parseList reads `ctr images list`, whose columns begin with the name, the media type and the digest.
func parseList(list string) map[string]string {
	digests := map[string]string{}
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) >= 3 && strings.HasPrefix(fields[2], "sha256:") {
			digests[fields[0]] = fields[2]
		}
	}
	return digests
}

func (s store) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.ctr, append([]string{"--address", s.socket, "--namespace", "k8s.io", "images"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("ctr images %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
