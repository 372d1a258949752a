package dns

import (
	"context"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// FuzzQuery: whatever a client sends, the reply is a message that can be sent,
// fits, and belongs to the question.
func FuzzQuery(f *testing.F) {
	s := newServer(f, func(o *Options) { o.Upstreams = func() []netip.AddrPort { return nil } })
	for _, name := range []string{"web.default.svc.cluster.local.", "many.big.svc.cluster.local.", "_sql._tcp.pg.db.svc.cluster.local.", "10.0.96.10.in-addr.arpa.", "inner.ext.svc.cluster.local.", "."} {
		for _, qtype := range []string{"A", "SRV", "PTR", "ANY"} {
			q := question(name, qtype)
			q.SetEdns0(1232, true)
			packed, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packed, false)
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		q := new(dns.Msg)
		if q.Unpack(packet) != nil {
			return
		}
		r := s.reply(context.Background(), q, &Observation{TCP: tcp})
		packed, err := r.Pack()
		if err != nil {
			t.Fatalf("%v\nquery %s\nreply %s", err, q, r)
		}
		limit := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			limit = udpSize
		}
		if tcp {
			limit = dns.MaxMsgSize
		}
		if len(packed) > limit {
			t.Fatalf("%d octets, %d fit\nquery %s", len(packed), limit, q)
		}
		again := new(dns.Msg)
		if err := again.Unpack(packed); err != nil || again.Id != q.Id || !again.Response {
			t.Fatalf("%v\nquery %s\nreply %s", err, q, again)
		}
		if len(q.Question) > 0 && again.Question[0] != q.Question[0] {
			t.Fatalf("asked %v, answered %v", q.Question[0], again.Question[0])
		}
	})
}
