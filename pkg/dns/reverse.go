package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// reverse answers below in-addr.arpa and ip6.arpa: every name inside our
// ranges, and outside of them the addresses that a Service has (endpoints).
func (z *zone) reverse(labels []string, a *answer) bool {
	p, whole, ok := parseReverse(labels)
	if !ok {
		return false
	}
	var target pointer
	if p.IsSingleIP() {
		target = z.pointers[p.Addr()]
	}
	known := target.svc != nil
	r, ours := z.rangeOf(p)
	switch {
	case ours:
		a.apex = reverseName(zoneCut(r, p.Addr()))
	case known && whole:
		a.apex = reverseName(p)
	default:
		return false
	}
	if !whole {
		return true
	}
	a.exists = known || !p.IsSingleIP()
	if ours && p == zoneCut(r, p.Addr()) {
		a.exists = true
		z.apex(a.apex, a)
	}
	if known && a.qtype == dns.TypePTR {
		name := z.nameOf(target.svc)
		if target.host != "" {
			name = target.host + "." + name
		}
		a.rrs = append(a.rrs, &dns.PTR{Hdr: z.header(a.name, dns.TypePTR), Ptr: name})
	}
	return true
}

func (z *zone) rangeOf(p netip.Prefix) (netip.Prefix, bool) {
	for _, r := range z.ranges {
		if cut := zoneCut(r, p.Addr()); r.Contains(p.Addr()) && cut.Bits() <= p.Bits() {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

// zoneCut is the reverse zone of range r that ip is in. Names have a label per
// octet or nibble, so that 10.0.0.0/12 is 16 zones.
func zoneCut(r netip.Prefix, ip netip.Addr) netip.Prefix {
	step := labelBits(ip)
	return netip.PrefixFrom(ip, (r.Bits()+step-1)/step*step).Masked()
}

func labelBits(ip netip.Addr) int {
	if ip.Is4() {
		return 8
	}
	return 4
}

// parseReverse reads the name of an address or of the zone above some.
// whole is false when there are labels below a full address.
func parseReverse(labels []string) (p netip.Prefix, whole, ok bool) {
	n := len(labels) - 2
	if n < 1 || labels[n+1] != "arpa" {
		return p, false, false
	}
	var bytes [16]byte
	size, base, step := 0, 0, 0
	switch labels[n] {
	case "in-addr":
		size, base, step = 4, 10, 8
	case "ip6":
		size, base, step = 32, 16, 4
	default:
		return p, false, false
	}
	used := min(n, size)
	for i := range used {
		label := labels[n-1-i]
		v, err := strconv.ParseUint(label, base, step)
		if err != nil || strconv.FormatUint(v, base) != label {
			return p, false, false
		}
		if step == 8 {
			bytes[i] = byte(v)
		} else {
			bytes[i/2] |= byte(v) << (4 * (1 - i%2))
		}
	}
	ip := netip.AddrFrom16(bytes)
	if step == 8 {
		ip = netip.AddrFrom4([4]byte(bytes[:4]))
	}
	return netip.PrefixFrom(ip, used*step), n <= size, true
}

// reverseName is the inverse of parseReverse.
func reverseName(p netip.Prefix) string {
	var b strings.Builder
	ip := p.Addr().AsSlice()
	if p.Addr().Is4() {
		for i := p.Bits()/8 - 1; i >= 0; i-- {
			b.WriteString(strconv.Itoa(int(ip[i])) + ".")
		}
		return b.String() + "in-addr.arpa."
	}
	for i := p.Bits()/4 - 1; i >= 0; i-- {
		nibble := ip[i/2] >> (4 * (1 - i%2)) & 0xf
		b.WriteString(strconv.FormatUint(uint64(nibble), 16) + ".")
	}
	return b.String() + "ip6.arpa."
}

// addressLabel is an address as one label. IPv6 is written in full: a label
// must neither begin nor end with a dash.
func addressLabel(ip netip.Addr) string {
	if ip.Is4() {
		return strings.ReplaceAll(ip.String(), ".", "-")
	}
	return strings.ReplaceAll(ip.WithZone("").StringExpanded(), ":", "-")
}

// parseAddressLabel also reads IPv6 in its short form.
func parseAddressLabel(label string) (netip.Addr, bool) {
	sep := ":"
	if strings.Count(label, "-") == 3 && !strings.Contains(label, "--") {
		sep = "."
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(label, "-", sep))
	return ip, err == nil && ip.Zone() == ""
}
