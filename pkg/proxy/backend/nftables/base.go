package nftables

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// mark is set between the choice of an endpoint and postrouting on what is to
// be masqueraded. It is kube-proxy's: who excludes that bit need not learn
// another one.
const mark = "0x4000"

// family is one of the two tables.
type family struct {
	name     string // of nft's family, and of the header in rules
	any      netip.Addr
	loopback string
	addrType string
}

var (
	ipv4 = family{"ip", netip.IPv4Unspecified(), "127.0.0.0/8", "ipv4_addr"}
	ipv6 = family{"ip6", netip.IPv6Unspecified(), "::1", "ipv6_addr"}
)

func (f family) has(a netip.Addr) bool { return a.Is4() == f.any.Is4() }

// expand writes the family's words for IP, LOOPBACK and MARK.
func (f family) expand(text string) string {
	return strings.NewReplacer("$IP", f.name, "$LOOPBACK", f.loopback, "$MARK", mark).Replace(text)
}

// The maps and sets of base. What is true of an address is in the first of a
// pair, what is true of a port of the node in the second.
const (
	services, nodePorts     = "services", "nodeports"
	inside, insideNodePorts = "inside", "inside-nodeports"
	empty, emptyNodePorts   = "empty", "empty-nodeports"
	firewall, allowed       = "firewall", "allowed"
	clusterIPs, hairpin     = "cluster-ips", "hairpin"
)

// A refused TCP connection is reset and not, as by kube-proxy, answered with
// ICMP: over IPv6 Linux tries once more after that and takes a second.
//
// The priorities are those of the first generation: they and the next
// generations' (see shift) lie behind conntrack's (-200) and before those that
// others use, mangle (-150) for the firewall, dstnat (-100), filter (0) and
// srcnat (100) for the rest.
//
// base is a family's table without any Service: its number of chains and rules
// is what it is for any number of Services, but for the classes (see render.go).
const base = `
map services { typeof $IP daddr . meta l4proto . th dport : verdict; }
map nodeports { typeof meta l4proto . th dport : verdict; }
map inside { typeof $IP daddr . meta l4proto . th dport : verdict; }
map inside-nodeports { typeof meta l4proto . th dport : verdict; }
map empty { typeof $IP daddr . meta l4proto . th dport : verdict; }
map empty-nodeports { typeof meta l4proto . th dport : verdict; }
set firewall { typeof $IP daddr . meta l4proto . th dport; }
set allowed { typeof $IP daddr . meta l4proto . th dport . $IP saddr; flags interval; }
set cluster-ips { typeof $IP daddr; }
set hairpin { typeof $IP saddr . $IP daddr; }

chain refuse {
	meta l4proto tcp reject with tcp reset
	reject
}
chain inside-dispatch {
	$IP daddr . meta l4proto . th dport vmap @inside
	$NODEPORT meta l4proto . th dport vmap @inside-nodeports
}
chain dispatch {
	$LOCALPOD
	fib saddr type local jump inside-dispatch
	$IP daddr . meta l4proto . th dport vmap @services
	$NODEPORT meta l4proto . th dport vmap @nodeports
}
chain check-firewall {
	$IP daddr . meta l4proto . th dport @firewall $IP daddr . meta l4proto . th dport . $IP saddr != @allowed drop
}
chain check-empty {
	$IP daddr . meta l4proto . th dport vmap @empty
}
chain check-cluster-ips {
	$IP daddr @cluster-ips goto refuse
	$SERVICECIDRS
}
chain nat-prerouting {
	type nat hook prerouting priority -145;
	jump dispatch
}
chain nat-output {
	type nat hook output priority -145;
	jump dispatch
}
chain nat-postrouting {
	type nat hook postrouting priority 60;
	mark and $MARK != 0 mark set mark xor $MARK masquerade fully-random
	ct status dnat $IP saddr . $IP daddr @hairpin masquerade fully-random
}
chain firewall-prerouting {
	type filter hook prerouting priority -195;
	ct state new jump check-firewall
}
chain firewall-output {
	type filter hook output priority -195;
	ct state new jump check-firewall
}
chain filter-input {
	type filter hook input priority -45;
	ct state new $NODEPORT meta l4proto . th dport vmap @empty-nodeports
	ct state new jump check-empty
}
chain filter-forward {
	type filter hook forward priority -45;
	ct state new jump check-empty
	ct state new jump check-cluster-ips
}
chain filter-output {
	type filter hook output priority -45;
	ct state new jump check-empty
	ct state new jump check-cluster-ips
}
`

