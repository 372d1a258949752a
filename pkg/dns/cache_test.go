package dns

import (
	"fmt"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestCacheLifetimes(t *testing.T) {
	const soa = "example. 900 IN SOA ns.example. mail.example. 1 2 3 4 "
	for _, c := range []struct {
		title      string
		rcode      int
		answer, ns []string
		keep       int // seconds
	}{
		{"the shortest TTL", 0, []string{"a.example. 60 IN A 192.0.2.1", "a.example. 30 IN A 192.0.2.2"}, nil, 30},
		{"not for ever", 0, []string{"a.example. 999999 IN A 192.0.2.1"}, nil, 3600},
		{"zero", 0, []string{"a.example. 0 IN A 192.0.2.1"}, nil, 0},
		{"the sign bit is zero", 0, []string{"a.example. 2147483648 IN A 192.0.2.1"}, nil, 0},
		{"no such name", dns.RcodeNameError, nil, []string{soa + "20"}, 20},
		{"no data", 0, nil, []string{soa + "20"}, 20},
		{"negative by the SOA's own TTL", dns.RcodeNameError, nil, []string{"example. 7 IN SOA ns.example. m.example. 1 2 3 4 20"}, 7},
		{"negative not for long", dns.RcodeNameError, nil, []string{soa + "86400"}, 300},
		{"negative without SOA", dns.RcodeNameError, nil, nil, 0},
		{"alias to nothing", 0, []string{"a.example. 60 IN CNAME b.example."}, []string{soa + "20"}, 20},
		{"failure", dns.RcodeServerFailure, nil, nil, 1},
	} {
		now := time.Unix(1000, 0)
		cache := newCache(1<<20, func() time.Time { return now })
		k := query{name: "a.example.", qtype: dns.TypeA}
		msg := &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: c.rcode}, Answer: rr(t, c.answer...), Ns: rr(t, c.ns...)}
		cache.put(k, msg)
		if c.keep > 0 {
			now = time.Unix(1000, 0).Add(time.Duration(c.keep)*time.Second - 1)
			got := cache.get(k)
			if got == nil {
				t.Errorf("%s: gone too early", c.title)
				continue
			}
			for _, r := range append(got.Answer, got.Ns...) {
				if c.title != "the shortest TTL" && r.Header().Rrtype != dns.TypeCNAME && r.Header().Ttl != 1 {
					t.Errorf("%s: in the last second it says %s", c.title, r)
				}
			}
		}
		now = time.Unix(1000, 0).Add(time.Duration(c.keep) * time.Second)
		if got := cache.get(k); got != nil {
			t.Errorf("%s: still there after %d s", c.title, c.keep)
		}
		if cache.size != 0 || cache.used.Len() != 0 {
			t.Errorf("%s: an expired entry stayed", c.title)
		}
	}
}

func TestCacheSize(t *testing.T) {
	now := time.Unix(1000, 0)
	cache := newCache(3000, func() time.Time { return now })
	put := func(i int) query {
		k := query{name: fmt.Sprintf("n%d.example.", i), qtype: dns.TypeA}
		cache.put(k, &dns.Msg{Answer: rr(t, k.name+" 60 IN A 192.0.2.1")})
		return k
	}
	first := put(0)
	for i := 1; i < 100; i++ {
		put(i)
		if cache.get(first) == nil {
			t.Fatalf("lost what is in use at %d", i)
		}
		if cache.size > 3000 || cache.used.Len() != len(cache.entries) {
			t.Fatalf("%d octets, %d in order, %d found", cache.size, cache.used.Len(), len(cache.entries))
		}
	}
	if n := len(cache.entries); n < 5 || n > 15 {
		t.Errorf("%d entries", n)
	}
	put(99)
	if size := cache.size; size > 3000 {
		t.Errorf("%d octets", size)
	}
	for el := cache.used.Front(); el != nil; el = el.Next() {
		cache.size -= el.Value.(*cached).size
	}
	if cache.size != 0 {
		t.Errorf("the sum is off by %d", cache.size)
	}
}

func TestForwardedAnswersAreCached(t *testing.T) {
	now := time.Unix(1000, 0)
	up := newUpstream(t, give(t, "www.example.com. 60 IN A 192.0.2.1"))
	s := newServer(t, func(o *Options) {
		o.Now = func() time.Time { return now }
		o.Upstreams, o.Timeout, o.TotalTimeout = up.only, time.Minute, time.Minute
	})
	step := func(name string, hit bool, ttl uint32) {
		t.Helper()
		var ob Observation
		r := s.reply(t.Context(), question(name, "A"), &ob)
		if got := show(r); got != "NOERROR | "+name+" A 192.0.2.1" || ob.CacheHit != hit || r.Answer[0].Header().Ttl != ttl {
			t.Errorf("%s: hit %t, %s", name, ob.CacheHit, r)
		}
	}
	step("www.example.com.", false, 60)
	now = now.Add(10 * time.Second)
	step("www.EXAMPLE.com.", true, 50)
	step("www.example.com.", true, 50)
	now = now.Add(50 * time.Second)
	step("www.example.com.", false, 60)
	q := question("www.example.com.", "A")
	q.SetEdns0(1232, true)
	var ob Observation
	if s.reply(t.Context(), q, &ob); ob.CacheHit {
		t.Error("an answer without signatures was given to who asked for them")
	}
}
