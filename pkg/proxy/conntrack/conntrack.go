// Package conntrack removes the UDP flows that would keep sending packets where
// nobody serves them. A UDP client that never closes its socket keeps its entry
// of the kernel's connection tracking alive, and with it the endpoint that was
// chosen once, or that there was none.
package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Serving are the endpoints of UDP Services that still serve, ready or not for
// new connections, whatever the traffic policy says of them: a policy is about
// new flows, an old one stays with its endpoint while that serves.
type Serving struct {
	// Frontends by address and port; a node port by the unspecified address.
	Frontends map[netip.AddrPort][]netip.AddrPort
	// NodeAddrs are the node's addresses that serve node ports: only there a
	// node port is one. The same number at another host, or of a program of the
	// node at another address, is none of our business.
	NodeAddrs map[netip.Addr]bool
}

// Table is the kernel's, or a test's.
type Table interface {
	ConntrackDeleteFilters(netlink.ConntrackTableType, netlink.InetFamily, ...netlink.CustomConntrackFilter) (uint, error)
}

// Clean removes the flows of UDP Services that lead to no endpoint that serves,
// and those to frontends of old that are there no more. What leads to one that
// serves stays, however old it is and whoever made it: an agent that has just
// started, with nothing old, may call it at once.
func Clean(table Table, old, now Serving) (removed uint, err error) {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		n, e := table.ConntrackDeleteFilters(netlink.ConntrackTable, family, stale{old, now})
		removed += n
		if e != nil {
			err = errors.Join(err, fmt.Errorf("remove stale UDP flows (family %d): %w", family, e))
		}
	}
	return removed, err
}

// find is the frontend that such packets arrive at.
func (s Serving) find(dst netip.AddrPort) (endpoints []netip.AddrPort, found bool) {
	endpoints, found = s.Frontends[dst]
	if !found && s.NodeAddrs[dst.Addr()] {
		endpoints, found = s.Frontends[netip.AddrPortFrom(ruleset.AnyAddr(dst.Addr()), dst.Port())]
	}
	return endpoints, found
}

// stale matches the flows to remove.
type stale struct{ old, now Serving }

// MatchConntrackFlow is called for each flow of the table.
func (s stale) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != uint8(ruleset.UDP) {
		return false
	}
	dst, ok := addrPort(f.Forward.DstIP, f.Forward.DstPort)
	if !ok {
		return false
	}
	endpoints, found := s.now.find(dst)
	if !found {
		_, gone := s.old.find(dst)
		return gone
	}
	// Who answers is where the flow leads: the Service itself if it was made
	// before there was an endpoint.
	from, ok := addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort)
	for _, e := range endpoints {
		if ok && e == from {
			return false
		}
	}
	return true
}

func addrPort(ip net.IP, port uint16) (netip.AddrPort, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port), ok
}
