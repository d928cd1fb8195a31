package redirect

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// source6 is from where the proxy hands connections of IPv6 to its application, as it does with mesh.InboundSourceIPv4. Every address of 127.0.0.0/8 is the pod's
// own; of IPv6 only ::1 is, and whoever is called from there takes the caller for a process of the pod.
var source6 = net.ParseIP(mesh.InboundSourceIPv6)

// addSource puts it onto the loopback device, if the pod has an address of IPv6 by which it can be called at all.
func addSource() error {
	called, err := calledByIPv6()
	if err != nil || !called {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for the loopback device: %w", err)
	}
	// An address that is no longer preferred is never chosen for a connection that names none (RFC 6724, rule 3).
	a := sourceAddress()
	a.ValidLft, a.PreferedLft = math.MaxUint32, 0
	if err := netlink.AddrReplace(lo, a); err != nil && !errors.Is(err, unix.EACCES) { // IPv6 is switched off for that device: its proxy does not reach the application by it
		return fmt.Errorf("giving the loopback device the address %s: %w", source6, err)
	}
	return nil
}

// removeSource takes it away, if it is there.
func removeSource() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for the loopback device: %w", err)
	}
	if err := netlink.AddrDel(lo, sourceAddress()); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("taking the address %s from the loopback device: %w", source6, err)
	}
	return nil
}

func sourceAddress() *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: source6, Mask: net.CIDRMask(128, 128)}}
}

// calledByIPv6 reports whether the network namespace has an address of IPv6 that others can call: none where the kernel has no IPv6 or it is switched off.
func calledByIPv6() (bool, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_V6)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return false, fmt.Errorf("listing the addresses of IPv6: %w", err)
	}
	return slices.ContainsFunc(all, func(a netlink.Addr) bool { return a.IP.IsGlobalUnicast() && !a.IP.Equal(source6) }), nil
}