// guard keeps others out of what listens on loopback addresses while
// route_localnet is on for our own node ports (CVE-2020-8558).
const guard = `
chain guard-loopback {
	type filter hook prerouting priority -345;
	iifname != "lo" $IP daddr $LOOPBACK drop
	iifname != "lo" $IP saddr $LOOPBACK drop
}
`

// natPriority is that of the chain natPrerouting in the first generation.
const (
	natPrerouting = "nat-prerouting"
	natPriority   = -145
)

// baseTable is the table for that node.
func baseTable(f family, node ruleset.Node, generation int) string {
	text := base
	if f == ipv4 && node.LoopbackNodePorts {
		text += guard
	}
	local := ""
	if cond := localPod(f, node.LocalPods, false); cond != never {
		local = cond + " jump inside-dispatch"
	}
	cidrs := ""
	if set := prefixSet(f, node.ServiceCIDRs); set != "" {
		cidrs = "$IP daddr " + set
		if served := addrSet(f, node.Served); served != "" {
			cidrs += " $IP daddr != " + served
		}
		cidrs += " drop"
	}
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.NewReplacer("$LOCALPOD", local, "$SERVICECIDRS", cidrs).Replace(line)
		// One condition may take several rules: there is no "or" in a rule.
		if strings.Contains(line, "$NODEPORT") {
			for _, cond := range nodePort(f, node) {
				lines = append(lines, strings.Replace(line, "$NODEPORT", cond, 1))
			}
			continue
		}
		lines = append(lines, shift(line, generation))
	}
	return f.expand(fmt.Sprintf("table $IP %s {%s}\n", Table, strings.Join(lines, "")))
}

// nodePort are the conditions that a packet is for a node port's address.
func nodePort(f family, node ruleset.Node) []string {
	var conds, addrs []string
	all := false
	for _, a := range node.NodePortAddresses {
		all = all || a == f.any
		if f.has(a) && !a.IsUnspecified() {
			addrs = append(addrs, a.String())
		}
	}
	switch {
	case all:
		conds = append(conds, "fib daddr type local $IP daddr != $LOOPBACK")
	case len(addrs) > 0:
		conds = append(conds, "$IP daddr { "+strings.Join(addrs, ", ")+" }")
	}
	if f == ipv4 && node.LoopbackNodePorts {
		conds = append(conds, "$IP daddr $LOOPBACK")
	}
	return conds
}

// Conditions that need no words.
const (
	always = ""
	never  = "never"
)

// localPod is the condition that a packet is from a pod of this node, or that
// it is not.
func localPod(f family, l ruleset.LocalPods, not bool) string {
	match, arg := "iifname", fmt.Sprintf("%q", l.Interface)
	if l.Interface == "" {
		match, arg = "$IP saddr", prefixSet(f, l.Prefixes)
	}
	switch {
	case arg == "" && not:
		return always
	case arg == "":
		return never
	case not:
		return match + " != " + arg
	}
	return match + " " + arg
}

// prefixSet is an anonymous set of the family's prefixes, "" if there are none.
func prefixSet(f family, all []netip.Prefix) string {
	var out []string
	for _, p := range all {
		if f.has(p.Addr()) {
			out = append(out, p.String())
		}
	}
	return anonymous(out)
}

// addrSet is the same of addresses.
func addrSet(f family, all []netip.Addr) string {
	var out []string
	for _, a := range all {
		if f.has(a) {
			out = append(out, a.String())
		}
	}
	return anonymous(out)
}

func anonymous(elements []string) string {
	if len(elements) == 0 {
		return ""
	}
	return "{ " + strings.Join(elements, ", ") + " }"
}
