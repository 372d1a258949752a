package ipvs

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/nft"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// family is one of the two nftables tables.
type family struct {
	name     string // of nft's family, and of the header in rules
	any      netip.Addr
	loopback string
}

var families = []family{
	{"ip", netip.IPv4Unspecified(), "127.0.0.0/8"},
	{"ip6", netip.IPv6Unspecified(), "::1"},
}

func (f family) has(a netip.Addr) bool { return a.Is4() == f.any.Is4() }

// connMark is set on a connection between the choice of an endpoint and
// postrouting, if it is to be masqueraded. The packet's own mark is IPVS's.
const connMark = "0x4000"

// base is a family's table without any Service. IPVS takes packets that are
// for the node itself at priority 98 of input, and at -98 of output; just
// before, dispatch refuses, drops, or marks what begins a connection.
//
//   - services and nodeports, each with -all and -refused: what happens at an
//     address or at a port of the node; nodeport-marks, inside and
//     inside-nodeports: the virtual service, where it has a mark.
//   - virtual: addresses that the node has only because of Services. The kernel
//     takes them for its own, so nothing else may be reached there: neither a
//     node port nor a process that listens on all addresses.
//   - ranges: what no Service has of the ranges of Services is dropped.
//
// All of these are maps of verdicts, and none is a set with a rule of its own:
// when the table is replaced, a packet that has begun with the old one finds the
// old maps empty, but not the old sets (seen with 6.1), and what services no
// more knows virtual would refuse.
//
// None of the verdicts leads to a chain: with each element that does, the kernel
// walks through all there are, to see whether chains go round in circles. In
// their place "return" says that an element was found: it goes back to whoever
// jumped, while a chain in which nothing was found goes on to another one and
// never ends.
//
// A refused TCP connection is reset and not answered with ICMP: over IPv6
// Linux tries once more after that and takes a second.
const base = `
map nodeport-marks { typeof meta l4proto . th dport : meta mark; }
map inside { typeof $IP daddr . meta l4proto . th dport : meta mark; }
map inside-nodeports { typeof meta l4proto . th dport : meta mark; }
set firewall { typeof $IP daddr . meta l4proto . th dport; }
set allowed { typeof $IP daddr . meta l4proto . th dport . $IP saddr; flags interval; }
map virtual { typeof $IP daddr : verdict; }
map ranges {
	typeof $IP daddr : verdict
	flags interval
	$RANGES
}
set hairpin { typeof $IP saddr . $IP daddr; }

chain refuse {
	meta l4proto tcp reject with tcp reset
	reject
}
chain to-remote {
	$REMOTE ct mark set ct mark or $MARK
	accept
}
chain to-all {
	ct mark set ct mark or $MARK
	accept
}
chain inside-dispatch {
	meta mark set $IP daddr . meta l4proto . th dport map @inside goto to-remote
	$NODEPORT meta mark set meta l4proto . th dport map @inside-nodeports goto to-remote
}
chain dispatch {
	$IP daddr . meta l4proto . th dport @firewall $IP daddr . meta l4proto . th dport . $IP saddr != @allowed drop
	$LOCALPOD
	fib saddr type local jump inside-dispatch
	goto services
}
chain no-service {
	$NOTSERVED $IP daddr vmap @ranges
	$NODEPORT meta mark set meta l4proto . th dport map @nodeport-marks
	$NODEPORT goto nodeports
	accept
}
chain input {
	type filter hook input priority 97;
	ct state new jump dispatch
}
chain output {
	type filter hook output priority -101;
	ct state new jump dispatch
}
chain after-ipvs {
	type filter hook output priority -350;
	meta mark & $OURMASK == $OURMARK meta mark set 0
}
chain postrouting {
	type nat hook postrouting priority 100;
	ct mark and $MARK != 0 ct mark set ct mark xor $MARK masquerade fully-random
	$IP saddr . $IP daddr @hairpin masquerade fully-random
}
`

// serve finds a frontend by its KEY: in $NAME who is masqueraded as to-remote
// says, and who is not or is dropped; in $NAME-all who always is; in
// $NAME-refused who is refused.
const serve = `
map $NAME { typeof $KEY : verdict; }
map $NAME-all { typeof $KEY : verdict; }
map $NAME-refused { typeof $KEY : verdict; }
chain $NAME {
	jump $NAME-1
	goto to-remote
}
chain $NAME-1 {
	$KEY vmap @$NAME
	goto $NAME-2
}
chain $NAME-2 {
	jump $NAME-3
	goto to-all
}
chain $NAME-3 {
	$KEY vmap @$NAME-all
	goto $NAME-4
}
chain $NAME-4 {
	jump $NAME-5
	goto refuse
}
chain $NAME-5 {
	$KEY vmap @$NAME-refused
	$ELSE
}
`

// expand writes the family's words for IP, LOOPBACK and the marks.
func (f family) expand(text string) string {
	return strings.NewReplacer("$IP", f.name, "$MARK", connMark,
		"$OURMASK", fmt.Sprintf("%#x", uint32(markMask)), "$OURMARK", fmt.Sprintf("%#x", uint32(markOurs))).Replace(text)
}

