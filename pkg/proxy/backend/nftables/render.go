package nftables

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/nft"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

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
	elements []nft.Element
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
	add := func(in, key, value string) {
		out.elements = append(out.elements, nft.Element{In: in, Key: key, Value: value})
	}
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
		places, size := layout(to)
		slots := fmt.Sprintf("%s-%d", verdicts, size)
		class = r.class(out, f.Key.NodePort(), slots, size, len(to) > exact, m)
		for i, p := range places {
			out.elements = append(out.elements, nft.Element{In: slots, Key: key + " . " + strconv.Itoa(p), Value: endpoint(to[i])})
		}
		if len(to) > exact {
			out.elements = append(out.elements, nft.Element{In: slots, Key: key + " . " + strconv.Itoa(size), Value: endpoint(to[0])})
		}
	}
	out.elements = append(out.elements, nft.Element{In: verdicts, Key: key, Value: "goto " + class})
}

// class is the chain for that number of endpoints, whosever they are. Each has
// a map of its own: nft 1.0.6 cannot write a rule about such a map that it did
// not make in the same run (it reads the types back wrong: "conflicting
// protocols specified: ip vs. th"). The modulus in the map's declaration is of
// no importance, it only gives the slot its type.
func (r renderer) class(out *rendered, nodePort bool, slots string, n int, holes bool, m ruleset.Masquerade) string {
	key := "$IP daddr . meta l4proto . th dport"
	if nodePort {
		key = "meta l4proto . th dport"
	}
	draw := fmt.Sprintf("%s . numgen random mod %d", key, n)
	pick := object{kind: "chain", name: "to-" + slots, rules: []string{"dnat $IP to " + draw + " map @" + slots}}
	if holes {
		pick.rules = slices.Repeat(pick.rules, draws)
		pick.rules = append(pick.rules, fmt.Sprintf("dnat $IP to %s . numgen random mod 1 offset %d map @%s", key, n, slots))
	}
	// Who finds nobody began with the map of services as it was before a change:
	// it is to try again, and not to be refused.
	pick.rules = append(pick.rules, "drop")
	out.objects = append(out.objects,
		object{kind: "map", name: slots, spec: "typeof " + draw + " : $IP daddr . th dport;"}, pick)
	if m == ruleset.MasqueradeNone {
		return pick.name
	}
	marked := object{kind: "chain", name: pick.name + "-" + m.String(), rules: []string{r.markRule(m), "goto " + pick.name}}
	out.objects = append(out.objects, marked)
	return marked.name
}

const (
	// exact is up to how many endpoints each has the slot of its rank, so that
	// a draw always hits one. A change moves all that come after.
	exact = 64
	// crowd is how many of more endpoints share a bucket at most, on average.
	crowd = 24
	// draws are made until one hits an endpoint: at least 30 of 100 do.
	draws = 24
)

// layout says which slot each endpoint has, and how many slots there are. Many
// endpoints are scattered over buckets by a hash of their own, so that a change
// moves those of one bucket only, and the layout depends on nothing but who is
// there. The slots at a bucket's end are holes: who draws one draws again, so
// all endpoints have the same chance. After too many draws it is the first one
// that gets the connection, by a slot of its own behind the others.
func layout(to []netip.AddrPort) (places []int, size int) {
	places = make([]int, len(to))
	if len(to) <= exact {
		for i := range places {
			places[i] = i
		}
		return places, len(to)
	}
	buckets := 1
	for len(to) > buckets*crowd {
		buckets *= 2
	}
	used := make([]int, buckets)
	bucket := make([]int, len(to))
	most := 0
	for i, e := range to {
		h := fnv.New64a()
		b, _ := e.MarshalBinary() // it never fails
		_, _ = h.Write(b)
		bucket[i] = int(h.Sum64()>>20) & (buckets - 1) // low bits of FNV are poor
		places[i] = used[bucket[i]]
		used[bucket[i]]++
		most = max(most, used[bucket[i]])
	}
	room := (most + 7) / 8 * 8 // so that it seldom changes
	for i := range places {
		places[i] += bucket[i] * room
	}
	return places, buckets * room
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
