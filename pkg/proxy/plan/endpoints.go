package plan

import (
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// chosen are the endpoints of one port for each policy.
type chosen struct {
	cluster, local []netip.AddrPort
	any            bool // somebody serves the port, on whatever node
}

// forPolicy are the endpoints of a policy and what happens without any: with
// nobody at all a connection is refused, where only this node has none it is
// dropped, since a load balancer is to try another node.
func (c chosen) forPolicy(local bool) ([]netip.AddrPort, ruleset.Verdict) {
	from := c.cluster
	if local {
		from = c.local
	}
	switch {
	case len(from) > 0:
		return from, ruleset.Pass
	case c.any:
		return nil, ruleset.Drop
	}
	return nil, ruleset.Reject
}

// choose picks the endpoints of one family: those that are ready, or, for each
// policy on its own, those that still serve while they terminate if none is.
func (p *planner) choose(all []servicemap.Endpoint, like netip.Addr, usesCluster, usesLocal bool) chosen {
	const draining = servicemap.Serving | servicemap.Terminating
	var c chosen
	if usesCluster {
		hinted := p.hinted(all, like)
		c.cluster = p.pick(all, like, servicemap.Ready, hinted)
		if len(c.cluster) == 0 {
			c.cluster = p.pick(all, like, draining, everybody)
		}
		c.any = len(c.cluster) > 0
	}
	if usesLocal {
		c.local = p.pick(all, like, servicemap.Ready, p.local)
		if len(c.local) == 0 {
			c.local = p.pick(all, like, draining, p.local)
		}
		c.any = c.any || slices.ContainsFunc(all, func(e servicemap.Endpoint) bool {
			return e.Addr.Addr().Is4() == like.Is4() && (e.Conditions.Has(servicemap.Ready) || e.Conditions.Has(draining))
		})
	}
	return c
}

type filter func(*servicemap.Endpoint) bool

func everybody(*servicemap.Endpoint) bool { return true }

func (p *planner) local(e *servicemap.Endpoint) bool {
	return p.node.Name != "" && e.Node.Value() == p.node.Name
}

// pick notes the node's own endpoints among those it takes for hairpin.
func (p *planner) pick(all []servicemap.Endpoint, like netip.Addr, has servicemap.Condition, ok filter) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range all {
		e := &all[i]
		if e.Addr.Addr().Is4() != like.Is4() || !e.Conditions.Has(has) || !ok(e) {
			continue
		}
		if out == nil {
			out = make([]netip.AddrPort, 0, len(all)-i)
		}
		out = append(out, e.Addr)
		if p.local(e) {
			p.hairpin = append(p.hairpin, e.Addr.Addr())
		}
	}
	return out
}

// hinted is who is meant for this node. Hints count only when every ready
// endpoint has them and one is for here: all or nothing. Those for nodes go
// before those for zones.
func (p *planner) hinted(all []servicemap.Endpoint, like netip.Addr) filter {
	nodes, zones := true, true
	forNode, forZone := false, false
	for i := range all {
		e := &all[i]
		if e.Addr.Addr().Is4() != like.Is4() || !e.Conditions.Has(servicemap.Ready) {
			continue
		}
		nodes = nodes && e.Hints != nil && len(e.Hints.Nodes) > 0
		zones = zones && e.Hints != nil && len(e.Hints.Zones) > 0
		if !nodes && !zones {
			return everybody
		}
		forNode = forNode || e.Hints.ForNode(p.node.Name)
		forZone = forZone || e.Hints.ForZone(p.node.Zone)
	}
	switch {
	case nodes && forNode:
		return func(e *servicemap.Endpoint) bool { return e.Hints.ForNode(p.node.Name) }
	case zones && forZone:
		return func(e *servicemap.Endpoint) bool { return e.Hints.ForZone(p.node.Zone) }
	}
	return everybody
}

// HealthChecks are the health-check node ports of all Services that have one.
// A pod that serves several ports is one endpoint.
func HealthChecks(services servicemap.Snapshot, node Node) []ruleset.HealthCheck {
	p := planner{node: node}
	var out []ruleset.HealthCheck
	for _, s := range services {
		if s.HealthCheckNodePort == 0 {
			continue
		}
		for _, ip := range s.ClusterIPs {
			var local []netip.Addr
			for i := range s.Ports {
				for _, e := range p.pick(s.Ports[i].Endpoints, ip, servicemap.Ready, p.local) {
					local = append(local, e.Addr())
				}
			}
			out = append(out, ruleset.HealthCheck{
				Namespace: s.Name.Namespace.Value(), Name: s.Name.Name,
				Family: ruleset.AnyAddr(ip), Port: s.HealthCheckNodePort, Local: len(sorted(local)),
			})
		}
	}
	return out
}

// ServingUDP are the endpoints of each UDP frontend that still serve, whether
// or not new connections may go there; a node port by the unspecified address
// of its family. It is what pkg/proxy/conntrack keeps.
func ServingUDP(services servicemap.Snapshot) map[netip.AddrPort][]netip.AddrPort {
	out := map[netip.AddrPort][]netip.AddrPort{}
	for _, s := range services {
		// Of two that claim the same place the first has it, as in Make.
		add := func(addr netip.Addr, port uint16, serving []netip.AddrPort) {
			at := netip.AddrPortFrom(addr, port)
			if _, taken := out[at]; !taken {
				out[at] = serving
			}
		}
		for i := range s.Ports {
			port := &s.Ports[i]
			if port.Proto != ruleset.UDP {
				continue
			}
			for _, ip := range s.ClusterIPs {
				serving := servingIn(port, ip)
				add(ip, port.Port, serving)
				for _, a := range append(family(s.ExternalIPs, ip), family(s.LoadBalancerIPs, ip)...) {
					add(a, port.Port, serving)
				}
				if port.NodePort != 0 {
					add(ruleset.AnyAddr(ip), port.NodePort, serving)
				}
			}
		}
	}
	return out
}

func servingIn(port *servicemap.Port, like netip.Addr) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range port.Endpoints {
		e := &port.Endpoints[i]
		if e.Addr.Addr().Is4() == like.Is4() && e.Conditions.Has(servicemap.Serving) {
			out = append(out, e.Addr)
		}
	}
	return out
}
