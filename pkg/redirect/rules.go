// Package redirect sends the traffic of a pod through its proxy, by nftables in the pod's network namespace.
//
//	output:     TCP of the application, to anywhere ─► 15001; the proxy's own traffic (uid or gid 1337) goes out as it is
//	prerouting: TCP from outside ─► 15006
//
// Both families are redirected. One the proxy does not listen on is then refused rather than let past it. A pod that has IPv6 gets an address on its loopback device
// from which the proxy reaches the application (source.go).
//
// The node's CNI plugin applies the rules, or an init container of the pod that has the privilege.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// ownPorts are the proxy's: kubelet and Prometheus reach them directly, and no rule may send the proxy's traffic to itself.
var ownPorts = []uint16{mesh.ProxyHealthPort, mesh.ProxyStatsPort}

const table = "bulwark"

// Proofs are addresses of documentation, where nobody is: what an application sends there comes to the proxy's port whatever
// the pod excludes. Whoever has no privilege to look at the rules finds out so that they are there, all of them: they came in
// one transaction.
var Proofs = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// Apply puts the rules into the network namespace of this thread, replacing those of an earlier call in one
// transaction.
func Apply(o Options) error {
	if err := addSource(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w (it takes NET_ADMIN)", err)
		}
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	// Adding before deleting makes the deletion succeed when there is none, in the same transaction.
	t := c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	c.DelTable(t)
	t = c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	addOutput(c, t, o)
	addPrerouting(c, t, o)
	if err := c.Flush(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("nftables: %w (it takes NET_ADMIN)", err)
		}
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Applied says whether the network namespace of this thread has the rules.
func Applied() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == table }), nil
}

// Remove takes out what Apply has put in.
func Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyINet})
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return removeSource()
}

func addOutput(c *nftables.Conn, t *nftables.Table, o Options) {
	chain := c.AddChain(&nftables.Chain{
		Name: "output", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	add := func(parts ...[]expr.Any) { c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: join(parts...)}) }

	// The proxy hands a connection that came in to its application: from an address of its own, and never back to itself. Whoever takes that address to leave the
	// pod is redirected like everybody.
	for _, from := range []string{mesh.InboundSourceIPv4, mesh.InboundSourceIPv6} {
		a := netip.MustParseAddr(from)
		add(tcp(), source(netip.PrefixFrom(a, a.BitLen())), toLoopbackDevice(), accept())
	}
	// An application that calls its own service: the proxy, as the client's, picks this very pod. The connection then
	// has to pass the server's side of the proxy like any other, or its policies would not hold.
	for _, owner := range []expr.MetaKey{expr.MetaKeySKUID, expr.MetaKeySKGID} {
		for _, own := range ownPorts {
			add(tcp(), ownedBy(owner), toLoopbackDevice(), notToLocalhost(nftables.TableFamilyIPv4), port(own), accept())
			add(tcp(), ownedBy(owner), toLoopbackDevice(), notToLocalhost(nftables.TableFamilyIPv6), port(own), accept())
		}
		add(tcp(), ownedBy(owner), toLoopbackDevice(), notToLocalhost(nftables.TableFamilyIPv4), redirect(mesh.InboundPort))
		add(tcp(), ownedBy(owner), toLoopbackDevice(), notToLocalhost(nftables.TableFamilyIPv6), redirect(mesh.InboundPort))
		add(tcp(), ownedBy(owner), accept())
	}
	// Between containers of the pod over localhost, and by the pod's own address.
	add(tcp(), toLoopbackDevice(), accept())
	for _, proof := range Proofs {
		add(tcp(), destination(netip.PrefixFrom(proof, proof.BitLen())), redirect(mesh.OutboundPort))
	}
	for _, p := range o.ExcludeOutboundPorts {
		add(tcp(), port(p), accept())
	}
	for _, p := range o.IncludeOutboundPorts {
		add(tcp(), port(p), redirect(mesh.OutboundPort))
	}
	if o.IncludeOutbound != nil {
		for _, prefix := range o.IncludeOutbound {
			add(tcp(), destination(prefix), redirect(mesh.OutboundPort))
		}
		return
	}
	for _, prefix := range o.ExcludeOutbound {
		add(tcp(), destination(prefix), accept())
	}
	add(tcp(), redirect(mesh.OutboundPort))
}

func addPrerouting(c *nftables.Conn, t *nftables.Table, o Options) {
	chain := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	add := func(parts ...[]expr.Any) { c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: join(parts...)}) }
	for _, p := range ownPorts {
		add(tcp(), port(p), accept())
	}
	if o.IncludeInboundPorts != nil {
		for _, p := range o.IncludeInboundPorts {
			add(tcp(), port(p), redirect(mesh.InboundPort))
		}
		return
	}
	for _, p := range o.ExcludeInboundPorts {
		add(tcp(), port(p), accept())
	}
	add(tcp(), redirect(mesh.InboundPort))
}

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func tcp() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}

func family(f nftables.TableFamily) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(f)}},
	}
}

func ownedBy(key expr.MetaKey) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(mesh.ProxyUID)},
	}
}

func toLoopbackDevice() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
	}
}

// notToLocalhost matches the pod's own address, which is reached over the loopback device too.
func notToLocalhost(f nftables.TableFamily) []expr.Any {
	localhost := netip.MustParsePrefix("127.0.0.0/8")
	if f == nftables.TableFamilyIPv6 {
		localhost = netip.MustParsePrefix("::1/128")
	}
	return address(localhost, daddr, expr.CmpOpNeq)
}

func source(p netip.Prefix) []expr.Any      { return address(p, saddr, expr.CmpOpEq) }
func destination(p netip.Prefix) []expr.Any { return address(p, daddr, expr.CmpOpEq) }

// saddr and daddr are the offsets of the addresses in the headers of IPv4 and IPv6.
var (
	saddr = map[bool]uint32{true: 12, false: 8}
	daddr = map[bool]uint32{true: 16, false: 24}
)

func address(p netip.Prefix, offset map[bool]uint32, op expr.CmpOp) []expr.Any {
	p = p.Masked()
	four := p.Addr().Is4()
	fam := nftables.TableFamilyIPv6
	if four {
		fam = nftables.TableFamilyIPv4
	}
	length := uint32(p.Addr().BitLen() / 8)
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(family(fam),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset[four], Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()},
	)
}

func port(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
	}
}

func redirect(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(p)},
		&expr.Redir{RegisterProtoMin: 1, Flags: expr.NF_NAT_RANGE_PROTO_SPECIFIED},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
