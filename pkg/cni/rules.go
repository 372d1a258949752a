package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Our chains. Nothing of ours is outside of them but the jumps.
const (
	chainPostrouting = "NODEAGENT-POSTROUTING"
	chainForward     = "NODEAGENT-FORWARD"
)

// hook is one of our chains with what it should hold; rules are written as
// iptables prints them, so that what is there can be compared with it.
type hook struct {
	table, from, chain string
	rules              []string
}

// hooksFor are the chains that pods of these ranges (of one family) need.
func hooksFor(cidrs []netip.Prefix, forward bool) []hook {
	multicast := "224.0.0.0/4"
	if cidrs[0].Addr().Is6() {
		multicast = "ff00::/8"
	}
	post := hook{table: "nat", from: "POSTROUTING", chain: chainPostrouting, rules: []string{
		fmt.Sprintf("-A %s -d %s -j RETURN", chainPostrouting, multicast),
	}}
	fwd := hook{table: "filter", from: "FORWARD", chain: chainForward}
	for _, c := range cidrs {
		post.rules = append(post.rules, fmt.Sprintf(
			`-A %s -s %s ! -d %s -m comment --comment "pods leave with the node's address" -j MASQUERADE`, chainPostrouting, c, c))
		fwd.rules = append(fwd.rules,
			fmt.Sprintf("-A %s -s %s -j ACCEPT", chainForward, c),
			fmt.Sprintf("-A %s -d %s -j ACCEPT", chainForward, c))
	}
	if forward {
		return []hook{post, fwd}
	}
	return []hook{post}
}

// families splits ranges into IPv4 and IPv6, leaving out what is empty.
func families(cidrs []netip.Prefix) [][]netip.Prefix {
	var v4, v6 []netip.Prefix
	for _, c := range cidrs {
		if c.Addr().Is4() {
			v4 = append(v4, c)
		} else {
			v6 = append(v6, c)
		}
	}
	return slices.DeleteFunc([][]netip.Prefix{v4, v6}, func(l []netip.Prefix) bool { return len(l) == 0 })
}

func newIPTables(v6 bool) (*iptables.IPTables, error) {
	proto, name := iptables.ProtocolIPv4, "iptables"
	if v6 {
		proto, name = iptables.ProtocolIPv6, "ip6tables"
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Timeout(10))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used; install the package iptables: %w: %w", name, err, errdefs.ErrNotFound)
	}
	return ipt, nil
}

// ensureRules puts our chains right, one transaction per family, and only when
// something differs.
func (m *Manager) ensureRules(ctx context.Context, cidrs []netip.Prefix) error {
	for _, fam := range families(cidrs) {
		v6 := fam[0].Addr().Is6()
		ipt, err := newIPTables(v6)
		if err != nil {
			return err
		}
		fwd, err := ipt.List("filter", "FORWARD")
		if err != nil {
			return fmt.Errorf("list chain FORWARD: %w", err)
		}
		drop := slices.Contains(fwd, "-P FORWARD DROP")
		var script bytes.Buffer
		for _, h := range hooksFor(fam, drop) {
			if err := h.difference(ipt, &script); err != nil {
				return err
			}
		}
		if script.Len() == 0 {
			continue
		}
		if err := restore(ctx, v6, script.String()); err != nil {
			return err
		}
	}
	return nil
}

// portmapChains are the chains of nat that the portmap plugin makes with the
// first port; removePortmap removes them with the last.
func portmapChains() []string {
	return []string{"CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"}
}

// ensurePortmap makes them before any pod does: the plugin looks and then makes,
// and of the first pods that come at once some fail for it.
func ensurePortmap(ctx context.Context, cidrs []netip.Prefix) error {
	for _, fam := range families(cidrs) {
		v6 := fam[0].Addr().Is6()
		ipt, err := newIPTables(v6)
		if err != nil {
			return err
		}
		have, err := ipt.ListChains("nat")
		if err != nil {
			return fmt.Errorf("list the chains of table nat: %w", err)
		}
		var script strings.Builder
		for _, c := range portmapChains() {
			if !slices.Contains(have, c) {
				fmt.Fprintf(&script, ":%s - [0:0]\n", c)
			}
		}
		if script.Len() == 0 {
			continue
		}
		if err := restore(ctx, v6, "*nat\n"+script.String()+"COMMIT\n"); err != nil {
			return err
		}
	}
	return nil
}

