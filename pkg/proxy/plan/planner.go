package plan

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// Planner makes one ruleset after the other, each the same as Make would, at
// the cost of what changed: a Service that is the same pointer in two snapshots
// means the same, and what it meant can be worked out again. The zero value is
// ready; it is not safe for concurrent use.
type Planner struct {
	node     Node
	services servicemap.Snapshot
	last     ruleset.Ruleset
	// usable says that last can be changed. It is not when two Services claim
	// the same place: the one that had to yield may get it.
	usable              bool
	clusterIPs, hairpin counts
}

// counts is how many need an address.
type counts map[netip.Addr]int32

// Make makes the ruleset; the caller may keep it, and no longer changes what
// it gave.
func (p *Planner) Make(services servicemap.Snapshot, node Node) ruleset.Ruleset {
	gone, added := difference(p.services, services)
	p.usable = p.usable && reflect.DeepEqual(p.node, node) && len(gone)+len(added) <= len(services)/4 && p.change(gone, added)
	if !p.usable {
		p.all(services, node)
	}
	p.services = services
	return p.last
}

// all makes everything.
func (p *Planner) all(services servicemap.Snapshot, node Node) {
	all := planner{
		node:       node,
		frontends:  make([]*ruleset.Frontend, 0, len(services)),
		clusterIPs: make([]netip.Addr, 0, len(services)),
	}
	for _, s := range services {
		all.service(s)
	}
	p.node = node
	p.clusterIPs, p.hairpin = count(all.clusterIPs), count(all.hairpin)
	p.last = ruleset.Ruleset{
		Node:       facts(node),
		Frontends:  sortedFrontends(all.frontends),
		ClusterIPs: sorted(all.clusterIPs),
		Hairpin:    sorted(all.hairpin),
	}
	p.usable = len(p.last.Frontends) == len(all.frontends)
}

// change takes Services out of the last ruleset and puts others in. It is
// false where two claim the same place.
func (p *Planner) change(gone, added []*servicemap.Service) bool {
	old, now := planner{node: p.node}, planner{node: p.node}
	for _, s := range gone {
		old.service(s)
	}
	for _, s := range added {
		now.service(s)
	}
	byKey := func(a, b *ruleset.Frontend) int { return a.Key.Compare(b.Key) }
	slices.SortFunc(old.frontends, byKey)
	slices.SortFunc(now.frontends, byKey)
	frontends, ok := patch(p.last.Frontends, old.frontends, now.frontends, byKey)
	if !ok {
		return false
	}
	next := ruleset.Ruleset{Node: p.last.Node, Frontends: frontends}
	lost, won := p.clusterIPs.change(old.clusterIPs, now.clusterIPs)
	next.ClusterIPs, _ = patch(p.last.ClusterIPs, lost, won, netip.Addr.Compare)
	lost, won = p.hairpin.change(old.hairpin, now.hairpin)
	next.Hairpin, _ = patch(p.last.Hairpin, lost, won, netip.Addr.Compare)
	p.last = next
	return true
}

func count(all []netip.Addr) counts {
	c := make(counts, len(all))
	for _, a := range all {
		c[a]++
	}
	return c
}

// change counts, and tells which addresses nobody needs any more and which
// nobody needed before.
func (c counts) change(old, now []netip.Addr) (gone, added []netip.Addr) {
	before := make(map[netip.Addr]bool, len(old)+len(now))
	note := func(all []netip.Addr, n int32) {
		for _, a := range all {
			if _, noted := before[a]; !noted {
				before[a] = c[a] > 0
			}
			c[a] += n
		}
	}
	note(old, -1)
	note(now, 1)
	for a, was := range before {
		switch is := c[a] > 0; {
		case !is:
			delete(c, a)
			if was {
				gone = append(gone, a)
			}
		case !was:
			added = append(added, a)
		}
	}
	return sorted(gone), sorted(added)
}

// patch takes elements out of a sorted list and puts others in; where there are
// none it is the same list. It is false if one of these is there already.
func patch[T any](list, gone, added []T, compare func(a, b T) int) ([]T, bool) {
	if len(gone)+len(added) == 0 {
		return list, true
	}
	out := make([]T, 0, len(list)+len(added)-len(gone))
	for len(gone)+len(added) > 0 {
		remove := len(gone) > 0 && (len(added) == 0 || compare(gone[0], added[0]) <= 0)
		next := added
		if remove {
			next = gone
		}
		i, found := slices.BinarySearchFunc(list, next[0], compare)
		out, list = append(out, list[:i]...), list[i:]
		if remove {
			list, gone = list[1:], gone[1:]
			continue
		}
		if found || len(out) > 0 && compare(out[len(out)-1], added[0]) == 0 {
			return nil, false
		}
		out, added = append(out, added[0]), added[1:]
	}
	return append(out, list...), true
}

// difference compares two snapshots by pointer.
func difference(old, now servicemap.Snapshot) (gone, added []*servicemap.Service) {
	for len(old) > 0 && len(now) > 0 {
		if old[0] == now[0] {
			old, now = old[1:], now[1:]
			continue
		}
		c := old[0].Name.Compare(now[0].Name)
		if c <= 0 {
			gone, old = append(gone, old[0]), old[1:]
		}
		if c >= 0 {
			added, now = append(added, now[0]), now[1:]
		}
	}
	return append(gone, old...), append(added, now...)
}
