// Package ruleset is what Services mean on one node, said without any
// backend's words: a sorted list of frontends, each with what happens to a new
// connection that arrives at it. A backend turns the difference of two
// rulesets into kernel state; Trace says what that state must do to a packet.
package ruleset

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Proto is an IP protocol number.
type Proto uint8

// The protocols that a Service port may have.
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Key is where a connection arrives. The unspecified address of a family
// stands for the addresses of the node that serve node ports.
type Key struct {
	Addr  netip.Addr
	Proto Proto
	Port  uint16
}

// NodePort says that the key is a port of the node and not of one address.
func (k Key) NodePort() bool { return k.Addr.IsUnspecified() }

// Compare orders keys by family, address, protocol and port.
func (k Key) Compare(o Key) int {
	if c := k.Addr.Compare(o.Addr); c != 0 { // most often: cmp.Or would compare all
		return c
	}
	return cmp.Or(cmp.Compare(k.Proto, o.Proto), cmp.Compare(k.Port, o.Port))
}

func (k Key) String() string {
	addr := k.Addr.String()
	switch {
	case k.NodePort() && k.Addr.Is4():
		addr = "node4"
	case k.NodePort():
		addr = "node6"
	case k.Addr.Is6():
		addr = "[" + addr + "]"
	}
	return fmt.Sprintf("%s:%d/%s", addr, k.Port, k.Proto)
}

// Masquerade says whose connections leave with an address of the node as their
// source. A connection whose endpoint is its own source (hairpin) always does.
type Masquerade uint8

// The classes of sources.
const (
	MasqueradeNone   Masquerade = iota // nobody's
	MasqueradeRemote                   // of whoever is no pod of this node
	MasqueradeAll                      // everybody's
)

func (m Masquerade) String() string {
	return [...]string{"none", "remote", "all"}[m]
}

// Verdict is what happens to a packet.
type Verdict uint8

// The verdicts, the zero value being that it is none of our business.
const (
	Pass Verdict = iota
	Forward
	Reject
	Drop
)

func (v Verdict) String() string {
	return [...]string{"pass", "forward", "reject", "drop"}[v]
}

// Frontend is one place where connections arrive.
type Frontend struct {
	Key Key
	// Service is namespace/name:port. Affinity is remembered per Service, not
	// per frontend, as in kube-proxy.
	Service string
	// Endpoints share the connections evenly; Empty (Reject or Drop) is what
	// happens when there are none.
	Endpoints  []netip.AddrPort
	Empty      Verdict
	Masquerade Masquerade
	// Inside serves what the node and its pods send to an external address
	// with externalTrafficPolicy Local: they are behind the load balancer
	// already. It overrides Endpoints when it is not empty. What the node
	// itself sends is masqueraded, what its pods send is not.
	Inside []netip.AddrPort
	// SourceRanges limits who may connect; everybody else is dropped. It holds
	// no range that another one contains; empty is no limit.
	SourceRanges []netip.Prefix
	// Affinity is for how many seconds after the last connection of a client
	// the next one goes to the same endpoint; 0 is not at all.
	Affinity uint32
}

// Equal says that the kernel needs the same for both.
func (f *Frontend) Equal(o *Frontend) bool {
	return f.Key == o.Key && f.Service == o.Service && f.Empty == o.Empty && f.Masquerade == o.Masquerade &&
		f.Affinity == o.Affinity && same(f.Endpoints, o.Endpoints) && same(f.Inside, o.Inside) &&
		same(f.SourceRanges, o.SourceRanges)
}

// same compares lists. Those of what did not change are the same memory.
func same[T comparable](a, b []T) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

func (f *Frontend) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", f.Key, f.Service)
	if len(f.Endpoints) == 0 {
		fmt.Fprintf(&b, " %s", f.Empty)
	} else {
		fmt.Fprintf(&b, " → %v", f.Endpoints)
	}
	if f.Masquerade != MasqueradeNone {
		fmt.Fprintf(&b, " masquerade=%s", f.Masquerade)
	}
	if len(f.Inside) > 0 {
		fmt.Fprintf(&b, " inside=%v", f.Inside)
	}
	if len(f.SourceRanges) > 0 {
		fmt.Fprintf(&b, " from=%v", f.SourceRanges)
	}
	if f.Affinity > 0 {
		fmt.Fprintf(&b, " affinity=%ds", f.Affinity)
	}
	return b.String()
}

// LocalPods tells the packets of this node's pods: by their source address,
// or by the interface they come in through (a name, or with a trailing * the
// beginning of one). The zero value tells none.
type LocalPods struct {
	Prefixes  []netip.Prefix
	Interface string
}

