// Package plan decides what the Services mean on one node. It is pure: the
// same snapshot and node give the same ruleset. The semantics are those of
// kube-proxy 1.37 (pkg/proxy/topology.go and pkg/proxy/nftables there).
package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// Node is what a plan depends on besides the Services.
type Node struct {
	Name, Zone string
	// IPs are the node's addresses as the cluster knows them: a source range
	// that holds one lets the node itself in.
	IPs []netip.Addr
	// Addresses are all addresses of the node's interfaces.
	Addresses []netip.Addr
	// NodePortAddresses says which of them serve node ports: those within these
	// prefixes; all of a family for which there is no prefix. A prefix of
	// loopback addresses turns node ports on 127.0.0.1 on.
	NodePortAddresses []netip.Prefix
	LocalPods         ruleset.LocalPods
	MasqueradeAll     bool
	ServiceCIDRs      []netip.Prefix
	// Served are addresses within ServiceCIDRs that the node itself answers on.
	Served []netip.Addr
}

// Make makes the ruleset. Of two Services that claim the same address,
// protocol and port the one first by name gets it. Who makes one after the
// other has a Planner.
func Make(services servicemap.Snapshot, node Node) ruleset.Ruleset {
	return new(Planner).Make(services, node)
}

// service adds what one Service means.
func (p *planner) service(s *servicemap.Service) {
	for _, ip := range s.ClusterIPs {
		p.clusterIPs = append(p.clusterIPs, ip)
		v := view{service: s, clusterIP: ip}
		v.loadBalancerIPs = family(s.LoadBalancerIPs, ip)
		// Who writes a load balancer's address down once more means no way round
		// its source ranges.
		v.externalIPs = slices.DeleteFunc(family(s.ExternalIPs, ip), func(a netip.Addr) bool { return slices.Contains(v.loadBalancerIPs, a) })
		v.sourceRanges = p.sourceRanges(&v)
		for i := range s.Ports {
			p.port(&v, &s.Ports[i])
		}
	}
}

// view is one family of one Service.
type view struct {
	service                      *servicemap.Service
	clusterIP                    netip.Addr
	externalIPs, loadBalancerIPs []netip.Addr
	sourceRanges                 []netip.Prefix
}

type planner struct {
	node       Node
	frontends  []*ruleset.Frontend
	clusterIPs []netip.Addr // all three unsorted, with duplicates
	hairpin    []netip.Addr
}

// port adds the frontends of one port in one family.
func (p *planner) port(v *view, port *servicemap.Port) {
	s := v.service
	external := port.NodePort != 0 || len(v.externalIPs) > 0 || len(v.loadBalancerIPs) > 0
	usesCluster := !s.InternalLocal || external
	usesLocal := s.InternalLocal || s.ExternalLocal && external
	e := p.choose(port.Endpoints, v.clusterIP, usesCluster, usesLocal)

	base := ruleset.Frontend{Service: port.ID, Affinity: s.Affinity}
	internal := base
	internal.Endpoints, internal.Empty = e.forPolicy(s.InternalLocal)
	switch {
	case p.node.MasqueradeAll:
		internal.Masquerade = ruleset.MasqueradeAll
	case p.detects(v.clusterIP):
		internal.Masquerade = ruleset.MasqueradeRemote
	}
	p.add(internal, v.clusterIP, port.Proto, port.Port)
	if !external {
		return
	}
	outer := base
	outer.Endpoints, outer.Empty = e.forPolicy(s.ExternalLocal)
	if s.ExternalLocal {
		outer.Inside = e.cluster
	} else {
		// The endpoint may be on another node, and the answer must come back here.
		outer.Masquerade = ruleset.MasqueradeAll
	}
	for _, ip := range v.externalIPs {
		p.add(outer, ip, port.Proto, port.Port)
	}
	if port.NodePort != 0 {
		p.add(outer, ruleset.AnyAddr(v.clusterIP), port.Proto, port.NodePort)
	}
	// Only the load balancer's addresses are subject to its source ranges.
	outer.SourceRanges = v.sourceRanges
	for _, ip := range v.loadBalancerIPs {
		p.add(outer, ip, port.Proto, port.Port)
	}
}

