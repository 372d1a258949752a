package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// schemaVersion is the version of the Kubernetes DNS specification.
const schemaVersion = "1.1.0"

// zone is a Snapshot made ready for questions. It never changes.
type zone struct {
	origin string   // cluster.local.
	domain []string // cluster, local
	ttl    uint32
	serial uint32
	own    []netip.Addr   // ns.dns.<origin>
	ranges []netip.Prefix // whose reverse names are ours, also where they have no record
	intn   func(int) int

	services   map[serviceName]*Service
	namespaces map[string]struct{}
	headless   map[*Service]*headless
	pointers   map[netip.Addr]pointer
}

// pointer is what an address is called; a cluster address has no host.
type pointer struct {
	svc  *Service
	host string
}

type serviceName struct{ namespace, name string }

// headless are the records of a headless Service: what it serves, each once,
// though an endpoint may be in several slices while they are rearranged.
type headless struct {
	addrs  []netip.Addr
	byHost map[string][]netip.Addr
	srv    []srvTarget
}

type srvTarget struct {
	host string
	addr netip.Addr
	port Port
}

type hostAddr struct {
	host string
	addr netip.Addr
}

type hostPort struct {
	host string
	port uint16
}

// answer is what the zone says to one question.
type answer struct {
	name  string // the owner of the records, in the case that the client asked in
	qtype uint16
	// enough is a number of records that no reply can hold: more are not made.
	enough int

	exists bool
	rrs    []dns.RR
	extra  []dns.RR
	alias  string // the CNAME in rrs leads here
	apex   string // the zone whose SOA a negative answer has
}

// load fills the zone. Where two Services claim one address the first keeps it.
func (z *zone) load(s Snapshot) {
	z.services = make(map[serviceName]*Service, len(s.Services))
	z.namespaces = map[string]struct{}{}
	z.headless = map[*Service]*headless{}
	z.pointers = make(map[netip.Addr]pointer, len(s.Services))
	for i := range s.Services {
		svc := &s.Services[i]
		z.services[serviceName{svc.Namespace, svc.Name}] = svc
		z.namespaces[svc.Namespace] = struct{}{}
		if svc.ExternalName != "" {
			continue
		}
		for _, ip := range svc.ClusterIPs {
			z.point(ip, pointer{svc: svc})
		}
	}
	for i := range s.Services {
		if svc := &s.Services[i]; svc.ExternalName == "" && len(svc.ClusterIPs) == 0 {
			z.loadHeadless(svc)
		}
	}
}

func (z *zone) loadHeadless(svc *Service) {
	h := &headless{byHost: map[string][]netip.Addr{}}
	seenAddr, seenHost, seenTarget := map[netip.Addr]bool{}, map[hostAddr]bool{}, map[srvTarget]bool{}
	for _, set := range svc.Endpoints {
		for _, e := range set.Endpoints {
			if !e.Ready && !svc.PublishNotReady {
				continue
			}
			addr, host := e.Addr.Unmap(), e.Hostname
			if host == "" {
				host = addressLabel(addr)
			}
			if !seenAddr[addr] {
				seenAddr[addr] = true
				h.addrs = append(h.addrs, addr)
			}
			if k := (hostAddr{host, addr}); !seenHost[k] {
				seenHost[k] = true
				h.byHost[host] = append(h.byHost[host], addr)
			}
			for _, p := range set.Ports {
				if t := (srvTarget{host, addr, p}); !seenTarget[t] {
					seenTarget[t] = true
					h.srv = append(h.srv, t)
				}
			}
			z.point(addr, pointer{svc, host})
		}
	}
	z.headless[svc] = h
}

func (z *zone) point(ip netip.Addr, p pointer) {
	ip = ip.Unmap()
	if _, taken := z.pointers[ip]; !taken {
		z.pointers[ip] = p
	}
}

func (z *zone) nameOf(s *Service) string {
	return s.Name + "." + s.Namespace + ".svc." + z.origin
}

