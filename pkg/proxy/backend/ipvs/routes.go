package ipvs

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// IPVS takes what the kernel routes to the node itself. Instead of an address
// on a dummy device for each Service, the whole range of Services is one local
// route; addresses outside of it (external ones, of load balancers) have one
// each. They are told by their protocol, as those of a routing daemon are.
const (
	routeProtocol = 78
	// routePriority lets them be beside the kernel's own, which go first, where
	// an address is on an interface, too.
	routePriority = 1078
)

// destinations are what routes are needed for. On the way it finds the
// addresses that no interface has: virtual. own are those that one has, sorted;
// spare is memory that may be used for virtual.
func destinations(rs *ruleset.Ruleset, own, spare []netip.Addr) (routes []netip.Prefix, virtual []netip.Addr) {
	routes = slices.Clone(rs.Node.ServiceCIDRs)
	virtual = slices.Grow(spare[:0], len(rs.ClusterIPs)+1)
	last := netip.Addr{}
	add := func(a netip.Addr) {
		if a == last {
			return
		}
		last = a
		for len(own) > 0 && own[0].Less(a) {
			own = own[1:]
		}
		if len(own) == 0 || own[0] != a {
			virtual = append(virtual, a)
		}
		if !inside(rs.Node.ServiceCIDRs, a) {
			routes = append(routes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	// The lists are sorted, and so are the results: there may be ten thousand.
	ips := rs.ClusterIPs
	for i := range rs.Frontends {
		k := rs.Frontends[i].Key
		if k.NodePort() || k.Addr == last {
			continue
		}
		for ; len(ips) > 0 && ips[0].Compare(k.Addr) <= 0; ips = ips[1:] {
			add(ips[0])
		}
		add(k.Addr)
	}
	for _, a := range ips {
		add(a)
	}
	slices.SortFunc(routes, comparePrefix)
	return slices.Compact(routes), virtual
}

func inside(all []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Contains(a) })
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// network is the routes and addresses of one network namespace.
type network struct {
	handle *netlink.Handle
	lo     int
}

func openNetwork() (*network, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for routes: %w", err)
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("find the loopback device: %w", err)
	}
	return &network{h, lo.Attrs().Index}, nil
}

func (n *network) close() { n.handle.Close() }

// addresses are those of all interfaces, sorted.
func (n *network) addresses() (out []netip.Addr, err error) {
	all, err := n.handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}

// source is the node's address of a family towards the world. Without one in
// the route the node would speak to a Service from the Service's own address
// (IPv4) or from that of whatever interface (IPv6), which no source range knows.
// A node without one has none.
func (n *network) source(world netip.Addr) netip.Addr {
	routes, err := n.handle.RouteGet(world.AsSlice()) // nothing is sent
	if err == nil && len(routes) > 0 && routes[0].Src != nil && routes[0].Type == unix.RTN_UNICAST {
		a, _ := netip.AddrFromSlice(routes[0].Src)
		return a.Unmap()
	}
	all, err := n.handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return netip.Addr{}
	}
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && a.Scope == int(netlink.SCOPE_UNIVERSE) && ip.Unmap().Is4() == world.Is4() {
			return ip.Unmap()
		}
	}
	return netip.Addr{}
}

// world are addresses that only a default route leads to.
var world = []netip.Addr{netip.AddrFrom4([4]byte{1, 1, 1, 1}), netip.MustParseAddr("2606:4700:4700::1111")}

// sources are those of both families.
type sources [2]netip.Addr

func (n *network) sources() sources { return sources{n.source(world[0]), n.source(world[1])} }

func (s sources) of(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return s[0]
	}
	return s[1]
}

func (n *network) route(p netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:       &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		LinkIndex: n.lo, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
		Protocol: routeProtocol, Priority: routePriority,
	}
}

func (n *network) add(p netip.Prefix, source netip.Addr) error {
	r := n.route(p)
	if source.IsValid() {
		r.Src = source.AsSlice()
	}
	if err := n.handle.RouteReplace(r); err != nil {
		return fmt.Errorf("local route to %s: %w", p, err)
	}
	return nil
}

func (n *network) remove(p netip.Prefix) error {
	if err := n.handle.RouteDel(n.route(p)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove the local route to %s: %w", p, err)
	}
	return nil
}

// list are our routes.
func (n *network) list() (out []netip.Prefix, err error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: routeProtocol, Type: unix.RTN_LOCAL}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := n.handle.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		for _, r := range routes {
			if p, ok := prefix(r.Dst); ok {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, comparePrefix)
	return out, nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if a = a.Unmap(); !ok || a.BitLen() != size {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, bits), true
}
