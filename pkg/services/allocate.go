package services

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Pools are what Services get their addresses and ports from.
type Pools struct {
	// ServiceCIDRs, one for each family; the first one is the family of a
	// Service that does not say.
	ServiceCIDRs []netip.Prefix
	// Served are addresses within them that the node itself answers on. Only a
	// Service that names one gets it, and stands in for the node then: that is
	// how people bring a DNS server of their own.
	Served                      []netip.Addr
	FirstNodePort, LastNodePort uint16
	// LoadBalancerIPs are for Services of that type that name no address.
	LoadBalancerIPs []Range
}

// Range is of addresses of one family, both ends included.
type Range struct{ First, Last netip.Addr }

// A FieldError is what is wrong with one field of a Service.
type FieldError struct{ Field, Msg string }

func (e *FieldError) Error() string { return e.Field + ": " + e.Msg }

func wrong(field, format string, args ...any) error {
	return &FieldError{Field: field, Msg: fmt.Sprintf(format, args...)}
}

// allocator knows who has which address and port.
type allocator struct {
	pools      Pools
	clusterIPs map[netip.Addr]pod.Key
	nodePorts  map[uint16]pod.Key
	balancers  map[place]pod.Key
	held       map[pod.Key]holding
}

// place is a port of a load balancer address or an external IP: several Services
// may share the address as long as they do not share a port.
type place struct {
	addr  netip.Addr
	proto v1.Protocol
	port  int32
}

type holding struct {
	clusterIPs []netip.Addr
	nodePorts  []uint16
	balancers  []place
}

func newAllocator(p Pools) *allocator {
	return &allocator{
		pools: p, clusterIPs: map[netip.Addr]pod.Key{}, nodePorts: map[uint16]pod.Key{},
		balancers: map[place]pod.Key{}, held: map[pod.Key]holding{},
	}
}

// claims are what Services name themselves: nobody else is given it unasked.
type claims struct {
	addrs map[netip.Addr]bool
	ports map[uint16]bool
}

func newClaims() claims { return claims{map[netip.Addr]bool{}, map[uint16]bool{}} }

func (c claims) add(s *v1.Service) {
	for _, ip := range slices.Concat(explicitIPs(s), s.Spec.ExternalIPs, []string{s.Spec.LoadBalancerIP}) {
		if a, err := netip.ParseAddr(ip); err == nil {
			c.addrs[a] = true
		}
	}
	for _, p := range s.Spec.Ports {
		c.ports[uint16(p.NodePort)] = true
	}
	c.ports[uint16(s.Spec.HealthCheckNodePort)] = true
}

// release gives back all that a Service has.
func (a *allocator) release(key pod.Key) {
	h := a.held[key]
	delete(a.held, key)
	for _, ip := range h.clusterIPs {
		delete(a.clusterIPs, ip)
	}
	for _, p := range h.nodePorts {
		delete(a.nodePorts, p)
	}
	for _, p := range h.balancers {
		delete(a.balancers, p)
	}
}

func (a *allocator) hold(key pod.Key, h holding) {
	a.held[key] = h
	for _, ip := range h.clusterIPs {
		a.clusterIPs[ip] = key
	}
	for _, p := range h.nodePorts {
		a.nodePorts[p] = key
	}
	for _, p := range h.balancers {
		a.balancers[p] = key
	}
}

// assign returns the Service as it is served: with the addresses and ports that
// it asks for, has had before, or is given. before is what assign returned the
// last time, nil if it never did.
//
// A Service that asks for what it cannot have stays what it was before (nil if
// there was nothing). One that only lacks a load balancer address is served
// without; both come with the error.
func (a *allocator) assign(want, before *v1.Service, all claims) (*v1.Service, error) {
	if before == nil {
		return a.try(want, &v1.Service{}, all)
	}
	out, err := a.try(want, before, all)
	if out == nil {
		out, _ = a.try(before, before, all) // it fails in the same way if it never was served
	}
	return out, err
}

// try is assign without a way back; a Service that gets nothing holds nothing.
func (a *allocator) try(want, before *v1.Service, all claims) (*v1.Service, error) {
	key := pod.KeyOf(want)
	a.release(key)
	t := attempt{allocator: a, key: key, out: want.DeepCopy(), before: before, claims: all}
	for _, step := range []func() error{t.families, t.addresses, t.ports, t.external} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	err := t.ingress()
	a.hold(key, t.got)
	return t.out, err
}

