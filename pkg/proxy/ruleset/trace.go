package ruleset

import (
	"net/netip"
	"slices"
)

// Packet is the first packet of a connection as the node sees it.
type Packet struct {
	Src   netip.Addr
	Dst   netip.Addr
	Proto Proto
	Port  uint16
	// FromPod says that a pod of this node sent it, FromNode that the node
	// itself did. Neither is somebody else's.
	FromPod, FromNode bool
	// ToNode says that Dst is an address of the node.
	ToNode bool
}

// Result is what happens to a packet.
type Result struct {
	Verdict   Verdict
	Endpoints []netip.AddrPort // of Forward: each with the same chance
	// Masquerade says that the endpoint sees an address of the node as the
	// source; see MasqueradedTo for one endpoint.
	Masquerade bool
	// Hairpin are the endpoints that always see one.
	Hairpin []netip.Addr
}

// MasqueradedTo says what that endpoint sees.
func (r Result) MasqueradedTo(endpoint netip.Addr, src netip.Addr) bool {
	return r.Masquerade || endpoint == src && slices.Contains(r.Hairpin, src)
}

// Trace follows a packet. It is the meaning of a ruleset: what every backend
// must do, written as plainly as can be.
func (r *Ruleset) Trace(p Packet) Result {
	f := r.Find(Key{Addr: p.Dst, Proto: p.Proto, Port: p.Port})
	if f == nil && r.servesNodePorts(p) {
		f = r.Find(Key{Addr: AnyAddr(p.Dst), Proto: p.Proto, Port: p.Port})
	}
	if f == nil {
		return Result{Verdict: r.unserved(p)}
	}
	if len(f.SourceRanges) > 0 && !slices.ContainsFunc(f.SourceRanges, func(n netip.Prefix) bool { return n.Contains(p.Src) }) {
		return Result{Verdict: Drop}
	}
	localPod := r.isLocalPod(p)
	if len(f.Inside) > 0 && (localPod || p.FromNode) {
		return Result{Verdict: Forward, Endpoints: f.Inside, Masquerade: !localPod, Hairpin: r.Hairpin}
	}
	if len(f.Endpoints) == 0 {
		return Result{Verdict: f.Empty}
	}
	masquerade := f.Masquerade == MasqueradeAll || f.Masquerade == MasqueradeRemote && !localPod
	return Result{Verdict: Forward, Endpoints: f.Endpoints, Masquerade: masquerade, Hairpin: r.Hairpin}
}

func (r *Ruleset) servesNodePorts(p Packet) bool {
	switch {
	case p.Dst.IsLoopback():
		return r.Node.LoopbackNodePorts && p.Dst.Is4() && p.FromNode
	case slices.Contains(r.Node.NodePortAddresses, AnyAddr(p.Dst)):
		return p.ToNode
	}
	return slices.Contains(r.Node.NodePortAddresses, p.Dst)
}

// unserved is what happens where there is no frontend.
func (r *Ruleset) unserved(p Packet) Verdict {
	if _, found := slices.BinarySearchFunc(r.ClusterIPs, p.Dst, netip.Addr.Compare); found {
		return Reject
	}
	in := func(n netip.Prefix) bool { return n.Contains(p.Dst) }
	if slices.ContainsFunc(r.Node.ServiceCIDRs, in) && !slices.Contains(r.Node.Served, p.Dst) {
		return Drop
	}
	return Pass
}

func (r *Ruleset) isLocalPod(p Packet) bool {
	if r.Node.LocalPods.Interface != "" {
		return p.FromPod
	}
	return slices.ContainsFunc(r.Node.LocalPods.Prefixes, func(n netip.Prefix) bool { return n.Contains(p.Src) })
}

// AnyAddr is the unspecified address of the same family.
func AnyAddr(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
