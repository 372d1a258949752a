package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// maxWaiting bounds the queries that wait for a resolver, and with them
	// goroutines and sockets, when every resolver is silent.
	maxWaiting = 1024
	maxRest    = 30 * time.Second
)

var (
	errNoUpstream = errors.New("no upstream resolver")
	errBusy       = errors.New("too many questions wait for the resolvers")
)

// forwarder asks the host's resolvers.
//
// Equal questions share one exchange. That also ends every loop: should a
// resolver send a question back here, it waits for the very exchange that it
// is part of, which fails when its time is over; nothing is sent twice.
type forwarder struct {
	o       *Options
	cache   *cache
	flights singleflight.Group
	slots   chan struct{}

	mu     sync.Mutex
	health map[netip.AddrPort]health
}

// health of an upstream that failed: it rests until then, longer each time.
type health struct {
	failures int
	until    time.Time
}

func newForwarder(o *Options) *forwarder {
	return &forwarder{
		o: o, cache: newCache(o.CacheBytes, o.Now),
		slots: make(chan struct{}, maxWaiting), health: map[netip.AddrPort]health{},
	}
}

// resolve returns a message that the caller may change. ctx ends with the
// server, not with one client: others may wait for the same answer.
func (f *forwarder) resolve(ctx context.Context, k query) (msg *dns.Msg, hit bool, err error) {
	if msg := f.cache.get(k); msg != nil {
		return msg, true, nil
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, false, errBusy
	}
	flight := fmt.Sprintf("%s %d %t %t", k.name, k.qtype, k.do, k.cd)
	v, err, _ := f.flights.Do(flight, func() (any, error) {
		// The flight before this one may have ended between get and Do.
		if msg := f.cache.get(k); msg != nil {
			return msg, nil
		}
		msg, err := f.ask(ctx, k)
		if err != nil {
			return nil, err
		}
		f.cache.put(k, msg)
		return msg, nil
	})
	if err != nil {
		return nil, false, err
	}
	return v.(*dns.Msg).Copy(), false, nil
}

// ask tries each upstream until one gives an answer. Another response code
// than success and no such name is kept as the last resort: it may be that
// resolver's trouble only. With no response at all it is a SERVFAIL.
func (f *forwarder) ask(ctx context.Context, k query) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.o.TotalTimeout)
	defer cancel()
	upstreams := f.order(f.o.Upstreams())
	if len(upstreams) == 0 {
		return nil, errNoUpstream
	}
	failed := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Rcode: dns.RcodeServerFailure}}
	for _, up := range upstreams {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			break
		}
		r, err := f.askOne(ctx, up, k)
		if err != nil && errors.Is(ctx.Err(), context.Canceled) {
			return nil, fmt.Errorf("the server ends: %w", err)
		}
		f.report(up, err)
		switch {
		case err != nil:
		case r.Rcode == dns.RcodeSuccess || r.Rcode == dns.RcodeNameError:
			return r, nil
		default:
			failed.Rcode = r.Rcode
		}
	}
	return failed, nil
}

// order puts those that rest behind the others. One whose rest is over comes
// at its own place for this question only: one client at most waits for it.
func (f *forwarder) order(upstreams []netip.AddrPort) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.o.Now()
	for up := range f.health {
		if !slices.Contains(upstreams, up) {
			delete(f.health, up)
		}
	}
	var ready, resting []netip.AddrPort
	for _, up := range upstreams {
		h, sick := f.health[up]
		switch {
		case f.isOwn(up) || slices.Contains(ready, up) || slices.Contains(resting, up):
		case sick && now.Before(h.until):
			resting = append(resting, up)
		default:
			if sick {
				h.until = now.Add(rest(h.failures))
				f.health[up] = h
			}
			ready = append(ready, up)
		}
	}
	return append(ready, resting...)
}

func (f *forwarder) isOwn(up netip.AddrPort) bool {
	return up.Port() == 53 && slices.Contains(f.o.Own, up.Addr().Unmap()) || f.o.Sockets.listensOn(up)
}

func (f *forwarder) report(up netip.AddrPort, err error) {
	f.o.Upstream(up, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.health, up)
		return
	}
	h := f.health[up]
	h.failures++
	h.until = f.o.Now().Add(rest(h.failures))
	f.health[up] = h
}

func rest(failures int) time.Duration {
	return min(maxRest, time.Second<<min(failures, 10))
}

// askOne asks over UDP, over TCP when the answer does not fit, and without
// EDNS when the resolver is too old to know it.
func (f *forwarder) askOne(ctx context.Context, up netip.AddrPort, k query) (*dns.Msg, error) {
	q := &dns.Msg{
		MsgHdr:   dns.MsgHdr{RecursionDesired: true, CheckingDisabled: k.cd},
		Question: []dns.Question{{Name: k.name, Qtype: k.qtype, Qclass: dns.ClassINET}},
	}
	q.SetEdns0(udpSize, k.do)
	r, err := f.exchange(ctx, "udp", up, q)
	if err == nil && (r.Rcode == dns.RcodeFormatError || r.Rcode == dns.RcodeNotImplemented) {
		q.Extra = nil
		r, err = f.exchange(ctx, "udp", up, q)
	}
	if err == nil && r.Truncated {
		r, err = f.exchange(ctx, "tcp", up, q)
	}
	if err != nil {
		return nil, err
	}
	r.Extra = slices.DeleteFunc(r.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return r, nil
}

// exchange sends q once, from a new port and with a new id, and waits for the
// message that answers it. Over UDP others are ignored, whoever sent them.
func (f *forwarder) exchange(ctx context.Context, network string, up netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.o.Timeout)
	defer cancel()
	raw, err := f.o.Dial(ctx, network, up.String())
	if err != nil {
		return nil, fmt.Errorf("ask resolver %s over %s: %w", up, network, err)
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })()

	q.Id = dns.Id()
	conn := &dns.Conn{Conn: raw}
	if err := conn.WriteMsg(q); err != nil {
		return nil, fmt.Errorf("ask resolver %s over %s: %w", up, network, err)
	}
	buf := make([]byte, 4096)
	if network == "tcp" {
		buf = make([]byte, dns.MaxMsgSize)
	}
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, fmt.Errorf("resolver %s over %s gave no answer to %s: %w", up, network, q.Question[0].Name, errors.Join(err, ctx.Err()))
		}
		r := new(dns.Msg)
		if r.Unpack(buf[:n]) == nil && answers(r, q) {
			return r, nil
		}
		if network == "tcp" {
			return nil, fmt.Errorf("resolver %s over tcp answered another question than %s: %w", up, q.Question[0].Name, io.ErrUnexpectedEOF)
		}
	}
}

// answers tells the answer to q from a forged, late or broken one. A resolver
// that could not read the question may leave it out when it says so.
func answers(r, q *dns.Msg) bool {
	if r.Id != q.Id || !r.Response || r.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(r.Question) == 0 {
		return r.Rcode != dns.RcodeSuccess && r.Rcode != dns.RcodeNameError
	}
	a, b := r.Question[0], q.Question[0]
	return len(r.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

func defaultDial(ctx context.Context, network, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, addr)
}
