package agent

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/services"
)

// servesManifests says that the Services of the manifests are served: not where
// a cluster's are, which has its own addresses to give.
func (a *agent) servesManifests() bool { return a.cfg.Kubeconfig == "" && a.servesServices() }

// runServices serves the Services of the manifests, and their names.
func (a *agent) runServices(ctx context.Context) error {
	if !a.servesManifests() || len(a.cfg.DNS.ClusterDNS) == 0 {
		if err := a.settleLocal(nil); err != nil {
			a.log.Warn("an address of the cluster DNS of an earlier configuration stays on the loopback device", "err", err)
		}
	}
	if !a.servesManifests() {
		reason := "not served: the proxy mode is none"
		if a.servesServices() {
			reason = "not served: with a kubeconfig, the Services of the cluster are"
		}
		return services.Unserved{Store: a.store, Changes: a.store, Reason: reason, Log: a.log}.Run(ctx)
	}
	pools, err := a.servicePools()
	if err != nil {
		return err
	}
	c := services.New(services.Options{
		Pools: pools, Place: services.Place{NodeName: a.cfg.NodeName, Zone: a.cfg.NodeLabels[v1.LabelTopologyZone]},
		Store: a.store, Changes: a.store, Proxy: a.proxy, Event: a.events.Event, Clock: time.Now, Log: a.log,
	})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Run(ctx) })
	if len(a.cfg.DNS.ClusterDNS) > 0 {
		g.Go(func() error { return a.runDNS(ctx, c) })
	}
	return g.Wait()
}

// servicePools are what Services get their addresses and ports from.
func (a *agent) servicePools() (p services.Pools, err error) {
	p.ServiceCIDRs, p.Served = prefixes(a.cfg.Proxy.ServiceCIDRs), addrs(a.cfg.DNS.ClusterDNS)
	for _, s := range a.cfg.Proxy.LoadBalancerIPs {
		first, last, err := config.ParseAddrRange(s)
		if err != nil {
			return p, err
		}
		p.LoadBalancerIPs = append(p.LoadBalancerIPs, services.Range{First: first, Last: last})
	}
	p.FirstNodePort, p.LastNodePort, err = config.ParsePortRange(a.cfg.Proxy.NodePortRange)
	return p, err
}
