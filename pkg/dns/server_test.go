package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// cluster has one Service of each kind.
func cluster() Snapshot {
	end := func(ip, host string, ready bool) Endpoint {
		return Endpoint{Addr: netip.MustParseAddr(ip), Hostname: host, Ready: ready}
	}
	web := []Port{{"http", "TCP", 80}, {"dns", "UDP", 53}, {"", "TCP", 9}}
	many := make([]Endpoint, 5000)
	for i := range many {
		many[i] = Endpoint{Addr: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), Ready: true}
	}
	return Snapshot{Services: []Service{
		{Namespace: "default", Name: "web", ClusterIPs: addrs("10.96.0.10", "fd00:96::10"), Ports: web},
		{Namespace: "default", Name: "four", ClusterIPs: addrs("10.96.0.11"), Ports: []Port{{"", "TCP", 80}}},
		{Namespace: "db", Name: "pg", Endpoints: []EndpointSet{
			{Ports: []Port{{"sql", "TCP", 5432}}, Endpoints: []Endpoint{end("10.0.0.1", "pg-0", true), end("10.0.0.2", "", true), end("10.0.0.3", "pg-2", false)}},
			{Ports: []Port{{"sql", "TCP", 5433}}, Endpoints: []Endpoint{end("fd00::1", "pg-0", true), end("10.0.0.1", "pg-0", true)}},
		}},
		{Namespace: "db", Name: "early", PublishNotReady: true, Endpoints: []EndpointSet{{Endpoints: []Endpoint{end("10.0.1.1", "", false)}}}},
		{Namespace: "db", Name: "none", Endpoints: []EndpointSet{{Endpoints: []Endpoint{end("10.0.2.1", "", false)}}}},
		{Namespace: "db", Name: "six", Endpoints: []EndpointSet{{Ports: []Port{{"", "TCP", 1}}, Endpoints: []Endpoint{end("fd00::2", "", true)}}}},
		{Namespace: "big", Name: "many", Endpoints: []EndpointSet{{Ports: []Port{{"p", "TCP", 1}}, Endpoints: many}}},
		{Namespace: "ext", Name: "inner", ExternalName: "web.default.svc.cluster.local"},
		{Namespace: "ext", Name: "outer", ExternalName: "www.Example.com"},
		{Namespace: "ext", Name: "loop", ExternalName: "loop.ext.svc.cluster.local"},
		{Namespace: "ext", Name: "dead", ExternalName: "no.default.svc.cluster.local"},
	}}
}

