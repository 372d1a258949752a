package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/conntrack"
	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// pass puts what is there now into the kernel.
func (p *Proxy) pass(ctx context.Context) error {
	// A transaction that has begun is ended: what stops the agent stops no rule.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	start := p.o.Clock()
	r := &p.run
	p.mu.Lock()
	news, node := p.pending, p.node
	p.pending = pending{}
	p.mu.Unlock()
	err := p.apply(ctx, &node, news)
	took := p.o.Clock().Sub(start)
	r.ended = start.Add(took)
	if !r.full { // which are few: the first one, repairs, and after a failure
		r.work.take(r.ended, took.Seconds())
	}
	p.o.Metrics.ProxySynced(r.mode.Name, r.full, took, start.Add(took), err)
	r.full = err != nil
	if err != nil {
		p.mu.Lock()
		p.pending.triggers = append(news.triggers, p.pending.triggers...)
		p.mu.Unlock()
		return err
	}
	for _, t := range news.triggers {
		p.o.Metrics.ProxyProgrammed(t.family, start.Add(took).Sub(t.at))
	}
	if p.o.Health != nil {
		p.o.Health.Updated()
	}
	p.mu.Lock()
	p.status.LastSync = start.Add(took)
	p.status.Services, p.status.Frontends = len(r.snapshot), len(r.applied.Frontends)
	p.mu.Unlock()
	return errors.Join(p.cleanFlows(), p.cleanLeftovers(ctx))
}

// apply plans and applies.
func (p *Proxy) apply(ctx context.Context, node *plan.Node, news pending) (err error) {
	r := &p.run
	if news.foreign > 0 {
		r.repairs.take(p.o.Clock(), 1)
		r.backend.Forget()
		r.full = true
		p.rulesChanged()
	}
	if err := p.note(ctx); err != nil {
		return err
	}
	if node.Addresses, err = p.o.Addresses.List(); err != nil {
		return err
	}
	p.mu.Lock()
	p.addresses = append([]netip.Addr{}, node.Addresses...)
	p.mu.Unlock()
	services := p.snapshot()
	if len(services) == 0 {
		// On a node without any Service the range may well be somebody else's.
		node.ServiceCIDRs = nil
	}
	now := r.planner.Make(services, *node)
	if err := r.backend.Apply(ctx, r.applied, now); err != nil {
		return err
	}
	r.applied = now
	r.flows = r.flows || udpDiffers(r.snapshot, services)
	r.snapshot = services
	if p.o.Health != nil {
		p.o.Health.Sync(now.Node, plan.HealthChecks(services, *node))
	}
	p.countNoLocal(now)
	return nil
}

// rulesChanged says that others' changes are put right.
func (p *Proxy) rulesChanged() {
	p.nodeEvent(corev1.EventTypeWarning, "ProxyRulesChanged", fmt.Sprintf(
		"somebody else changed the %s rules of Services: they are put back. Programs that do so: firewalld, iptables -F, nft flush ruleset, another proxy", p.run.mode.Name))
}

// cleanFlows removes UDP flows that lead nowhere any more. They are a list of
// everything that the node has open: it is looked at only when a UDP Service is
// another one.
func (p *Proxy) cleanFlows() error {
	r := &p.run
	if !r.flows || !r.mode.Kernel {
		return nil
	}
	now := conntrack.Serving{Frontends: plan.ServingUDP(r.snapshot), NodeAddrs: map[netip.Addr]bool{}}
	for _, a := range r.applied.Node.ServeNodePorts(p.addresses) { // only a pass writes them
		now.NodeAddrs[a] = true
	}
	if b, ok := r.backend.(FlowKeeper); ok { // first: it would send the next packet to the same place
		err := b.EndFlows(func(at, endpoint netip.AddrPort) bool { return slices.Contains(now.Frontends[at], endpoint) })
		if err != nil {
			return err
		}
	}
	if len(now.Frontends)+len(r.serving.Frontends) > 0 {
		removed, err := conntrack.Clean(measured{p.o}, r.serving, now)
		if err != nil {
			return err
		}
		if removed > 0 {
			p.o.Log.Debug("removed stale UDP flows", "count", removed)
		}
	}
	r.serving, r.flows = now, false
	return nil
}

