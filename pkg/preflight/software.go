package preflight

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/config"
)

func iptables(ctx context.Context, p *probe) Result {
	if _, err := p.Programs.Find("iptables"); err != nil {
		return bad(Fail, "no program iptables", "apt install iptables; masquerading and hostPort need it")
	}
	out, err := p.Programs.Output(ctx, "iptables", "--version")
	if err != nil {
		return bad(Fail, "iptables does not run: "+oneLine(err.Error()), "reinstall iptables")
	}
	v := oneLine(out)
	flavour := "legacy"
	if strings.Contains(v, "nf_tables") {
		flavour = "nft"
	}
	if !strings.Contains(v, "(") {
		flavour = "legacy, before 1.8"
	}
	return ok("%s, flavour %s", strings.TrimSpace(strings.SplitN(v, "(", 2)[0]), flavour)
}

func nftables(ctx context.Context, p *probe) Result {
	if _, err := p.Programs.Find("nft"); err != nil {
		return bad(Warn, "no program nft", "apt install nftables; only an nftables proxy needs it")
	}
	out, err := p.Programs.Output(ctx, "nft", "--version")
	if err != nil {
		return bad(Warn, "nft does not run: "+oneLine(err.Error()), "reinstall nftables")
	}
	return ok("%s", oneLine(out))
}

func conntrack(ctx context.Context, p *probe) Result {
	if limit := strings.TrimSpace(p.text("/proc/sys/net/netfilter/nf_conntrack_max")); limit != "" {
		return ok("in the kernel, %s entries", limit)
	}
	return feature("CONFIG_NF_CONNTRACK", "nf_conntrack", Fail, "masquerading needs it")(ctx, p)
}

// sockets are those that the agent would try for this configuration.
func (p *probe) sockets() []string {
	if path, ok := strings.CutPrefix(p.cfg.Runtime.Endpoint, "unix://"); ok {
		return []string{path}
	}
	if p.cfg.Runtime.Endpoint == config.EndpointEmbedded {
		return nil
	}
	return config.RuntimeSockets()
}

// shared is the runtime that runs on the host already and that the agent would
// take: the first that speaks CRI. Docker's containerd often does not and is
// passed over; refusal is what the last such one said.
func (p *probe) shared(ctx context.Context) (r Runtime, socket string, refusal error) {
	for _, s := range p.sockets() {
		if !p.Network.Answers(ctx, s) {
			continue
		}
		r, err := p.Network.CRI(ctx, s)
		if err == nil {
			return r, s, nil
		}
		refusal = fmt.Errorf("%s answers, but not CRI v1: %s", s, oneLine(err.Error()))
	}
	return Runtime{}, "", refusal
}

func containerRuntime(ctx context.Context, p *probe) Result {
	r, socket, refusal := p.shared(ctx)
	switch named := strings.HasPrefix(p.cfg.Runtime.Endpoint, "unix://"); {
	case socket != "":
		return ok("%s %s, CRI %s, on %s", r.Name, r.Version, r.API, socket)
	case named && refusal != nil:
		return bad(Fail, refusal.Error(), `enable CRI (containerd: take "cri" out of disabled_plugins in /etc/containerd/config.toml), or use --runtime-endpoint embedded`)
	case named:
		return bad(Fail, "nobody answers on "+p.cfg.Runtime.Endpoint, "start that runtime, or use --runtime-endpoint embedded")
	}
	own := p.privateRuntime(ctx)
	if refusal != nil {
		own.Detail += "; " + refusal.Error()
	}
	return own
}

// privateRuntime is the containerd that the agent would start itself.
func (p *probe) privateRuntime(ctx context.Context) Result {
	program, remedy := "containerd", "apt install containerd"
	if p.cfg.Runtime.Containerd != "" {
		program, remedy = p.cfg.Runtime.Containerd, "correct runtime.containerd, or take it out of the configuration"
	}
	path, err := p.Programs.Find(program)
	if err != nil {
		return bad(Fail, "no runtime socket and no program "+program, remedy)
	}
	out, err := p.Programs.Output(ctx, path, "--version")
	if err != nil {
		return bad(Fail, path+" does not run: "+oneLine(err.Error()), "reinstall containerd")
	}
	// "containerd github.com/containerd/containerd 1.6.20~ds1 …"
	version := oneLine(out)
	if f := strings.Fields(version); len(f) > 2 {
		version = f[2]
	}
	major, minor, found := release(strings.TrimPrefix(version, "v"))
	if found && (major < 1 || major == 1 && minor < 6) {
		return bad(Fail, "containerd "+version+" at "+path, "upgrade to containerd 1.6 or newer")
	}
	return ok("private containerd %s from %s", version, path)
}

