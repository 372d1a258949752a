package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// The proxy modes.
const (
	ProxyAuto      = "auto" // the best that kernel and tools support
	ProxyIPTables  = "iptables"
	ProxyIPVS      = "ipvs"
	ProxyNFTables  = "nftables"
	ProxyUserspace = "userspace"
	ProxyNone      = "none" // Services are somebody else's
)

// ProxyModes are the values of ProxyMode.
func ProxyModes() []string {
	return []string{ProxyAuto, ProxyIPTables, ProxyIPVS, ProxyNFTables, ProxyUserspace, ProxyNone}
}

// How the node's pods are told from others, in kube-proxy's words.
const (
	DetectClusterCIDR     = "ClusterCIDR"
	DetectNodeCIDR        = "NodeCIDR"
	DetectBridgeInterface = "BridgeInterface"
	DetectInterfacePrefix = "InterfaceNamePrefix"
)

// NodePortsPrimary in NodePortAddresses stands for the addresses of NodeIP.
const NodePortsPrimary = "primary"

// IPVSSchedulers are those of Linux 6.12; one that is not a part of the
// running kernel fails when it is used.
func IPVSSchedulers() []string {
	return []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "fo", "ovf", "mh", "twos"}
}

// maxInterfaceName is IFNAMSIZ without the terminating NUL.
const maxInterfaceName = 15

func (k *checker) proxy(c *NodeAgentConfiguration) {
	p := &c.Proxy
	k.oneOf("proxyMode", c.ProxyMode, ProxyModes()...)
	k.cidrs("proxy.serviceCIDRs", p.ServiceCIDRs, "10.96.0.0/16", func(field string, s netip.Prefix) {
		if s.Addr().BitLen()-s.Bits() < 4 {
			k.bad(field, "%s has no room for Services: it needs 16 addresses or more", s)
		}
		k.serviceOverlap(c, field, s)
	})
	k.cidrs("proxy.clusterCIDRs", p.ClusterCIDRs, "10.244.0.0/16", nil)
	if p.NodePortRange != "" {
		if _, _, err := ParsePortRange(p.NodePortRange); err != nil {
			k.bad("proxy.nodePortRange", "%v", err)
		}
	}
	for i, s := range p.NodePortAddresses {
		field := fmt.Sprintf("proxy.nodePortAddresses[%d]", i)
		switch {
		case s != NodePortsPrimary:
			k.prefix(field, s, `192.0.2.0/24, or "primary"`)
		case len(p.NodePortAddresses) > 1:
			k.bad(field, "%q goes with nothing else", s)
		}
	}
	for i, s := range p.LoadBalancerIPs {
		k.loadBalancerIP(c, fmt.Sprintf("proxy.loadBalancerIPs[%d]", i), s)
	}
	k.oneOf("proxy.ipvsScheduler", p.IPVSScheduler, IPVSSchedulers()...)
	for _, f := range []struct{ field, v string }{
		{"proxy.healthzBindAddress", p.HealthzBindAddress}, {"proxy.metricsBindAddress", p.MetricsBindAddress},
	} {
		if f.v != "" && f.v != ListenNone {
			k.hostPort(f.field, f.v)
		}
	}
	k.detectLocal(p)
}

// serviceOverlap refuses a service range that others use: what has no Service
// there is dropped.
func (k *checker) serviceOverlap(c *NodeAgentConfiguration, field string, s netip.Prefix) {
	for _, other := range []struct {
		name   string
		ranges []string
	}{{"network.podCIDRs", c.Network.PodCIDRs}, {"proxy.clusterCIDRs", c.Proxy.ClusterCIDRs}} {
		for _, r := range other.ranges {
			if o, err := netip.ParsePrefix(r); err == nil && o.Overlaps(s) {
				k.bad(field, "%s overlaps %s of %s: pods and Services need ranges of their own", s, o, other.name)
			}
		}
	}
	for _, ip := range c.NodeIP {
		if a, err := netip.ParseAddr(ip); err == nil && s.Contains(a) {
			k.bad(field, "%s holds %s, an address of this node: choose a range that your network does not use", s, a)
		}
	}
}

