package preflight

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// fakeHost is a machine made of maps; what is not in them is not there.
type fakeHost struct {
	files    map[string]string
	programs map[string]string // what a program prints; "!" makes it fail
	runtimes map[string]string // CRI runtimes by socket; "" answers, but not CRI
	busy     map[string]error
	names    map[string][]string
	disk     Filesystem
	now      time.Time
	synced   bool
}

func (h *fakeHost) ReadFile(path string) ([]byte, error) {
	if s, ok := h.files[path]; ok {
		return []byte(s), nil
	}
	return nil, fs.ErrNotExist
}

func (h *fakeHost) List(path string) ([]string, error) {
	var out []string
	for f := range h.files {
		if rest, ok := strings.CutPrefix(f, path+"/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			out = append(out, name)
		}
	}
	if out == nil {
		return nil, fs.ErrNotExist
	}
	return out, nil
}

func (h *fakeHost) Filesystem(string) (Filesystem, error) { return h.disk, nil }

func (h *fakeHost) Find(name string) (string, error) {
	if _, ok := h.programs[name]; ok {
		return name, nil
	}
	return "", fs.ErrNotExist
}

func (h *fakeHost) Output(_ context.Context, name string, _ ...string) (string, error) {
	if h.programs[name] == "!" {
		return "", errors.New("exit status 127")
	}
	return h.programs[name] + "\nmore\n", nil
}

func (h *fakeHost) Listen(_ context.Context, address string) error { return h.busy[address] }

func (h *fakeHost) Resolve(_ context.Context, name string) ([]string, error) {
	return h.names[name], nil
}

func (h *fakeHost) Answers(_ context.Context, socket string) bool {
	_, ok := h.runtimes[socket]
	return ok
}

func (h *fakeHost) CRI(_ context.Context, socket string) (Runtime, error) {
	if name := h.runtimes[socket]; name != "" {
		return Runtime{Name: name, Version: "1.7.2", API: "v1"}, nil
	}
	return Runtime{}, errors.New("unknown service runtime.v1.RuntimeService")
}

func (h *fakeHost) Now() time.Time              { return h.now }
func (h *fakeHost) Synchronised() (bool, error) { return h.synced, nil }

func (h *fakeHost) host() Host { return Host{Files: h, Programs: h, Network: h, Clock: h} }

// good is a host that lacks nothing, and the configuration for it.
func good() (*fakeHost, *config.NodeAgentConfiguration) {
	cfg := &config.NodeAgentConfiguration{NodeName: "node", NodeIP: []string{"192.0.2.1"}, StateDir: "/var/lib/nodeagent"}
	config.Default(cfg, config.Host{})
	cfg.Network.BinDir = "/cni"
	h := &fakeHost{
		files: map[string]string{
			"/proc/sys/kernel/osrelease":                    "6.1.0-18-cloud-amd64\n",
			"/proc/self/status":                             "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n",
			"/sys/fs/cgroup/cgroup.controllers":             "cpuset cpu io memory pids\n",
			"/proc/self/mountinfo":                          "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n",
			"/proc/filesystems":                             "nodev\toverlay\n",
			"/boot/config-6.1.0-18-cloud-amd64":             "CONFIG_BRIDGE=m\nCONFIG_VETH=m\nCONFIG_IP_VS=m\nCONFIG_NF_TABLES=y\n# CONFIG_X is not set\n",
			"/lib/modules/6.1.0-18-cloud-amd64/modules.dep": "kernel/net/bridge/bridge.ko: kernel/net/llc/llc.ko\nkernel/drivers/net/veth.ko.xz:\nkernel/net/netfilter/ipvs/ip_vs.ko:\n",
			"/proc/sys/net/netfilter/nf_conntrack_max":      "262144\n",
			"/proc/sys/net/ipv4/ip_forward":                 "1\n",
			"/proc/sys/net/bridge/bridge-nf-call-iptables":  "1\n",
			"/proc/self/limits":                             "Limit  Soft Limit  Hard Limit  Units\nMax open files  1024  1048576  files\n",
			"/proc/swaps":                                   "Filename Type Size Used Priority\n",
			"/etc/resolv.conf":                              "search example.org\nnameserver 192.0.2.53\n",
			"/cni/bridge":                                   "", "/cni/host-local": "", "/cni/loopback": "", "/cni/portmap": "",
		},
		programs: map[string]string{
			"iptables": "iptables v1.8.9 (nf_tables)", "nft": "nftables v1.0.6", "runc": "runc version 1.1.5",
			"containerd": "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+b1",
		},
		runtimes: map[string]string{}, busy: map[string]error{}, names: map[string][]string{"node": {"192.0.2.1"}},
		disk: Filesystem{Type: "ext4", Free: 50 * gib, Total: 100 * gib},
		now:  time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC), synced: true,
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts", "cgroup", "user"} {
		h.files["/proc/self/ns/"+ns] = ""
	}
	return h, cfg
}

