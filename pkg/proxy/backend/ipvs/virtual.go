package ipvs

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// key is what IPVS knows a virtual service by: an address, protocol and port,
// or a mark that our nftables rules put on its packets. A node port is of many
// addresses and Frontend.Inside is of some clients only; for these IPVS has
// marks.
type key struct {
	mark  mark
	addr  netip.Addr
	proto ruleset.Proto
	port  uint16
}

func (k key) String() string {
	if k.mark != 0 {
		return fmt.Sprintf("mark %#x", uint32(k.mark))
	}
	return ruleset.Key{Addr: k.addr, Proto: k.proto, Port: k.port}.String()
}

// compare orders keys: a kernel is filled in the same order each time.
func (k key) compare(o key) int {
	if c := cmp.Compare(k.mark, o.mark); c != 0 {
		return c
	}
	return ruleset.Key{Addr: k.addr, Proto: k.proto, Port: k.port}.Compare(ruleset.Key{Addr: o.addr, Proto: o.proto, Port: o.port})
}

// is4 and protocol also tell it of a mark.
func (k key) is4() bool { return k.mark != 0 && k.mark.is4() || k.mark == 0 && k.addr.Is4() }

func (k key) protocol() ruleset.Proto {
	if k.mark != 0 {
		return k.mark.protocol()
	}
	return k.proto
}

// mark says what it is of: a family, a protocol, and in the rest a hash of the
// frontend, so that a frontend has the same one after a restart. A packet
// carries it from just before IPVS until just after.
type mark uint32

const (
	markOurs    mark = 0x4e000000
	markMask    mark = 0xfe000000 // what all of ours have in common
	markV6      mark = 0x01000000
	markUDP     mark = 0x00400000
	markSCTP    mark = 0x00800000
	markHash    mark = 0x003fffff
	markProtos       = markUDP | markSCTP
	maxMarkHash      = int(markHash) // frontends that can have one
)

func (m mark) ours() bool { return m&markMask == markOurs }
func (m mark) is4() bool  { return m&markV6 == 0 }

func (m mark) protocol() ruleset.Proto {
	switch m & markProtos {
	case markUDP:
		return ruleset.UDP
	case markSCTP:
		return ruleset.SCTP
	}
	return ruleset.TCP
}

// marked is who needs a mark.
type marked struct {
	frontend ruleset.Key
	inside   bool
}

// marks hands them out.
type marks struct {
	of   map[marked]mark
	used map[mark]marked
}

func newMarks() *marks { return &marks{map[marked]mark{}, map[mark]marked{}} }

