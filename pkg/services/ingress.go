package services

import (
	"fmt"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// ingress fills in status.loadBalancer: what the manifest says, the address
// that spec.loadBalancerIP names, or one of the pool for each family. Without a
// pool, or with a class, the addresses are somebody else's to give.
func (t *attempt) ingress() error {
	s := t.out
	written := s.Status.LoadBalancer.Ingress
	s.Status.LoadBalancer = v1.LoadBalancerStatus{}
	switch {
	case s.Spec.Type != v1.ServiceTypeLoadBalancer:
		return nil
	case len(written) > 0:
		for _, i := range written {
			if a, err := netip.ParseAddr(i.IP); err == nil {
				if err := t.balancer("status.loadBalancer.ingress", a); err != nil {
					return err
				}
			}
		}
		s.Status.LoadBalancer.Ingress = written
		return nil
	case s.Spec.LoadBalancerIP != "":
		a, err := netip.ParseAddr(s.Spec.LoadBalancerIP)
		if err != nil {
			return wrong("spec.loadBalancerIP", "%q is not an address", s.Spec.LoadBalancerIP)
		}
		return t.serve(a)
	case s.Spec.LoadBalancerClass != nil || len(t.pools.LoadBalancerIPs) == 0:
		return nil
	}
	var missing error
	for _, f := range s.Spec.IPFamilies {
		a, some := t.poolAddress(f)
		switch {
		case a.IsValid():
			if err := t.serve(a); err != nil {
				return err
			}
		case some:
			missing = wrong("status.loadBalancer", "no address of %s is free: delete Services or widen --load-balancer-ips", f)
		}
	}
	return missing
}

// serve adds an address to the status.
func (t *attempt) serve(a netip.Addr) error {
	if err := t.balancer("spec.loadBalancerIP", a); err != nil {
		return err
	}
	vip := v1.LoadBalancerIPModeVIP
	st := &t.out.Status.LoadBalancer
	st.Ingress = append(st.Ingress, v1.LoadBalancerIngress{IP: a.String(), IPMode: &vip})
	return nil
}

// external holds the external IPs of what has rules.
func (t *attempt) external() error {
	if len(t.got.clusterIPs) == 0 {
		return nil
	}
	for i, ip := range t.out.Spec.ExternalIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			if err := t.balancer(fmt.Sprintf("spec.externalIPs[%d]", i), a); err != nil {
				return err
			}
		}
	}
	return nil
}

// balancer holds all ports of an address.
func (t *attempt) balancer(field string, a netip.Addr) error {
	if owner, taken := t.clusterIPs[a]; taken {
		return wrong(field, "%s is the cluster IP of Service %s: choose another address", a, owner)
	}
	var places []place
	for _, p := range t.out.Spec.Ports {
		at := place{a, p.Protocol, p.Port}
		if owner, taken := t.balancers[at]; taken {
			return wrong(field, "port %d/%s of %s is that of Service %s: choose another address or port", p.Port, p.Protocol, a, owner)
		}
		places = append(places, at)
	}
	t.got.balancers = append(t.got.balancers, places...)
	return nil
}

// poolAddress is the one that the Service had, or the first that nobody has;
// some is whether the pool has any of that family.
func (t *attempt) poolAddress(f v1.IPFamily) (a netip.Addr, some bool) {
	taken := map[netip.Addr]bool{}
	for p := range t.balancers {
		taken[p.addr] = true
	}
	for _, i := range t.before.Status.LoadBalancer.Ingress {
		b, err := netip.ParseAddr(i.IP)
		if err == nil && familyOf(b) == f && !taken[b] && slices.ContainsFunc(t.pools.LoadBalancerIPs, func(r Range) bool { return r.contains(b) }) {
			return b, true
		}
	}
	for _, r := range t.pools.LoadBalancerIPs {
		if familyOf(r.First) != f {
			continue
		}
		some = true
		for a := r.First; a.IsValid() && a.Compare(r.Last) <= 0; a = a.Next() {
			if !taken[a] && !t.claims.addrs[a] {
				return a, true
			}
		}
	}
	return netip.Addr{}, some
}

func (r Range) contains(a netip.Addr) bool {
	return familyOf(a) == familyOf(r.First) && r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}
