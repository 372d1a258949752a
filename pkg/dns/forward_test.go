package dns

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// upstream is a resolver that does as it is told.
type upstream struct {
	addr  netip.AddrPort
	asked chan *dns.Msg
	tcp   atomic.Int32
}

func newUpstream(t testing.TB, do func(w dns.ResponseWriter, q *dns.Msg)) *upstream {
	t.Helper()
	sockets := listen(t, "127.0.0.1")
	u := &upstream{addr: netip.MustParseAddrPort(sockets.UDP[0].LocalAddr().String()), asked: make(chan *dns.Msg, 1000)}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if _, ok := w.RemoteAddr().(*net.TCPAddr); ok {
			u.tcp.Add(1)
		}
		u.asked <- q
		do(w, q)
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, srv := range []*dns.Server{{PacketConn: sockets.UDP[0], Handler: handler}, {Listener: sockets.TCP[0], Handler: handler}} {
		wg.Go(func() {
			if err := run(ctx, srv, sockets.UDP[0].LocalAddr()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	return u
}

func (u *upstream) only() []netip.AddrPort { return []netip.AddrPort{u.addr} }

// rr parses records.
func rr(t testing.TB, lines ...string) (out []dns.RR) {
	t.Helper()
	for _, l := range lines {
		r, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func give(t testing.TB, lines ...string) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		r.Answer = rr(t, lines...)
		w.WriteMsg(r)
	}
}

func giveCode(code int) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, code)) }
}

func isTCP(w dns.ResponseWriter) bool { _, ok := w.RemoteAddr().(*net.TCPAddr); return ok }

// impatient waits a moment only for what a has to say, as long as while holds;
// others may take their time.
func impatient(a netip.AddrPort, while func() bool) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := defaultDial(ctx, network, addr)
		if err == nil && addr == a.String() && while() {
			err = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		}
		return conn, err
	}
}

const good = "NOERROR | www.example.com. A 192.0.2.1"

// behaviour is what an upstream does when it is asked for www.example.com.
type behaviour struct {
	title string
	first func(dns.ResponseWriter, *dns.Msg)
	want  string // with this upstream alone
	next  bool   // a second one is asked when there is one
}

func behaviours(t *testing.T) []behaviour {
	answer := give(t, "www.example.com. 60 IN A 192.0.2.1")
	silent := func(dns.ResponseWriter, *dns.Msg) {}
	return []behaviour{
		{"good", answer, good, false},
		{"silent", silent, "SERVFAIL", true},
		{"fails", giveCode(dns.RcodeServerFailure), "SERVFAIL", true},
		{"refuses", giveCode(dns.RcodeRefused), "SERVFAIL", true},
		{"no such name", giveCode(dns.RcodeNameError), "NXDOMAIN", false},
		{"garbage", func(w dns.ResponseWriter, q *dns.Msg) { w.Write([]byte("no DNS message at all")) }, "SERVFAIL", true},
		{"another id", func(w dns.ResponseWriter, q *dns.Msg) { q.Id++; answer(w, q) }, "SERVFAIL", true},
		{"another name", func(w dns.ResponseWriter, q *dns.Msg) { q.Question[0].Name = "evil.example."; answer(w, q) }, "SERVFAIL", true},
		{"another type", func(w dns.ResponseWriter, q *dns.Msg) { q.Question[0].Qtype = dns.TypeTXT; answer(w, q) }, "SERVFAIL", true},
		{"no question", func(w dns.ResponseWriter, q *dns.Msg) {
			r := new(dns.Msg).SetReply(q)
			r.Question, r.Answer = nil, rr(t, "www.example.com. 60 IN A 192.0.2.66")
			w.WriteMsg(r)
		}, "SERVFAIL", true},
		{"a question", func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(q) }, "SERVFAIL", true},
		{"forged before good", func(w dns.ResponseWriter, q *dns.Msg) {
			forged := new(dns.Msg).SetReply(q)
			forged.Id++
			forged.Answer = rr(t, "www.example.com. 60 IN A 192.0.2.66")
			w.WriteMsg(forged)
			w.Write([]byte{1})
			answer(w, q)
		}, good, false},
		{"no EDNS", func(w dns.ResponseWriter, q *dns.Msg) {
			if q.IsEdns0() != nil {
				w.WriteMsg(&dns.Msg{MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Rcode: dns.RcodeFormatError}})
				return
			}
			answer(w, q)
		}, good, false},
		{"truncates", func(w dns.ResponseWriter, q *dns.Msg) {
			if isTCP(w) {
				answer(w, q)
				return
			}
			r := new(dns.Msg).SetReply(q)
			r.Truncated = true
			w.WriteMsg(r)
		}, good, false},
		{"truncates and closes", func(w dns.ResponseWriter, q *dns.Msg) {
			r := new(dns.Msg).SetReply(q)
			r.Truncated = true
			if isTCP(w) {
				w.Close()
				return
			}
			w.WriteMsg(r)
		}, "SERVFAIL", true},
		{"truncates and answers another over TCP", func(w dns.ResponseWriter, q *dns.Msg) {
			r := new(dns.Msg).SetReply(q)
			r.Truncated = !isTCP(w)
			if isTCP(w) {
				r.Question[0].Name = "evil.example."
			}
			w.WriteMsg(r)
		}, "SERVFAIL", true},
	}
}

