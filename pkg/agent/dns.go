package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/dns"
	"github.com/nodeagent/nodeagent/pkg/services"
	"github.com/nodeagent/nodeagent/pkg/store"
)

const (
	dnsPort  = 53
	dnsRetry = 2 * time.Second
	// dnsPatience is how long names wait for the pods to be looked at.
	dnsPatience = 5 * time.Second
)

// runDNS answers on the cluster DNS addresses, which it puts on the loopback
// device: pods reach them by way of their gateway, and nobody else asks the
// network for them. It goes on trying, since another DNS server on the host
// may hold the port for a while.
func (a *agent) runDNS(ctx context.Context, names *services.Controller) error {
	select {
	case <-ctx.Done():
		return nil
	case <-names.Ready():
	case <-time.After(dnsPatience):
		// The runtime is away: names of Services are worth having all the same.
	}
	last := ""
	for {
		err := a.serveDNS(ctx, names)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			a.log.Error("the cluster DNS cannot be served; will keep trying", "err", err)
			a.nodeEvent(v1.EventTypeWarning, "DNSFailed", last)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(dnsRetry):
		}
	}
}

func (a *agent) serveDNS(ctx context.Context, names *services.Controller) error {
	own := addrs(a.cfg.DNS.ClusterDNS)
	if err := a.settleLocal(own); err != nil {
		return err
	}
	var at []netip.AddrPort
	for _, addr := range own {
		at = append(at, netip.AddrPortFrom(addr, dnsPort))
	}
	sockets, err := dns.Listen(ctx, at...)
	if err != nil {
		return fmt.Errorf("%w: stop what listens there, or choose another address with --cluster-dns", err)
	}
	host := &dns.ResolvConf{Paths: []string{a.cfg.Network.ResolvConf, "/run/systemd/resolve/resolv.conf"}}
	server, err := dns.New(dns.Options{
		Domain: a.cfg.DNS.ClusterDomain, Sockets: sockets, Own: own, Ranges: prefixes(a.cfg.Proxy.ServiceCIDRs), Upstreams: host.Upstreams,
		Observe: a.observeDNS, Upstream: a.metrics.DNSForwarded,
	})
	if err != nil {
		return errors.Join(err, sockets.Close())
	}
	names.Names(server.Replace)
	a.log.Info("serving the cluster DNS", "domain", a.cfg.DNS.ClusterDomain, "addresses", a.cfg.DNS.ClusterDNS)
	return server.Run(ctx)
}

func (a *agent) observeDNS(o dns.Observation) {
	zone, proto := "upstream", "udp"
	if o.Cluster {
		zone = "cluster"
	}
	if o.TCP {
		proto = "tcp"
	}
	a.metrics.DNSQuery(zone, proto, o.RcodeName(), o.CacheHit, o.Took)
}

// settleLocal makes these the addresses that the agent has on the loopback
// device. It notes them in the state folder, so that those of an earlier
// configuration are found and taken off.
func (a *agent) settleLocal(want []netip.Addr) error {
	file := a.statePath(dnsFile)
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the cluster DNS addresses on the loopback device: %w", err)
	}
	noted := addrs(strings.Fields(string(b)))
	former := slices.DeleteFunc(slices.Clone(noted), func(n netip.Addr) bool { return slices.Contains(want, n) })
	if err := removeLocal(former); err != nil {
		return err
	}
	if !slices.Equal(noted, want) {
		if err := noteLocal(file, want); err != nil {
			return fmt.Errorf("note the cluster DNS addresses: %w", err)
		}
	}
	return addLocal(want)
}

// noteLocal writes one address a line; none is no file.
func noteLocal(file string, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return os.Remove(file)
	}
	var text strings.Builder
	for _, a := range addrs {
		fmt.Fprintln(&text, a)
	}
	return store.WriteFile(file, []byte(text.String()))
}

// addLocal puts addresses on the loopback device; those that are there stay.
func addLocal(addrs []netip.Addr) error {
	return eachLocal(addrs, func(lo netlink.Link, a netip.Addr) error {
		if err := netlink.AddrReplace(lo, hostAddr(a)); err != nil {
			return fmt.Errorf("put the cluster DNS address %s on the loopback device: %w", a, err)
		}
		return nil
	})
}

// removeLocal takes them off again.
func removeLocal(addrs []netip.Addr) error {
	return eachLocal(addrs, func(lo netlink.Link, a netip.Addr) error {
		if err := netlink.AddrDel(lo, hostAddr(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take the cluster DNS address %s off the loopback device: %w", a, err)
		}
		return nil
	})
}

func eachLocal(addrs []netip.Addr, f func(netlink.Link, netip.Addr) error) error {
	if len(addrs) == 0 {
		return nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	for _, a := range addrs {
		if err := f(lo, a); err != nil {
			return err
		}
	}
	return nil
}

func hostAddr(a netip.Addr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: netlink.NewIPNet(a.AsSlice())}
	if a.Is4() {
		addr.Scope = int(netlink.SCOPE_HOST)
	} else {
		addr.Flags = unix.IFA_F_NODAD // nobody else can have it on that device
	}
	return addr
}