func TestGoodHost(t *testing.T) {
	h, cfg := good()
	for _, r := range Run(t.Context(), h.host(), cfg) {
		if r.Level != OK || r.Detail == "" || r.Remedy != "" {
			t.Errorf("%+v", r)
		}
	}
}

// finding is one thing that is wrong with a good host, and the line that says so.
type finding struct {
	change func(h *fakeHost, cfg *config.NodeAgentConfiguration)
	check  string
	want   Level
	text   string // in what was found and the remedy
}

// cgroupV1 mounts controllers, one tree per word.
func cgroupV1(trees string) func(*fakeHost, *config.NodeAgentConfiguration) {
	return func(h *fakeHost, _ *config.NodeAgentConfiguration) {
		delete(h.files, "/sys/fs/cgroup/cgroup.controllers")
		for tree := range strings.FieldsSeq(trees) {
			h.files["/proc/self/mounts"] += "cgroup /sys/fs/cgroup/" + tree + " cgroup rw,nosuid," + tree + " 0 0\n"
		}
	}
}

func inTheKernel() map[string]finding {
	return map[string]finding{
		"no root": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/proc/self/status"] = "Uid:\t1000\t1000\n"
		}, "privileges", Fail, "uid 1000 run as root"},
		"no CAP_SYS_ADMIN": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/proc/self/status"] = "Uid:\t0\nCapEff:\t000001ffffdfffff\n"
		}, "privileges", Fail, "without CAP_SYS_ADMIN"},
		"no CAP_SYS_RESOURCE": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/proc/self/status"] = "Uid:\t0\nCapEff:\t000001fffeffffff\n"
		}, "privileges", Warn, "without CAP_SYS_RESOURCE"},
		"old kernel": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/proc/sys/kernel/osrelease"] = "3.10.0-1160.el7"
		}, "kernel", Fail, "upgrade to 4.19"},
		"odd kernel": {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.files["/proc/sys/kernel/osrelease"] = "next" }, "kernel", Warn, "not understood"},
		"cgroup v2 in part": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/sys/fs/cgroup/cgroup.controllers"] = "cpu cpuset io"
		}, "cgroups", Fail, "without memory, pids"},
		"no cgroups": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			delete(h.files, "/sys/fs/cgroup/cgroup.controllers")
		}, "cgroups", Fail, "no cgroups are mounted"},
		"cgroup v1":         {cgroupV1("cpu,cpuacct cpuset memory devices freezer pids blkio hugetlb"), "cgroups", Info, "cgroup v1"},
		"cgroup v1 in part": {cgroupV1("cpu,cpuacct cpuset devices freezer pids blkio hugetlb"), "cgroups", Fail, "cgroup v1 without memory mount"},
		"cgroup v1, less":   {cgroupV1("cpu,cpuacct cpuset memory devices freezer pids blkio"), "cgroups", Warn, "without hugetlb"},
		"no net namespaces": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			delete(h.files, "/proc/self/ns/net")
		}, "namespaces", Fail, "kernel without net use a kernel with CONFIG_NAMESPACES"},
		"no user namespaces": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			delete(h.files, "/proc/self/ns/user")
		}, "namespaces", Warn, "kernel without user"},
		"no conntrack": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			delete(h.files, "/proc/sys/net/netfilter/nf_conntrack_max")
		}, "conntrack", Fail, "CONFIG_NF_CONNTRACK; masquerading"},
		"an unknown kernel": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/proc/sys/kernel/osrelease"] = "6.1.0-mine"
		}, "bridge", Warn, "neither the kernel's configuration nor its modules"},
		"private root": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/proc/self/mountinfo"] = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
		}, "mount propagation", Warn, "make-rshared"},
		"no veth": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/boot/config-6.1.0-18-cloud-amd64"] = "CONFIG_BRIDGE=y\n"
			h.files["/lib/modules/6.1.0-18-cloud-amd64/modules.dep"] = "x.ko:\n"
		}, "veth", Fail, "CONFIG_VETH"},
		"module not there": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/lib/modules/6.1.0-18-cloud-amd64/modules.dep"] = "kernel/drivers/net/veth.ko:\n"
		}, "bridge", Fail, "not installed"},
		"no iptables":       {func(h *fakeHost, _ *config.NodeAgentConfiguration) { delete(h.programs, "iptables") }, "iptables", Fail, "apt install iptables"},
		"broken iptables":   {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.programs["iptables"] = "!" }, "iptables", Fail, "does not run"},
		"no nft":            {func(h *fakeHost, _ *config.NodeAgentConfiguration) { delete(h.programs, "nft") }, "nftables", Warn, "apt install nftables"},
		"broken nft":        {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.programs["nft"] = "!" }, "nftables", Warn, "does not run"},
		"proxy without nft": {func(h *fakeHost, _ *config.NodeAgentConfiguration) { delete(h.programs, "nft") }, "proxy mode", Info, "iptables; not nftables: no program nft"},
		"proxy of no use":   {func(_ *fakeHost, c *config.NodeAgentConfiguration) { c.ProxyMode = config.ProxyNone }, "proxy mode", OK, "somebody else"},
		"proxy that cannot be": {func(h *fakeHost, c *config.NodeAgentConfiguration) {
			c.ProxyMode = config.ProxyNFTables
			delete(h.programs, "nft")
		}, "proxy mode", Fail, "nftables is not possible: no program nft"},
		"another proxy": {func(h *fakeHost, c *config.NodeAgentConfiguration) {
			h.busy[c.Proxy.HealthzBindAddress] = unix.EADDRINUSE
		}, "proxy health port", Warn, "nodeagent cleanup --kube-proxy"},
		"legacy iptables": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.programs["iptables"] = "iptables v1.8.7 (legacy)"
		}, "iptables", OK, "flavour legacy"},
	}
}

