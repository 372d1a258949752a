package nftables

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// element is an entry of a map, or without a value of a set.
type element struct{ in, key, value string }

// object is a chain, set or map that some frontends share, by a name that says
// all that is in it but a map's elements: nobody ever changes one, it is there
// or it is not.
type object struct {
	kind, name string
	spec       string   // of a set or map
	rules      []string // of a chain
}

// rendered is what one frontend is in the kernel.
type rendered struct {
	elements []element
	objects  []object
}

// renderer writes the frontends of one family.
type renderer struct {
	family family
	remote string // the rule that marks what is from no local pod
}

func newRenderer(f family, node ruleset.Node) renderer {
	return renderer{f, strings.TrimSpace(localPod(f, node.LocalPods, true) + " mark set mark or $MARK")}
}

func (r renderer) frontend(f *ruleset.Frontend) rendered {
	var out rendered
	key := fmt.Sprintf("%s . %d", f.Key.Proto, f.Key.Port)
	verdicts, insides, empties := nodePorts, insideNodePorts, emptyNodePorts
	if !f.Key.NodePort() {
		key = f.Key.Addr.String() + " . " + key
		verdicts, insides, empties = services, inside, empty
	}
	add := func(in, key, value string) { out.elements = append(out.elements, element{in, key, value}) }
	switch {
	case len(f.Endpoints) > 0:
		r.share(&out, f, key, verdicts, f.Endpoints, f.Masquerade)
	case f.Empty == ruleset.Reject:
		add(empties, key, "goto refuse")
	default:
		add(empties, key, "drop")
	}
	if len(f.Inside) > 0 {
		r.share(&out, f, key, insides, f.Inside, ruleset.MasqueradeRemote)
	}
	if len(f.SourceRanges) > 0 {
		add(firewall, key, "")
		for _, p := range f.SourceRanges {
			add(allowed, key+" . "+p.String(), "")
		}
	}
	return out
}

// share spreads connections over endpoints: the verdict map leads to the chain
// of a class, which picks a slot.
func (r renderer) share(out *rendered, f *ruleset.Frontend, key, verdicts string, to []netip.AddrPort, m ruleset.Masquerade) {
	var class string
	if f.Affinity > 0 {
		class = r.affinity(out, f, to, m)
	} else {
		slots := fmt.Sprintf("%s-%d", verdicts, len(to))
		class = r.class(out, f.Key.NodePort(), slots, len(to), m)
		for i, e := range to {
			out.elements = append(out.elements, element{slots, key + " . " + strconv.Itoa(i), endpoint(e)})
		}
	}
	out.elements = append(out.elements, element{verdicts, key, "goto " + class})
}

// class is the chain for that number of endpoints, whosever they are. Each has
// a map of its own: nft 1.0.6 cannot write a rule about such a map that it did
// not make in the same run (it reads the types back wrong: "conflicting
// protocols specified: ip vs. th"). The modulus in the map's declaration is of
// no importance, it only gives the slot its type.
func (r renderer) class(out *rendered, nodePort bool, slots string, n int, m ruleset.Masquerade) string {
	key := "$IP daddr . meta l4proto . th dport"
	if nodePort {
		key = "meta l4proto . th dport"
	}
	key += fmt.Sprintf(" . numgen random mod %d", n)
	pick := "to-" + slots
	out.objects = append(out.objects,
		object{kind: "map", name: slots, spec: "typeof " + key + " : $IP daddr . th dport;"},
		object{kind: "chain", name: pick, rules: []string{"dnat $IP to " + key + " map @" + slots}})
	if m == ruleset.MasqueradeNone {
		return pick
	}
	marked := object{kind: "chain", name: pick + "-" + m.String(), rules: []string{r.markRule(m), "goto " + pick}}
	out.objects = append(out.objects, marked)
	return marked.name
}

// affinity is a chain for these endpoints of this Service. Each endpoint has
// a set of the clients that were sent there, shared by all frontends of the
// Service.
func (r renderer) affinity(out *rendered, f *ruleset.Frontend, to []netip.AddrPort, m ruleset.Masquerade) string {
	service := fmt.Sprintf("%s/%s/%d", f.Service, f.Key.Proto, f.Affinity)
	all := object{kind: "chain", name: fmt.Sprintf("affinity-%s-%s", hash(service, fmt.Sprint(to)), m)}
	if m != ruleset.MasqueradeNone {
		all.rules = append(all.rules, r.markRule(m))
	}
	picks := make([]string, len(to))
	for i, e := range to {
		id := hash(service, e.String())
		set := object{
			kind: "set", name: clientsPrefix + id,
			spec: fmt.Sprintf("type %s; flags dynamic,timeout; timeout %ds;", r.family.addrType, f.Affinity),
		}
		one := object{kind: "chain", name: "endpoint-" + id, rules: []string{
			"update @" + set.name + " { $IP saddr }",
			fmt.Sprintf("meta l4proto %s dnat to %s", f.Key.Proto, e),
		}}
		out.objects = append(out.objects, set, one)
		all.rules = append(all.rules, fmt.Sprintf("$IP saddr @%s goto %s", set.name, one.name))
		picks[i] = fmt.Sprintf("%d : goto %s", i, one.name)
	}
	all.rules = append(all.rules, fmt.Sprintf("numgen random mod %d vmap { %s }", len(to), strings.Join(picks, ", ")))
	out.objects = append(out.objects, all)
	return all.name
}

func (r renderer) markRule(m ruleset.Masquerade) string {
	if m == ruleset.MasqueradeRemote {
		return r.remote
	}
	return "mark set mark or $MARK"
}

func endpoint(e netip.AddrPort) string {
	return e.Addr().String() + " . " + strconv.Itoa(int(e.Port()))
}

func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}