// Node is what of the node itself the kernel has to know. All lists are sorted.
type Node struct {
	LocalPods LocalPods
	// NodePortAddresses are the node's addresses that serve node ports; the
	// unspecified address stands for all of its family but loopback.
	NodePortAddresses []netip.Addr
	// LoopbackNodePorts lets processes of this node reach node ports through
	// 127.0.0.1. There is no such thing for ::1: the kernel routes no packet
	// with that source out of the loopback device.
	LoopbackNodePorts bool
	// ServiceCIDRs are dropped where no Service has the address, unless it is
	// one of Served: those the node itself answers on, like the cluster DNS.
	ServiceCIDRs []netip.Prefix
	Served       []netip.Addr
}

// Equal compares two nodes.
func (n Node) Equal(o Node) bool {
	return n.LoopbackNodePorts == o.LoopbackNodePorts && n.LocalPods.Interface == o.LocalPods.Interface &&
		slices.Equal(n.LocalPods.Prefixes, o.LocalPods.Prefixes) &&
		slices.Equal(n.NodePortAddresses, o.NodePortAddresses) && slices.Equal(n.ServiceCIDRs, o.ServiceCIDRs) &&
		slices.Equal(n.Served, o.Served)
}

// ServeNodePorts are the addresses that serve node ports on a node that has own.
func (n Node) ServeNodePorts(own []netip.Addr) (out []netip.Addr) {
	for _, a := range n.NodePortAddresses {
		if !a.IsUnspecified() {
			out = append(out, a)
			continue
		}
		for _, o := range own {
			if o.Is4() == a.Is4() && !o.IsLoopback() {
				out = append(out, o)
			}
		}
	}
	if n.LoopbackNodePorts {
		out = append(out, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	return out
}

// HealthCheck is the health-check node port of one Service in one family:
// there a load balancer asks whether the node has endpoints of it.
type HealthCheck struct {
	Namespace, Name string
	Family          netip.Addr // its unspecified address
	Port            uint16
	Local           int // the Service's ready endpoints on this node
}

// Ruleset is everything. Its lists are sorted and hold no duplicates; nobody
// changes them once it is made, nor a frontend: those that two rulesets have
// in common are the same pointer.
type Ruleset struct {
	Node      Node
	Frontends []*Frontend
	// ClusterIPs refuse connections to ports that no frontend has.
	ClusterIPs []netip.Addr
	// Hairpin are the addresses of this node's endpoints.
	Hairpin []netip.Addr
}

// String prints one line for each frontend, for people and golden files.
func (r Ruleset) String() string {
	var b strings.Builder
	for _, f := range r.Frontends {
		fmt.Fprintln(&b, f)
	}
	fmt.Fprintf(&b, "cluster IPs %v\nhairpin %v\n", r.ClusterIPs, r.Hairpin)
	return b.String()
}

// Find is the frontend with that key, or nil.
func (r *Ruleset) Find(k Key) *Frontend {
	i, found := slices.BinarySearchFunc(r.Frontends, k, func(f *Frontend, k Key) int { return f.Key.Compare(k) })
	if !found {
		return nil
	}
	return r.Frontends[i]
}

// Change is one frontend before and after; nil is that it was not there.
type Change struct{ Old, New *Frontend }

// Diff lists the frontends that differ, by key.
func Diff(old, now Ruleset) []Change {
	var changes []Change
	walk(old.Frontends, now.Frontends, func(a, b *Frontend) {
		if a == nil || b == nil || !a.Equal(b) {
			changes = append(changes, Change{a, b})
		}
	})
	return changes
}

// walk calls f for each key of two sorted lists with who has it, but for those
// that both lists have as the same pointer, which are nearly all.
func walk(a, b []*Frontend, f func(a, b *Frontend)) {
	for len(a) > 0 || len(b) > 0 {
		order := 0
		switch {
		case len(a) == 0:
			order = 1
		case len(b) == 0:
			order = -1
		case a[0] == b[0]:
			a, b = a[1:], b[1:]
			continue
		default:
			order = a[0].Key.Compare(b[0].Key)
		}
		switch {
		case order < 0:
			f(a[0], nil)
			a = a[1:]
		case order > 0:
			f(nil, b[0])
			b = b[1:]
		default:
			f(a[0], b[0])
			a, b = a[1:], b[1:]
		}
	}
}

// DiffAddrs compares two sorted lists of addresses.
func DiffAddrs(old, now []netip.Addr) (gone, added []netip.Addr) {
	if len(old) == len(now) && len(old) > 0 && &old[0] == &now[0] {
		return nil, nil
	}
	// What both begin and end with is nearly all, and is passed over sooner here.
	n := min(len(old), len(now))
	i := 0
	for i < n && old[i] == now[i] {
		i++
	}
	old, now = old[i:], now[i:]
	for len(old) > 0 && len(now) > 0 && old[len(old)-1] == now[len(now)-1] {
		old, now = old[:len(old)-1], now[:len(now)-1]
	}
	for len(old) > 0 && len(now) > 0 {
		switch {
		case old[0] == now[0]:
			old, now = old[1:], now[1:]
		case old[0].Less(now[0]):
			gone, old = append(gone, old[0]), old[1:]
		default:
			added, now = append(added, now[0]), now[1:]
		}
	}
	return append(gone, old...), append(added, now...)
}