func TestForwardingToUpstreamsThatMisbehave(t *testing.T) {
	answer := give(t, "www.example.com. 60 IN A 192.0.2.1")
	for _, c := range behaviours(t) {
		t.Run(c.title, func(t *testing.T) {
			first, second := newUpstream(t, c.first), newUpstream(t, answer)
			for _, both := range []bool{false, true} {
				s := newServer(t, func(o *Options) {
					o.Timeout, o.TotalTimeout = time.Minute, time.Minute
					o.Dial = impatient(first.addr, func() bool { return c.want == "SERVFAIL" })
					o.Upstreams = first.only
					if both {
						o.Upstreams = func() []netip.AddrPort { return []netip.AddrPort{first.addr, second.addr} }
					}
				})
				want := c.want
				if both && c.next {
					want = good
				}
				r := s.reply(t.Context(), question("www.example.com.", "A"), &Observation{})
				if got := show(r); got != want {
					t.Errorf("both %t: %s, want %s", both, got, want)
				}
			}
			if asked := len(second.asked) > 0; asked != c.next {
				t.Errorf("the second upstream was asked: %t", asked)
			}
		})
	}
}

func TestAnUpstreamThatFailsRests(t *testing.T) {
	now := time.Unix(1000, 0)
	var broken atomic.Bool
	broken.Store(true)
	first := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if !broken.Load() {
			giveCode(dns.RcodeNameError)(w, q)
		}
	})
	second := newUpstream(t, giveCode(dns.RcodeNameError))
	failures, tries := 0, map[netip.AddrPort]int{}
	s := newServer(t, func(o *Options) {
		o.Now = func() time.Time { return now }
		o.Timeout, o.TotalTimeout = time.Minute, time.Minute
		o.Dial = impatient(first.addr, broken.Load)
		o.Upstreams = func() []netip.AddrPort { return []netip.AddrPort{first.addr, second.addr} }
		o.Upstream = func(a netip.AddrPort, err error) {
			tries[a]++
			if err != nil {
				failures++
			}
		}
	})
	step := func(wantFirst, wantSecond int) {
		t.Helper()
		r := s.reply(t.Context(), question("a.example.", "A"), &Observation{})
		if r.Rcode != dns.RcodeNameError || tries[first.addr] != wantFirst || tries[second.addr] != wantSecond {
			t.Fatalf("%s; asked %d and %d times, want %d and %d", show(r), tries[first.addr], tries[second.addr], wantFirst, wantSecond)
		}
	}
	step(1, 1)
	step(1, 2) // it rests
	now = now.Add(2 * time.Second)
	step(2, 3) // tried again, and rests longer
	now = now.Add(2 * time.Second)
	step(2, 4)
	now = now.Add(2 * time.Second)
	broken.Store(false)
	step(3, 4)
	step(4, 4) // well again
	if failures != 2 {
		t.Errorf("told of %d failures", failures)
	}
}

