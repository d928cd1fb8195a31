package kube

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/binaries"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"
)

func plan(t *testing.T, nodes int) Plan {
	t.Helper()
	return planOf(t, network.IPv4, nodes)
}

func planOf(t *testing.T, f network.Families, nodes int) Plan {
	t.Helper()
	p := Plan{Name: "test", Root: t.TempDir(), Binaries: binaries.Set{}, PauseImage: "pause:1", Families: f}
	for n := 1; n <= nodes; n++ {
		p.Nodes = append(p.Nodes, NewNode(f, n, "/tree"))
	}
	return p
}

// everything that refers to files: arguments and configuration.
func everything(p Plan) string {
	var all []string
	programs := p.ControlPlane()
	for _, node := range p.Nodes {
		programs = append(append(programs, p.Containerd(node)), p.NodePrograms(node)...)
		for _, file := range p.NodeFiles(node) {
			all = append(all, file.Content)
		}
	}
	for _, program := range programs {
		all = append(all, program.Argv...)
	}
	return strings.Join(all, "\n")
}

func TestEveryCertificateThatAProgramReadsIsWritten(t *testing.T) {
	p := plan(t, 3)
	for _, dir := range []string{"pki", "kubeconfig"} {
		if err := os.MkdirAll(filepath.Join(p.Root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.WriteCertificates(time.Now()); err != nil {
		t.Fatal(err)
	}
	paths := regexp.MustCompile(regexp.QuoteMeta(p.Root)+`/(pki|kubeconfig)/[a-z0-9.-]+`).FindAllString(everything(p), -1)
	if len(paths) < 20 {
		t.Fatalf("only %d files referred to: the pattern is wrong", len(paths))
	}
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			t.Errorf("referred to, not written: %v", err)
			continue
		}
		if private := strings.HasSuffix(path, ".key") || strings.Contains(path, "/kubeconfig/"); private && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
	}
}

func TestKubeletsAreThemselvesOnly(t *testing.T) {
	for _, i := range plan(t, 2).issues() {
		isNode := strings.HasPrefix(i.leaf.CommonName, "system:node:")
		if slices.Contains(i.leaf.Organization, "system:nodes") != isNode {
			t.Errorf("%s has groups %v", i.leaf.CommonName, i.leaf.Organization)
		}
		if slices.Contains(i.leaf.Organization, "system:masters") && i.kubeconfig != "admin" {
			t.Errorf("%s is an admin", i.leaf.CommonName)
		}
	}
}

func TestCNIConfigIsOfTheNode(t *testing.T) {
	p := plan(t, 2)
	var config struct {
		Plugins []struct {
			Type string `json:"type"`
			IPAM struct {
				Ranges [][]struct{ Subnet string } `json:"ranges"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal([]byte(cniConfig(p.Nodes[1])), &config); err != nil {
		t.Fatal(err)
	}
	if got := config.Plugins[0].IPAM.Ranges[0][0].Subnet; got != "10.241.2.0/24" {
		t.Errorf("subnet of node2 is %s", got)
	}
}

// Where a cluster has both families, every program is told of both; where it has one, of no other.
func TestEveryProgramHasTheFamilies(t *testing.T) {
	words := []string{"--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112", "--node-ip=10.240.0.2,fd00:10:240::2", "clusterCIDR: 10.241.0.0/16,fd00:10:241::/48",
		`"ranges": [[{"subnet": "10.241.2.0/24"}], [{"subnet": "fd00:10:241:2::/64"}]]`}
	for _, word := range words {
		if !strings.Contains(everything(planOf(t, network.Dual, 2)), word) {
			t.Errorf("nothing has %s", word)
		}
	}
	if all := everything(plan(t, 2)); strings.Contains(all, "fd00") {
		t.Errorf("a cluster of IPv4 has addresses of IPv6: %s", all)
	}
}

func TestFingerprint(t *testing.T) {
	p := plan(t, 2)
	want, err := p.Fingerprint("addons")
	if err != nil {
		t.Fatal(err)
	}
	other := p
	other.Binaries = binaries.Set{"kubernetes": "/elsewhere"}
	fewer := p
	fewer.Nodes = p.Nodes[:1]
	for name, got := range map[string]func() (string, error){
		"binaries": func() (string, error) { return other.Fingerprint("addons") },
		"nodes":    func() (string, error) { return fewer.Fingerprint("addons") },
		"addons":   func() (string, error) { return p.Fingerprint("other addons") },
	} {
		if got, err := got(); err != nil || got == want {
			t.Errorf("%s changed, the fingerprint did not (%v)", name, err)
		}
	}
	if again, err := p.Fingerprint("addons"); err != nil || again != want {
		t.Errorf("the same plan gave %s and %s (%v)", want, again, err)
	}
}