// baseTable is the table for that node.
func baseTable(f family, node ruleset.Node) string {
	local, remote := localPods(f, node.LocalPods)
	if local != "" {
		local += " jump inside-dispatch"
	}
	served := addrSet(f, node.Served)
	if served != "" {
		served = "$IP daddr != " + served
	}
	ranges := widest(f, node.ServiceCIDRs)
	if ranges != "" {
		ranges = "elements = " + ranges
	}
	nodePort := nodePorts(f, node)
	table := base +
		strings.NewReplacer("$NAME", "services", "$KEY", "$IP daddr . meta l4proto . th dport", "$ELSE", "$IP daddr vmap @virtual\n\tgoto no-service").Replace(serve) +
		strings.NewReplacer("$NAME", "nodeports", "$KEY", "meta l4proto . th dport", "$ELSE", "accept").Replace(serve)
	var out strings.Builder
	for line := range strings.Lines(table) {
		if strings.Contains(line, "$NODEPORT") && nodePort == "" {
			continue
		}
		out.WriteString(strings.NewReplacer("$LOCALPOD", local, "$REMOTE", remote, "$NOTSERVED", served, "$RANGES", ranges, "$NODEPORT", nodePort).Replace(line))
	}
	return f.expand(fmt.Sprintf("table $IP %s {%s}\n", Table, out.String()))
}

// nodePorts is the condition that a packet is for a node port's address, "" if
// there are none.
func nodePorts(f family, node ruleset.Node) string {
	if slices.Contains(node.NodePortAddresses, f.any) {
		return "fib daddr type local $IP daddr != " + f.loopback
	}
	if set := addrSet(f, node.NodePortAddresses); set != "" {
		return "$IP daddr " + set
	}
	return ""
}

// localPods are the conditions that a packet is from a pod of this node ("" is
// never), and that it is not ("" is always).
func localPods(f family, l ruleset.LocalPods) (local, remote string) {
	if l.Interface != "" {
		return fmt.Sprintf("iifname %q", l.Interface), fmt.Sprintf("iifname != %q", l.Interface)
	}
	set := prefixSet(f, l.Prefixes)
	if set == "" {
		return "", ""
	}
	return "$IP saddr " + set, "$IP saddr != " + set
}

// widest are the elements of a map that drops what is for these prefixes; those
// within others are left out, since intervals must not overlap.
func widest(f family, all []netip.Prefix) string {
	var out []string
	for i, p := range all {
		within := slices.ContainsFunc(all[:i], func(o netip.Prefix) bool { return o == p }) ||
			slices.ContainsFunc(all, func(o netip.Prefix) bool { return o.Bits() < p.Bits() && o.Contains(p.Addr()) })
		if f.has(p.Addr()) && !within {
			out = append(out, p.String()+" : drop")
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "{ " + strings.Join(out, ", ") + " }"
}

// prefixSet and addrSet are an anonymous set of the family's, "" if there are
// none.
func prefixSet(f family, all []netip.Prefix) string {
	return set(all, func(p netip.Prefix) bool { return f.has(p.Addr()) })
}

func addrSet(f family, all []netip.Addr) string { return set(all, f.has) }

func set[T fmt.Stringer](all []T, has func(T) bool) string {
	var out []string
	for _, e := range all {
		if has(e) {
			out = append(out, e.String())
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "{ " + strings.Join(out, ", ") + " }"
}

// elements are those of a frontend. Its marks exist.
func (m *marks) elements(f *ruleset.Frontend) (out []nft.Element) {
	at := fmt.Sprintf("%s . %d", f.Key.Proto, f.Key.Port)
	in, insides := "nodeports", "inside-nodeports"
	if !f.Key.NodePort() {
		at = f.Key.Addr.String() + " . " + at
		in, insides = "services", "inside"
	}
	add := func(in, key, value string) { out = append(out, nft.Element{In: in, Key: key, Value: value}) }
	hex := func(inside bool) string { return fmt.Sprintf("%#x", uint32(m.of[marked{f.Key, inside}])) }
	served := len(f.Endpoints) > 0
	switch {
	case served && f.Masquerade == ruleset.MasqueradeNone:
		add(in, at, "accept")
	case served && f.Masquerade == ruleset.MasqueradeRemote:
		add(in, at, "return")
	case served:
		add(in+"-all", at, "return")
	case f.Empty == ruleset.Reject:
		add(in+"-refused", at, "return")
	default:
		add(in, at, "drop")
	}
	if served && f.Key.NodePort() {
		add("nodeport-marks", at, hex(false))
	}
	if len(f.Inside) > 0 {
		add(insides, at, hex(true))
	}
	if len(f.SourceRanges) > 0 {
		add("firewall", at, "")
		for _, p := range f.SourceRanges {
			add("allowed", at+" . "+p.String(), "")
		}
	}
	return out
}

// program makes one transaction of the families' elements; with full it replaces
// the tables. A change of a few elements needs no program.
func (b *Backend) program(ctx context.Context, full bool, node ruleset.Node, elements []*nft.Elements) error {
	batch, small := nft.NewBatch(), !full
	for i, f := range families {
		small = small && batch.Elements(elements[i], f.any.Is6(), Table)
	}
	switch {
	case small && batch.Empty():
		return nil
	case small:
		if !b.socket.Opened() {
			if err := b.opts.In(b.socket.Open); err != nil {
				return err
			}
		}
		b.monitor.Known(b.socket.Port())
		return b.socket.Send(batch)
	}
	var text bytes.Buffer
	for i, f := range families {
		if full {
			// Deleting what may not be there is an error, unless it was added first.
			fmt.Fprintf(&text, "add table %s %s\ndelete table %s %s\n%s", f.name, Table, f.name, Table, baseTable(f, node))
		}
		elements[i].Write(&text, f.name, Table)
	}
	return b.nft(ctx, &text)
}

// nft runs one transaction; the caller holds the lock.
func (b *Backend) nft(ctx context.Context, text *bytes.Buffer) error {
	return b.monitor.Counted(func() error { return b.opts.Nft.Apply(ctx, text) })
}
