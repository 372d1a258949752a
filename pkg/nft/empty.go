package nft

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// Iptables over nf_tables makes these tables and chains for whoever asks for
// one, and removes them never.
var (
	iptablesTables = []string{"filter", "nat", "mangle", "raw", "security"}
	iptablesChains = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
)

// RemoveEmpty removes tables of iptables that decide nothing: chains of its own
// without a rule, whose policy is to accept. It returns their names. A host
// without nft keeps them.
func (c Command) RemoveEmpty(ctx context.Context) (removed []string, err error) {
	if c == nil {
		if _, err := exec.LookPath("nft"); err != nil {
			return nil, nil
		}
	}
	tables, err := c.Run(ctx, nil, "list", "tables")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(tables)) {
		w := strings.Fields(line)
		if len(w) != 3 || w[1] != "ip" && w[1] != "ip6" || !slices.Contains(iptablesTables, w[2]) {
			continue
		}
		listing, err := c.Run(ctx, nil, "list", "table", w[1], w[2])
		if err != nil {
			return removed, err
		}
		chains, empty := emptyChains(listing)
		if !empty {
			continue
		}
		// A chain that has got a rule meanwhile cannot be deleted, and nothing is.
		var text bytes.Buffer
		for _, chain := range chains {
			fmt.Fprintf(&text, "delete chain %s %s %s\n", w[1], w[2], chain)
		}
		fmt.Fprintf(&text, "delete table %s %s\n", w[1], w[2])
		if c.Apply(ctx, &text) == nil {
			removed = append(removed, w[1]+" "+w[2])
		}
	}
	return removed, nil
}

// emptyChains are the chains of a table that holds nothing else.
func emptyChains(listing []byte) (chains []string, empty bool) {
	for line := range strings.Lines(string(listing)) {
		w := strings.Fields(line)
		switch {
		case len(w) == 0 || w[0] == "}" || w[0] == "table" || strings.HasPrefix(w[0], "#"):
		case w[0] == "chain" && slices.Contains(iptablesChains, w[1]):
			chains = append(chains, w[1])
		case w[0] == "type" && strings.HasSuffix(strings.TrimSpace(line), "policy accept;"):
		default:
			return nil, false
		}
	}
	return chains, true
}
