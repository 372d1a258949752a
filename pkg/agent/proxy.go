package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/proxy"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/iptables"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/ipvs"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/nftables"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/userspace"
	"github.com/nodeagent/nodeagent/pkg/proxy/healthcheck"
	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/server"
	"github.com/nodeagent/nodeagent/pkg/server/api"
	"github.com/nodeagent/nodeagent/pkg/services"
	"github.com/nodeagent/nodeagent/pkg/source/apiserver"
)

// changePatience is how long a change may wait for the kernel before /healthz
// says so; kube-proxy's is twice its sync period of 30 s.
const changePatience = time.Minute

// proxyModes are in the order in which auto tries them.
func (a *agent) proxyModes() []proxy.Mode {
	nft, ipt := nftables.Options{Log: a.log}, iptables.Options{Log: a.log}
	vs := ipvs.Options{Scheduler: a.cfg.Proxy.IPVSScheduler, StrictARP: a.cfg.Proxy.IPVSStrictARP, Log: a.log}
	return []proxy.Mode{
		{
			Name: config.ProxyNFTables, Kernel: true,
			Detect: func(ctx context.Context) error { return nftables.Detect(ctx, nft) },
			New:    func() proxy.Backend { return watched[*nftables.Watch]{nftables.New(nft)} },
		},
		{
			Name: config.ProxyIPTables, Kernel: true,
			Detect: func(ctx context.Context) error { _, err := iptables.New(ipt).Detect(ctx); return err },
			New:    func() proxy.Backend { return watched[*iptables.Watch]{iptables.New(ipt)} },
		},
		{
			Name: config.ProxyIPVS, Kernel: true,
			Detect: func(ctx context.Context) error { return ipvs.Detect(ctx, vs) },
			Used:   ipvs.Used,
			New:    func() proxy.Backend { return watched[*ipvs.Watch]{ipvs.New(vs)} },
		},
		{
			Name:   config.ProxyUserspace,
			Detect: func(context.Context) error { return nil }, // it needs nothing
			New:    func() proxy.Backend { return watched[*userspace.Watch]{userspace.New(userspace.Options{Log: a.log})} },
		},
	}
}

// watched makes a backend with a watcher of its own kind one of the proxy's.
type watched[W proxy.Watcher] struct{ watchedBackend[W] }

type watchedBackend[W proxy.Watcher] interface {
	Apply(ctx context.Context, old, now ruleset.Ruleset) error
	Forget()
	Cleanup(ctx context.Context) error
	Watch() (W, error)
}

func (b watched[W]) Watch() (proxy.Watcher, error) {
	w, err := b.watchedBackend.Watch()
	if err != nil {
		return nil, err
	}
	return w, nil
}

// EndFlows is for one that keeps flows.
func (b watched[W]) EndFlows(serves func(at, endpoint netip.AddrPort) bool) error {
	if k, ok := b.watchedBackend.(proxy.FlowKeeper); ok {
		return k.EndFlows(serves)
	}
	return nil
}

func (b watched[W]) Close() error {
	if c, ok := b.watchedBackend.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// proxyInputs must have given all that they have before the proxy begins.
func (a *agent) proxyInputs() []string {
	if a.servesManifests() {
		return []string{services.Input}
	}
	if a.cfg.Kubeconfig != "" {
		return apiserver.Inputs()
	}
	return nil
}

func (a *agent) newProxy() {
	node := a.proxyNode()
	if a.servesServices() {
		a.metrics.WithProxy(proxy.Families(node.IPs))
	}
	a.health = healthcheck.New(healthcheck.Options{
		Addr: listenAt(a.cfg.Proxy.HealthzBindAddress), Timeout: changePatience, Log: a.log,
		Answered: a.metrics.ProxyAnswered,
		Failed: func(c ruleset.HealthCheck, err error) {
			about := events.ObjectRef{Kind: "Service", Namespace: c.Namespace, Name: c.Name}
			a.events.Event(about, corev1.EventTypeWarning, "FailedToStartServiceHealthcheck", err.Error())
		},
	})
	a.proxy = proxy.New(proxy.Options{
		Mode: a.cfg.ProxyMode, Modes: a.proxyModes(), StateFile: a.statePath(proxyFile), Inputs: a.proxyInputs(),
		Node: node, PodCIDRsFromNode: a.cfg.Kubeconfig != "" && a.cfg.Proxy.DetectLocalMode == config.DetectNodeCIDR,
		Addresses: proxy.KernelAddresses{}, Flows: &netlink.Handle{}, Health: a.health, Metrics: a.metrics,
		Event: a.events.Event, Log: a.log,
	})
}

func (a *agent) servesServices() bool { return a.cfg.ProxyMode != config.ProxyNone }

// runProxy serves Services, and answers those who ask how that goes.
func (a *agent) runProxy(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.proxy.Run(ctx) })
	if a.servesServices() {
		g.Go(func() error { return a.health.Run(ctx) })
		if at := listenAt(a.cfg.Proxy.MetricsBindAddress); at != "" {
			g.Go(func() error { return a.serveProxyMetrics(ctx, at) })
		}
	}
	return g.Wait()
}

