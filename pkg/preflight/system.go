package preflight

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

const (
	mib = 1 << 20
	gib = 1 << 30
	// oldestYear: a clock before it was never set; certificates would not
	// be valid yet.
	oldestYear = 2025
)

func forwarding(_ context.Context, p *probe) Result {
	v4 := strings.TrimSpace(p.text("/proc/sys/net/ipv4/ip_forward"))
	var off []string
	if v4 != "1" {
		off = append(off, "net.ipv4.ip_forward")
	}
	for _, c := range p.cfg.Network.PodCIDRs {
		if strings.Contains(c, ":") && strings.TrimSpace(p.text("/proc/sys/net/ipv6/conf/all/forwarding")) != "1" {
			off = append(off, "net.ipv6.conf.all.forwarding")
		}
	}
	if len(off) > 0 {
		return bad(Warn, strings.Join(off, ", ")+" is off", fmt.Sprintf("sysctl -w %s=1; the bridge plugin turns it on with the first pod, a firewall script may turn it off again", strings.Join(off, "=1 ")))
	}
	return ok("on")
}

func bridgeNetfilter(_ context.Context, p *probe) Result {
	switch v := strings.TrimSpace(p.text("/proc/sys/net/bridge/bridge-nf-call-iptables")); v {
	case "1":
		return ok("on")
	case "":
		return bad(Warn, "br_netfilter is not loaded", "modprobe br_netfilter; pods on one bridge reach each other's hostPorts and Services through it only")
	default:
		return bad(Warn, "net.bridge.bridge-nf-call-iptables is "+v, "sysctl -w net.bridge.bridge-nf-call-iptables=1")
	}
}

func stateFolder(_ context.Context, p *probe) Result {
	dir := p.cfg.StateDir
	f, err := p.Files.Filesystem(dir)
	if err != nil {
		return bad(Fail, err.Error(), "make "+dir+" possible, or choose another with --state-dir")
	}
	found := fmt.Sprintf("%s on %s, %s free", dir, f.Type, size(f.Free))
	switch {
	case f.Free < 100*mib:
		return bad(Fail, found, "free some space; images and logs need it")
	case f.NoExec:
		return bad(Fail, found+", mounted noexec", "mount it without noexec; the programs in images live there")
	case f.Type == "nfs" || f.Type == "cifs" || f.Type == "9p":
		return bad(Fail, found, "use a local filesystem; overlayfs and locks do not work there")
	case f.Type == "tmpfs" || f.Type == "ramfs":
		return bad(Warn, found, "what the agent knows is lost with a reboot; use a disk")
	case f.Type == "overlay":
		return bad(Warn, found, "overlayfs does not stack; put a volume of another filesystem there")
	case f.Free < 2*gib || f.Total > 0 && f.Free < f.Total/20:
		return bad(Warn, found, "free some space; images and logs need it")
	}
	return ok("%s", found)
}

func size(n uint64) string {
	if n >= gib {
		return fmt.Sprintf("%.1f GiB", float64(n)/gib)
	}
	return fmt.Sprintf("%d MiB", n/mib)
}

func openFiles(_ context.Context, p *probe) Result {
	const name, least = "Max open files", 4096
	for line := range strings.Lines(p.text("/proc/self/limits")) {
		rest, ok1 := strings.CutPrefix(line, name)
		if f := strings.Fields(rest); ok1 && len(f) >= 2 {
			hard, err := strconv.ParseUint(f[1], 10, 64)
			if f[1] != "unlimited" && (err != nil || hard < least) {
				return bad(Warn, "hard limit "+f[1], fmt.Sprintf("raise LimitNOFILE to %d or more; a hundred pods need as many", least))
			}
			return ok("soft limit %s, hard limit %s", f[0], f[1])
		}
	}
	return bad(Warn, "the limit cannot be read", "mount /proc")
}

func clock(_ context.Context, p *probe) Result {
	now := p.Clock.Now().UTC().Format("2006-01-02 15:04 UTC")
	if p.Clock.Now().Year() < oldestYear {
		return bad(Warn, now, "set the clock; TLS to registries and manifest servers fails")
	}
	synced, err := p.Clock.Synchronised()
	switch {
	case err != nil:
		return info("%s; whether it is synchronised is not known", now)
	case !synced:
		return info("%s, not synchronised; run chrony or systemd-timesyncd", now)
	}
	return ok("%s, synchronised", now)
}

func swap(_ context.Context, p *probe) Result {
	n := 0
	for line := range strings.Lines(p.text("/proc/swaps")) {
		if !strings.HasPrefix(line, "Filename") && strings.TrimSpace(line) != "" {
			n++
		}
	}
	if n > 0 {
		return info("%d swap areas; memory limits do not count what is swapped out", n)
	}
	return ok("none")
}
