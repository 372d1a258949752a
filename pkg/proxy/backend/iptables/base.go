package iptables

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Prefix begins the names of all our chains. A name has 28 characters at most.
const Prefix = "NODEAGENT-S-"

func own(chain string) bool { return strings.HasPrefix(chain, Prefix) }

// The chains that are always there.
const (
	services    = Prefix + "SERVICES"    // what a new connection meets
	addresses   = Prefix + "ADDRESSES"   // the tree of addresses
	nodePorts   = Prefix + "NODEPORTS"   // the tree of the node's ports
	remote      = Prefix + "REMOTE"      // marks what no local pod sends
	refuse      = Prefix + "REFUSE"      // marks what nobody may serve, and goes on
	reject      = Prefix + "REJECT"      // marks what is refused
	drop        = Prefix + "DROP"        // marks what is dropped
	postrouting = Prefix + "POSTROUTING" // masquerades
	masquerade  = Prefix + "MASQUERADE"
	verdicts    = Prefix + "VERDICTS" // does what the marks say
	forward     = Prefix + "FORWARD"
	loopback    = Prefix + "LOOPBACK"
)

// Two bits of the mark carry what the table nat decides to where it can be
// done: 0x4000 is masquerade, as kube-proxy's; 0x8000 is refused and both are
// dropped.
const (
	setNone       = "-j MARK --set-xmark 0x0/0xc000"
	setMasquerade = "-j MARK --set-xmark 0x4000/0xc000"
	setRefused    = "-j MARK --set-xmark 0x8000/0xc000"
	setDropped    = "-j MARK --set-xmark 0xc000/0xc000"
	toVerdicts    = "-m mark --mark 0x8000/0x8000 -j " + verdicts
)

const dropInvalid = "-m conntrack --ctstate INVALID -j DROP"

// family is what differs between IPv4 and IPv6.
type family struct {
	v6       bool
	width    int
	loopback string
	// sameAddress is a program for packets with the same source as destination.
	sameAddress string
}

var (
	ipv4 = family{false, 32, "127.0.0.0/8", "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0"}
	ipv6 = family{true, 128, "::1/128", "18," +
		"32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0," +
		"32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0," +
		"32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0," +
		"32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0," +
		"6 0 0 65535,6 0 0 0"}
)

func (f family) has(a netip.Addr) bool { return a.Is6() == f.v6 }

func (f family) String() string {
	if f.v6 {
		return "IPv6"
	}
	return "IPv4"
}

// chain is a chain with its rules, which lack "-A NAME".
type chain struct {
	name  string
	rules []string
}

// jump is a rule in a chain that the kernel calls, the first one there.
type jump struct{ from, rule string }

func (j jump) String() string { return "-A " + j.from + " " + j.rule }

// table is what one table holds besides the trees.
type table struct {
	name   string
	chains []chain
	jumps  []jump
}

// baseTables are the tables for that node, without any Service. They are made
// in this order: who sets a mark comes after who does what it says.
func baseTables(f family, node ruleset.Node) []table {
	filter := table{name: "filter", chains: []chain{
		{verdicts, []string{
			"-m mark --mark 0xc000/0xc000 -j DROP",
			// kube-proxy answers TCP with ICMP; over IPv6 Linux then tries once
			// more, which takes a second.
			"-p tcp -j REJECT --reject-with tcp-reset",
			"-j REJECT",
		}},
		{forward, []string{
			toVerdicts,
			// An out-of-window packet of a translated connection would reach the
			// client with the endpoint's address, and the client's reset end the
			// connection (kubernetes issue 74839).
			dropInvalid,
			// Where the policy is to forward nothing, as Docker's is.
			"-m mark --mark 0x4000/0x4000 -j ACCEPT",
			"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		}},
	}, jumps: []jump{{"INPUT", toVerdicts}, {"FORWARD", "-j " + forward}, {"OUTPUT", toVerdicts}}}
	nat := table{
		name: "nat",
		chains: []chain{
			{services, dispatch(f, node)},
			{remote, markRemote(f, node.LocalPods)},
			{refuse, []string{setRefused}},
			{reject, []string{setRefused, "-j ACCEPT"}},
			{drop, []string{setDropped, "-j ACCEPT"}},
			{postrouting, []string{
				"-m mark --mark 0x4000/0x4000 -j " + masquerade,
				// Hairpin: who is sent to itself must not answer itself.
				fmt.Sprintf(`-m conntrack --ctstate DNAT -m bpf --bytecode "%s" -j MASQUERADE --random-fully`, f.sameAddress),
			}},
			{masquerade, []string{"-j MARK --set-xmark 0x0/0x4000", "-j MASQUERADE --random-fully"}},
		},
		jumps: []jump{
			{"PREROUTING", "-j " + services},
			{"OUTPUT", "-j " + services},
			{"POSTROUTING", "-j " + postrouting},
		},
	}
	raw := table{name: "raw"}
	if !f.v6 && node.LoopbackNodePorts {
		// Keeps others out of what listens on loopback addresses while
		// route_localnet is on for our own node ports (CVE-2020-8558).
		raw.chains = []chain{{loopback, []string{"-d " + f.loopback + " -j DROP", "-s " + f.loopback + " -j DROP"}}}
		raw.jumps = []jump{{"PREROUTING", "! -i lo -j " + loopback}}
	}
	return []table{raw, filter, nat}
}

// dispatch is the way of a new connection. It has the mark of the most common
// class when it meets a frontend, and loses it when it meets none.
func dispatch(f family, node ruleset.Node) []string {
	rules := []string{"-j " + remote, "-j " + addresses}
	for _, cond := range nodePort(f, node) {
		rules = append(rules, cond+" -j "+nodePorts)
	}
	rules = append(rules, "-m mark --mark 0x8000/0x8000 -j RETURN")
	for _, p := range node.ServiceCIDRs {
		if f.has(p.Addr()) {
			// What the node itself serves there (a DNS server) is no Service's.
			rules = append(rules, fmt.Sprintf("-d %s -m addrtype ! --dst-type LOCAL -j %s", p, drop))
		}
	}
	return append(rules, setNone)
}

// nodePort are the conditions that a packet is for a node port's address.
func nodePort(f family, node ruleset.Node) []string {
	var conds, addrs []string
	all := false
	for _, a := range node.NodePortAddresses {
		switch {
		case !f.has(a):
		case a.IsUnspecified():
			all = true
		default:
			addrs = append(addrs, "-d "+a.String())
		}
	}
	if all {
		conds = append(conds, "! -d "+f.loopback+" -m addrtype --dst-type LOCAL")
	} else {
		conds = addrs
	}
	if !f.v6 && node.LoopbackNodePorts {
		conds = append(conds, "-d "+f.loopback)
	}
	return conds
}

func markRemote(f family, l ruleset.LocalPods) []string {
	rules := []string{setMasquerade}
	for _, cond := range localPods(f, l) {
		rules = append(rules, cond+" "+setNone)
	}
	return rules
}

// localPods are the conditions that a packet is from a pod of this node.
func localPods(f family, l ruleset.LocalPods) []string {
	if name, ok := strings.CutSuffix(l.Interface, "*"); ok {
		return []string{"-i " + name + "+"}
	}
	if l.Interface != "" {
		return []string{"-i " + l.Interface}
	}
	var out []string
	for _, p := range l.Prefixes {
		if f.has(p.Addr()) {
			out = append(out, "-s "+p.String())
		}
	}
	return out
}
