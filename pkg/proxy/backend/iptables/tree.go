package iptables

import (
	"fmt"
	"math/bits"
	"net/netip"
	"sort"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// A chain holds up to leafSize places itself. A larger number of places has
// the level of the next power of fanOut, and its chain leads to the widest
// prefixes of lower levels. So no packet meets more chains than there are
// levels, whatever the addresses; which chains there are is decided by the
// places alone and not by how they came; and one place more changes the chain
// that holds it, seldom the one above.
const (
	leafSize = 16
	fanOut   = 8
)

func level(places int) int {
	l := 0
	for most := leafSize; places > most; most *= fanOut {
		l++
	}
	return l
}

// Below the address a place has two bits of its protocol, in the order of the
// ruleset, and sixteen of its port. The last protocol is all that is left of
// the address.
const (
	protoBits = 2
	portBits  = 16
)

var protos = [1 << protoBits]ruleset.Proto{ruleset.TCP, ruleset.UDP, ruleset.SCTP, 255}

const rest = 3

// place is a position in a tree: the bits of an address from the top of high
// on, and those of a protocol and a port.
type place struct {
	high, low uint64
	tail      uint32
}

func placeOf(addr netip.Addr, proto, port uint32) place {
	p := place{tail: proto<<portBits | port}
	if addr.Is4() {
		for _, b := range addr.As4() {
			p.high = p.high<<8 | uint64(b)<<32
		}
		return p
	}
	for i, b := range addr.As16() {
		if i < 8 {
			p.high = p.high<<8 | uint64(b)
		} else {
			p.low = p.low<<8 | uint64(b)
		}
	}
	return p
}

func (p place) compare(o place) int {
	switch {
	case p.high != o.high:
		return order(p.high < o.high)
	case p.low != o.low:
		return order(p.low < o.low)
	case p.tail != o.tail:
		return order(p.tail < o.tail)
	}
	return 0
}

func order(less bool) int {
	if less {
		return -1
	}
	return 1
}

// span is a chain of a tree: the places[from:to], which are all that begin with
// the same length bits.
type span struct{ from, to, length int }

func (s span) level() int { return level(s.to - s.from) }

// tree is a sorted list of places of one family; width is its addresses'.
type tree struct {
	width  int
	places []place
}

func (t tree) all() span { return span{0, len(t.places), 0} }

func (t tree) bit(i, n int) bool {
	p := t.places[i]
	switch {
	case n >= t.width:
		return p.tail>>(protoBits+portBits-1-(n-t.width))&1 == 1
	case n >= 64:
		return p.low>>(127-n)&1 == 1
	}
	return p.high>>(63-n)&1 == 1
}

// prefix is a place with all but its first n bits cleared.
func (t tree) prefix(p place, n int) place {
	clear64 := func(v uint64, keep int) uint64 {
		if keep <= 0 {
			return 0
		}
		return v &^ (1<<max(0, 64-keep) - 1)
	}
	address := min(n, t.width)
	return place{clear64(p.high, address), clear64(p.low, address-64), p.tail &^ (1<<(protoBits+portBits-max(0, n-t.width)) - 1)}
}

// children are the chains that a chain leads to; those of a leaf are none.
func (t tree) children(s span) []span {
	if s.level() == 0 {
		return nil
	}
	var out []span
	t.split(s, s.level(), &out)
	return out
}

func (t tree) split(s span, below int, out *[]span) {
	switch {
	case s.from == s.to:
	case s.level() < below:
		*out = append(*out, s)
	default:
		middle := s.from + sort.Search(s.to-s.from, func(i int) bool { return t.bit(s.from+i, s.length) })
		t.split(span{s.from, middle, s.length + 1}, below, out)
		t.split(span{middle, s.to, s.length + 1}, below, out)
	}
}

// common is how many bits the places of a span share, at least its length.
func (t tree) common(s span) int {
	a, b := t.places[s.from], t.places[s.to-1]
	switch {
	case a.high != b.high:
		return bits.LeadingZeros64(a.high ^ b.high)
	case a.low != b.low:
		return 64 + bits.LeadingZeros64(a.low^b.low)
	}
	return t.width + bits.LeadingZeros32((a.tail^b.tail)<<(32-protoBits-portBits)|1<<(32-protoBits-portBits-1))
}

// find is the span of the places that begin with a prefix.
func (t tree) find(prefix place, length int) span {
	from := sort.Search(len(t.places), func(i int) bool { return t.prefix(t.places[i], length).compare(prefix) >= 0 })
	n := sort.Search(len(t.places)-from, func(i int) bool { return t.prefix(t.places[from+i], length) != prefix })
	return span{from, from + n, length}
}

func (t tree) address(p place) netip.Addr {
	if t.width == 32 {
		v := uint32(p.high >> 32)
		return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	}
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(p.high>>(56-8*i)), byte(p.low>>(56-8*i))
	}
	return netip.AddrFrom16(b)
}

// condition is what a packet must have to be for a place of a span. Of node
// ports the address is no part.
func (t tree) condition(s span, nodePorts bool) string {
	n, p := t.common(s), t.places[s.from]
	cond := ""
	if n > 0 && !nodePorts {
		cond = fmt.Sprintf("-d %s/%d", t.address(t.prefix(p, n)), min(n, t.width))
	}
	proto := p.tail >> portBits
	if n < t.width+protoBits || proto == rest {
		return cond
	}
	if cond != "" {
		cond += " "
	}
	first := t.prefix(p, n).tail & (1<<portBits - 1)
	last := first | 1<<(t.width+protoBits+portBits-n) - 1
	return fmt.Sprintf("%s-p %s -m %[2]s --dport %d:%d", cond, protos[proto], first, last)
}
