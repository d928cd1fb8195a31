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

// Node is one node's place in the network.
type Node struct {
	Name string
	PID  int // a process in its network namespace
	IPs  []netip.Addr
	Pods []netip.Prefix
}

// Connect makes the bridge in the fabric's namespace and joins every node to it.
func Connect(f Families, fabricPID int, nodes []Node) error {
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
	for _, gateway := range Gateways(f) {
		if err := addressed(fabric, bridgeName, gateway); err != nil {
			return err
		}
		nowhere := &netlink.Route{Dst: anywhere(gateway), Type: unix.RTN_UNREACHABLE}
		if err := fabric.RouteAdd(nowhere); err != nil {
			return fmt.Errorf("route from the fabric to nowhere: %w", err)
		}
	}
	for _, node := range nodes {
		if err := join(f, fabric, fabricPID, node, nodes); err != nil {
			return fmt.Errorf("join %s to the fabric: %w", node.Name, err)
		}
	}
	return nil
}

func join(f Families, fabric *netlink.Handle, fabricPID int, node Node, all []Node) error {
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
	for i, gateway := range Gateways(f) {
		if err := addressed(inside, "eth0", node.IPs[i]); err != nil {
			return err
		}
		if err := inside.RouteAdd(&netlink.Route{Dst: anywhere(gateway), Gw: gateway.AsSlice()}); err != nil {
			return fmt.Errorf("add the default route: %w", err)
		}
	}
	for _, other := range all {
		if other.Name == node.Name {
			continue
		}
		for i, pods := range other.Pods {
			if err := inside.RouteAdd(&netlink.Route{Dst: ipNet(pods), Gw: other.IPs[i].AsSlice()}); err != nil {
				return fmt.Errorf("route to the pods of %s: %w", other.Name, err)
			}
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
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, 24))}
	if ip.Is6() { // which nobody else can have here: there is nothing to wait for
		addr = &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(ip, 64)), Flags: unix.IFA_F_NODAD}
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, ip, err)
	}
	return up(h, name)
}

// anywhere is every address of the family of one.
func anywhere(like netip.Addr) *net.IPNet {
	if like.Is6() {
		return ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	}
	return ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
