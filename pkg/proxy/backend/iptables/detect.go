package iptables

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/iptables"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Detect says which variant and version of iptables the host has. The error
// says why it cannot serve Services: the programs are missing or too old, or the
// kernel lacks what our rules are made of. That is tried, in chains that nothing
// leads to.
func (b *Backend) Detect(ctx context.Context) (iptables.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	tool := b.tool(ipv4)
	info, err := tool.Info()
	if err != nil {
		return info, err
	}
	for _, table := range probe() {
		if err := tool.Restore(ctx, table.text); err != nil {
			return info, fmt.Errorf("rules for Services in table %s: %w", table.name, err)
		}
		if err := tool.Restore(ctx, table.removal); err != nil {
			return info, fmt.Errorf("remove the rules that were tried from table %s: %w", table.name, err)
		}
	}
	return info, nil
}

type probed struct {
	name          string
	text, removal []byte
}

// probeChain does not begin with Prefix: a backend at work is not to mind it.
const probeChain = "NODEAGENT-PROBE"

// probe has every match and target that we may use, in one chain of each table.
func probe() []probed {
	rules := map[string][]string{
		"filter": {"-m mark --mark 0x8000/0x8000 -j DROP", "-p tcp -j REJECT --reject-with tcp-reset"},
		"nat": {
			setMasquerade,
			"-m addrtype ! --dst-type LOCAL -j ACCEPT",
			"-p tcp -m tcp --dport 1 " + chance(1, 2) + "-m recent --update --seconds 1 --reap --name nodeagent-probe --rsource -j DNAT --to-destination 192.0.2.1:1",
		},
	}
	for _, t := range baseTables(ipv4, ruleset.Node{}) {
		for _, c := range t.chains {
			if c.name == postrouting || c.name == masquerade || c.name == forward {
				// The way to other chains is no question to the kernel.
				more := slices.DeleteFunc(c.rules, func(rule string) bool { return strings.Contains(rule, Prefix) })
				rules[t.name] = append(rules[t.name], more...)
			}
		}
	}
	var out []probed
	for _, table := range []string{"filter", "nat"} {
		var text, removal bytes.Buffer
		s := script{set: []chain{{probeChain, rules[table]}}}
		s.write(&text, table, nil)
		s = script{gone: []string{probeChain}}
		s.write(&removal, table, nil)
		out = append(out, probed{table, text.Bytes(), removal.Bytes()})
	}
	return out
}
