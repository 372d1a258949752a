package iptables

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// inline is how many endpoints a frontend has at most in the tree itself.
const inline = 4

// renderer writes the frontends of one family.
type renderer struct {
	family family
	local  []string // conditions for local pods
}

func newRenderer(f family, node ruleset.Node) renderer {
	return renderer{f, localPods(f, node.LocalPods)}
}

// entry is what is at a place: a frontend, or without one a cluster IP, which
// refuses what its frontends leave over.
type entry struct {
	frontend *ruleset.Frontend
	addr     netip.Addr
}

// forest is one tree of chains: that of the addresses or that of the node's
// ports.
type forest struct {
	tree
	renderer
	root      string
	nodePorts bool
	entries   []entry
}

// forests are the trees of a family.
func (r renderer) forests(rs *ruleset.Ruleset) [2]*forest {
	fs := rs.Frontends
	mine := func(a netip.Addr) bool { return r.family.has(a) }
	fs = between(fs, func(f *ruleset.Frontend) bool { return mine(f.Key.Addr) })
	ips := between(rs.ClusterIPs, mine)
	n := len(fs) - len(between(fs, func(f *ruleset.Frontend) bool { return !f.Key.NodePort() }))
	out := [2]*forest{
		{tree: tree{width: r.family.width}, renderer: r, root: addresses},
		{tree: tree{width: r.family.width}, renderer: r, root: nodePorts, nodePorts: true},
	}
	out[0].places, out[0].entries = make([]place, 0, len(fs)-n+len(ips)), make([]entry, 0, len(fs)-n+len(ips))
	for _, f := range fs {
		if f.Key.NodePort() {
			out[1].add(f.Key.Addr, f)
			continue
		}
		for len(ips) > 0 && ips[0].Less(f.Key.Addr) {
			out[0].add(ips[0], nil)
			ips = ips[1:]
		}
		out[0].add(f.Key.Addr, f)
	}
	for _, ip := range ips {
		out[0].add(ip, nil)
	}
	return out
}

// between is the part of a sorted list that has a property: it is in one piece.
func between[T any](list []T, has func(T) bool) []T {
	from := slices.IndexFunc(list, has)
	if from < 0 {
		return nil
	}
	list = list[from:]
	if to := slices.IndexFunc(list, func(v T) bool { return !has(v) }); to >= 0 {
		list = list[:to]
	}
	return list
}

func (t *forest) add(addr netip.Addr, f *ruleset.Frontend) {
	t.entries = append(t.entries, entry{f, addr})
	if f == nil {
		t.places = append(t.places, placeOf(addr, rest, 0))
		return
	}
	t.places = append(t.places, keyPlace(f.Key))
}

func keyPlace(k ruleset.Key) place {
	return placeOf(k.Addr, uint32(slices.Index(protos[:], k.Proto)), uint32(k.Port))
}

// name is a chain's. The root's is fixed; that of a prefix of IPv4 addresses
// says which, if it fits.
func (t *forest) name(s span) string {
	p := t.prefix(t.places[s.from], s.length)
	if text := fmt.Sprintf("%s/%d", t.address(p), s.length); !t.family.v6 && s.length <= t.width && len(text) <= 16 && !t.nodePorts {
		return Prefix + text
	}
	return hashed(t.root, fmt.Sprint(p, s.length))
}

// rules are those of the chain of a span.
func (t *forest) rules(s span) []string {
	var out []string
	if s.level() > 0 {
		for _, c := range t.children(s) {
			out = append(out, strings.TrimLeft(t.condition(c, t.nodePorts)+" -j "+t.name(c), " "))
		}
		return out
	}
	for _, e := range t.entries[s.from:s.to] {
		if e.frontend == nil {
			out = append(out, "-d "+e.addr.String()+" -j "+refuse)
			continue
		}
		out = append(out, t.frontend(e.frontend)...)
	}
	return out
}

// frontend are the rules of a frontend in the tree.
func (r renderer) frontend(f *ruleset.Frontend) []string {
	match := fmt.Sprintf("-p %s -m %[1]s --dport %d ", f.Key.Proto, f.Key.Port)
	if !f.Key.NodePort() {
		match = "-d " + f.Key.Addr.String() + " " + match
	}
	var out []string
	switch {
	case special(f):
		out = []string{"-j " + hashed("frontend", f.Key.String())}
	case len(f.Endpoints) == 0:
		return []string{match + empty(f)}
	default:
		out = append(r.class(f), r.dnat(f, f.Endpoints, len(f.Endpoints))...)
	}
	for i := range out {
		out[i] = match + out[i]
	}
	return out
}

// special frontends have a chain of their own.
func special(f *ruleset.Frontend) bool {
	return len(f.Endpoints) > inline || len(f.Inside) > 0 || len(f.SourceRanges) > 0 || f.Affinity > 0
}

func empty(f *ruleset.Frontend) string {
	if f.Empty == ruleset.Drop {
		return "-j " + drop
	}
	return "-j " + reject
}