// measured is the kernel's table under a watch.
type measured struct{ o Options }

func (m measured) ConntrackDeleteFilters(t netlink.ConntrackTableType, f netlink.InetFamily, filters ...netlink.CustomConntrackFilter) (uint, error) {
	start := m.o.Clock()
	n, err := m.o.Flows.ConntrackDeleteFilters(t, f, filters...)
	family := corev1.IPv4Protocol
	if f == unix.AF_INET6 {
		family = corev1.IPv6Protocol
	}
	m.o.Metrics.FlowsCleaned(family, m.o.Clock().Sub(start), n)
	return n, err
}

// udpDiffers says that a Service with a UDP port came, went or changed. Of
// what is the same both snapshots have the same pointer.
func udpDiffers(old, now servicemap.Snapshot) bool {
	udp := func(s *servicemap.Service) bool {
		return slices.ContainsFunc(s.Ports, func(p servicemap.Port) bool { return p.Proto == ruleset.UDP })
	}
	for len(old) > 0 || len(now) > 0 {
		switch {
		case len(old) > 0 && len(now) > 0 && old[0] == now[0]:
			old, now = old[1:], now[1:]
			continue
		case len(now) == 0 || len(old) > 0 && old[0].Name.Compare(now[0].Name) < 0:
			if udp(old[0]) {
				return true
			}
			old = old[1:]
		case len(old) == 0 || old[0].Name.Compare(now[0].Name) > 0:
			if udp(now[0]) {
				return true
			}
			now = now[1:]
		default:
			if udp(old[0]) || udp(now[0]) {
				return true
			}
			old, now = old[1:], now[1:]
		}
	}
	return false
}

// Families are those of the addresses, IPv4 if there is none.
func Families(ips []netip.Addr) []corev1.IPFamily {
	var out []corev1.IPFamily
	for _, ip := range ips {
		if f := familyOf(ip); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		out = append(out, corev1.IPv4Protocol)
	}
	return out
}

func familyOf(ip netip.Addr) corev1.IPFamily {
	if ip.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// countNoLocal counts the frontends that drop because of a policy Local.
func (p *Proxy) countNoLocal(r ruleset.Ruleset) {
	counts := map[string]map[corev1.IPFamily]int{"internal": {}, "external": {}}
	seen := map[string]bool{} // a Service port has several external addresses
	for _, f := range r.Frontends {
		if len(f.Endpoints) > 0 || f.Empty != ruleset.Drop {
			continue
		}
		policy, family := "external", familyOf(f.Key.Addr)
		if _, cluster := slices.BinarySearchFunc(r.ClusterIPs, f.Key.Addr, netip.Addr.Compare); cluster {
			policy = "internal"
		}
		if id := policy + string(family) + f.Service; !seen[id] {
			seen[id] = true
			counts[policy][family]++
		}
	}
	for policy, byFamily := range counts {
		for _, family := range Families(p.o.Node.IPs) {
			p.o.Metrics.ProxyNoLocal(policy, family, byFamily[family])
		}
	}
}

type noMetrics struct{}

func (noMetrics) ProxyChange(bool, bool)                                    {}
func (noMetrics) ProxyQueued(time.Time)                                     {}
func (noMetrics) ProxySynced(string, bool, time.Duration, time.Time, error) {}
func (noMetrics) ProxyProgrammed(corev1.IPFamily, time.Duration)            {}
func (noMetrics) ProxyNoLocal(string, corev1.IPFamily, int)                 {}
func (noMetrics) FlowsCleaned(corev1.IPFamily, time.Duration, uint)         {}
