package preflight

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// proxyNeeds are, in auto's order, what each proxy mode needs; pods do not.
func proxyNeeds() []struct {
	mode  string
	looks []func(context.Context, *probe) Result
} {
	nfTables := feature("CONFIG_NF_TABLES", "nf_tables", Warn, "proxy mode nftables needs it")
	ipvs := feature("CONFIG_IP_VS", "ip_vs", Warn, "proxy mode ipvs needs it")
	return []struct {
		mode  string
		looks []func(context.Context, *probe) Result
	}{
		{config.ProxyNFTables, []func(context.Context, *probe) Result{nfTables, nftables, conntrack}},
		{config.ProxyIPTables, []func(context.Context, *probe) Result{iptables, conntrack}},
		{config.ProxyIPVS, []func(context.Context, *probe) Result{ipvs, nftables, conntrack}},
		{config.ProxyUserspace, nil},
	}
}

// proxyMode says how Services will be served. One that is asked for and not
// possible keeps the agent from starting.
func proxyMode(ctx context.Context, p *probe) Result {
	asked := p.cfg.ProxyMode
	if asked == config.ProxyNone {
		return ok("none: Services are left to somebody else")
	}
	var passed []string
	for _, m := range proxyNeeds() {
		if asked != config.ProxyAuto && asked != m.mode {
			continue
		}
		lacks := ""
		var remedy string
		for _, look := range m.looks {
			if r := look(ctx, p); r.Level == Fail || r.Level == Warn {
				lacks, remedy = r.Detail, r.Remedy
				break
			}
		}
		switch {
		case lacks == "" && len(passed) == 0:
			return ok("%s", m.mode)
		case lacks == "":
			return info("%s; not %s", m.mode, strings.Join(passed, "; not "))
		case asked == m.mode:
			return bad(Fail, m.mode+" is not possible: "+lacks, remedy+", or choose another --proxy-mode")
		}
		passed = append(passed, m.mode+": "+lacks)
	}
	return bad(Fail, "none is possible: "+strings.Join(passed, "; "), "choose another --proxy-mode")
}

// proxyPort is no failure: the agent tries again, and Services do not need it.
func proxyPort(ctx context.Context, p *probe) Result {
	at := p.cfg.Proxy.HealthzBindAddress
	if p.cfg.ProxyMode == config.ProxyNone || at == config.ListenNone {
		return ok("none configured")
	}
	err := p.Network.Listen(ctx, at)
	switch {
	case err == nil:
		return ok("%s free", at)
	case errors.Is(err, unix.EADDRINUSE):
		return bad(Warn, at+" is in use", "if it is another proxy (kube-proxy has that port, too), stop it and run nodeagent cleanup --kube-proxy, or set --proxy-mode none; if it is this agent, all is well")
	}
	return bad(Warn, at+" cannot be used: "+oneLine(err.Error()), "choose another with --proxy-healthz-bind-address")
}
