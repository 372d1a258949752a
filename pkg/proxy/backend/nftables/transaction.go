package nftables

import (
	"bytes"
	"fmt"

	"github.com/nodeagent/nodeagent/pkg/nft"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// transaction collects what one family's table needs.
type transaction struct {
	*nft.Elements
	family  family
	objects []object // to add
}

// transaction renders the changes and keeps count of the objects' users.
func (b *Backend) transaction(f family, node ruleset.Node, changes []ruleset.Change) *transaction {
	t := &transaction{family: f, Elements: nft.NewElements(f.has)}
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
		t.Difference(before.elements, after.elements)
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
	t.Write(out, t.family.name, Table)
}