// find answers what the zone is responsible for; ok is false for other names.
// name may be in any case.
func (z *zone) find(name string, qtype uint16, enough int) (a *answer, ok bool) {
	a = &answer{name: name, qtype: qtype, enough: enough, apex: z.origin}
	labels := dns.SplitDomainName(lower(name))
	if n := len(labels) - len(z.domain); n >= 0 && slices.Equal(labels[n:], z.domain) {
		z.cluster(labels[:n], a)
		return a, true
	}
	return a, z.reverse(labels, a)
}

// cluster looks below the cluster domain; rel are the labels in front of it.
func (z *zone) cluster(rel []string, a *answer) {
	last := len(rel) - 1
	switch {
	case last < 0:
		a.exists = true
		z.apex(z.origin, a)
	case rel[last] == "svc":
		z.inSvc(rel[:last], a)
	case rel[last] == "pod":
		z.inPod(rel[:last], a)
	case rel[last] == "dns" && last == 0:
		a.exists = true
	case rel[last] == "dns" && last == 1 && rel[0] == "ns":
		a.exists = true
		z.addresses(z.own, a)
	case rel[last] == "dns-version" && last == 0:
		a.exists = true
		if a.qtype == dns.TypeTXT {
			a.rrs = append(a.rrs, &dns.TXT{Hdr: z.header(a.name, dns.TypeTXT), Txt: []string{schemaVersion}})
		}
	}
}

// inSvc looks below svc.<origin>. Names in between that only have names below
// them exist, without records (RFC 8020).
func (z *zone) inSvc(rel []string, a *answer) {
	if len(rel) == 0 {
		a.exists = true
		return
	}
	namespace := rel[len(rel)-1]
	if len(rel) == 1 {
		_, a.exists = z.namespaces[namespace]
		return
	}
	svc := z.services[serviceName{namespace, rel[len(rel)-2]}]
	rel = rel[:len(rel)-2]
	switch {
	case svc == nil:
	case svc.ExternalName != "":
		if len(rel) == 0 {
			a.exists, a.alias = true, dns.Fqdn(svc.ExternalName)
			a.rrs = append(a.rrs, &dns.CNAME{Hdr: z.header(a.name, dns.TypeCNAME), Target: a.alias})
		}
	case len(svc.ClusterIPs) > 0:
		z.clusterIP(svc, rel, a)
	default:
		z.headlessService(svc, z.headless[svc], rel, a)
	}
}

func (z *zone) clusterIP(svc *Service, rel []string, a *answer) {
	if len(rel) == 0 {
		a.exists = true
		z.addresses(svc.ClusterIPs, a)
	}
	want, ok := parseService(rel)
	if !ok {
		return
	}
	for _, p := range svc.Ports {
		if want.matches(p) {
			a.exists = true
			if want.all(a.qtype) {
				z.srv(p.Number, z.nameOf(svc), a)
			}
		}
	}
	if len(a.rrs) > 0 && a.qtype == dns.TypeSRV {
		for _, ip := range svc.ClusterIPs {
			a.extra = append(a.extra, z.address(z.nameOf(svc), ip))
		}
	}
}

func (z *zone) headlessService(svc *Service, h *headless, rel []string, a *answer) {
	// The specification wants NXDOMAIN for a headless Service that serves nothing.
	if len(rel) == 0 && len(h.addrs) > 0 {
		a.exists = true
		z.addresses(h.addrs, a)
	}
	if len(rel) == 1 {
		if addrs := h.byHost[rel[0]]; len(addrs) > 0 {
			a.exists = true
			z.addresses(addrs, a)
			return
		}
	}
	want, ok := parseService(rel)
	if !ok {
		return
	}
	srvs, extra := map[hostPort]bool{}, map[hostAddr]bool{}
	start := z.rotate(len(h.srv))
	for i := range h.srv {
		t := h.srv[(start+i)%len(h.srv)]
		if !want.matches(t.port) {
			continue
		}
		a.exists = true
		if !want.all(a.qtype) {
			return
		}
		host := t.host + "." + z.nameOf(svc)
		if k := (hostPort{t.host, t.port.Number}); !srvs[k] {
			srvs[k] = true
			z.srv(t.port.Number, host, a)
		}
		if len(a.rrs) > a.enough {
			return
		}
		if k := (hostAddr{t.host, t.addr}); !extra[k] {
			extra[k] = true
			a.extra = append(a.extra, z.address(host, t.addr))
		}
	}
}

