package config

import (
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Host is what defaults depend on and a test makes up.
type Host struct {
	Hostname string
	// Addresses are the host's own, at most one per family, IPv4 first.
	Addresses []string
	CPUs      int
	// Exists says whether a path is there.
	Exists func(path string) bool
	// HasPlugins says whether a folder holds CNI plugins.
	HasPlugins func(dir string) bool
	// ResolvConf is the text of /etc/resolv.conf.
	ResolvConf string
}

// Places that hosts keep things in.
const (
	defaultStateDir     = "/var/lib/nodeagent"
	DefaultRunDir       = "/run/nodeagent"
	DefaultConfigFile   = "/etc/nodeagent/nodeagent.yaml"
	defaultResolvConf   = "/etc/resolv.conf"
	resolvedResolvConf  = "/run/systemd/resolve/resolv.conf"
	defaultCNIBinDir    = "/opt/cni/bin"
	debianCNIBinDir     = "/usr/lib/cni"
	resolvedStubAddress = "127.0.0.53"
	kubeletDir          = "/var/lib/kubelet"
	// DefaultAPIListen is where kubectl finds the API.
	DefaultAPIListen = "127.0.0.1:10247"
	// CredentialsDir, below StateDir, keeps the API's own token and authority.
	CredentialsDir = "api"
)

// Default fills every field that is at its zero value and has a default. It
// changes nothing that is set and is idempotent.
func Default(c *NodeAgentConfiguration, h Host) {
	c.APIVersion, c.Kind = APIVersion, Kind
	str(&c.NodeName, strings.ToLower(strings.TrimSpace(h.Hostname)))
	if len(c.NodeIP) == 0 {
		c.NodeIP = append([]string(nil), h.Addresses...)
	}
	dur(&c.ManifestsPoll, 20*time.Second)
	dur(&c.ManifestURLInterval, 20*time.Second)
	dur(&c.ManifestURLTimeout, 10*time.Second)
	str(&c.StateDir, defaultStateDir)
	str(&c.RunDir, DefaultRunDir)
	str(&c.PodLogDir, "/var/log/pods")
	str(&c.ContainerLogDir, "/var/log/containers")
	str(&c.ContainerLogMaxSize, "10Mi")
	num(&c.ContainerLogMaxFiles, 5)
	dur(&c.ContainerLogMonitorInterval, 10*time.Second)

	str(&c.Runtime.Endpoint, EndpointAuto)
	str(&c.Runtime.CgroupRoot, "/")
	dur(&c.Runtime.RelistInterval, 10*time.Second)
	num(&c.Runtime.MaxParallelStarts, max(4, 2*h.CPUs))

	if len(c.Network.PodCIDRs) == 0 {
		c.Network.PodCIDRs = []string{"10.88.0.0/16"}
	}
	str(&c.Network.ConfDir, "/etc/cni/net.d")
	str(&c.Network.BinDir, h.cniBinDir())
	str(&c.Network.ResolvConf, h.resolvConf())

	num(&c.Images.MaxParallelPulls, 4)
	if f := filepath.Join(c.StateDir, "config.json"); c.Images.CredentialsFile == "" && h.exists(f) {
		c.Images.CredentialsFile = f
	}
	dur(&c.Images.PullBackoff, 10*time.Second)
	dur(&c.Images.PullBackoffMax, max(300*time.Second, c.Images.PullBackoff.Duration))
	dur(&c.Images.PullProgressDeadline, 5*time.Minute)

	dur(&c.Pods.CrashBackoff, 10*time.Second)
	dur(&c.Pods.CrashBackoffMax, max(300*time.Second, c.Pods.CrashBackoff.Duration))
	dur(&c.Pods.CrashBackoffReset, 10*time.Minute)
	num(&c.Pods.MaxDeadContainers, 1)
	num(&c.Pods.MaxTerminatedPods, 100)
	defaultEviction(c)

	defaultResources(c)
	if c.ServicesOnly() && h.exists(kubeletDir) {
		str(&c.Listen, ListenNone) // its port is that kubelet's
	}
	str(&c.Listen, "127.0.0.1:10248")
	if c.ServicesOnly() {
		str(&c.API.Listen, ListenNone) // kubectl has the API server
	}
	str(&c.API.Listen, DefaultAPIListen)
	defaultProxy(c)
	str(&c.Log.Level, "info")
	str(&c.Log.Format, "text")
}

func defaultProxy(c *NodeAgentConfiguration) {
	str(&c.ProxyMode, ProxyAuto)
	p := &c.Proxy
	if len(p.ServiceCIDRs) == 0 && c.Kubeconfig == "" {
		p.ServiceCIDRs = []string{"10.96.0.0/16"}
	}
	str(&p.NodePortRange, "30000-32767")
	switch {
	case len(p.ClusterCIDRs) > 0:
		str(&p.DetectLocalMode, DetectClusterCIDR)
	case p.PodBridgeInterface != "":
		str(&p.DetectLocalMode, DetectBridgeInterface)
	case p.PodInterfaceNamePrefix != "":
		str(&p.DetectLocalMode, DetectInterfacePrefix)
	}
	str(&p.DetectLocalMode, DetectNodeCIDR)
	str(&p.IPVSScheduler, "rr")
	str(&p.HealthzBindAddress, "0.0.0.0:10256")
	str(&p.MetricsBindAddress, ListenNone)
	// Without Services of ours nobody is known to answer there.
	if len(c.DNS.ClusterDNS) == 0 && c.ProxyMode != ProxyNone {
		for _, s := range p.ServiceCIDRs {
			if a, ok := tenth(s); ok {
				c.DNS.ClusterDNS = append(c.DNS.ClusterDNS, a.String())
			}
		}
	}
	str(&c.DNS.ClusterDomain, "cluster.local")
}

// tenth is the address where the cluster DNS is looked for by custom.
func tenth(cidr string) (netip.Addr, bool) {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return netip.Addr{}, false
	}
	a := p.Masked().Addr()
	for range 10 {
		a = a.Next()
	}
	return a, p.Contains(a)
}

func (h Host) exists(path string) bool { return h.Exists != nil && h.Exists(path) }

// cniBinDir prefers the folder that every CNI installer uses; Debian's package
// puts the plugins elsewhere.
func (h Host) cniBinDir() string {
	has := func(dir string) bool { return h.HasPlugins != nil && h.HasPlugins(dir) }
	if !has(defaultCNIBinDir) && has(debianCNIBinDir) {
		return debianCNIBinDir
	}
	return defaultCNIBinDir
}

// resolvConf avoids systemd-resolved's stub: 127.0.0.53 means another machine
// inside a pod.
func (h Host) resolvConf() string {
	for line := range strings.Lines(h.ResolvConf) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == "nameserver" && f[1] == resolvedStubAddress && h.exists(resolvedResolvConf) {
			return resolvedResolvConf
		}
	}
	return defaultResolvConf
}

func str(p *string, v string) {
	if *p == "" {
		*p = v
	}
}

func num(p *int, v int) {
	if *p == 0 {
		*p = v
	}
}

func dur(p *metav1.Duration, v time.Duration) {
	if p.Duration == 0 {
		p.Duration = v
	}
}

// RuntimeSockets are where CRI runtimes listen, in the order in which "auto"
// tries them.
func RuntimeSockets() []string {
	return []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/cri-dockerd.sock"}
}
