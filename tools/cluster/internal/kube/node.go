package kube

import (
	"fmt"
	"strings"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"
)

// File is a file to write before a node's programs start.
type File struct {
	Path    string
	Content string
}

// Containerd starts first on a node: images are loaded while the API server still starts.
func (p Plan) Containerd(node Node) Program {
	return Program{"containerd-" + node.Name, []string{
		p.Binaries.Path("containerd", "containerd"), "--config", p.NodeDir(node, "containerd.toml"),
	}}
}

// NodePrograms are what needs the API server on a node.
func (p Plan) NodePrograms(node Node) []Program {
	return []Program{
		{"kubelet-" + node.Name, []string{
			p.Binaries.Path("kubernetes", "kubelet"),
			"--config=" + p.NodeDir(node, "kubelet.yaml"),
			"--kubeconfig=" + p.kubeconfig(node.Name),
			"--hostname-override=" + node.Name,
			"--node-ip=" + list(node.IPs),
		}},
		{"kube-proxy-" + node.Name, []string{
			p.Binaries.Path("kubernetes", "kube-proxy"), "--config=" + p.NodeDir(node, "kube-proxy.yaml"),
		}},
	}
}

// tunables are settings of the whole machine's kernel that kubelet insists on. They are not the cluster's to change: on a
// node files that say what kubelet wants to read are bound over the true ones.
var tunables = []struct{ name, value string }{
	{"vm/overcommit_memory", "1"},
	{"vm/panic_on_oom", "0"},
	{"kernel/panic", "10"},
	{"kernel/panic_on_oops", "1"},
	{"kernel/keys/root_maxkeys", "1000000"},
	{"kernel/keys/root_maxbytes", "25000000"},
}

func (p Plan) tunableFile(node Node, name string) string { return p.NodeDir(node, "sysctl", name) }

// TunableBinds are the files to bind so that kubelet leaves the machine's kernel settings alone.
func (p Plan) TunableBinds(node Node) [][2]string {
	var binds [][2]string
	for _, tunable := range tunables {
		binds = append(binds, [2]string{p.tunableFile(node, tunable.name), "/proc/sys/" + tunable.name})
	}
	return binds
}

// NodeFiles are the configuration of a node's programs.
func (p Plan) NodeFiles(node Node) []File {
	files := []File{
		{p.NodeDir(node, "containerd.toml"), p.containerdConfig(node)},
		{p.NodeDir(node, "kubelet.yaml"), p.kubeletConfig(node)},
		{p.NodeDir(node, "kube-proxy.yaml"), p.kubeProxyConfig(node)},
		{p.NodeDir(node, "cni-conf", "net.d", "10-bulwark-cluster.conflist"), cniConfig(node)},
		// Nothing outside the cluster is ever to be resolved: what a pod with dnsPolicy Default asks goes nowhere.
		{p.NodeDir(node, "resolv.conf"), "nameserver " + DNSAddress + "\n"},
	}
	for _, tunable := range tunables {
		files = append(files, File{p.tunableFile(node, tunable.name), tunable.value + "\n"})
	}
	return files
}

// restrict_oom_score_adj: without CAP_SYS_RESOURCE a negative value is refused, and with it every sandbox.
func (p Plan) containerdConfig(node Node) string {
	return fmt.Sprintf(`version = 3
root = %[1]q
state = "/run/containerd"

[grpc]
address = %[2]q

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %[3]q

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "runc"
SystemdCgroup = false
`, p.NodeDir(node, "containerd"), p.Socket(node), p.PauseImage)
}

// kubeletConfig is a JSON-like YAML: short sync for CSI's requiresRepublish, no eviction, no image collection: a full
// disk is for its owner to see, not for a test to fail by.
func (p Plan) kubeletConfig(node Node) string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %[1]s}
authorization: {mode: Webhook}
tlsCertFile: %[2]s
tlsPrivateKeyFile: %[3]s
cgroupDriver: cgroupfs
cgroupRoot: %[4]s
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
containerRuntimeEndpoint: unix://%[5]s
clusterDNS: [%[6]s]
clusterDomain: %[7]s
resolvConf: %[8]s
volumePluginDir: /var/lib/kubelet/volumeplugins
makeIPTablesUtilChains: false
syncFrequency: 10s
serializeImagePulls: false
kubeAPIQPS: 50
kubeAPIBurst: 100
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%", imagefs.inodesFree: "0%%"}
imageGCHighThresholdPercent: 100
healthzPort: 0
`, p.pki("ca.crt"), p.pki(node.Name+"-serving.crt"), p.pki(node.Name+"-serving.key"), node.Cgroup,
		p.Socket(node), DNSAddress, Domain, p.NodeDir(node, "resolv.conf"))
}

// The sysctls of conntrack are not writable everywhere: zero leaves them as they are.
func (p Plan) kubeProxyConfig(node Node) string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %[1]s}
hostnameOverride: %[2]s
mode: nftables
clusterCIDR: %[3]s
oomScoreAdj: 0
bindAddressHardFail: true
nftables: {minSyncPeriod: 100ms, syncPeriod: 30s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, p.kubeconfig("kube-proxy"), node.Name, list(network.AllPods(p.Families)))
}

// Every node routes to every pod range: nothing is masqueraded, so pods see each other's true addresses.
func cniConfig(node Node) string {
	var subnets []string // a pod has an address of each
	for _, pods := range node.Pods {
		subnets = append(subnets, fmt.Sprintf(`[{"subnet": %q}]`, pods))
	}
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "bulwark-cluster",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "isDefaultGateway": true,
      "ipMasq": false,
      "hairpinMode": true,
      "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [%s]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}
  ]
}
`, strings.Join(subnets, ", "))
}