func TestOneRestingUpstreamIsStillBetterThanNone(t *testing.T) {
	up := newUpstream(t, giveCode(dns.RcodeNameError))
	s := newServer(t, func(o *Options) { o.Upstreams = up.only; o.Timeout = time.Minute; o.TotalTimeout = time.Minute })
	s.forward.report(up.addr, context.DeadlineExceeded)
	if r := s.reply(t.Context(), question("a.example.", "A"), &Observation{}); r.Rcode != dns.RcodeNameError {
		t.Error(show(r))
	}
}

func TestEqualQuestionsShareOneExchangeAndIdsDiffer(t *testing.T) {
	const clients = 20
	release := make(chan struct{})
	up := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		<-release
		give(t, q.Question[0].Name+" 60 IN A 192.0.2.1")(w, q)
	})
	s := newServer(t, func(o *Options) { o.Upstreams = up.only; o.Timeout = time.Minute; o.TotalTimeout = time.Minute })
	var wg sync.WaitGroup
	for i := range clients {
		name := "www.example.com."
		if i%2 == 1 {
			name = "WWW.example.com."
		}
		wg.Go(func() {
			r := s.reply(context.Background(), question(name, "A"), &Observation{})
			if got := show(r); got != "NOERROR | "+name+" A 192.0.2.1" {
				t.Errorf("%s: %s", name, got)
			}
		})
	}
	first := <-up.asked
	close(release)
	wg.Wait()
	if n := len(up.asked); n != 0 {
		t.Errorf("asked %d times more", n)
	}
	ids := map[uint16]bool{first.Id: true}
	for _, name := range []string{"a.example.", "b.example.", "c.example.", "d.example."} {
		s.reply(context.Background(), question(name, "A"), &Observation{})
		ids[(<-up.asked).Id] = true
	}
	if len(ids) < 3 {
		t.Errorf("ids repeat: %v", ids)
	}
}

// A resolver on the host that was told to ask us must not make a storm.
func TestALoopThroughAResolverEnds(t *testing.T) {
	sockets := listen(t, "127.0.0.1")
	at := sockets.UDP[0].LocalAddr().String()
	up := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		c := &dns.Client{Timeout: time.Minute}
		if r, _, err := c.Exchange(q, at); err == nil {
			w.WriteMsg(r)
		}
	})
	start(t, newServer(t, func(o *Options) {
		o.Sockets, o.Upstreams = sockets, up.only
		o.Timeout, o.TotalTimeout = 300*time.Millisecond, 300*time.Millisecond
	}))
	if r := ask(t, "udp", at, question("loop.example.", "A")); r.Rcode != dns.RcodeServerFailure {
		t.Error(show(r))
	}
	<-up.asked
	if n := len(up.asked); n != 0 {
		t.Errorf("the question went round %d times more", n)
	}
}

func TestTheServerIsNotItsOwnUpstream(t *testing.T) {
	sockets := listen(t, "127.0.0.1")
	defer sockets.Close()
	s := newServer(t, func(o *Options) {
		o.Sockets = sockets
		o.Upstreams = func() []netip.AddrPort {
			return []netip.AddrPort{netip.MustParseAddrPort("10.96.0.2:53"), netip.MustParseAddrPort(sockets.UDP[0].LocalAddr().String())}
		}
	})
	if r := s.reply(t.Context(), question("a.example.", "A"), &Observation{}); r.Rcode != dns.RcodeRefused {
		t.Error(show(r))
	}
}

