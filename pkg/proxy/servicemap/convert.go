package servicemap

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// defaultAffinity is what the API server writes for a missing timeout.
const defaultAffinity = 3 * 60 * 60

// slice is an EndpointSlice, or an Endpoints object as one.
type slice struct {
	name      string
	ports     []slicePort
	endpoints []sliceEndpoint
}

type slicePort struct {
	name  Text
	proto ruleset.Proto
	port  uint16
}

type sliceEndpoint struct {
	addr       netip.Addr
	node       Text
	hints      *Hints
	conditions Condition
}

// proxyName is the label of a Service that another proxy serves.
const proxyName = "service.kubernetes.io/service-proxy-name"

// fromService is nil for a Service without kernel state: headless, ExternalName
// or another proxy's.
func fromService(o *corev1.Service) (*Service, error) {
	bad := problems{object: "Service " + o.Namespace + "/" + o.Name}
	if _, others := o.Labels[proxyName]; others {
		return nil, nil
	}
	if o.Spec.Type == corev1.ServiceTypeExternalName || o.Spec.ClusterIP == "" || o.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil, nil
	}
	s := &Service{Name: NewName(o.Namespace, o.Name)}
	clusterIPs := o.Spec.ClusterIPs
	if len(clusterIPs) == 0 {
		clusterIPs = []string{o.Spec.ClusterIP}
	}
	s.ClusterIPs = addrs(&bad, "cluster IP", clusterIPs)
	s.ExternalIPs = addrs(&bad, "external IP", o.Spec.ExternalIPs)
	var ingress []string
	for _, i := range o.Status.LoadBalancer.Ingress {
		// With ipMode Proxy the load balancer wants to see the packets itself.
		if i.IP != "" && (i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP) {
			ingress = append(ingress, i.IP)
		}
	}
	s.LoadBalancerIPs = addrs(&bad, "load balancer IP", ingress)
	for _, r := range o.Spec.LoadBalancerSourceRanges {
		p, err := netip.ParsePrefix(strings.TrimSpace(r)) // validation lets blanks through
		if err != nil {
			bad.add("loadBalancerSourceRanges: %w", err)
			continue
		}
		s.SourceRanges = append(s.SourceRanges, p.Masked())
	}
	if o.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		s.Affinity = defaultAffinity
		if c := o.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			s.Affinity = uint32(*c.ClientIP.TimeoutSeconds)
		}
	}
	s.InternalLocal = o.Spec.InternalTrafficPolicy != nil && *o.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	external := o.Spec.Type == corev1.ServiceTypeLoadBalancer || o.Spec.Type == corev1.ServiceTypeNodePort || len(o.Spec.ExternalIPs) > 0
	s.ExternalLocal = external && o.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if s.ExternalLocal && o.Spec.Type == corev1.ServiceTypeLoadBalancer {
		s.HealthCheckNodePort = uint16(o.Spec.HealthCheckNodePort)
	}
	for _, p := range o.Spec.Ports {
		proto, ok := protocol(p.Protocol)
		if !ok || p.Port < 1 || p.Port > 65535 {
			bad.add("port %d/%s cannot be served", p.Port, p.Protocol)
			continue
		}
		id := s.Name.String()
		if p.Name != "" {
			id += ":" + p.Name
		}
		s.Ports = append(s.Ports, Port{ID: id, Name: text(p.Name), Proto: proto, Port: uint16(p.Port), NodePort: uint16(p.NodePort)})
	}
	return s, bad.err()
}

func fromSlice(o *discoveryv1.EndpointSlice) (*slice, error) {
	bad := problems{object: "EndpointSlice " + o.Namespace + "/" + o.Name}
	s := &slice{}
	if o.AddressType == discoveryv1.AddressTypeFQDN {
		bad.add("names cannot be served, only addresses")
		return s, bad.err()
	}
	for _, p := range o.Ports {
		if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			bad.add("a port without a number cannot be served")
			continue
		}
		s.addPort(&bad, deref(p.Name), deref(p.Protocol), *p.Port)
	}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if len(e.Addresses) == 0 {
			continue
		}
		// All further addresses of an endpoint are the same pod's.
		addr, ok := endpointAddr(&bad, e.Addresses[0])
		if !ok {
			continue
		}
		c := e.Conditions
		s.endpoints = append(s.endpoints, sliceEndpoint{
			addr: addr, node: text(deref(e.NodeName)), hints: hints(e.Hints),
			conditions: condition(c.Ready, true, Ready) | condition(c.Serving, true, Serving) |
				condition(c.Terminating, false, Terminating),
		})
	}
	return s, bad.err()
}

// fromEndpoints makes a slice of each subset: its ports are for its addresses
// only.
func fromEndpoints(o *corev1.Endpoints) ([]*slice, error) {
	bad := problems{object: "Endpoints " + o.Namespace + "/" + o.Name}
	var out []*slice
	for _, sub := range o.Subsets {
		s := &slice{}
		for _, p := range sub.Ports {
			s.addPort(&bad, p.Name, p.Protocol, p.Port)
		}
		add := func(from []corev1.EndpointAddress, c Condition) {
			for _, a := range from {
				if addr, ok := endpointAddr(&bad, a.IP); ok {
					s.endpoints = append(s.endpoints, sliceEndpoint{addr: addr, node: text(deref(a.NodeName)), conditions: c})
				}
			}
		}
		add(sub.Addresses, Ready|Serving)
		add(sub.NotReadyAddresses, 0)
		out = append(out, s)
	}
	return out, bad.err()
}

func (s *slice) addPort(bad *problems, name string, p corev1.Protocol, port int32) {
	proto, ok := protocol(p)
	if !ok || port < 1 || port > 65535 {
		bad.add("port %q %d/%s cannot be served", name, port, p)
		return
	}
	s.ports = append(s.ports, slicePort{text(name), proto, uint16(port)})
}

// endpointAddr refuses addresses that would let who may write endpoints reach
// what listens only for the node itself (CVE-2021-25737).
func endpointAddr(bad *problems, s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		bad.add("endpoint %q: %w", s, err)
		return a, false
	}
	a = a.Unmap().WithZone("")
	if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		bad.add("endpoint %s refused: it is a loopback, link-local, multicast or unspecified address", a)
		return a, false
	}
	return a, true
}

func addrs(bad *problems, what string, from []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range from {
		a, err := netip.ParseAddr(s)
		if err != nil {
			bad.add("%s %q: %w", what, s, err)
			continue
		}
		if a.Zone() != "" {
			bad.add("%s %q: it is an address of one interface, which no backend can serve", what, s)
			continue
		}
		// The unspecified address would stand for every address of the node.
		if a = a.Unmap(); a.IsUnspecified() || slices.Contains(out, a) {
			continue
		}
		out = append(out, a)
	}
	return out
}

func hints(h *discoveryv1.EndpointHints) *Hints {
	if h == nil || len(h.ForZones)+len(h.ForNodes) == 0 {
		return nil
	}
	out := &Hints{}
	for _, z := range h.ForZones {
		out.Zones = append(out.Zones, text(z.Name))
	}
	for _, n := range h.ForNodes {
		out.Nodes = append(out.Nodes, text(n.Name))
	}
	return out
}

func condition(is *bool, unset bool, c Condition) Condition {
	if is != nil && *is || is == nil && unset {
		return c
	}
	return 0
}

func protocol(p corev1.Protocol) (ruleset.Proto, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return ruleset.TCP, true
	case corev1.ProtocolUDP:
		return ruleset.UDP, true
	case corev1.ProtocolSCTP:
		return ruleset.SCTP, true
	}
	return 0, false
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
