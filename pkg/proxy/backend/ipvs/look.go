package ipvs

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// IPVS tells nobody of a change, and to be asked for everything it takes a
// message for each virtual service. The text that it has for people shows all at
// once, without the flags of schedulers, and while other network namespaces have
// virtual services the kernel leaves some out. So the text is a hint: what does
// not look as we remember it is asked for by name, and some of the others, too,
// in turn.
const (
	// lookAgain is how long a change by others may stay; but looking takes one
	// part in lookShare of the time at most.
	lookAgain = 500 * time.Millisecond
	lookShare = 6
	// inTurn are asked for by name at each look.
	inTurn = 64
	// mendAtOnce are asked for and put right before somebody else gets the lock.
	mendAtOnce = 32
	// mendable is how many are put right one by one; more are a case for Apply.
	mendable = 256
)

// look looks again and again.
func (w *Watch) look(ctx context.Context, foreign func(what string)) error {
	wait := time.NewTimer(lookAgain)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wait.C:
		}
		start := time.Now()
		what, err := w.once()
		if err != nil && ctx.Err() == nil {
			return err
		}
		if what != "" {
			foreign(what)
		}
		wait.Reset(max(lookAgain, (lookShare-1)*time.Since(start)))
	}
}

// once says what is to be put right by Apply.
func (w *Watch) once() (foreign string, err error) {
	b := w.b
	b.mu.Lock()
	if foreign, err = w.routes(); err != nil || foreign != "" || !b.loaded {
		b.mu.Unlock()
		return foreign, err
	}
	table := b.table
	b.mu.Unlock()
	// Changes that are made meanwhile are suspects, and found to be all right.
	if w.buf, err = table.text(w.buf); errors.Is(err, os.ErrClosed) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	b.mu.Lock()
	suspects := w.suspects(w.buf)
	b.mu.Unlock()
	mended := 0
	for len(suspects) > 0 {
		n := min(mendAtOnce, len(suspects))
		changed, err := b.mend(suspects[:n])
		if err != nil {
			return "", err
		}
		if mended += changed; mended > mendable {
			return "IPVS: too much to put right one by one", nil
		}
		suspects = suspects[n:]
	}
	return "", nil
}

// suspects are the virtual services that may not be as we remember them, those
// that have a server to take out, and those whose turn it is. The caller holds
// the lock.
func (w *Watch) suspects(text []byte) (out []key) {
	b := w.b
	if !b.loaded {
		return nil
	}
	w.round++
	read(text, func(s *service) {
		have := b.have[s.key]
		if have == nil {
			if owns(s.key, b.routes) {
				out = append(out, s.key)
			}
			return
		}
		have.seen = w.round
		s.flags = have.flags
		if !have.like(s) || b.done(s) {
			out = append(out, s.key)
		}
	})
	for k, s := range b.have {
		if s.seen != w.round {
			out = append(out, k)
		}
	}
	if len(w.turn) == 0 {
		for k := range b.have {
			w.turn = append(w.turn, k)
		}
	}
	n := min(inTurn, len(w.turn))
	out, w.turn = append(out, w.turn[:n]...), w.turn[n:]
	return out
}

// done says that a server is to be taken out: it gets nothing new, and has no
// connections, or has had them for too long.
func (b *Backend) done(s *service) bool {
	if len(b.draining) == 0 {
		return false
	}
	for _, d := range s.dests {
		if d.weight == 0 && (d.conns == 0 || b.late(drain{s.key, d.addr})) {
			return true
		}
	}
	return false
}

func (b *Backend) late(at drain) bool {
	since, ok := b.draining[at]
	return ok && b.opts.Clock().Sub(since) >= b.opts.DrainLimit
}

// mend puts right what others did to these, and takes out the servers that are
// done. It says how many it found changed.
func (b *Backend) mend(suspects []key) (changed int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.loaded {
		return 0, nil
	}
	for _, k := range suspects {
		have := b.have[k]
		is, err := b.table.get(k)
		if err != nil {
			return 0, err
		}
		if have == nil && (is == nil || !owns(k, b.routes)) {
			continue
		}
		if have == nil || is == nil || !have.like(is) {
			changed++
			b.opts.Log.Warn(putRight, "what", "IPVS: "+k.String())
			for _, s := range repair(is, have) {
				if err := b.tell(s); err != nil {
					return 0, err
				}
			}
		}
		if have != nil && is != nil {
			if err := b.reap(*have, is.dests); err != nil {
				return 0, err
			}
		}
	}
	return changed, nil
}

// reap takes out destinations at weight 0 without connections, and those that
// have kept theirs for too long; dests are as the kernel has them.
func (b *Backend) reap(s service, dests []destination) error {
	for _, d := range dests {
		at := drain{s.key, d.addr}
		if _, ok := b.draining[at]; !ok || d.weight != 0 {
			continue
		}
		if late := b.late(at); d.conns > 0 && !late {
			continue
		} else if late {
			b.opts.Log.Warn("connections to an endpoint that went are cut", "service", s.key.String(), "endpoint", d.addr.String(), "after", b.opts.DrainLimit)
		}
		if err := b.takeOut(at); err != nil {
			return err
		}
	}
	return nil
}

// takeOut removes a destination, and the virtual service with its last one.
func (b *Backend) takeOut(at drain) error {
	s := *b.have[at.of]
	steps := []step{{what: deleteDest, of: s, dest: destination{addr: at.to}}}
	if len(s.dests) == 1 {
		steps = append(steps, step{what: deleteService, of: s})
	}
	return b.do(steps)
}

// EndFlows takes out the endpoints of UDP frontends that get nothing new and do
// not serve any more: no flow ends by itself while its client goes on. serves is
// asked with a frontend's address, unspecified for a node port, and an endpoint.
func (b *Backend) EndFlows(serves func(at, endpoint netip.AddrPort) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.loaded {
		return nil
	}
	for at := range b.draining {
		if at.of.protocol() != ruleset.UDP {
			continue
		}
		of := netip.AddrPortFrom(at.of.addr, at.of.port)
		if at.of.mark != 0 {
			f := b.marks.used[at.of.mark].frontend // or nobody's
			of = netip.AddrPortFrom(f.Addr, f.Port)
		}
		if serves(of, at.to) {
			continue
		}
		if err := b.takeOut(at); err != nil {
			return err
		}
	}
	return nil
}

// like compares what can be seen of a virtual service.
func (s *service) like(o *service) bool {
	if s.scheduler != o.scheduler || s.flags != o.flags || s.timeout != o.timeout || len(s.dests) != len(o.dests) {
		return false
	}
	for i, d := range s.dests {
		if d.addr != o.dests[i].addr || d.weight != o.dests[i].weight {
			return false
		}
	}
	return true
}

// absent says that the kernel has no IPVS, and loads none.
func absent() bool {
	_, err := os.Stat(shownIn)
	return errors.Is(err, fs.ErrNotExist)
}

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