// attempt is one Service on its way through assign.
type attempt struct {
	*allocator
	key         pod.Key
	out, before *v1.Service
	claims      claims
	got         holding
}

func (t *attempt) addresses() error {
	s := &t.out.Spec
	if s.Type == v1.ServiceTypeExternalName {
		s.ClusterIP, s.ClusterIPs = "", nil
		return nil
	}
	if s.ClusterIP == v1.ClusterIPNone {
		s.ClusterIPs = []string{v1.ClusterIPNone}
		return nil
	}
	asked := explicitIPs(t.out)
	s.ClusterIPs = nil
	for i, f := range s.IPFamilies {
		var addr netip.Addr
		var err error
		if i < len(asked) {
			addr, err = t.askedAddress(i, asked[i], f)
		} else {
			addr, err = t.givenAddress(f)
		}
		if err != nil {
			return err
		}
		t.got.clusterIPs = append(t.got.clusterIPs, addr)
		s.ClusterIPs = append(s.ClusterIPs, addr.String())
	}
	s.ClusterIP = s.ClusterIPs[0]
	return nil
}

// askedAddress is the i-th cluster IP, if the Service can have it.
func (t *attempt) askedAddress(i int, text string, f v1.IPFamily) (netip.Addr, error) {
	field := "spec.clusterIP"
	if len(t.out.Spec.ClusterIPs) > 0 || i > 0 {
		field = fmt.Sprintf("spec.clusterIPs[%d]", i)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return addr, wrong(field, "%q is not an address", text)
	}
	cidr, ok := t.cidr(f)
	owner, taken := t.clusterIPs[addr]
	switch {
	case !ok || !cidr.Contains(addr):
		return addr, wrong(field, "%s is not in the service range %v: choose an address in it, leave it out, or change --service-cidr", addr, t.pools.ServiceCIDRs)
	case taken:
		return addr, wrong(field, "%s is the cluster IP of Service %s: choose another one or leave it out", addr, owner)
	}
	for _, p := range t.out.Spec.Ports {
		if owner, taken := t.balancers[place{addr, p.Protocol, p.Port}]; taken {
			return addr, wrong(field, "port %d/%s of %s is that of Service %s: choose another address or port", p.Port, p.Protocol, addr, owner)
		}
	}
	return addr, nil
}

// givenAddress is the one that the Service had, or a free one. Where the search
// begins depends on the name only, so that a Service whose record was lost
// gets the same address again.
func (t *attempt) givenAddress(f v1.IPFamily) (netip.Addr, error) {
	cidr, _ := t.cidr(f)
	free := func(a netip.Addr) bool {
		_, taken := t.clusterIPs[a]
		return cidr.Contains(a) && !taken && !slices.Contains(t.pools.Served, a)
	}
	for _, ip := range t.before.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil && familyOf(a) == f && free(a) {
			return a, nil
		}
	}
	size := uint32(1) << min(cidr.Addr().BitLen()-cidr.Bits(), 20)
	last := size - 1
	if f == v1.IPv4Protocol && last > 1 {
		last-- // the broadcast address
	}
	// The low addresses are given last: people choose theirs there (KEP-3070).
	low := min(max(16, size/16), 256)
	if low >= last {
		low = 1
	}
	for _, band := range [][2]uint32{{low, last}, {1, low - 1}} {
		n := band[1] - band[0] + 1
		if band[1] < band[0] {
			continue
		}
		start := hash(t.key, string(f)) % n
		for i := range n {
			a := offset(cidr.Masked().Addr(), band[0]+(start+i)%n)
			if free(a) && !t.claims.addrs[a] {
				return a, nil
			}
		}
	}
	return netip.Addr{}, wrong("spec.clusterIP", "no address is free in %s: delete Services or widen --service-cidr", cidr)
}

