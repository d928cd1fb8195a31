// Package kube says how each program of a cluster is run: certificates, configuration files, arguments. It renders; it
// starts nothing.
package kube

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/binaries"
	"github.com/bulwark-mesh/bulwark/tools/cluster/internal/network"
)

// The cluster's fixed addresses.
const (
	DNSAddress = "10.96.0.10"
	apiService = "10.96.0.1"
	Domain     = "cluster.local"
	issuer     = "https://kubernetes.default.svc." + Domain
	APIPort    = "6443"
)

// Plan is a cluster to be made.
type Plan struct {
	Name     string
	Root     string // the cluster's directory
	Binaries binaries.Set
	Nodes    []Node
	Families network.Families
	// PauseImage is the name of the sandbox image.
	PauseImage string
}

// Node of a plan, counted from 1.
type Node struct {
	Number int
	Name   string
	IPs    []netip.Addr // of each family
	Pods   []netip.Prefix
	// Cgroup is kubelet's root in every hierarchy.
	Cgroup string
}

// Program is one process to run.
type Program struct {
	Name string
	Argv []string
}

// NewNode is the nth node of a cluster whose cgroup tree is at tree.
func NewNode(f network.Families, n int, tree string) Node {
	name := "node" + string('0'+rune(n))
	return Node{
		Number: n, Name: name, IPs: network.NodeIPs(f, n), Pods: network.PodRanges(f, n),
		Cgroup: filepath.Join(tree, name),
	}
}

// IP is the node's first address.
func (n Node) IP() netip.Addr { return n.IPs[0] }

// list is values as flags have them.
func list[T fmt.Stringer](values []T) string {
	var out []string
	for _, v := range values {
		out = append(out, v.String())
	}
	return strings.Join(out, ",")
}

// MaxNodes keeps node names and addresses to one digit: a laptop runs no more.
const MaxNodes = 9

func (p Plan) pki(file string) string { return filepath.Join(p.Root, "pki", file) }

func (p Plan) kubeconfig(user string) string { return filepath.Join(p.Root, "kubeconfig", user) }

// APIServer is where the cluster itself reaches the API server.
func (p Plan) APIServer() string { return "https://" + p.Nodes[0].IP().String() + ":" + APIPort }

// NodeDir is a path in a node's directory.
func (p Plan) NodeDir(node Node, parts ...string) string {
	return filepath.Join(append([]string{p.Root, node.Name}, parts...)...)
}

// Socket is where a node's containerd listens. It is on the machine's file system, so that images can be loaded from
// outside the node.
func (p Plan) Socket(node Node) string { return p.NodeDir(node, "containerd.sock") }

// Binds are the node's own directories and the places they are seen at on the node.
func (p Plan) Binds(node Node) [][2]string {
	return [][2]string{
		{p.NodeDir(node, "kubelet"), "/var/lib/kubelet"},
		{p.NodeDir(node, "pods-log"), "/var/log/pods"},
		{p.NodeDir(node, "containers-log"), "/var/log/containers"},
		{p.NodeDir(node, "cni-conf"), "/etc/cni"},
		{p.NodeDir(node, "cni"), "/opt/cni"},
		{p.NodeDir(node, "cni-cache"), "/var/lib/cni"},
		{p.NodeDir(node, "containerd-opt"), "/opt/containerd"},
		// The mesh's node agent spools here.
		{p.NodeDir(node, "bulwark"), "/var/lib/bulwark"},
	}
}