// difference appends what iptables-restore has to do for one chain; nothing
// when it is as it should be.
func (h hook) difference(ipt *iptables.IPTables, script *bytes.Buffer) error {
	have, err := listChain(ipt, h.table, h.chain)
	if err != nil {
		return err
	}
	jump, err := hasJump(ipt, h)
	if err != nil {
		return err
	}
	same := len(have) > 0 && slices.Equal(have[1:], h.rules)
	if same && jump {
		return nil
	}
	fmt.Fprintf(script, "*%s\n", h.table)
	if !same {
		fmt.Fprintf(script, ":%s - [0:0]\n", h.chain) // empties a chain that is there
		for _, r := range h.rules {
			fmt.Fprintln(script, r)
		}
	}
	if !jump {
		// At the end: rules that an administrator put there come first.
		fmt.Fprintf(script, "-A %s -j %s\n", h.from, h.chain)
	}
	fmt.Fprintln(script, "COMMIT")
	return nil
}

// listChain returns a chain as iptables -S prints it, nil when it is not there.
func listChain(ipt *iptables.IPTables, table, chain string) ([]string, error) {
	ok, err := ipt.ChainExists(table, chain)
	if err != nil {
		return nil, fmt.Errorf("look up chain %s in table %s: %w", chain, table, err)
	}
	if !ok {
		return nil, nil
	}
	list, err := ipt.List(table, chain)
	if err != nil {
		return nil, fmt.Errorf("list chain %s in table %s: %w", chain, table, err)
	}
	return list, nil
}

func hasJump(ipt *iptables.IPTables, h hook) (bool, error) {
	list, err := ipt.List(h.table, h.from)
	if err != nil {
		return false, fmt.Errorf("list chain %s in table %s: %w", h.from, h.table, err)
	}
	return slices.Contains(list, fmt.Sprintf("-A %s -j %s", h.from, h.chain)), nil
}

// restore runs one transaction; other rules stay as they are.
func restore(ctx context.Context, v6 bool, script string) error {
	name := "iptables-restore"
	if v6 {
		name = "ip6tables-restore"
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, "--noflush", "-w", "10")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s; the rules were\n%s", name, err, strings.TrimSpace(string(out)), script)
	}
	return nil
}

// Repair puts our rules back when somebody flushed them; when they are in
// place it only lists them. It does nothing when the default network is not
// ours to look after.
func (m *Manager) Repair(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	own, err := m.own()
	if err != nil || own == nil {
		return err
	}
	if err := m.ensureSysctls(own.marker.cidrs()); err != nil {
		return err
	}
	return m.ensureRules(ctx, own.marker.cidrs())
}

// removeRules removes our chains in both families.
func removeRules() error {
	var errs []error
	for _, v6 := range []bool{false, true} {
		ipt, err := newIPTables(v6)
		if err != nil {
			continue // no program, no rules
		}
		for _, h := range []hook{
			{table: "nat", from: "POSTROUTING", chain: chainPostrouting},
			{table: "filter", from: "FORWARD", chain: chainForward},
		} {
			errs = append(errs, removeChain(ipt, h.table, h.chain, h.from))
		}
		errs = append(errs, removePortmap(ipt))
	}
	return errors.Join(errs...)
}

// removeChain removes a chain and the jumps to it; gone is fine.
func removeChain(ipt *iptables.IPTables, table, chain string, from ...string) error {
	ok, err := ipt.ChainExists(table, chain)
	if err != nil {
		if v6Missing(err) {
			return nil
		}
		return fmt.Errorf("look up chain %s in table %s: %w", chain, table, err)
	}
	if !ok {
		return nil
	}
	for _, f := range from {
		list, err := ipt.List(table, f)
		if err != nil {
			return fmt.Errorf("list chain %s in table %s: %w", f, table, err)
		}
		for i := len(list) - 1; i > 0; i-- { // 0 is the policy; from the end, so that numbers hold
			if !strings.HasSuffix(list[i], "-j "+chain) {
				continue
			}
			if err := ipt.DeleteById(table, f, i); err != nil {
				return fmt.Errorf("delete rule %d of chain %s in table %s: %w", i, f, table, err)
			}
		}
	}
	if err := ipt.ClearAndDeleteChain(table, chain); err != nil {
		return fmt.Errorf("delete chain %s in table %s: %w", chain, table, err)
	}
	return nil
}

// v6Missing says that the kernel has no such table at all, so nothing is in it.
func v6Missing(err error) bool {
	var e *iptables.Error
	return errors.As(err, &e) && e.ExitStatus() == 3
}

// removePortmap removes the portmap plugin's common chains when no pod's port
// is in them; the plugin itself never does.
func removePortmap(ipt *iptables.IPTables) error {
	list, err := listChain(ipt, "nat", "CNI-HOSTPORT-DNAT")
	if v6Missing(err) || err == nil && len(list) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if len(list) > 1 {
		return nil
	}
	return errors.Join(
		removeChain(ipt, "nat", "CNI-HOSTPORT-DNAT", "PREROUTING", "OUTPUT"),
		removeChain(ipt, "nat", "CNI-HOSTPORT-MASQ", "POSTROUTING"),
		removeChain(ipt, "nat", "CNI-HOSTPORT-SETMARK"),
	)
}
