// Package dns answers for the cluster domain where no control plane brings a
// DNS server along, after the Kubernetes DNS specification 1.1
// (github.com/kubernetes/dns, docs/specification.md), and asks the host's
// resolvers for the rest.
//
// Beyond the specification, as other servers have it: SRV for a Service's own
// name gives all its ports. There are no wildcards.
package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

const (
	// udpSize is what passes any network unfragmented.
	udpSize = 1232
	// maxTCP bounds the connections that clients hold open.
	maxTCP = 512
	// maxAliases bounds a chain of ExternalNames that lead to each other.
	maxAliases = 8
)

// Options are what a server needs. Domain, Sockets and Own are required.
type Options struct {
	// Domain is the cluster domain, cluster.local for instance.
	Domain string
	// Sockets are where it serves; Run closes them.
	Sockets Sockets
	// Own are the addresses that clients know it by (the cluster DNS address):
	// what ns.dns.<domain> is, and never an upstream.
	Own []netip.Addr
	// Ranges are those of the Services: unknown addresses in them have no name.
	Ranges []netip.Prefix
	// Upstreams are the resolvers to ask, best first. Called for each question
	// that goes out; see ResolvConf. Nil: questions about other domains are refused.
	Upstreams func() []netip.AddrPort
	// TTL of the cluster's records and of their absence; 0: 5 s.
	TTL time.Duration
	// Timeout for one try at one upstream (0: 1.5 s), TotalTimeout for all (0: 5 s).
	Timeout, TotalTimeout time.Duration
	// CacheBytes bounds what is kept of the upstreams' answers; 0: 4 MiB.
	CacheBytes int

	// Observe is told of each query answered, Upstream of each try at one
	// (nil: it answered). Both may be called from any goroutine, and be nil.
	Observe  func(Observation)
	Upstream func(netip.AddrPort, error)

	// Dial reaches the upstreams, Now is the clock, IntN chooses which of
	// several addresses comes first. Nil: the usual ones.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Now  func() time.Time
	IntN func(n int) int
}

// Observation is one query, for metrics.
type Observation struct {
	Cluster  bool // from our own records
	CacheHit bool
	TCP      bool
	Type     uint16
	Rcode    int
	Took     time.Duration
}

// RcodeName is the response code in words: NOERROR, NXDOMAIN, …
func (o Observation) RcodeName() string { return dns.RcodeToString[o.Rcode] }

// Server answers queries. Make it with New.
type Server struct {
	o       Options
	zone    atomic.Pointer[zone]
	domain  string
	forward *forwarder
}

// New checks the options. The server knows no Service until Replace.
func New(o Options) (*Server, error) {
	domain := dns.CanonicalName(o.Domain)
	if _, ok := dns.IsDomainName(domain); !ok || domain == "." {
		return nil, fmt.Errorf("cluster domain %q: not a domain name; give one like cluster.local", o.Domain)
	}
	o.setDefaults()
	o.Own = slices.Clone(o.Own)
	for i := range o.Own {
		o.Own[i] = o.Own[i].Unmap()
	}
	for _, r := range o.Ranges {
		if !r.IsValid() || r.Addr().Is4In6() {
			return nil, fmt.Errorf("service range %s: not a range of IPv4 or IPv6 addresses; give one like 10.96.0.0/16", r)
		}
	}
	s := &Server{o: o, domain: domain}
	s.forward = newForwarder(&s.o)
	s.Replace(Snapshot{})
	return s, nil
}

