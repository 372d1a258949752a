package userspace

import (
	"net/netip"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

const (
	// attempts is how many endpoints a connection tries.
	attempts = 3
	// mostClients have an endpoint of their own by affinity; more take turns.
	mostClients = 1 << 16
)

// affinityKey is a client of a Service, whichever of its addresses it uses.
type affinityKey struct {
	service string
	proto   ruleset.Proto
	client  netip.Addr
}

// client is who has an endpoint of its own.
type client struct {
	endpoint netip.AddrPort
	used     time.Time
	timeout  time.Duration
}

func (c *client) expired(now time.Time) bool { return now.Sub(c.used) > c.timeout }

// pick chooses the endpoints to try for a client; none is that it may not
// connect.
func (b *Backend) pick(l *listener, src netip.Addr) []netip.AddrPort {
	f := l.serves
	if len(f.SourceRanges) > 0 && !contains(f.SourceRanges, src) &&
		!(b.nodeWithin(f.SourceRanges) && (src == l.key.Addr || slices.Contains(b.node.addrs, src))) {
		return nil
	}
	from := f.Endpoints
	if len(f.Inside) > 0 && b.inside(src) {
		from = f.Inside
	}
	if len(from) == 0 {
		return nil
	}
	out := make([]netip.AddrPort, 0, attempts)
	for i := range min(attempts, len(from)) {
		out = append(out, from[(l.next+i)%len(from)])
	}
	l.next = (l.next + 1) % len(from)
	if f.Affinity == 0 {
		return out
	}
	if c := b.clients[affinityKey{f.Service, l.key.Proto, src}]; c != nil && !c.expired(b.opts.Now()) && slices.Contains(from, c.endpoint) {
		out = append([]netip.AddrPort{c.endpoint}, slices.DeleteFunc(out, func(e netip.AddrPort) bool { return e == c.endpoint })...)
	}
	b.remember(f, l.key.Proto, src, out[0])
	return out
}

// remember notes which endpoint a client has.
func (b *Backend) remember(f *ruleset.Frontend, proto ruleset.Proto, src netip.Addr, endpoint netip.AddrPort) {
	key := affinityKey{f.Service, proto, src}
	if f.Affinity == 0 || b.clients[key] == nil && len(b.clients) >= mostClients {
		return
	}
	b.clients[key] = &client{endpoint, b.opts.Now(), time.Duration(f.Affinity) * time.Second}
}

// forgetClients forgets those of Services that have no affinity any more.
func (b *Backend) forgetClients() {
	if len(b.clients) == 0 {
		return
	}
	sticky := map[string]bool{}
	for _, f := range b.now.Frontends {
		if f.Affinity > 0 {
			sticky[f.Service] = true
		}
	}
	for key := range b.clients {
		if !sticky[key.service] {
			delete(b.clients, key)
		}
	}
}

func contains(all []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(all, func(n netip.Prefix) bool { return n.Contains(a) })
}

// nodeWithin says that the node itself may connect, from whichever of its
// addresses the kernel chooses: over IPv6 it is not the one that it asks.
func (b *Backend) nodeWithin(ranges []netip.Prefix) bool {
	return slices.ContainsFunc(b.node.addrs, func(a netip.Addr) bool { return contains(ranges, a) })
}