func inTheSoftware() map[string]finding {
	socket := config.RuntimeSockets()[0]
	return map[string]finding{
		"a runtime of the host": {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.runtimes[socket] = "containerd" }, "container runtime", OK, "containerd 1.7.2, CRI v1, on " + socket},
		"its runc is its own": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.runtimes[socket] = "containerd"
			delete(h.programs, "runc")
		}, "runc", Info, "left to the runtime"},
		// The agent passes over what does not speak CRI, and so does its check.
		"docker's containerd": {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.runtimes[socket] = "" }, "container runtime", OK, "private containerd 1.6.20~ds1 from containerd; " + socket + " answers, but not CRI"},
		"docker's, wanted": {func(h *fakeHost, cfg *config.NodeAgentConfiguration) {
			h.runtimes[socket] = ""
			cfg.Runtime.Endpoint = "unix://" + socket
		}, "container runtime", Fail, "disabled_plugins"},
		"a runtime that is off": {func(_ *fakeHost, cfg *config.NodeAgentConfiguration) { cfg.Runtime.Endpoint = "unix:///run/x.sock" }, "container runtime", Fail, "nobody answers on unix:///run/x.sock"},
		"no containerd":         {func(h *fakeHost, _ *config.NodeAgentConfiguration) { delete(h.programs, "containerd") }, "container runtime", Fail, "apt install containerd"},
		"containerd misnamed":   {func(_ *fakeHost, cfg *config.NodeAgentConfiguration) { cfg.Runtime.Containerd = "/opt/containerd" }, "container runtime", Fail, "no program /opt/containerd correct runtime.containerd"},
		"old containerd": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.programs["containerd"] = "containerd github.com/containerd/containerd 1.4.13"
		}, "container runtime", Fail, "upgrade to containerd 1.6"},
		"no runc":           {func(h *fakeHost, _ *config.NodeAgentConfiguration) { delete(h.programs, "runc") }, "runc", Fail, "apt install runc"},
		"a CNI plugin less": {func(h *fakeHost, _ *config.NodeAgentConfiguration) { delete(h.files, "/cni/portmap") }, "CNI plugins", Fail, "lacks portmap"},
		"no CNI plugins":    {func(_ *fakeHost, cfg *config.NodeAgentConfiguration) { cfg.Network.BinDir = "/none" }, "CNI plugins", Fail, "no folder /none"},
		"a CNI configuration": {func(h *fakeHost, cfg *config.NodeAgentConfiguration) {
			h.files[cfg.Network.ConfDir+"/10-x.conflist"] = "{}"
		}, "CNI configuration", Info, "10-x.conflist is used"},
	}
}

