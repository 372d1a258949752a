package iptables

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// script is the change of one table.
type script struct {
	set  []chain  // to be made or filled anew
	gone []string // to be removed
}

// difference adds the chains that are not the same.
func (s *script) difference(old, now []chain) {
	before := make(map[string][]string, len(old))
	for _, c := range old {
		before[c.name] = c.rules
	}
	for _, c := range now {
		rules, there := before[c.name]
		if !there || !slices.Equal(rules, c.rules) {
			s.set = append(s.set, c)
		}
		delete(before, c.name)
	}
	for _, c := range old { // in their order, for one that reads it
		if _, gone := before[c.name]; gone {
			s.gone = append(s.gone, c.name)
		}
	}
}

// frontends adds the chains that changed frontends have of their own.
func (s *script) frontends(r renderer, changes []ruleset.Change) {
	for _, c := range changes {
		s.difference(r.chains(c.Old), r.chains(c.New))
	}
}

// trees adds the chains of a tree that differ; changed are the places that do.
func (s *script) trees(old, now *forest, changed []place) {
	w := walker{s, old, now, tree{old.width, changed}}
	w.both(old.all(), now.all(), old.root)
}

type walker struct {
	*script
	old, now *forest
	changed  tree
}

// both compares a chain that is there before and after.
func (w walker) both(a, b span, name string) {
	ac, bc := w.old.children(a), w.now.children(b)
	var gone, added []chain
	for len(ac) > 0 || len(bc) > 0 {
		switch c := w.compare(ac, bc); {
		case c < 0:
			gone, ac = w.old.below(ac[0], gone), ac[1:]
		case c > 0:
			added, bc = w.now.below(bc[0], added), bc[1:]
		default:
			prefix := w.old.prefix(w.old.places[ac[0].from], ac[0].length)
			if s := w.changed.find(prefix, ac[0].length); s.from < s.to {
				w.both(ac[0], bc[0], w.old.name(ac[0]))
			}
			ac, bc = ac[1:], bc[1:]
		}
	}
	w.difference(append(gone, chain{name, w.old.rules(a)}), append(added, chain{name, w.now.rules(b)}))
}

// compare orders the first chains of two lists by their prefix.
func (w walker) compare(a, b []span) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	p := w.old.prefix(w.old.places[a[0].from], a[0].length)
	q := w.now.prefix(w.now.places[b[0].from], b[0].length)
	if c := p.compare(q); c != 0 {
		return c
	}
	return a[0].length - b[0].length
}

// below adds a chain and all that it leads to within the tree.
func (t *forest) below(s span, out []chain) []chain {
	for _, c := range t.children(s) {
		out = t.below(c, out)
	}
	return append(out, chain{t.name(s), t.rules(s)})
}

// whole is all chains of a tree.
func (t *forest) whole() []chain {
	all := t.all()
	var out []chain
	for _, c := range t.children(all) {
		out = t.below(c, out)
	}
	return append(out, chain{t.root, t.rules(all)})
}

// changedPlaces are where two rulesets differ, in order.
func changedPlaces(f family, changes []ruleset.Change, old, now ruleset.Ruleset) (addresses, ports []place) {
	for _, c := range changes {
		k := changedKey(c)
		if k.NodePort() {
			ports = append(ports, keyPlace(k))
		} else {
			addresses = append(addresses, keyPlace(k))
		}
	}
	gone, added := ruleset.DiffAddrs(old.ClusterIPs, now.ClusterIPs)
	for _, ip := range append(gone, added...) {
		if f.has(ip) {
			addresses = append(addresses, placeOf(ip, rest, 0))
		}
	}
	slices.SortFunc(addresses, place.compare)
	return addresses, ports
}

func changedKey(c ruleset.Change) ruleset.Key {
	if c.New != nil {
		return c.New.Key
	}
	return c.Old.Key
}

// text is the transaction where no jump changes; nil is none.
func (s *script) text(table string) []byte {
	if len(s.set)+len(s.gone) == 0 {
		return nil
	}
	var out bytes.Buffer
	s.write(&out, table, nil)
	return out.Bytes()
}

// write writes the transaction: chains before the rules that lead to them, and
// what goes when nothing leads there any more.
func (s *script) write(out *bytes.Buffer, table string, jumps []string) {
	size := 0
	for _, c := range s.set {
		size += len(c.name) + len(": - [0:0]\n")
		for _, rule := range c.rules {
			size += len(c.name) + len(rule) + len("-A  \n")
		}
	}
	out.Grow(size + 4<<10) // a buffer that doubles would be twice as large in the end
	fmt.Fprintf(out, "*%s\n", table)
	for _, c := range s.set {
		fmt.Fprintf(out, ":%s - [0:0]\n", c.name)
	}
	for _, name := range s.gone {
		fmt.Fprintf(out, ":%s - [0:0]\n", name)
	}
	for _, j := range jumps {
		out.WriteString(j)
		out.WriteByte('\n')
	}
	for _, c := range s.set {
		for _, rule := range c.rules {
			out.WriteString("-A ")
			out.WriteString(c.name)
			out.WriteByte(' ')
			out.WriteString(rule)
			out.WriteByte('\n')
		}
	}
	for _, name := range s.gone {
		fmt.Fprintf(out, "-X %s\n", name)
	}
	out.WriteString("COMMIT\n")
}
