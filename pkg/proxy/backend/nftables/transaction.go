package nftables

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// transaction collects what one family's table needs.
type transaction struct {
	family   family
	objects  []object // to add
	del, add elements
}

// elements are what to put into or take from each map and set.
type elements map[string]*bytes.Buffer

func (e elements) put(in, text string) {
	b := e[in]
	if b == nil {
		b = &bytes.Buffer{}
		e[in] = b
	}
	if b.Len() > 0 {
		b.WriteString(", ")
	}
	b.WriteString(text)
}

// transaction renders the changes and keeps count of the objects' users.
func (b *Backend) transaction(f family, node ruleset.Node, changes []ruleset.Change) *transaction {
	t := &transaction{family: f, del: elements{}, add: elements{}}
	r := newRenderer(f, node)
	used, idle := b.used[f.name], b.idle[f.name]
	for _, c := range changes {
		var before, after rendered
		if c.Old != nil && f.has(c.Old.Key.Addr) {
			before = r.frontend(c.Old)
		}
		if c.New != nil && f.has(c.New.Key.Addr) {
			after = r.frontend(c.New)
		}
		t.difference(before.elements, after.elements)
		for _, o := range after.objects {
			if used[o.name]++; used[o.name] > 1 {
				continue
			}
			if _, there := idle[o.name]; there {
				delete(idle, o.name)
				continue
			}
			t.objects = append(t.objects, o)
		}
		for _, o := range before.objects {
			if used[o.name]--; used[o.name] == 0 {
				delete(used, o.name)
				idle[o.name] = o
			}
		}
	}
	return t
}

// difference leaves alone what stays the same.
func (t *transaction) difference(before, after []element) {
	old := make(map[element]bool, len(before))
	for _, e := range before {
		old[e] = true
	}
	for _, e := range after {
		if old[e] {
			delete(old, e)
			continue
		}
		text := e.key
		if e.value != "" {
			text += " : " + e.value
		}
		t.add.put(e.in, text)
	}
	for _, e := range before { // in their order, for one that reads it
		if old[e] {
			t.del.put(e.in, e.key)
		}
	}
}

func (t *transaction) addrs(set string, old, now []netip.Addr, text func(netip.Addr) string) {
	gone, added := ruleset.DiffAddrs(old, now)
	for _, a := range gone {
		if t.family.has(a) {
			t.del.put(set, text(a))
		}
	}
	for _, a := range added {
		if t.family.has(a) {
			t.add.put(set, text(a))
		}
	}
}

// write writes sets and chains before the rules that use them, these before
// the elements that lead there, and what goes before what comes in its place.
func (t *transaction) write(out *bytes.Buffer) {
	for _, o := range t.objects {
		fmt.Fprintf(out, "add %s %s %s %s", o.kind, t.family.name, Table, o.name)
		if o.spec != "" {
			fmt.Fprintf(out, " { %s }", t.family.expand(o.spec))
		}
		out.WriteByte('\n')
	}
	for _, o := range t.objects {
		for _, rule := range o.rules {
			fmt.Fprintf(out, "add rule %s %s %s %s\n", t.family.name, Table, o.name, t.family.expand(rule))
		}
	}
	t.elements(out, "delete", t.del)
	t.elements(out, "add", t.add)
}

func (t *transaction) elements(out *bytes.Buffer, verb string, all elements) {
	for _, in := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(out, "%s element %s %s %s { ", verb, t.family.name, Table, in)
		out.Write(all[in].Bytes())
		out.WriteString(" }\n")
	}
}