func inTheSystem() map[string]finding {
	return map[string]finding{
		"no forwarding":      {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.files["/proc/sys/net/ipv4/ip_forward"] = "0" }, "ip forwarding", Warn, "sysctl -w net.ipv4.ip_forward=1"},
		"no IPv6 forwarding": {func(_ *fakeHost, cfg *config.NodeAgentConfiguration) { cfg.Network.PodCIDRs = []string{"fd00::/64"} }, "ip forwarding", Warn, "net.ipv6.conf.all.forwarding"},
		"no br_netfilter": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			delete(h.files, "/proc/sys/net/bridge/bridge-nf-call-iptables")
		}, "bridge netfilter", Warn, "modprobe br_netfilter"},
		"full disk":          {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.disk.Free = 10 * mib }, "state folder", Fail, "10 MiB free"},
		"nearly full disk":   {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.disk.Free = 4 * gib }, "state folder", Warn, "4.0 GiB free"},
		"state on overlayfs": {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.disk.Type = "overlay" }, "state folder", Warn, "does not stack"},
		"state on nfs":       {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.disk.Type = "nfs" }, "state folder", Fail, "local filesystem"},
		"state noexec":       {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.disk.NoExec = true }, "state folder", Fail, "noexec"},
		"few files": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/proc/self/limits"] = "Max open files  256  1024  files\n"
		}, "open files", Warn, "hard limit 1024"},
		"clock never set":  {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.now = time.Unix(0, 0) }, "clock", Warn, "1970-01-01"},
		"clock not synced": {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.synced = false }, "clock", Info, "not synchronised"},
		"swap": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/proc/swaps"] += "/dev/sda2 partition 1 0 -2\n"
		}, "swap", Info, "swapped out"},
		"name not resolved": {func(h *fakeHost, _ *config.NodeAgentConfiguration) { h.names = nil }, "node name", Warn, "/etc/hosts"},
		"no resolver":       {func(h *fakeHost, _ *config.NodeAgentConfiguration) { delete(h.files, "/etc/resolv.conf") }, "DNS", Warn, "no /etc/resolv.conf"},
		"local resolver": {func(h *fakeHost, _ *config.NodeAgentConfiguration) {
			h.files["/etc/resolv.conf"] = "nameserver 127.0.0.53\n"
		}, "DNS", Warn, "network.resolvConf"},
		"address in use": {func(h *fakeHost, cfg *config.NodeAgentConfiguration) { h.busy[cfg.Listen] = inUse() }, "listen address", Fail, "--listen"},
		"address of the API in use": {func(h *fakeHost, cfg *config.NodeAgentConfiguration) {
			cfg.API.Listen = "192.0.2.1:6443"
			h.busy[cfg.API.Listen] = inUse()
		}, "listen address", Fail, "192.0.2.1:6443 cannot be used: bind: address already in use stop what uses it, or choose another in api.listen"},
		"address in use by us": {func(h *fakeHost, cfg *config.NodeAgentConfiguration) {
			h.busy[cfg.Listen], h.runtimes["/run/nodeagent/nodeagent.sock"] = inUse(), ""
		}, "listen address", Info, "an agent runs"},
		// That an agent runs does not make a wrong address right.
		"address of nobody": {func(h *fakeHost, cfg *config.NodeAgentConfiguration) {
			h.busy[cfg.Listen], h.runtimes["/run/nodeagent/nodeagent.sock"] = fmt.Errorf("bind: %w", syscall.EADDRNOTAVAIL), ""
		}, "listen address", Fail, "cannot be used"},
		"default address of the API in use": {func(h *fakeHost, cfg *config.NodeAgentConfiguration) { h.busy[config.DefaultAPIListen] = inUse() }, "listen address", Warn, "kubectl"},
		"no address": {func(_ *fakeHost, cfg *config.NodeAgentConfiguration) {
			cfg.Listen, cfg.API.Listen = config.ListenNone, config.ListenNone
		}, "listen address", Info, "none"},
	}
}