func (k *checker) loadBalancerIP(c *NodeAgentConfiguration, field, s string) {
	first, last, err := ParseAddrRange(s)
	if err != nil {
		k.bad(field, "%v", err)
		return
	}
	for _, other := range []struct {
		name   string
		ranges []string
	}{{"proxy.serviceCIDRs", c.Proxy.ServiceCIDRs}, {"network.podCIDRs", c.Network.PodCIDRs}} {
		for _, r := range other.ranges {
			o, err := netip.ParsePrefix(r)
			if err == nil && (o.Contains(first) || o.Contains(last) || first.Less(o.Addr()) && o.Addr().Less(last)) {
				k.bad(field, "%s overlaps %s of %s", s, o, other.name)
			}
		}
	}
}

func (k *checker) detectLocal(p *Proxy) {
	k.oneOf("proxy.detectLocalMode", p.DetectLocalMode, DetectClusterCIDR, DetectNodeCIDR, DetectBridgeInterface, DetectInterfacePrefix)
	for _, f := range []struct {
		mode, field, v string
	}{
		{DetectClusterCIDR, "proxy.clusterCIDRs", strings.Join(p.ClusterCIDRs, ",")},
		{DetectBridgeInterface, "proxy.podBridgeInterface", p.PodBridgeInterface},
		{DetectInterfacePrefix, "proxy.podInterfaceNamePrefix", p.PodInterfaceNamePrefix},
	} {
		if p.DetectLocalMode == f.mode && f.v == "" {
			k.bad("proxy.detectLocalMode", "%s needs %s", f.mode, f.field)
		}
		if f.mode != DetectClusterCIDR && (len(f.v) > maxInterfaceName || strings.ContainsAny(f.v, "/ \t\n\"*\\")) {
			k.bad(f.field, "%q cannot be the name of an interface", f.v)
		}
	}
}

func (k *checker) dns(c *NodeAgentConfiguration) {
	d := &c.DNS
	families := map[bool]string{}
	for i, s := range d.ClusterDNS {
		field := fmt.Sprintf("dns.clusterDNS[%d]", i)
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			k.bad(field, "%q is not an IP address", s)
			continue
		}
		within := func(r string) bool { p, err := netip.ParsePrefix(r); return err == nil && p.Contains(a) }
		switch {
		case c.Kubeconfig != "": // the cluster's, wherever that is
		case len(c.Proxy.ServiceCIDRs) > 0 && !slices.ContainsFunc(c.Proxy.ServiceCIDRs, within):
			k.bad(field, "%s is not within proxy.serviceCIDRs (%s), where the agent can serve it", s, strings.Join(c.Proxy.ServiceCIDRs, ", "))
		}
		k.onePerFamily(field, s, a.Is4(), families)
	}
	if d.ClusterDomain != "" {
		for _, m := range validation.IsDNS1123Subdomain(d.ClusterDomain) {
			k.bad("dns.clusterDomain", "%q: %s", d.ClusterDomain, m)
		}
	}
}

// ParsePortRange reads FIRST-LAST or one port.
func ParsePortRange(s string) (first, last uint16, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		b = a
	}
	x, err1 := strconv.ParseUint(strings.TrimSpace(a), 10, 16)
	y, err2 := strconv.ParseUint(strings.TrimSpace(b), 10, 16)
	if errors.Join(err1, err2) != nil || x == 0 || y < x {
		return 0, 0, fmt.Errorf("%q must be two ports such as 30000-32767", s)
	}
	return uint16(x), uint16(y), nil
}

// ParseAddrRange reads an address, a prefix, or FIRST-LAST, both included.
func ParseAddrRange(s string) (first, last netip.Addr, err error) {
	bad := fmt.Errorf("%q must be an address, a network such as 192.0.2.0/28 or a range such as 192.0.2.10-192.0.2.20", s)
	if p, err := netip.ParsePrefix(s); err == nil {
		if p.Masked() != p {
			return first, last, fmt.Errorf("%s has bits set behind its length; did you mean %s?", s, p.Masked())
		}
		return p.Addr(), lastOf(p), nil
	}
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		b = a
	}
	first, err1 := netip.ParseAddr(strings.TrimSpace(a))
	last, err2 := netip.ParseAddr(strings.TrimSpace(b))
	switch {
	case errors.Join(err1, err2) != nil, first.Zone()+last.Zone() != "", first.Is4In6(), last.Is4In6():
		return first, last, bad
	case first.Is4() != last.Is4() || last.Less(first):
		return first, last, fmt.Errorf("%q must lead from the lower address to the higher one of the same family", s)
	}
	return first, last, nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < p.Addr().BitLen(); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
