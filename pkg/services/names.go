package services

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"net/netip"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeagent/nodeagent/pkg/dns"
)

// name is a Service as the DNS server knows it. Its slices, or else its
// Endpoints object, matter when it is headless.
func name(s *v1.Service, all []*discoveryv1.EndpointSlice, endpoints *v1.Endpoints) dns.Service {
	out := dns.Service{Namespace: s.Namespace, Name: s.Name, PublishNotReady: s.Spec.PublishNotReadyAddresses}
	switch {
	case s.Spec.Type == v1.ServiceTypeExternalName:
		out.ExternalName = s.Spec.ExternalName
	case s.Spec.ClusterIP != v1.ClusterIPNone:
		for _, ip := range s.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(ip); err == nil {
				out.ClusterIPs = append(out.ClusterIPs, a)
			}
		}
		for _, p := range s.Spec.Ports {
			out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: string(p.Protocol), Number: uint16(p.Port)})
		}
	case len(all) > 0:
		for _, slice := range all {
			out.Endpoints = append(out.Endpoints, sliceNames(slice))
		}
	case endpoints != nil:
		for _, sub := range endpoints.Subsets {
			out.Endpoints = append(out.Endpoints, subsetNames(sub))
		}
	}
	return out
}

func sliceNames(s *discoveryv1.EndpointSlice) (out dns.EndpointSet) {
	for _, p := range s.Ports {
		if p.Port != nil {
			out.Ports = append(out.Ports, dns.Port{Name: deref(p.Name), Protocol: string(deref(p.Protocol)), Number: uint16(*p.Port)})
		}
	}
	for _, e := range s.Endpoints {
		for _, ip := range e.Addresses {
			if a, err := netip.ParseAddr(ip); err == nil { // an FQDN is none
				out.Endpoints = append(out.Endpoints, dns.Endpoint{Addr: a, Hostname: deref(e.Hostname), Ready: e.Conditions.Ready == nil || *e.Conditions.Ready})
			}
		}
	}
	return out
}

func subsetNames(sub v1.EndpointSubset) (out dns.EndpointSet) {
	for _, p := range sub.Ports {
		out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: string(p.Protocol), Number: uint16(p.Port)})
	}
	add := func(from []v1.EndpointAddress, ready bool) {
		for _, e := range from {
			if a, err := netip.ParseAddr(e.IP); err == nil {
				out.Endpoints = append(out.Endpoints, dns.Endpoint{Addr: a, Hostname: e.Hostname, Ready: ready})
			}
		}
	}
	add(sub.Addresses, true)
	add(sub.NotReadyAddresses, false)
	return out
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