func TestExternalNamesAreFollowedOutside(t *testing.T) {
	outer := "outer.ext.svc.cluster.local."
	for _, c := range []struct {
		up   func(dns.ResponseWriter, *dns.Msg)
		rd   bool
		want string
	}{
		{give(t, "www.example.com. 60 IN A 192.0.2.1"), true, "NOERROR aa | " + outer + " CNAME www.Example.com., www.Example.com. A 192.0.2.1"},
		{give(t, "www.example.com. 60 IN A 192.0.2.1"), false, "NOERROR aa | " + outer + " CNAME www.Example.com."},
		{giveCode(dns.RcodeNameError), true, "NXDOMAIN aa | " + outer + " CNAME www.Example.com."},
		{giveCode(dns.RcodeServerFailure), true, "SERVFAIL"},
	} {
		up := newUpstream(t, c.up)
		s := newServer(t, func(o *Options) { o.Upstreams = up.only; o.Timeout = time.Minute; o.TotalTimeout = time.Minute })
		q := question(outer, "A")
		q.RecursionDesired = c.rd
		if got := show(s.reply(t.Context(), q, &Observation{})); got != c.want {
			t.Errorf("recursion %t: %s, want %s", c.rd, got, c.want)
		}
	}
}

func TestAFullQueueRefusesAtOnce(t *testing.T) {
	up := newUpstream(t, giveCode(dns.RcodeNameError))
	s := newServer(t, func(o *Options) { o.Upstreams = up.only })
	for range maxWaiting {
		s.forward.slots <- struct{}{}
	}
	r := s.reply(t.Context(), question("a.example.", "A"), &Observation{})
	if r.Rcode != dns.RcodeServerFailure || len(up.asked) != 0 {
		t.Error(show(r))
	}
}

func TestWhatIsNotForwarded(t *testing.T) {
	up := newUpstream(t, giveCode(dns.RcodeNameError))
	s := newServer(t, func(o *Options) { o.Upstreams = up.only })
	anyQ, axfr, plain := question("a.example.", "ANY"), question("a.example.", "AXFR"), question("a.example.", "A")
	plain.RecursionDesired = false
	for _, q := range []*dns.Msg{anyQ, axfr, plain} {
		if r := s.reply(t.Context(), q, &Observation{}); r.Rcode != dns.RcodeRefused || len(up.asked) != 0 {
			t.Error(q.Question[0], show(r))
		}
	}
}

func TestSilentUpstreamsTakeNoLongerThanTheTotal(t *testing.T) {
	silent := func(dns.ResponseWriter, *dns.Msg) {}
	first, second := newUpstream(t, silent), newUpstream(t, silent)
	var tried atomic.Int32
	s := newServer(t, func(o *Options) {
		o.Timeout, o.TotalTimeout = time.Hour, 300*time.Millisecond
		o.Upstreams = func() []netip.AddrPort { return []netip.AddrPort{first.addr, second.addr} }
		o.Upstream = func(netip.AddrPort, error) { tried.Add(1) }
	})
	if r := s.reply(t.Context(), question("a.example.", "A"), &Observation{}); r.Rcode != dns.RcodeServerFailure {
		t.Error(show(r))
	}
	if n := tried.Load(); n != 1 {
		t.Errorf("%d were blamed", n)
	}
}

func TestAnUpstreamThatIsNotThere(t *testing.T) {
	sockets := listen(t, "127.0.0.1")
	gone := netip.MustParseAddrPort(sockets.UDP[0].LocalAddr().String())
	sockets.Close()
	up := newUpstream(t, giveCode(dns.RcodeNameError))
	s := newServer(t, func(o *Options) {
		o.Timeout, o.TotalTimeout = time.Minute, time.Minute
		o.Upstreams = func() []netip.AddrPort { return []netip.AddrPort{gone, up.addr} }
	})
	if r := s.reply(t.Context(), question("a.example.", "A"), &Observation{}); r.Rcode != dns.RcodeNameError {
		t.Error(show(r))
	}
}