// serveProxyMetrics answers where dashboards look for a kube-proxy.
func (a *agent) serveProxyMetrics(ctx context.Context, at string) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at)
	if err != nil {
		return fmt.Errorf("proxy.metricsBindAddress %s: %w: stop what listens there, or choose another address", at, err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", a.metrics)
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprint(w, a.proxy.Status().Mode) // who went away asked for nothing
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("proxy.metricsBindAddress %s: %w", at, err)
	}
	return nil
}

func listenAt(address string) string {
	if address == config.ListenNone {
		return ""
	}
	return address
}

// proxyCheck is the proxy's line of readyz.
func (a *agent) proxyCheck() []server.Check {
	if !a.servesServices() {
		return nil
	}
	return []server.Check{{Name: "proxy", Check: a.proxy.Ready}}
}

// proxyInfo is the proxy's part of Info.
func (a *agent) proxyInfo() api.Proxy {
	s := a.proxy.Status()
	return api.Proxy{
		Mode: s.Mode, Ready: s.Reason == "" && s.Mode != "", Reason: s.Reason, LastSync: s.LastSync, Services: s.Services, Frontends: s.Frontends,
	}
}

// proxyNode is what the configuration says of the node. It is validated.
func (a *agent) proxyNode() plan.Node {
	c := &a.cfg.Proxy
	n := plan.Node{
		Name: a.cfg.NodeName, Zone: a.cfg.NodeLabels[corev1.LabelTopologyZone],
		MasqueradeAll: c.MasqueradeAll, ServiceCIDRs: prefixes(c.ServiceCIDRs), IPs: addrs(a.cfg.NodeIP),
	}
	if a.cfg.Kubeconfig == "" {
		n.Served = addrs(a.cfg.DNS.ClusterDNS) // where we answer ourselves
	}
	if slices.Equal(c.NodePortAddresses, []string{config.NodePortsPrimary}) {
		n.NodePortAddresses = primary(n.IPs)
	} else {
		n.NodePortAddresses = prefixes(c.NodePortAddresses)
	}
	switch c.DetectLocalMode {
	case config.DetectClusterCIDR:
		n.LocalPods.Prefixes = prefixes(c.ClusterCIDRs)
	case config.DetectBridgeInterface:
		n.LocalPods.Interface = c.PodBridgeInterface
	case config.DetectInterfacePrefix:
		n.LocalPods.Interface = c.PodInterfaceNamePrefix + "*"
	case config.DetectNodeCIDR:
		// In a cluster the pods may be another's, in the range that the Node has.
		if a.cfg.Kubeconfig == "" || a.cfg.Manifests != "" || a.cfg.ManifestURL != "" {
			n.LocalPods.Prefixes = prefixes(a.cfg.Network.PodCIDRs)
		}
	}
	return n
}

// primary are the prefixes of these addresses only; a family without one gets a
// prefix that nothing is in, since none at all would be every address.
func primary(ips []netip.Addr) []netip.Prefix {
	out := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 32), netip.PrefixFrom(netip.IPv6Unspecified(), 128)}
	for _, ip := range ips {
		out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
	}
	return out
}

func prefixes(texts []string) (out []netip.Prefix) {
	for _, s := range texts {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func addrs(texts []string) (out []netip.Addr) {
	for _, s := range texts {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}
