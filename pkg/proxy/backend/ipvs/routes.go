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

// places are the addresses at which something is served.
type places struct {
	needed map[netip.Addr]int32 // by how many frontends and cluster IPs
	own    []netip.Addr         // that an interface has, sorted
}

// moves are addresses, sorted: that are needed no more or from now on; that are
// the node's only because of Services (virtual), or no more (real).
type moves struct{ gone, added, real, virtual []netip.Addr }

func (p *places) virtual(a netip.Addr) bool {
	if p.needed[a] == 0 {
		return false
	}
	_, found := slices.BinarySearchFunc(p.own, a, netip.Addr.Compare)
	return !found
}

// change costs what has changed, whatever there is already.
func (p *places) change(old, now ruleset.Ruleset, changes []ruleset.Change, own []netip.Addr) (m moves) {
	if p.needed == nil {
		p.needed = map[netip.Addr]int32{}
	}
	type was struct{ needed, virtual bool }
	before := map[netip.Addr]was{}
	count := func(a netip.Addr, n int32) {
		if _, noted := before[a]; !noted {
			before[a] = was{p.needed[a] > 0, p.virtual(a)}
		}
		p.needed[a] += n
	}
	all := func(addrs []netip.Addr, n int32) {
		for _, a := range addrs {
			count(a, n)
		}
	}
	for _, c := range changes {
		switch {
		case c.Old == nil && !c.New.Key.NodePort():
			count(c.New.Key.Addr, 1)
		case c.New == nil && !c.Old.Key.NodePort():
			count(c.Old.Key.Addr, -1)
		}
	}
	gone, added := ruleset.DiffAddrs(old.ClusterIPs, now.ClusterIPs)
	all(gone, -1)
	all(added, 1)
	lost, won := ruleset.DiffAddrs(p.own, own)
	all(lost, 0)
	all(won, 0)
	p.own = own
	for a, was := range before {
		switch needed := p.needed[a] > 0; {
		case was.needed && !needed:
			m.gone = append(m.gone, a)
		case !was.needed && needed:
			m.added = append(m.added, a)
		}
		switch virtual := p.virtual(a); {
		case was.virtual && !virtual:
			m.real = append(m.real, a)
		case !was.virtual && virtual:
			m.virtual = append(m.virtual, a)
		}
		if p.needed[a] == 0 {
			delete(p.needed, a)
		}
	}
	for _, list := range [][]netip.Addr{m.gone, m.added, m.real, m.virtual} {
		slices.SortFunc(list, netip.Addr.Compare)
	}
	return m
}

// routing are the routes to add, which may be there, and to remove: one for each
// range, and one for each address outside of these. With full they are all that
// there are to be; ways are the sources that routes have from now on.
func (b *Backend) routing(full bool, ranges []netip.Prefix, m moves, ways sources) (add, remove []netip.Prefix) {
	outside := func(all []netip.Addr) (out []netip.Prefix) {
		for _, a := range all {
			if !inside(ranges, a) {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
		}
		return out
	}
	add, remove = outside(m.added), outside(m.gone)
	if full {
		add = append(add, ranges...)
		wanted := map[netip.Prefix]bool{}
		for _, p := range add {
			wanted[p] = true
		}
		for p := range b.routes {
			if !wanted[p] {
				remove = append(remove, p)
			}
		}
	} else if b.sources != ways {
		for p := range b.routes {
			if !slices.Contains(remove, p) {
				add = append(add, p)
			}
		}
	}
	slices.SortFunc(add, comparePrefix)
	slices.SortFunc(remove, comparePrefix)
	return slices.Compact(add), remove
}

// addRoutes adds those that are not there, or again when the source is another one.
func (b *Backend) addRoutes(routes []netip.Prefix, ways sources) error {
	for _, p := range routes {
		if b.routes[p] && b.sources.of(p) == ways.of(p) {
			continue
		}
		if err := b.net.add(p, ways.of(p)); err != nil {
			return err
		}
		b.routes[p] = true
	}
	b.sources = ways
	return nil
}

func (b *Backend) removeRoutes(routes []netip.Prefix) error {
	for _, p := range routes {
		delete(b.routes, p)
		if err := b.net.remove(p); err != nil {
			return err
		}
	}
	return nil
}

// around is what of the node decides: its own addresses, and those that it has
// towards the world. While a Watch listens they are asked for only after a
// change; the kernel tells of one before whoever made it goes on.
func (b *Backend) around() ([]netip.Addr, sources, error) {
	if b.route != nil {
		if err := b.notice(); err != nil {
			return nil, sources{}, err
		}
	}
	if b.route == nil || b.news.moved {
		own, err := b.net.addresses()
		if err != nil {
			return nil, sources{}, err
		}
		b.news.own, b.news.ways = own, b.net.sources()
		b.news.moved = false
	}
	return b.news.own, b.news.ways, nil
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