func (o *Options) setDefaults() {
	setDefault(&o.TTL, 5*time.Second)
	setDefault(&o.Timeout, 1500*time.Millisecond)
	setDefault(&o.TotalTimeout, 5*time.Second)
	setDefault(&o.CacheBytes, 4<<20)
	if o.Observe == nil {
		o.Observe = func(Observation) {}
	}
	if o.Upstream == nil {
		o.Upstream = func(netip.AddrPort, error) {}
	}
	if o.Upstreams == nil {
		o.Upstreams = func() []netip.AddrPort { return nil }
	}
	if o.Dial == nil {
		o.Dial = defaultDial
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.IntN == nil {
		o.IntN = rand.IntN
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Replace makes the server answer from s, at once and as a whole.
func (s *Server) Replace(snap Snapshot) {
	z := &zone{
		origin: s.domain, domain: dns.SplitDomainName(s.domain), ttl: uint32(s.o.TTL / time.Second),
		serial: uint32(s.o.Now().Unix()), own: s.o.Own, ranges: s.o.Ranges, intn: s.o.IntN,
	}
	z.load(snap)
	s.zone.Store(z)
}

// Run serves until ctx ends, and then closes the sockets and waits for the
// queries that are under way.
func (s *Server) Run(ctx context.Context) error {
	defer s.o.Sockets.Close()
	g, ctx := errgroup.WithContext(ctx)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { s.handle(ctx, w, q) })
	for _, c := range s.o.Sockets.UDP {
		g.Go(func() error {
			return run(ctx, &dns.Server{PacketConn: c, Handler: handler, UDPSize: udpSize}, c.LocalAddr())
		})
	}
	for _, l := range s.o.Sockets.TCP {
		limited := netutil.LimitListener(l, maxTCP)
		g.Go(func() error { return run(ctx, &dns.Server{Listener: limited, Handler: handler}, l.Addr()) })
	}
	return g.Wait()
}

func run(ctx context.Context, srv *dns.Server, at net.Addr) error {
	started, ended := make(chan struct{}), make(chan error, 1)
	srv.NotifyStartedFunc = func() { close(started) }
	go func() { ended <- srv.ActivateAndServe() }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve DNS on %s %s: %w", at.Network(), at, err)
	case <-ctx.Done():
	}
	select {
	case <-started:
		// With a background context it waits, and cannot fail.
		_ = srv.Shutdown()
	case err := <-ended:
		return fmt.Errorf("serve DNS on %s %s: %w", at.Network(), at, err)
	}
	return <-ended
}

func (s *Server) handle(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	start := s.o.Now()
	ob := Observation{}
	_, ob.TCP = w.RemoteAddr().(*net.TCPAddr)
	r := s.reply(ctx, q, &ob)
	// The client is gone if this fails.
	_ = w.WriteMsg(r)
	ob.Rcode, ob.Took = r.Rcode, s.o.Now().Sub(start)
	s.o.Observe(ob)
}

// reply answers q; it fills ob.
func (s *Server) reply(ctx context.Context, q *dns.Msg, ob *Observation) *dns.Msg {
	r := new(dns.Msg).SetReply(q)
	r.RecursionAvailable = true
	size := dns.MinMsgSize
	opt := q.IsEdns0()
	if opt != nil {
		size = min(max(size, int(opt.UDPSize())), udpSize)
	}
	if ob.TCP {
		size = dns.MaxMsgSize
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		r.Rcode = dns.RcodeNotImplemented
	case len(q.Question) != 1:
		r.Rcode = dns.RcodeFormatError
	case opt != nil && opt.Version() != 0:
		r.Rcode = dns.RcodeBadVers
	case q.Question[0].Qclass != dns.ClassINET:
		r.Rcode = dns.RcodeRefused
	default:
		ob.Type = q.Question[0].Qtype
		s.resolve(ctx, q, r, size, ob)
	}
	fit(r, opt, size)
	return r
}

// fit makes r no longer than size. Additional records go first and are not
// missed (RFC 2181 section 9); others set the TC bit.
func fit(r *dns.Msg, opt *dns.OPT, size int) {
	reserve := 0
	if opt != nil {
		reserve = 11 // the OPT record
	}
	if len(r.Extra) > 0 {
		r.Compress = true
		if r.Len()+reserve > size {
			r.Extra = nil
		}
	}
	if opt != nil {
		r.SetEdns0(udpSize, opt.Do())
	}
	r.Truncate(size)
}

func (s *Server) resolve(ctx context.Context, q, r *dns.Msg, size int, ob *Observation) {
	qtype := q.Question[0].Qtype
	name := q.Question[0].Name
	z := s.zone.Load()
	for range maxAliases {
		// No record takes fewer than 16 octets.
		a, ours := z.find(name, qtype, size/16)
		switch {
		case !ours:
			s.resolveOther(ctx, q, r, name, ob)
			return
		case qtype == dns.TypeANY && a.exists:
			// RFC 8482: something, not everything.
			a.rrs, a.extra, a.alias = []dns.RR{&dns.HINFO{Hdr: z.header(name, dns.TypeHINFO), Cpu: "RFC8482"}}, nil, ""
		case qtype != dns.TypeANY && qtype >= 128 && qtype < 256: // zone transfers and other questions about no records
			r.Rcode = dns.RcodeRefused
			return
		}
		r.Authoritative, ob.Cluster = true, true
		r.Answer = append(r.Answer, a.rrs...)
		r.Extra = append(r.Extra, a.extra...)
		if a.alias == "" || qtype == dns.TypeCNAME {
			if !a.exists {
				r.Rcode = dns.RcodeNameError
			}
			if len(a.rrs) == 0 {
				r.Ns = append(r.Ns, z.soa(a.apex))
			}
			return
		}
		name = a.alias
	}
	fail(r, dns.RcodeServerFailure)
}

// resolveOther adds what the host's resolvers know of name: the question's own
// or where an ExternalName leads.
func (s *Server) resolveOther(ctx context.Context, q, r *dns.Msg, name string, ob *Observation) {
	qtype := q.Question[0].Qtype
	alias := len(r.Answer) > 0
	switch {
	case qtype >= 128 && qtype < 256: // ANY (RFC 8482), zone transfers
		fail(r, dns.RcodeRefused)
		return
	case !q.RecursionDesired:
		if !alias {
			fail(r, dns.RcodeRefused)
		}
		return
	}
	opt := q.IsEdns0()
	k := query{name: lower(name), qtype: qtype, do: opt != nil && opt.Do(), cd: q.CheckingDisabled}
	msg, hit, err := s.forward.resolve(ctx, k)
	ob.CacheHit = hit
	switch {
	case errors.Is(err, errNoUpstream) && !alias:
		fail(r, dns.RcodeRefused)
		return
	case err != nil || msg.Rcode != dns.RcodeSuccess && msg.Rcode != dns.RcodeNameError:
		fail(r, dns.RcodeServerFailure)
		return
	}
	for _, rr := range msg.Answer {
		if lower(rr.Header().Name) == k.name {
			rr.Header().Name = name
		}
	}
	r.Rcode = msg.Rcode
	r.AuthenticatedData = msg.AuthenticatedData && !alias && (q.AuthenticatedData || k.do)
	r.Answer = append(r.Answer, msg.Answer...)
	r.Ns = append(r.Ns, msg.Ns...)
	r.Extra = append(r.Extra, msg.Extra...)
}

func fail(r *dns.Msg, rcode int) {
	r.Rcode, r.Authoritative = rcode, false
	r.Answer, r.Ns, r.Extra = nil, nil, nil
}
