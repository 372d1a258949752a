package ipvs

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
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
	lookAgain = 400 * time.Millisecond
	lookShare = 4
	// atOnce are the bytes of text that are compared before somebody else gets
	// the lock.
	atOnce = 8 << 10
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
	table, changes := b.table, b.changes
	b.mu.Unlock()
	// Changes that are made meanwhile are suspects, and found to be all right.
	if w.text, err = table.text(w.text); errors.Is(err, os.ErrClosed) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	suspects := w.suspects(changes)
	mended := 0
	for len(suspects) > 0 {
		n := min(mendAtOnce, len(suspects))
		changed, err := w.mend(suspects[:n])
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
// that have a server to take out, and those whose turn it is. changes is what
// they were before the text was read.
func (w *Watch) suspects(changes uint64) (out []key) {
	b := w.b
	w.round++
	parts, whole := w.different(changes)
	for _, p := range parts {
		out = append(out, w.compare(w.text[p.from:p.to])...)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.loaded {
		w.clean = 0
		return nil
	}
	if whole {
		for k, s := range b.have {
			if s.seen != w.round {
				out = append(out, k)
			}
		}
	} else {
		for _, p := range parts {
			read(w.before[p.from:p.to], func(s *service) {
				if have := b.have[s.key]; have != nil && have.seen != w.round {
					out = append(out, s.key)
				}
			})
		}
	}
	for at := range b.draining {
		if b.late(at) {
			out = append(out, at.of)
		}
	}
	if w.clean = 0; len(out) == 0 && b.changes == changes {
		w.clean = changes
	}
	w.text, w.before = w.before, w.text
	if len(w.turn) == 0 {
		for k := range b.have {
			w.turn = append(w.turn, k)
		}
	}
	n := min(inTurn, len(w.turn))
	out, w.turn = append(out, w.turn[:n]...), w.turn[n:]
	return out
}

// compare finds suspects in a part of the text.
func (w *Watch) compare(text []byte) (out []key) {
	b := w.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.loaded {
		return nil
	}
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
	return out
}

// part is a piece of the text, of whole virtual services.
type part struct{ from, to int }

// different are the parts of the text that are not as they were at the last look
// (most connections come and go without a change of its length), or else the
// whole of it in parts: when there was something to put right, and when it is
// not known to be as it was.
func (w *Watch) different(changes uint64) (parts []part, whole bool) {
	text, before := w.text, w.before
	if w.clean == changes && len(text) == len(before) {
		const size = 4 << 10
		for at := 0; at < len(text); {
			end := min(at+size, len(text))
			if bytes.Equal(text[at:end], before[at:end]) {
				at = end
				continue
			}
			p := enclosing(text, at, end)
			if p != enclosing(before, at, end) {
				whole = true
				break
			}
			parts = append(parts, p)
			at = p.to
		}
		if !whole {
			return parts, false
		}
		parts = nil
	}
	for at := 0; at < len(text); at = parts[len(parts)-1].to {
		parts = append(parts, part{at, enclosing(text, at, min(at+atOnce, len(text))).to})
	}
	return parts, true
}

// enclosing is the part that has at least these bytes.
func enclosing(text []byte, from, to int) part {
	begins := func(at int) bool { return at == len(text) || text[at] != ' ' && (at == 0 || text[at-1] == '\n') }
	for from > 0 && !begins(from) {
		from--
	}
	for to < len(text) && !begins(to) {
		to++
	}
	return part{from, to}
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
func (w *Watch) mend(suspects []key) (changed int, err error) {
	b := w.b
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
			w.say("IPVS: " + k.String())
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