func newServer(t testing.TB, change func(*Options)) *Server {
	t.Helper()
	o := Options{
		Domain: "Cluster.Local", Own: addrs("10.96.0.2"), IntN: func(int) int { return 0 },
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:96::/112")},
		Now:    func() time.Time { return time.Unix(1000, 0) },
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Replace(cluster())
	return s
}

func question(name, qtype string) *dns.Msg {
	return new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
}

// show is a reply in one line: code, flags, and records without TTL and class.
func show(r *dns.Msg) string {
	out := []string{dns.RcodeToString[r.Rcode]}
	if r.Authoritative {
		out[0] += " aa"
	}
	for _, section := range [][]dns.RR{r.Answer, r.Ns, r.Extra} {
		part := []string{}
		for _, rr := range section {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			f := strings.Fields(rr.String())
			if f[3] == "SOA" {
				f = f[:4]
			}
			part = append(part, strings.Join(append(f[:1], f[3:]...), " "))
		}
		out = append(out, strings.Join(part, ", "))
	}
	return strings.TrimRight(strings.Join(out, " | "), " |")
}

const (
	nodata   = "NOERROR aa |  | cluster.local. SOA"
	nxdomain = "NXDOMAIN aa |  | cluster.local. SOA"
)

const (
	web = "web.default.svc.cluster.local."
	pg  = "pg.db.svc.cluster.local."
)

// specRow is a question and the reply as show writes it.
type specRow struct{ name, qtype, want string }

func serviceRows() []specRow {
	return []specRow{
		// 2.2 schema version
		{"dns-version.cluster.local.", "TXT", `NOERROR aa | dns-version.cluster.local. TXT "1.1.0"`},
		{"dns-version.cluster.local.", "A", nodata},
		// 2.3 cluster IP
		{web, "A", "NOERROR aa | " + web + " A 10.96.0.10"},
		{web, "AAAA", "NOERROR aa | " + web + " AAAA fd00:96::10"},
		{web, "MX", nodata},
		{"WeB.Default.svc.CLUSTER.local.", "A", "NOERROR aa | WeB.Default.svc.CLUSTER.local. A 10.96.0.10"},
		{"four.default.svc.cluster.local.", "AAAA", nodata},
		{"_http._tcp." + web, "SRV", "NOERROR aa | _http._tcp." + web + " SRV 0 100 80 " + web + " |  | " + web + " A 10.96.0.10, " + web + " AAAA fd00:96::10"},
		{"_DNS._UDP." + web, "SRV", "NOERROR aa | _DNS._UDP." + web + " SRV 0 100 53 " + web + " |  | " + web + " A 10.96.0.10, " + web + " AAAA fd00:96::10"},
		{"_http._tcp." + web, "A", nodata},
		{"_tcp." + web, "SRV", nodata},
		{"_sctp." + web, "SRV", nxdomain},
		{"_http._udp." + web, "SRV", nxdomain},
		{"_x._http._tcp." + web, "SRV", nxdomain},
		{"_tcp.four.default.svc.cluster.local.", "SRV", nxdomain},
		{"four.default.svc.cluster.local.", "SRV", "NOERROR aa | four.default.svc.cluster.local. SRV 0 100 80 four.default.svc.cluster.local. |  | four.default.svc.cluster.local. A 10.96.0.11"},
		{"pod-0." + web, "A", nxdomain},
		{"*.default.svc.cluster.local.", "A", nxdomain},
		{`web\.default.svc.cluster.local.`, "A", nxdomain},
	}
}

func headlessRows() []specRow {
	return []specRow{
		// 2.4 headless
		{pg, "A", "NOERROR aa | " + pg + " A 10.0.0.1, " + pg + " A 10.0.0.2"},
		{pg, "AAAA", "NOERROR aa | " + pg + " AAAA fd00::1"},
		{"pg-0." + pg, "A", "NOERROR aa | pg-0." + pg + " A 10.0.0.1"},
		{"PG-0." + pg, "AAAA", "NOERROR aa | PG-0." + pg + " AAAA fd00::1"},
		{"10-0-0-2." + pg, "A", "NOERROR aa | 10-0-0-2." + pg + " A 10.0.0.2"},
		{"10-0-0-2." + pg, "AAAA", nodata},
		{"10-0-0-1." + pg, "A", nxdomain},
		{"pg-2." + pg, "A", nxdomain},
		{"_sql._tcp." + pg, "SRV", "NOERROR aa | _sql._tcp." + pg + " SRV 0 100 5432 pg-0." + pg + ", _sql._tcp." + pg + " SRV 0 100 5432 10-0-0-2." + pg +
			", _sql._tcp." + pg + " SRV 0 100 5433 pg-0." + pg + " |  | pg-0." + pg + " A 10.0.0.1, 10-0-0-2." + pg + " A 10.0.0.2, pg-0." + pg + " AAAA fd00::1"},
		{"_tcp." + pg, "SRV", nodata},
		{"_x._tcp." + pg, "SRV", nxdomain},
		{"fd00-0000-0000-0000-0000-0000-0000-0002.six.db.svc.cluster.local.", "AAAA", "NOERROR aa | fd00-0000-0000-0000-0000-0000-0000-0002.six.db.svc.cluster.local. AAAA fd00::2"},
		{"_tcp.six.db.svc.cluster.local.", "SRV", nxdomain},
		{"4.3.2.1.ip4.arpa.", "PTR", "REFUSED"},
		{"early.db.svc.cluster.local.", "A", "NOERROR aa | early.db.svc.cluster.local. A 10.0.1.1"},
		{"none.db.svc.cluster.local.", "A", nxdomain},
		{"1.0.0.10.in-addr.arpa.", "PTR", "NOERROR aa | 1.0.0.10.in-addr.arpa. PTR pg-0." + pg},
		{"1.0.0.10.in-addr.arpa.", "A", "NOERROR aa |  | 1.0.0.10.in-addr.arpa. SOA"},
		{"2.0.0.10.in-addr.arpa.", "PTR", "NOERROR aa | 2.0.0.10.in-addr.arpa. PTR 10-0-0-2." + pg},
		{"3.0.0.10.in-addr.arpa.", "PTR", "REFUSED"},
		{"1.0.2.10.in-addr.arpa.", "PTR", "REFUSED"},
	}
}

func aliasRows() []specRow {
	return []specRow{
		// 2.5 ExternalName
		{"inner.ext.svc.cluster.local.", "CNAME", "NOERROR aa | inner.ext.svc.cluster.local. CNAME " + web},
		{"inner.ext.svc.cluster.local.", "A", "NOERROR aa | inner.ext.svc.cluster.local. CNAME " + web + ", " + web + " A 10.96.0.10"},
		{"inner.ext.svc.cluster.local.", "MX", "NOERROR aa | inner.ext.svc.cluster.local. CNAME " + web + " | cluster.local. SOA"},
		{"dead.ext.svc.cluster.local.", "A", "NXDOMAIN aa | dead.ext.svc.cluster.local. CNAME no.default.svc.cluster.local. | cluster.local. SOA"},
		{"loop.ext.svc.cluster.local.", "A", "SERVFAIL"},
		{"outer.ext.svc.cluster.local.", "CNAME", "NOERROR aa | outer.ext.svc.cluster.local. CNAME www.Example.com."},
		{"x.outer.ext.svc.cluster.local.", "A", nxdomain},
		// 2.6 pods
		{"10-0-0-7.any.pod.cluster.local.", "A", "NOERROR aa | 10-0-0-7.any.pod.cluster.local. A 10.0.0.7"},
		{"10-0-0-7.any.pod.cluster.local.", "AAAA", nodata},
		{"fd00--7.any.pod.cluster.local.", "AAAA", "NOERROR aa | fd00--7.any.pod.cluster.local. AAAA fd00::7"},
		{"10-0-0-256.any.pod.cluster.local.", "A", nxdomain},
		{"x.10-0-0-7.any.pod.cluster.local.", "A", nxdomain},
	}
}

func zoneRows() []specRow {
	return []specRow{
		// names in between, and the zone itself
		{"svc.cluster.local.", "A", nodata},
		{"default.svc.cluster.local.", "A", nodata},
		{"nobody.svc.cluster.local.", "A", nxdomain},
		{"web.nobody.svc.cluster.local.", "A", nxdomain},
		{"pod.cluster.local.", "A", nodata},
		{"other.cluster.local.", "A", nxdomain},
		{"cluster.local.", "A", nodata},
		{"cluster.local.", "SOA", "NOERROR aa | cluster.local. SOA"},
		{"cluster.local.", "NS", "NOERROR aa | cluster.local. NS ns.dns.cluster.local. |  | ns.dns.cluster.local. A 10.96.0.2"},
		{"ns.dns.cluster.local.", "A", "NOERROR aa | ns.dns.cluster.local. A 10.96.0.2"},
		{"dns.cluster.local.", "A", nodata},
	}
}

func rangeRows() []specRow {
	return []specRow{
		// the ranges: 10.96.0.0/12 is sixteen zones
		{"10.0.96.10.in-addr.arpa.", "PTR", "NOERROR aa | 10.0.96.10.in-addr.arpa. PTR " + web},
		{"10.0.96.10.IN-Addr.arpa.", "PTR", "NOERROR aa | 10.0.96.10.IN-Addr.arpa. PTR " + web},
		{"10.0.96.10.in-addr.arpa.", "TXT", "NOERROR aa |  | 96.10.in-addr.arpa. SOA"},
		{"1.2.111.10.in-addr.arpa.", "PTR", "NXDOMAIN aa |  | 111.10.in-addr.arpa. SOA"},
		{"9.1.2.111.10.in-addr.arpa.", "PTR", "NXDOMAIN aa |  | 111.10.in-addr.arpa. SOA"},
		{"2.111.10.in-addr.arpa.", "PTR", "NOERROR aa |  | 111.10.in-addr.arpa. SOA"},
		{"111.10.in-addr.arpa.", "SOA", "NOERROR aa | 111.10.in-addr.arpa. SOA"},
		{"112.10.in-addr.arpa.", "SOA", "REFUSED"},
		{"10.in-addr.arpa.", "SOA", "REFUSED"},
		{"010.0.96.10.in-addr.arpa.", "PTR", "REFUSED"},
		{mustReverse("fd00:96::10"), "PTR", "NOERROR aa | " + mustReverse("fd00:96::10") + " PTR " + web},
		{mustReverse("fd00:96::11"), "PTR", "NXDOMAIN aa |  | " + strings.TrimPrefix(mustReverse("fd00:96::"), "0.0.0.0.") + " SOA"},
		{mustReverse("fd00:97::11"), "PTR", "REFUSED"},
		// RFC 8482, zone transfers, and names of others without a resolver
		{web, "ANY", `NOERROR aa | ` + web + ` HINFO "RFC8482" ""`},
		{"no." + web, "ANY", nxdomain},
		{web, "AXFR", "REFUSED"},
		{"example.com.", "A", "REFUSED"},
		{"xcluster.local.", "A", "REFUSED"},
		{`web.default.svc.x\.cluster.local.`, "A", "REFUSED"},
		{".", "NS", "REFUSED"},
	}
}

func TestSpecification(t *testing.T) {
	s := newServer(t, nil)
	for _, c := range slices.Concat(serviceRows(), headlessRows(), aliasRows(), zoneRows(), rangeRows()) {
		r := s.reply(context.Background(), question(c.name, c.qtype), &Observation{})
		if got := show(r); got != c.want {
			t.Errorf("%s %s\n got %s\nwant %s", c.name, c.qtype, got, c.want)
		}
		for _, rr := range slices.Concat(r.Answer, r.Ns, r.Extra) {
			if rr.Header().Ttl != 5 && rr.Header().Rrtype != dns.TypeHINFO {
				t.Errorf("%s %s: TTL of %s", c.name, c.qtype, rr)
			}
		}
		if r.Question[0].Name != c.name {
			t.Errorf("the question came back as %s", r.Question[0].Name)
		}
	}
}

func mustReverse(ip string) string {
	name, err := dns.ReverseAddr(ip)
	if err != nil {
		panic(err)
	}
	return name
}

func TestHeader(t *testing.T) {
	s := newServer(t, nil)
	for _, c := range []struct {
		title string
		ask   func(*dns.Msg)
		want  int
	}{
		{"notify", func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		{"two questions", func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }, dns.RcodeFormatError},
		{"chaos", func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		{"EDNS 1", func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
	} {
		q := question("web.default.svc.cluster.local.", "A")
		c.ask(q)
		r := s.reply(context.Background(), q, &Observation{})
		if r.Rcode != c.want || len(r.Answer) > 0 {
			t.Errorf("%s: %s", c.title, r)
		}
	}
}

func TestReplaceAnswersFromTheNewSnapshotOnly(t *testing.T) {
	s := newServer(t, nil)
	s.Replace(Snapshot{Services: []Service{{Namespace: "new", Name: "web", ClusterIPs: addrs("10.96.0.10")}}})
	for name, want := range map[string]string{
		"web.default.svc.cluster.local.": nxdomain,
		"web.new.svc.cluster.local.":     "NOERROR aa | web.new.svc.cluster.local. A 10.96.0.10",
	} {
		if got := show(s.reply(context.Background(), question(name, "A"), &Observation{})); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
	r := s.reply(context.Background(), question("10.0.96.10.in-addr.arpa.", "PTR"), &Observation{})
	if got := show(r); got != "NOERROR aa | 10.0.96.10.in-addr.arpa. PTR web.new.svc.cluster.local." {
		t.Error(got)
	}
}

func TestTheFirstAddressChanges(t *testing.T) {
	next := 0
	s := newServer(t, func(o *Options) { o.IntN = func(n int) int { next++; return next % n } })
	first := map[string]bool{}
	for range 3 {
		r := s.reply(context.Background(), question("pg.db.svc.cluster.local.", "A"), &Observation{})
		first[r.Answer[0].(*dns.A).A.String()] = true
	}
	if len(first) != 2 {
		t.Errorf("first addresses: %v", first)
	}
}

// start runs s on loopback and returns its address.
func start(t testing.TB, s *Server) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s.o.Sockets.UDP[0].LocalAddr().String()
}

func listen(t testing.TB, ip string) Sockets {
	t.Helper()
	for {
		// The TCP port of a free UDP port may be somebody else's.
		s, err := Listen(t.Context(), netip.MustParseAddrPort(ip+":0"))
		if err == nil {
			return s
		}
		t.Log(err)
	}
}

func ask(t *testing.T, network, server string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: time.Minute}
	r, _, err := c.Exchange(q, server)
	if err != nil {
		t.Fatalf("%s %s over %s: %v", q.Question[0].Name, dns.TypeToString[q.Question[0].Qtype], network, err)
	}
	return r
}

func TestPacketsAndTheirSizes(t *testing.T) {
	seen := make(chan Observation, 100)
	at := start(t, newServer(t, func(o *Options) {
		o.Sockets = listen(t, "127.0.0.1")
		o.Observe = func(ob Observation) { seen <- ob }
	}))
	many := "many.big.svc.cluster.local."
	for _, c := range []struct {
		network, name, qtype string
		edns                 uint16
		truncated            bool
		atLeast, atMost      int
	}{
		{"udp", "web.default.svc.cluster.local.", "A", 0, false, 1, 1},
		{"tcp", "web.default.svc.cluster.local.", "A", 0, false, 1, 1},
		{"udp", many, "A", 0, true, 20, 31},
		{"udp", many, "A", 100, true, 20, 31},
		{"udp", many, "A", 800, true, 40, 50},
		{"udp", many, "A", 65535, true, 60, 77},
		{"udp", "_p._tcp." + many, "SRV", 1232, true, 10, 77},
		{"tcp", many, "A", 0, true, 4000, 4096},
	} {
		q := question(c.name, c.qtype)
		size := 512
		if c.edns > 0 {
			q.SetEdns0(c.edns, false)
			size = min(max(512, int(c.edns)), udpSize)
		}
		r := ask(t, c.network, at, q)
		r.Compress = true
		if n := len(r.Answer); r.Truncated != c.truncated || n < c.atLeast || n > c.atMost {
			t.Errorf("%+v: %d answers, truncated %t", c, n, r.Truncated)
		}
		if c.network == "udp" && r.Len() > size {
			t.Errorf("%+v: %d octets", c, r.Len())
		}
		if (r.IsEdns0() != nil) != (c.edns > 0) {
			t.Errorf("%+v: EDNS not as asked: %v", c, r.IsEdns0())
		}
		ob := <-seen
		if ob.TCP != (c.network == "tcp") || !ob.Cluster || ob.Type != dns.StringToType[c.qtype] {
			t.Errorf("%+v: observed %+v", c, ob)
		}
	}
}

func TestRunEndsWithQueriesUnderWay(t *testing.T) {
	up := newUpstream(t, func(dns.ResponseWriter, *dns.Msg) {})
	s := newServer(t, func(o *Options) {
		o.Sockets = listen(t, "127.0.0.1")
		o.Upstreams = up.only
		o.Timeout, o.TotalTimeout = time.Hour, time.Hour
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	q := question("silent.example.", "A")
	go new(dns.Client).Exchange(q, s.o.Sockets.UDP[0].LocalAddr().String())
	<-up.asked
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := s.o.Sockets.TCP[0].Accept(); err == nil {
		t.Error("the TCP socket is still open")
	}
}

func TestRunFailsWithItsSockets(t *testing.T) {
	s := newServer(t, func(o *Options) { o.Sockets = listen(t, "127.0.0.1") })
	s.o.Sockets.Close()
	if err := s.Run(t.Context()); err == nil {
		t.Error("ran without sockets")
	}
}

func TestListenSaysWhatItCannotHave(t *testing.T) {
	s := listen(t, "127.0.0.1")
	defer s.Close()
	taken := netip.MustParseAddrPort(s.UDP[0].LocalAddr().String())
	if _, err := Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), taken); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("UDP: %v", err)
	}
	s.UDP[0].Close() // TCP stays
	if _, err := Listen(t.Context(), taken); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("TCP: %v", err)
	}
	for at, want := range map[string]bool{"127.0.0.1": true, "[::1]": true, "192.0.2.1": false} {
		every := listen(t, "[::]")
		port := every.UDP[0].LocalAddr().(*net.UDPAddr).Port
		if got := every.listensOn(netip.MustParseAddrPort(fmt.Sprintf("%s:%d", at, port))); got != want {
			t.Errorf("listens on %s: %t", at, got)
		}
		every.Close()
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {Domain: "."}, {Domain: "a..b"}, {Domain: "cluster.local", Ranges: make([]netip.Prefix, 1)}} {
		if _, err := New(o); err == nil {
			t.Errorf("accepted %+v", o)
		}
	}
}
