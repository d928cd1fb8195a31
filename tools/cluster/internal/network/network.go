// Package network joins the nodes' network namespaces by a bridge in a namespace of its own: the fabric.
package network

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const bridgeName = "fabric"

// Gateway is the fabric's own address. It leads nowhere: what is sent beyond the cluster is answered "unreachable" at once.
var Gateway = netip.MustParseAddr("10.240.0.254")

// Node is one node's place in the network.
type Node struct {
	Name string
	PID  int // a process in its network namespace
	IP   netip.Addr
	Pods netip.Prefix
}

// NodeIP is the address of the nth node, counted from 1.
func NodeIP(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 240, 0, byte(n)}) }

// PodRange is the address range of the nth node's pods.
func PodRange(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 241, byte(n), 0}), 24)
}

// Connect makes the bridge in the fabric's namespace and joins every node to it.
func Connect(fabricPID int, nodes []Node) error {
	fabric, err := handle(fabricPID)
	if err != nil {
		return err
	}
	defer fabric.Close()
	if err := fabric.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}); err != nil {
		return fmt.Errorf("make the fabric bridge: %w", err)
	}
	if err := up(fabric, "lo"); err != nil {
		return err
	}
	if err := addressed(fabric, bridgeName, Gateway); err != nil {
		return err
	}
	nowhere := &netlink.Route{Dst: anywhere(), Type: unix.RTN_UNREACHABLE}
	if err := fabric.RouteAdd(nowhere); err != nil {
		return fmt.Errorf("route from the fabric to nowhere: %w", err)
	}
	for _, node := range nodes {
		if err := join(fabric, fabricPID, node, nodes); err != nil {
			return fmt.Errorf("join %s to the fabric: %w", node.Name, err)
		}
	}
	return nil
}

func join(fabric *netlink.Handle, fabricPID int, node Node, all []Node) error {
	inside, err := handle(node.PID)
	if err != nil {
		return err
	}
	defer inside.Close()
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: "eth0"},
		PeerName:      node.Name,
		PeerNamespace: netlink.NsPid(fabricPID),
	}
	if err := inside.LinkAdd(pair); err != nil {
		return fmt.Errorf("make the veth pair: %w", err)
	}
	bridge, err := fabric.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find the bridge: %w", err)
	}
	port, err := fabric.LinkByName(node.Name)
	if err != nil {
		return fmt.Errorf("find the veth's end: %w", err)
	}
	if err := fabric.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("plug the veth into the bridge: %w", err)
	}
	if err := fabric.LinkSetUp(port); err != nil {
		return fmt.Errorf("set %s up: %w", node.Name, err)
	}
	if err := up(inside, "lo"); err != nil {
		return err
	}
	if err := addressed(inside, "eth0", node.IP); err != nil {
		return err
	}
	if err := inside.RouteAdd(&netlink.Route{Dst: anywhere(), Gw: Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	for _, other := range all {
		if other.Name == node.Name {
			continue
		}
		if err := inside.RouteAdd(&netlink.Route{Dst: ipNet(other.Pods), Gw: other.IP.AsSlice()}); err != nil {
			return fmt.Errorf("route to the pods of %s: %w", other.Name, err)
		}
	}
	return nil
}

func handle(pid int) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of process %d: %w", pid, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil, fmt.Errorf("open netlink in the namespace of process %d: %w", pid, err)
	}
	return h, nil
}

func up(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func addressed(h *netlink.Handle, name string, ip netip.Addr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, ip, err)
	}
	return up(h, name)
}

func anywhere() *net.IPNet { return &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)} }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}