func (t *attempt) ports() error {
	s := &t.out.Spec
	nodePorts := s.Type == v1.ServiceTypeNodePort || s.Type == v1.ServiceTypeLoadBalancer &&
		(s.AllocateLoadBalancerNodePorts == nil || *s.AllocateLoadBalancerNodePorts)
	own := map[uint16]bool{}
	var err error
	byPort := map[int32]int32{} // both protocols of a port get the same one
	for i := range s.Ports {
		p := &s.Ports[i]
		had := t.portBefore(p)
		switch {
		case p.NodePort != 0:
			err = t.askPort(fmt.Sprintf("spec.ports[%d].nodePort", i), p.NodePort, own)
		case !nodePorts:
		case byPort[p.Port] != 0:
			p.NodePort = byPort[p.Port]
		default:
			p.NodePort, err = t.givePort(fmt.Sprintf("spec.ports[%d].nodePort", i), had, fmt.Sprint(p.Name, p.Port), own)
		}
		if err != nil {
			return err
		}
		byPort[p.Port] = p.NodePort
	}
	switch local := s.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal; {
	case s.Type != v1.ServiceTypeLoadBalancer || !local:
		s.HealthCheckNodePort = 0
	case s.HealthCheckNodePort != 0:
		err = t.askPort("spec.healthCheckNodePort", s.HealthCheckNodePort, own)
	default:
		s.HealthCheckNodePort, err = t.givePort("spec.healthCheckNodePort", t.before.Spec.HealthCheckNodePort, "health", own)
	}
	t.got.nodePorts = slices.Sorted(maps.Keys(own))
	return err
}

// portBefore is the node port that this port had.
func (t *attempt) portBefore(p *v1.ServicePort) int32 {
	for _, b := range t.before.Spec.Ports {
		if b.Name == p.Name && b.Port == p.Port && b.Protocol == p.Protocol {
			return b.NodePort
		}
	}
	return 0
}

func (t *attempt) inRange(port int32) bool {
	return port >= int32(t.pools.FirstNodePort) && port <= int32(t.pools.LastNodePort)
}

func (t *attempt) askPort(field string, port int32, own map[uint16]bool) error {
	if !t.inRange(port) {
		return wrong(field, "%d is not in the node port range %d-%d: choose one in it, leave it out, or change --service-node-port-range",
			port, t.pools.FirstNodePort, t.pools.LastNodePort)
	}
	if owner, taken := t.nodePorts[uint16(port)]; taken {
		return wrong(field, "node port %d is that of Service %s: choose another one or leave it out", port, owner)
	}
	own[uint16(port)] = true
	return nil
}

func (t *attempt) givePort(field string, had int32, name string, own map[uint16]bool) (int32, error) {
	free := func(port int32) bool {
		_, taken := t.nodePorts[uint16(port)]
		return t.inRange(port) && !taken && !own[uint16(port)]
	}
	if had != 0 && free(had) {
		own[uint16(had)] = true
		return had, nil
	}
	n := uint32(t.pools.LastNodePort) - uint32(t.pools.FirstNodePort) + 1
	start := hash(t.key, name) % n
	for i := range n {
		port := int32(uint32(t.pools.FirstNodePort) + (start+i)%n)
		if free(port) && !t.claims.ports[uint16(port)] {
			own[uint16(port)] = true
			return port, nil
		}
	}
	return 0, wrong(field, "no node port is free in %d-%d: delete Services or widen --service-node-port-range", t.pools.FirstNodePort, t.pools.LastNodePort)
}

func (a *allocator) cidr(f v1.IPFamily) (netip.Prefix, bool) {
	for _, c := range a.pools.ServiceCIDRs {
		if familyOf(c.Addr()) == f {
			return c, true
		}
	}
	return netip.Prefix{}, false
}

// explicitIPs are the cluster IPs that a manifest names.
func explicitIPs(s *v1.Service) []string {
	if len(s.Spec.ClusterIPs) > 0 {
		return s.Spec.ClusterIPs
	}
	if s.Spec.ClusterIP != "" {
		return []string{s.Spec.ClusterIP}
	}
	return nil
}

func familyOf(a netip.Addr) v1.IPFamily {
	if a.Is4() {
		return v1.IPv4Protocol
	}
	return v1.IPv6Protocol
}

func hash(key pod.Key, more string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(key.String() + "/" + more)) // never fails
	return h.Sum32()
}

// offset is the n-th address after a.
func offset(a netip.Addr, n uint32) netip.Addr {
	b := a.As16()
	for i := 15; i >= 0 && n > 0; i-- {
		n += uint32(b[i])
		b[i], n = byte(n), n>>8
	}
	out := netip.AddrFrom16(b)
	if a.Is4() {
		return out.Unmap()
	}
	return out
}