func runc(ctx context.Context, p *probe) Result {
	if _, socket, _ := p.shared(ctx); socket != "" {
		return info("left to the runtime of the host")
	}
	path, err := p.Programs.Find("runc")
	if err != nil {
		return bad(Fail, "no program runc", "apt install runc")
	}
	out, err := p.Programs.Output(ctx, path, "--version")
	if err != nil {
		return bad(Fail, path+" does not run: "+oneLine(err.Error()), "reinstall runc")
	}
	return ok("%s", oneLine(out))
}

func cniPlugins(_ context.Context, p *probe) Result {
	dir := p.cfg.Network.BinDir
	remedy := "apt install containernetworking-plugins, or name their folder with --cni-bin-dir"
	have, err := p.Files.List(dir)
	if err != nil {
		return bad(Fail, "no folder "+dir, remedy)
	}
	if lack := missing(have, "bridge", "host-local", "loopback", "portmap"); len(lack) > 0 {
		return bad(Fail, dir+" lacks "+strings.Join(lack, ", "), remedy)
	}
	return ok("bridge host-local loopback portmap in %s", dir)
}

func cniConfiguration(_ context.Context, p *probe) Result {
	dir := p.cfg.Network.ConfDir
	names, _ := p.Files.List(dir)
	names = slices.DeleteFunc(names, func(n string) bool {
		return !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(n))
	})
	if len(names) == 0 {
		return ok("none in %s: the agent writes a bridge network for %s", dir, strings.Join(p.cfg.Network.PodCIDRs, ", "))
	}
	slices.Sort(names)
	return info("%s is used", filepath.Join(dir, names[0]))
}

func nodeName(ctx context.Context, p *probe) Result {
	name := p.cfg.NodeName
	if name == "" {
		return bad(Fail, "the host has no name", "hostnamectl set-hostname NAME, or --node-name")
	}
	addresses, err := p.Network.Resolve(ctx, name)
	if err != nil || len(addresses) == 0 {
		return bad(Warn, name+" does not resolve", fmt.Sprintf("add it to /etc/hosts; programs in pods with hostNetwork may look %s up", name))
	}
	return ok("%s, %s", name, strings.Join(addresses, ", "))
}

func listenAddress(ctx context.Context, p *probe) Result {
	var in []string
	for _, l := range []struct{ address, remedy string }{
		{p.cfg.Listen, "stop what uses it (kubelet has 10248, too), or choose another with --listen"},
		{p.cfg.API.Listen, "stop what uses it, or choose another in api.listen"},
	} {
		a := l.address
		if a == "" || a == config.ListenNone {
			continue
		}
		if err := p.Network.Listen(ctx, a); err != nil {
			if a == config.DefaultAPIListen {
				return bad(Warn, a+" cannot be used: "+oneLine(err.Error()), "kubectl finds no API there: stop what uses it, or choose another in api.listen")
			}
			if errors.Is(err, unix.EADDRINUSE) && p.Network.Answers(ctx, filepath.Join(p.cfg.RunDir, "nodeagent.sock")) {
				return info("%s is in use, and an agent runs on this host", a)
			}
			return bad(Fail, a+" cannot be used: "+oneLine(err.Error()), l.remedy)
		}
		in = append(in, a)
	}
	if len(in) == 0 {
		return info("none configured")
	}
	return ok("%s free", strings.Join(in, ", "))
}

func dns(_ context.Context, p *probe) Result {
	file := p.cfg.Network.ResolvConf
	b, err := p.Files.ReadFile(file)
	if err != nil {
		return bad(Warn, "no "+file, "write one; pods get their DNS from it")
	}
	var servers []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	for _, s := range servers {
		if strings.HasPrefix(s, "127.") || s == "::1" {
			return bad(Warn, file+" names "+s, "that is the pod itself inside a pod; name a file with the real servers in network.resolvConf")
		}
	}
	switch {
	case len(servers) == 0:
		return bad(Warn, file+" names no server", "pods have no DNS until it does")
	case len(servers) > 3:
		return bad(Warn, fmt.Sprintf("%s names %d servers", file, len(servers)), "resolvers read the first three only")
	}
	return ok("%s from %s", strings.Join(servers, ", "), file)
}

// oneLine is the first line of a program's output.
func oneLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}