// class marks what is to be masqueraded. A packet comes with the mark for
// MasqueradeRemote, unless it was already taken for something else.
func (r renderer) class(f *ruleset.Frontend) []string {
	switch {
	case f.Masquerade == ruleset.MasqueradeAll:
		return []string{setMasquerade}
	case f.Masquerade == ruleset.MasqueradeNone:
		return []string{setNone}
	case f.Key.NodePort() || len(f.Inside) > 0:
		return []string{"-j " + remote}
	}
	return nil
}

// chains are those that a frontend has of its own.
func (r renderer) chains(f *ruleset.Frontend) []chain {
	if f == nil || !special(f) {
		return nil
	}
	var more []chain
	key, proto := f.Key.String(), "-p "+f.Key.Proto.String()+" "
	var rules []string
	if len(f.Inside) > 0 {
		var to string
		to, more = r.share(f, "inside", f.Inside, more)
		rules = append(rules, setNone)
		for _, cond := range r.local {
			rules = append(rules, cond+" -j "+to)
		}
		rules = append(rules,
			"-m addrtype --src-type LOCAL "+setMasquerade,
			"-m addrtype --src-type LOCAL -j "+to)
	}
	if len(f.Endpoints) == 0 {
		rules = append(rules, empty(f))
	} else {
		var to string
		to, more = r.share(f, "endpoints", f.Endpoints, more)
		rules = append(append(rules, r.class(f)...), proto+"-j "+to)
	}
	first := chain{hashed("frontend", key), rules}
	if len(f.SourceRanges) > 0 {
		allowed := chain{hashed("allowed", key), rules}
		more = append(more, allowed)
		first.rules = nil
		for _, p := range f.SourceRanges {
			first.rules = append(first.rules, "-s "+p.String()+" -j "+allowed.name)
		}
		first.rules = append(first.rules, "-j "+drop)
	}
	return append(more, first)
}

// share is the chain that leads to one of these endpoints. First it leads a
// client to where it was before, if that is to be remembered.
func (r renderer) share(f *ruleset.Frontend, what string, to []netip.AddrPort, more []chain) (string, []chain) {
	p := picker{renderer: r, frontend: f, to: to, tree: tree{width: r.family.width}, key: what + " " + f.Key.String(), chains: more}
	for _, e := range to {
		p.places = append(p.places, placeOf(e.Addr(), 0, uint32(e.Port())))
	}
	if !slices.IsSortedFunc(p.places, place.compare) {
		panic("the endpoints of " + f.Key.String() + " are not sorted") // a promise of the ruleset
	}
	name := p.chain(p.all())
	if f.Affinity == 0 {
		return name, p.chains
	}
	known := chain{name: hashed("affinity", p.key)}
	for _, e := range to {
		known.rules = append(known.rules, fmt.Sprintf("-p %s -m recent --update --seconds %d --reap --name %s --rsource -j DNAT --to-destination %s",
			f.Key.Proto, f.Affinity, clients(f, e), e))
	}
	known.rules = append(known.rules, "-j "+name)
	return known.name, append(p.chains, known)
}

// picker spreads connections over endpoints: where they are many it picks a
// prefix of their addresses first, with the chance of all within.
type picker struct {
	tree
	renderer
	frontend *ruleset.Frontend
	to       []netip.AddrPort
	key      string
	chains   []chain
}

func (p *picker) chain(s span) string {
	out := chain{name: hashed(p.key, fmt.Sprint(p.prefix(p.places[s.from], s.length), s.length))}
	if s.level() == 0 {
		for _, rule := range p.dnat(p.frontend, p.to[s.from:s.to], s.to-s.from) {
			out.rules = append(out.rules, fmt.Sprintf("-p %s %s", p.frontend.Key.Proto, rule))
		}
	}
	left := s.to - s.from
	for _, c := range p.children(s) {
		n := c.to - c.from
		out.rules = append(out.rules, chance(n, left)+"-j "+p.chain(c))
		left -= n
	}
	p.chains = append(p.chains, out)
	return out.name
}

// dnat leads to each endpoint with the same chance.
func (r renderer) dnat(f *ruleset.Frontend, to []netip.AddrPort, left int) []string {
	out := make([]string, 0, len(to)+1)
	for _, e := range to {
		rule := chance(1, left)
		if f.Affinity > 0 {
			rule += "-m recent --set --name " + clients(f, e) + " --rsource "
		}
		out = append(out, rule+"-j DNAT --to-destination "+e.String())
		left--
	}
	return out
}

// chance is the condition of n cases of all.
func chance(n, all int) string {
	if n == all {
		return ""
	}
	return "-m statistic --mode random --probability " + strconv.FormatFloat(float64(n)/float64(all), 'f', 10, 64) + " "
}

// clients is the kernel's list of who was sent to an endpoint of a Service,
// whichever of the Service's addresses it used.
func clients(f *ruleset.Frontend, e netip.AddrPort) string {
	return "nodeagent-" + hash(f.Service, f.Key.Proto.String(), e.String())
}

func hashed(parts ...string) string { return Prefix + hash(parts...) }

func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}