// TestFindings: one thing is wrong at a time, and one line says so.
func TestFindings(t *testing.T) {
	all := inTheKernel()
	maps.Copy(all, inTheSoftware())
	maps.Copy(all, inTheSystem())
	for name, tc := range all {
		t.Run(name, func(t *testing.T) {
			h, cfg := good()
			tc.change(h, cfg)
			results := Run(t.Context(), h.host(), cfg)
			i := slices.IndexFunc(results, func(r Result) bool { return r.Check == tc.check })
			if r := results[i]; r.Level != tc.want || !strings.Contains(r.Detail+" "+r.Remedy, tc.text) || (r.Level == Fail || r.Level == Warn) && r.Remedy == "" {
				t.Errorf("%+v; want %s and %q", r, tc.want, tc.text)
			}
			if Passed(results) == (tc.want == Fail) {
				t.Errorf("passed: %v", Passed(results))
			}
		})
	}
}

// TestServicesOnly: a host without anything that pods need serves Services: at
// worst the agent itself forwards.
func TestServicesOnly(t *testing.T) {
	h, cfg := good()
	h.runtimes, h.programs = nil, nil
	if Passed(Run(t.Context(), h.host(), cfg)) {
		t.Fatal("a host without a runtime passes for pods")
	}
	cfg.Manifests, cfg.ManifestURL, cfg.Kubeconfig = "", "", "/etc/kubeconfig"
	for _, r := range Run(t.Context(), h.host(), cfg) {
		if r.Level == Fail {
			t.Errorf("%+v", r)
		}
	}
}

func inUse() error { return fmt.Errorf("bind: %w", syscall.EADDRINUSE) }

func TestOutput(t *testing.T) {
	results := []Result{{Check: "a", Level: OK, Detail: "well"}, {Check: "b", Level: Fail, Detail: "not \x1b[31mwell", Remedy: "mend it"}, {Check: "c", Level: Warn, Detail: "so-so", Remedy: "see"}}
	var b bytes.Buffer
	if err := WriteTable(&b, results); err != nil {
		t.Fatal(err)
	}
	want := `CHECK   STATUS   FOUND            REMEDY
a       ok       well
b       FAIL     not ^[[31mwell   mend it
c       warn     so-so            see

This host cannot run pods yet. 1 failed, 1 warnings, 1 in order.
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	b.Reset()
	if err := WriteJSON(&b, results); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Passed bool
		Checks []Result
	}
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || back.Passed || !slices.Equal(back.Checks, results) {
		t.Errorf("%v: %s", err, &b)
	}
}

// TestThisHost: the real thing comes to a finding for every check, whatever the
// machine is.
func TestThisHost(t *testing.T) {
	_, cfg := good()
	cfg.Listen = "127.0.0.1:0"
	for _, r := range Run(t.Context(), ThisHost(), cfg) {
		if r.Check == "" || r.Level == "" || r.Detail == "" {
			t.Errorf("%+v", r)
		}
	}
}