// wanted are the ports that the labels in front of a Service's name ask for.
type wanted struct{ port, protocol string }

// parseService reads _port._protocol, _protocol alone, or nothing: all ports,
// which the specification does not have but peer finders of StatefulSets ask for.
func parseService(rel []string) (w wanted, ok bool) {
	if len(rel) > 2 {
		return w, false
	}
	for _, l := range rel {
		if len(l) < 2 || l[0] != '_' {
			return w, false
		}
	}
	if n := len(rel); n > 0 {
		w.protocol = rel[n-1][1:]
		if n == 2 {
			w.port = rel[0][1:]
		}
	}
	return w, true
}

func (w wanted) matches(p Port) bool {
	if w.protocol == "" {
		return true
	}
	return p.Name != "" && strings.EqualFold(p.Protocol, w.protocol) && (w.port == "" || p.Name == w.port)
}

// all: the name has the ports as SRV records; _protocol alone has none.
func (w wanted) all(qtype uint16) bool {
	return qtype == dns.TypeSRV && (w.port != "" || w.protocol == "")
}

// inPod answers <address with dashes>.<namespace>.pod for any address, as the
// specification still demands.
func (z *zone) inPod(rel []string, a *answer) {
	switch len(rel) {
	case 0, 1:
		a.exists = true
	case 2:
		if ip, ok := parseAddressLabel(rel[0]); ok {
			a.exists = true
			z.addresses([]netip.Addr{ip}, a)
		}
	}
}

// apex adds what the top of a zone has.
func (z *zone) apex(origin string, a *answer) {
	switch a.qtype {
	case dns.TypeSOA:
		a.rrs = append(a.rrs, z.soa(origin))
	case dns.TypeNS:
		a.rrs = append(a.rrs, &dns.NS{Hdr: z.header(a.name, dns.TypeNS), Ns: "ns.dns." + z.origin})
		for _, ip := range z.own {
			a.extra = append(a.extra, z.address("ns.dns."+z.origin, ip))
		}
	}
}

// addresses adds those of the family that was asked for. The first one differs
// from question to question: most clients take it.
func (z *zone) addresses(ips []netip.Addr, a *answer) {
	if a.qtype != dns.TypeA && a.qtype != dns.TypeAAAA {
		return
	}
	start := z.rotate(len(ips))
	for i := range ips {
		ip := ips[(start+i)%len(ips)].Unmap()
		if ip.Is4() == (a.qtype == dns.TypeA) {
			a.rrs = append(a.rrs, z.address(a.name, ip))
		}
		if len(a.rrs) > a.enough {
			return
		}
	}
}

func (z *zone) rotate(n int) int {
	if n < 2 {
		return 0
	}
	return z.intn(n)
}

func (z *zone) address(name string, ip netip.Addr) dns.RR {
	ip = ip.Unmap()
	if ip.Is4() {
		return &dns.A{Hdr: z.header(name, dns.TypeA), A: ip.AsSlice()}
	}
	return &dns.AAAA{Hdr: z.header(name, dns.TypeAAAA), AAAA: ip.AsSlice()}
}

func (z *zone) srv(port uint16, target string, a *answer) {
	a.rrs = append(a.rrs, &dns.SRV{Hdr: z.header(a.name, dns.TypeSRV), Weight: 100, Port: port, Target: target})
}

func (z *zone) soa(origin string) dns.RR {
	return &dns.SOA{
		Hdr: z.header(origin, dns.TypeSOA), Ns: "ns.dns." + z.origin, Mbox: "hostmaster." + z.origin,
		Serial: z.serial, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: z.ttl,
	}
}

func (z *zone) header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: z.ttl}
}

// lower is ASCII only, as names are compared (RFC 4343); the library writes
// every other octet as an escape.
func lower(name string) string { return strings.ToLower(name) }
