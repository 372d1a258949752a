package ipvs

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strconv"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// read calls each with the virtual services of IPVS's text, one after the
// other in the same place. A line is
//
//	TCP  0A600001:0050 rr persistent 10800 FFFFFFFF
//	  -> 0A010001:1F90      Masq    1      0          0
//	UDP  [fd00:0060:0000:0000:0000:0000:0000:0001]:0035 rr
//	FWM  4E0000AB mh
func read(text []byte, each func(*service)) {
	var s service
	known := false
	end := func() {
		if known {
			s.sort()
			each(&s)
		}
		known = false
	}
	for len(text) > 0 {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		first, rest := word(line)
		if string(first) != "->" {
			end()
			known = s.head(first, rest)
		} else if known {
			if d, ok := server(rest); ok {
				s.dests = append(s.dests, d)
			}
		}
	}
	end()
}

// head reads the line of a virtual service; others it does not know.
func (s *service) head(kind, rest []byte) bool {
	at, rest := word(rest)
	s.key, s.dests, s.timeout = key{}, s.dests[:0], 0
	switch string(kind) {
	case "FWM":
		n, err := strconv.ParseUint(string(at), 16, 32)
		if err != nil {
			return false
		}
		s.key.mark = mark(n)
	case "TCP", "UDP", "SCTP":
		a, ok := shownAddr(at)
		if !ok {
			return false
		}
		s.key = key{addr: a.Addr(), proto: protoNamed(string(kind)), port: a.Port()}
	default:
		return false
	}
	scheduler, rest := word(rest)
	if string(scheduler) != s.scheduler {
		s.scheduler = string(scheduler)
	}
	for len(rest) > 0 {
		var w []byte
		if w, rest = word(rest); string(w) == "persistent" {
			w, rest = word(rest)
			n, _ := strconv.ParseUint(string(w), 10, 32)
			s.timeout = uint32(n)
		}
	}
	return true
}

func protoNamed(name string) ruleset.Proto {
	switch name {
	case "UDP":
		return ruleset.UDP
	case "SCTP":
		return ruleset.SCTP
	}
	return ruleset.TCP
}

// server reads what is behind the arrow.
func server(line []byte) (d destination, ok bool) {
	at, line := word(line)
	if d.addr, ok = shownAddr(at); !ok {
		return d, false
	}
	way, line := word(line)
	var numbers [3]int // weight, active and other connections
	for i := range numbers {
		var w []byte
		w, line = word(line)
		n, err := strconv.Atoi(string(w))
		if err != nil {
			return d, false
		}
		numbers[i] = n
	}
	d.weight, d.conns = numbers[0], numbers[1]+numbers[2]
	if string(way) != "Masq" {
		d.weight = foreignWeight
	}
	return d, true
}

func word(line []byte) (first, rest []byte) {
	line = bytes.TrimLeft(line, " ")
	if i := bytes.IndexByte(line, ' '); i >= 0 {
		return line[:i], line[i:]
	}
	return line, nil
}

// shownAddr reads ADDRESS:PORT, both in hexadecimal digits.
func shownAddr(text []byte) (netip.AddrPort, bool) {
	var digits [36]byte
	n := 0
	for _, c := range text {
		if c == ':' || c == '[' || c == ']' {
			continue
		}
		if n == len(digits) {
			return netip.AddrPort{}, false
		}
		digits[n] = c
		n++
	}
	var raw [18]byte
	size, err := hex.Decode(raw[:], digits[:n])
	if err != nil || size < 2 {
		return netip.AddrPort{}, false
	}
	addr, ok := netip.AddrFromSlice(raw[:size-2])
	return netip.AddrPortFrom(addr, uint16(raw[size-2])<<8|uint16(raw[size-1])), ok
}