// detects says that local pods can be told from others in that family.
func (p *planner) detects(like netip.Addr) bool {
	return p.node.LocalPods.Interface != "" ||
		slices.ContainsFunc(p.node.LocalPods.Prefixes, func(n netip.Prefix) bool { return n.Addr().Is4() == like.Is4() })
}

func (p *planner) add(f ruleset.Frontend, addr netip.Addr, proto ruleset.Proto, port uint16) {
	f.Key = ruleset.Key{Addr: addr, Proto: proto, Port: port}
	p.frontends = append(p.frontends, &f)
}

// sourceRanges are those of the view's family. A node within them gets in with
// a load balancer's address as its source, too: that is what the kernel
// chooses when the address is the node's own.
func (p *planner) sourceRanges(v *view) []netip.Prefix {
	var out []netip.Prefix
	node := false
	for _, r := range v.service.SourceRanges {
		if r.Addr().Is4() != v.clusterIP.Is4() {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		out = append(out, r)
		node = node || slices.ContainsFunc(p.node.IPs, r.Contains)
	}
	if node {
		for _, ip := range v.loadBalancerIPs {
			out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return disjoint(out)
}

// disjoint sorts prefixes and leaves out those within another one.
func disjoint(in []netip.Prefix) []netip.Prefix {
	slices.SortFunc(in, comparePrefix)
	var out []netip.Prefix
	for _, r := range in {
		if len(out) == 0 || !out[len(out)-1].Contains(r.Addr()) {
			out = append(out, r)
		}
	}
	return out
}

// comparePrefix puts a prefix before all that it contains.
func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// facts are what the kernel has to know of the node.
func facts(n Node) ruleset.Node {
	out := ruleset.Node{LocalPods: n.LocalPods, ServiceCIDRs: disjoint(slices.Clone(n.ServiceCIDRs)), Served: sorted(slices.Clone(n.Served))}
	out.LocalPods.Prefixes = disjoint(slices.Clone(n.LocalPods.Prefixes))
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		none, all := true, false
		for _, p := range n.NodePortAddresses {
			if p.Addr().Is4() == any.Is4() {
				none, all = false, all || p.Bits() == 0
			}
			out.LoopbackNodePorts = out.LoopbackNodePorts || p.Addr().Is4() && p.Addr().IsLoopback()
		}
		if none || all {
			out.NodePortAddresses = append(out.NodePortAddresses, any)
			continue
		}
		for _, a := range family(n.Addresses, any) {
			if !a.IsLoopback() && slices.ContainsFunc(n.NodePortAddresses, func(p netip.Prefix) bool { return p.Contains(a) }) {
				out.NodePortAddresses = append(out.NodePortAddresses, a)
			}
		}
	}
	out.NodePortAddresses = sorted(out.NodePortAddresses)
	return out
}

// sortedFrontends sorts by key; the first of those with the same key stays.
// What is moved about while sorting is the places, not the frontends.
func sortedFrontends(in []*ruleset.Frontend) []*ruleset.Frontend {
	order := make([]int32, len(in))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortFunc(order, func(a, b int32) int {
		return cmp.Or(in[a].Key.Compare(in[b].Key), cmp.Compare(a, b))
	})
	out := make([]*ruleset.Frontend, 0, len(in))
	for _, i := range order {
		if len(out) == 0 || out[len(out)-1].Key != in[i].Key {
			out = append(out, in[i])
		}
	}
	return out
}

func family(from []netip.Addr, like netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range from {
		if a.Is4() == like.Is4() {
			out = append(out, a)
		}
	}
	return out
}

func sorted(a []netip.Addr) []netip.Addr {
	slices.SortFunc(a, netip.Addr.Compare)
	return slices.Compact(a)
}
