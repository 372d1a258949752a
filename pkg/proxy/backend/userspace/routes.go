package userspace

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// protocol marks our routes: nobody else's number in iproute2's table.
const protocol = 110

// routes are those of Services in one network namespace.
type routes struct {
	netlink *netlink.Handle
	// wanted is what set was last given, nil before.
	wanted map[netip.Prefix]int // → type of route
	// known says that they are there, as far as we know.
	known bool
	// others are wanted, but there already and not ours: the node's own addresses.
	others map[netip.Prefix]bool
}

// connect is called in the namespace.
func (r *routes) connect() (err error) {
	if r.netlink == nil {
		r.netlink, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		return fmt.Errorf("routes of Services: %w", err)
	}
	return nil
}

func (r *routes) close() {
	if r.netlink != nil {
		r.netlink.Close()
	}
	*r = routes{}
}

// list repeats what a change has interrupted: half a list is none.
func list[T any](f func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// privileged says that routes can be made here.
func (r *routes) privileged() bool {
	var h unix.CapUserHeader
	var data [2]unix.CapUserData
	h.Version = unix.LINUX_CAPABILITY_VERSION_3
	if err := unix.Capget(&h, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// host reads the node's addresses and which interfaces are those of pods.
func (r *routes) host(pods string) (h host, err error) {
	if err := r.connect(); err != nil {
		return h, err
	}
	addrs, err := list(func() ([]netlink.Addr, error) { return r.netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return h, fmt.Errorf("the node's addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.Unmap().IsLinkLocalUnicast() {
			h.addrs = append(h.addrs, ip.Unmap())
		}
	}
	if pods == "" {
		return h, nil
	}
	links, err := list(r.netlink.LinkList)
	if err != nil {
		return h, fmt.Errorf("the node's interfaces: %w", err)
	}
	for _, l := range links {
		if matches(pods, l.Attrs().Name) {
			h.pods = append(h.pods, l.Attrs().Index)
		}
	}
	return h, nil
}

// set makes these addresses the node's, drops what else is in the ranges, and
// removes all other routes of ours.
func (r *routes) set(addrs map[netip.Addr]bool, ranges []netip.Prefix) error {
	if err := r.connect(); err != nil {
		return err
	}
	before := r.wanted
	r.wanted = make(map[netip.Prefix]int, len(addrs)+len(ranges))
	for a := range addrs {
		r.wanted[netip.PrefixFrom(a, a.BitLen())] = unix.RTN_LOCAL
	}
	for _, p := range ranges {
		r.wanted[p] = unix.RTN_BLACKHOLE
	}
	missing, gone, err := r.difference(before)
	if err != nil {
		return err
	}
	var errs []error
	for _, route := range gone {
		if err := r.netlink.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route to %s: %w", route.Dst, err))
		}
	}
	for p, kind := range missing {
		err := r.netlink.RouteAdd(route(p, kind))
		if errors.Is(err, unix.EEXIST) {
			r.others[p] = true
		} else if err != nil {
			errs = append(errs, fmt.Errorf("a route to %s, an address of a Service: %w", p, err))
		}
	}
	r.known = len(errs) == 0
	if len(errs) > 5 {
		errs = append(errs[:5], fmt.Errorf("and %d more", len(errs)-5))
	}
	return errors.Join(errs...)
}

// route is `local P dev lo` or `blackhole P`.
func route(p netip.Prefix, kind int) *netlink.Route {
	out := &netlink.Route{
		Dst:  &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		Type: kind, Protocol: protocol, Table: unix.RT_TABLE_MAIN, LinkIndex: 1, // lo is always the first
	}
	if kind == unix.RTN_LOCAL {
		out.Table, out.Scope = unix.RT_TABLE_LOCAL, netlink.SCOPE_HOST
	} else if p.Addr().Is4() {
		out.LinkIndex = 0
	}
	return out
}

// difference is what set has to do. To list ten thousand routes takes longer
// than to change one.
func (r *routes) difference(before map[netip.Prefix]int) (missing map[netip.Prefix]int, gone []netlink.Route, err error) {
	if !r.known {
		r.others = map[netip.Prefix]bool{}
		return r.compare()
	}
	r.known = false
	missing = map[netip.Prefix]int{}
	for p, kind := range r.wanted {
		if before[p] != kind {
			missing[p] = kind
		}
	}
	for p, kind := range before {
		if r.wanted[p] == kind {
			continue
		}
		if !r.others[p] {
			gone = append(gone, *route(p, kind))
		}
		delete(r.others, p)
	}
	return missing, gone, nil
}

// compare tells what is missing of the wanted, and what is there of ours besides.
func (r *routes) compare() (missing map[netip.Prefix]int, gone []netlink.Route, err error) {
	missing = make(map[netip.Prefix]int, len(r.wanted))
	for p, kind := range r.wanted {
		missing[p] = kind
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, table := range []int{unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN} {
			filter := netlink.Route{Table: table, Protocol: protocol}
			found, err := list(func() ([]netlink.Route, error) {
				return r.netlink.RouteListFiltered(family, &filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
			})
			if err != nil {
				return nil, nil, fmt.Errorf("routes of Services: %w", err)
			}
			for _, f := range found {
				p := prefix(f.Dst)
				if kind, wanted := r.wanted[p]; wanted && kind == f.Type {
					delete(missing, p)
					continue
				}
				gone = append(gone, f)
			}
		}
	}
	return missing, gone, nil
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if size == 32 {
		ip = ip.Unmap()
	}
	return netip.PrefixFrom(ip, bits)
}