func (m *marks) get(of marked) (mark, error) {
	if have, ok := m.of[of]; ok {
		return have, nil
	}
	if len(m.of) >= maxMarkHash {
		return 0, fmt.Errorf("%d frontends have a mark already: no more are possible", len(m.of))
	}
	base := markOurs
	if of.frontend.Addr.Is6() {
		base |= markV6
	}
	switch of.frontend.Proto {
	case ruleset.UDP:
		base |= markUDP
	case ruleset.SCTP:
		base |= markSCTP
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %t", of.frontend, of.inside)
	for n := mark(h.Sum32()); ; n++ {
		got := base | n&markHash
		if _, taken := m.used[got]; !taken {
			m.of[of], m.used[got] = got, of
			return got, nil
		}
	}
}

func (m *marks) release(of marked) {
	if have, ok := m.of[of]; ok {
		delete(m.of, of)
		delete(m.used, have)
	}
}

// destination is a real server. Weight 0 gets no new connections.
type destination struct {
	addr   netip.AddrPort
	weight int
	conns  int // of those in the kernel: connections, ended ones included
}

// service is a virtual service. Its destinations are sorted.
type service struct {
	key       key
	scheduler string
	flags     uint32 // of the scheduler
	timeout   uint32 // of the affinity, in seconds; 0 is none
	dests     []destination
	seen      uint // the last look that saw it in the kernel's text
}

func (s *service) sort() {
	slices.SortFunc(s.dests, func(a, b destination) int { return a.addr.Compare(b.addr) })
}

// Flags of the schedulers; sh and mh without them refuse the clients of a
// server that is on its way out, and mh sends all of a client to one server.
const (
	flagFallback = 1 << 3
	flagPort     = 1 << 4
)

// With affinity the choice follows from the client's address (Maglev's
// consistent hashing): IPVS remembers a client for each virtual service on its
// own, and so the first connection to another address of the Service ends at
// the same endpoint. mh has 4093 places: with more than a tenth as many
// endpoints they would share unevenly.
const (
	affinityScheduler = "mh"
	maxHashed         = 400
)

func newService(k key, scheduler string, affinity uint32, to []netip.AddrPort) service {
	s := service{key: k, scheduler: scheduler, dests: make([]destination, len(to))}
	switch {
	case affinity > 0 && (len(to) <= maxHashed || k.mark != 0):
		s.scheduler, s.flags = affinityScheduler, flagFallback
	case scheduler == "mh":
		s.flags = flagFallback | flagPort
	case scheduler == "sh":
		s.flags = flagFallback
	}
	// Persistence of a mark would leave the port as it is, that of the Service.
	if k.mark == 0 {
		s.timeout = affinity
	}
	for i, a := range to {
		s.dests[i] = destination{addr: a, weight: 1}
	}
	s.sort()
	return s
}

// virtual are the virtual services of a frontend: none where nobody serves.
func (m *marks) virtual(f *ruleset.Frontend, scheduler string) (out []service, err error) {
	add := func(inside bool, to []netip.AddrPort) {
		k := key{addr: f.Key.Addr, proto: f.Key.Proto, port: f.Key.Port}
		if inside || f.Key.NodePort() {
			n, e := m.get(marked{f.Key, inside})
			if e != nil {
				err = fmt.Errorf("%s: %w", f.Key, e)
				return
			}
			k = key{mark: n}
		}
		out = append(out, newService(k, scheduler, f.Affinity, to))
	}
	if len(f.Endpoints) > 0 {
		add(false, f.Endpoints)
	}
	if len(f.Inside) > 0 {
		add(true, f.Inside)
	}
	return out, err
}

// drains says that a destination may go gracefully: dh chooses by the Service's
// address and would refuse everybody while its server is on the way out.
func drains(scheduler string) bool { return scheduler != "dh" }

// step is one message to the kernel.
type step struct {
	what   action
	exists bool // put changes, or else adds
	of     service
	dest   destination
}

type action uint8

const (
	putService action = iota
	deleteService
	putDest
	deleteDest
)

func (s step) String() string {
	verb := [...]string{"add", "delete", "add", "delete"}[s.what]
	if s.exists {
		verb = "change"
	}
	if s.what == putDest || s.what == deleteDest {
		return fmt.Sprintf("%s server %s of %s", verb, s.dest.addr, s.of.key)
	}
	return fmt.Sprintf("%s virtual service %s (scheduler %s)", verb, s.of.key, s.of.scheduler)
}

// difference are the steps from what the kernel has to what it is to have.
// Either may be nil. graceful keeps the connections of a service that goes.
// With another scheduler what was on its way out goes at once: mh keeps places
// for it, and would not choose as it does for the Service's other addresses.
func difference(have, want *service, graceful bool) []step {
	if want == nil {
		if !graceful || !drains(have.scheduler) || len(have.dests) == 0 {
			return []step{{what: deleteService, of: *have}}
		}
		want = &service{key: have.key, scheduler: have.scheduler, flags: have.flags, timeout: have.timeout}
	}
	drain := drains(want.scheduler) && (have == nil || have.scheduler == want.scheduler)
	return steps(have, want, func(d destination) (step, bool) {
		if !drain {
			return step{what: deleteDest, of: *want, dest: d}, true
		}
		change := d.weight != 0
		d.weight = 0
		return step{what: putDest, exists: true, of: *want, dest: d}, change
	})
}

// repair are the steps from what somebody else made of a virtual service to
// what we remember of it. Either may be nil.
func repair(is, have *service) []step {
	if have == nil {
		return []step{{what: deleteService, of: *is}}
	}
	return steps(is, have, func(d destination) (step, bool) { return step{what: deleteDest, of: *have, dest: d}, true })
}

// steps make a virtual service another one; gone says what becomes of a
// destination that the other one has not, if anything. Who is chosen no more
// comes last: there is somebody to choose at every moment.
func steps(have, want *service, gone func(destination) (step, bool)) (out []step) {
	var old []destination
	var last []step
	if have != nil {
		old = have.dests
	}
	if have == nil || have.scheduler != want.scheduler || have.flags != want.flags || have.timeout != want.timeout {
		out = append(out, step{what: putService, exists: have != nil, of: *want})
	}
	now := want.dests
	for len(old) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(now) == 0:
			order = -1
		default:
			order = old[0].addr.Compare(now[0].addr)
		}
		switch {
		case order < 0:
			if s, ok := gone(old[0]); ok {
				last = append(last, s)
			}
			old = old[1:]
		case order > 0:
			out = append(out, step{what: putDest, of: *want, dest: now[0]})
			now = now[1:]
		default:
			s := step{what: putDest, exists: true, of: *want, dest: now[0]}
			if old[0].weight != now[0].weight && now[0].weight == 0 {
				last = append(last, s)
			} else if old[0].weight != now[0].weight {
				out = append(out, s)
			}
			old, now = old[1:], now[1:]
		}
	}
	return append(out, last...)
}

// state is what the kernel holds of ours, by key.
type state map[key]*service

// apply does to the state what the kernel did.
func (s state) apply(st step) {
	k := st.of.key
	switch st.what {
	case putService:
		n := st.of
		n.dests = nil
		if have := s[k]; have != nil {
			n.dests = have.dests
		}
		s[k] = &n
	case deleteService:
		delete(s, k)
	case putDest, deleteDest:
		svc := s[k]
		i, found := slices.BinarySearchFunc(svc.dests, st.dest.addr, func(d destination, a netip.AddrPort) int { return d.addr.Compare(a) })
		switch {
		case st.what == deleteDest:
			svc.dests = slices.Delete(svc.dests, i, i+1)
		case found:
			svc.dests[i].weight = st.dest.weight
		default:
			svc.dests = slices.Insert(svc.dests, i, st.dest)
		}
	}
}
