package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// flag ties one command-line flag to the fields it sets.
type flag struct {
	name string
	bind func(*pflag.FlagSet, *NodeAgentConfiguration)
	copy func(dst, src *NodeAgentConfiguration)
}

func text(name, usage string, at func(*NodeAgentConfiguration) *string) flag {
	return flag{name,
		func(fs *pflag.FlagSet, c *NodeAgentConfiguration) { fs.StringVar(at(c), name, *at(c), usage) },
		func(dst, src *NodeAgentConfiguration) { *at(dst) = *at(src) }}
}

func list(name, usage string, at func(*NodeAgentConfiguration) *[]string) flag {
	return flag{name,
		func(fs *pflag.FlagSet, c *NodeAgentConfiguration) { fs.StringSliceVar(at(c), name, *at(c), usage) },
		func(dst, src *NodeAgentConfiguration) { *at(dst) = slices.Clone(*at(src)) }}
}

func boolean(name, usage string, at func(*NodeAgentConfiguration) *bool) flag {
	return flag{name,
		func(fs *pflag.FlagSet, c *NodeAgentConfiguration) { fs.BoolVar(at(c), name, *at(c), usage) },
		func(dst, src *NodeAgentConfiguration) { *at(dst) = *at(src) }}
}

func number(name, usage string, at func(*NodeAgentConfiguration) *int) flag {
	return flag{name,
		func(fs *pflag.FlagSet, c *NodeAgentConfiguration) { fs.IntVar(at(c), name, *at(c), usage) },
		func(dst, src *NodeAgentConfiguration) { *at(dst) = *at(src) }}
}

// amounts is a map, each of whose entries is a name, a sign and a value.
func amounts(name, sign, usage string, at func(*NodeAgentConfiguration) *map[string]string) flag {
	return flag{name,
		func(fs *pflag.FlagSet, c *NodeAgentConfiguration) { fs.Var(&pairs{at(c), sign}, name, usage) },
		func(dst, src *NodeAgentConfiguration) { *at(dst) = maps.Clone(*at(src)) }}
}

// path is text that is resolved against the working folder.
func path(name, usage string, at func(*NodeAgentConfiguration) *string) flag {
	f := text(name, usage, at)
	f.copy = func(dst, src *NodeAgentConfiguration) {
		*at(dst) = *at(src)
		if abs, err := filepath.Abs(*at(src)); *at(src) != "" && err == nil {
			*at(dst) = abs
		}
	}
	return f
}

func flags() []flag {
	type C = NodeAgentConfiguration
	all := []flag{
		path("manifests", "folder or file of Pod manifests to run", func(c *C) *string { return &c.Manifests }),
		text("manifest-url", "URL that is polled for Pod manifests", func(c *C) *string { return &c.ManifestURL }),
		{"manifest-url-header",
			func(fs *pflag.FlagSet, c *C) {
				fs.Var((*headers)(&c.ManifestURLHeader), "manifest-url-header", "header `NAME=VALUE` sent to --manifest-url; may be given again")
			},
			func(dst, src *C) { dst.ManifestURLHeader = maps.Clone(src.ManifestURLHeader) }},
		path("manifest-url-ca", "file of PEM certificates that verify --manifest-url", func(c *C) *string { return &c.ManifestURLCA }),
		{"manifest-url-interval",
			func(fs *pflag.FlagSet, c *C) {
				fs.DurationVar(&c.ManifestURLInterval.Duration, "manifest-url-interval", 0, "time between two polls of --manifest-url (default 20s)")
			},
			func(dst, src *C) { dst.ManifestURLInterval = src.ManifestURLInterval }},
		path("state-dir", "folder for what survives a reboot (default "+defaultStateDir+")", func(c *C) *string { return &c.StateDir }),
		path("run-dir", "folder for what does not; holds nodeagent.sock (default "+DefaultRunDir+")", func(c *C) *string { return &c.RunDir }),
		path("pod-log-dir", "folder for the containers' logs (default /var/log/pods)", func(c *C) *string { return &c.PodLogDir }),
		text("runtime-endpoint", "CRI runtime: unix:///PATH, embedded or auto (default auto)", func(c *C) *string { return &c.Runtime.Endpoint }),
		list("pod-cidr", "network of the pods, one per family, comma-separated (default 10.88.0.0/16)", func(c *C) *[]string { return &c.Network.PodCIDRs }),
		path("cni-conf-dir", "folder of CNI configurations (default /etc/cni/net.d)", func(c *C) *string { return &c.Network.ConfDir }),
		path("cni-bin-dir", "folder of CNI plugins (default "+defaultCNIBinDir+" or "+debianCNIBinDir+")", func(c *C) *string { return &c.Network.BinDir }),
		text("node-name", "name of this node (default: the host name)", func(c *C) *string { return &c.NodeName }),
		list("node-ip", "address of this node, one per family, comma-separated (default: that of the default route)", func(c *C) *[]string { return &c.NodeIP }),
		{"node-labels",
			func(fs *pflag.FlagSet, c *C) {
				fs.StringToStringVar(&c.NodeLabels, "node-labels", c.NodeLabels, "labels of this node for nodeSelector, as `NAME=VALUE` pairs with commas between")
				fs.Lookup("node-labels").DefValue = "" // not "[]", which says nothing
			},
			func(dst, src *C) { dst.NodeLabels = maps.Clone(src.NodeLabels) }},
		list("allowed-unsafe-sysctls", "sysctls that pods may set besides the safe ones: names, and prefixes that end in *, comma-separated", func(c *C) *[]string { return &c.Pods.AllowedUnsafeSysctls }),
		text("log-level", "debug, info, warn or error (default info)", func(c *C) *string { return &c.Log.Level }),
		text("log-format", "text or json (default text)", func(c *C) *string { return &c.Log.Format }),
		text("listen", "address for healthz, readyz and metrics, or none (default 127.0.0.1:10248)", func(c *C) *string { return &c.Listen }),
		text("api-listen", "address of the API for kubectl, or none (default "+DefaultAPIListen+")", func(c *C) *string { return &c.API.Listen }),
	}
	return slices.Concat(all, resourceFlags(), evictionFlags(), proxyFlags())
}

// evictionFlags have the names and the notation of kubelet's.
func evictionFlags() []flag {
	type C = NodeAgentConfiguration
	return []flag{
		amounts("eviction-hard", "<", "what must be left, else pods are evicted: `SIGNAL<VALUE` with commas between, as memory.available<100Mi,nodefs.available<10%", func(c *C) *map[string]string { return &c.EvictionHard }),
		amounts("eviction-soft", "<", "what must be left, else pods are evicted after --eviction-soft-grace-period: `SIGNAL<VALUE` with commas between", func(c *C) *map[string]string { return &c.EvictionSoft }),
		amounts("eviction-soft-grace-period", "=", "how long less than --eviction-soft may be left: `SIGNAL=DURATION` with commas between", func(c *C) *map[string]string { return &c.EvictionSoftGracePeriod }),
		amounts("eviction-minimum-reclaim", "=", "how much more there has to be before it is enough: `SIGNAL=VALUE` with commas between", func(c *C) *map[string]string { return &c.EvictionMinimumReclaim }),
		{"eviction-pressure-transition-period",
			func(fs *pflag.FlagSet, c *C) {
				fs.DurationVar(&c.EvictionPressureTransitionPeriod.Duration, "eviction-pressure-transition-period", 0, "how long a condition of the node outlasts its cause (default 5m)")
			},
			func(dst, src *C) { dst.EvictionPressureTransitionPeriod = src.EvictionPressureTransitionPeriod }},
		number("eviction-max-pod-grace-period", "longest grace period, in seconds, of a pod that a soft threshold evicts; below 0: its own", func(c *C) *int { return &c.EvictionMaxPodGracePeriod }),
		number("image-gc-high-threshold", "use of the images' file system, in percent, from which unused images are removed; 100 never (default 85)", func(c *C) *int { return &c.ImageGCHighThresholdPercent }),
		number("image-gc-low-threshold", "use of the images' file system, in percent, down to which they are (default 80)", func(c *C) *int { return &c.ImageGCLowThresholdPercent }),
	}
}

// proxyFlags have the names of kube-proxy's, kubelet's and kube-apiserver's.
func proxyFlags() []flag {
	type C = NodeAgentConfiguration
	return []flag{
		path("kubeconfig", "kubeconfig of the API server whose Services are served", func(c *C) *string { return &c.Kubeconfig }),
		text("proxy-mode", "how Services are served: "+strings.Join(ProxyModes(), ", ")+" (default "+ProxyAuto+")", func(c *C) *string { return &c.ProxyMode }),
		list("service-cidr", "addresses of Services, one range per family, comma-separated (default 10.96.0.0/16)", func(c *C) *[]string { return &c.Proxy.ServiceCIDRs }),
		text("service-node-port-range", "node ports that Services get, FIRST-LAST (default 30000-32767)", func(c *C) *string { return &c.Proxy.NodePortRange }),
		list("nodeport-addresses", "prefixes of the node's addresses that serve node ports, or "+NodePortsPrimary+" (default: all but loopback)", func(c *C) *[]string { return &c.Proxy.NodePortAddresses }),
		list("load-balancer-ips", "addresses that Services of type LoadBalancer get: addresses, networks, ranges FIRST-LAST", func(c *C) *[]string { return &c.Proxy.LoadBalancerIPs }),
		boolean("masquerade-all", "hide the client of every connection to a cluster IP", func(c *C) *bool { return &c.Proxy.MasqueradeAll }),
		text("detect-local-mode", "what tells this node's pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix (default NodeCIDR)", func(c *C) *string { return &c.Proxy.DetectLocalMode }),
		list("cluster-cidr", "networks of all pods, for --detect-local-mode ClusterCIDR", func(c *C) *[]string { return &c.Proxy.ClusterCIDRs }),
		text("pod-bridge-interface", "bridge of the pods, for --detect-local-mode BridgeInterface", func(c *C) *string { return &c.Proxy.PodBridgeInterface }),
		text("pod-interface-name-prefix", "what the pods' interfaces are called, for --detect-local-mode InterfaceNamePrefix", func(c *C) *string { return &c.Proxy.PodInterfaceNamePrefix }),
		text("ipvs-scheduler", "scheduler of --proxy-mode ipvs (default rr)", func(c *C) *string { return &c.Proxy.IPVSScheduler }),
		boolean("ipvs-strict-arp", "keep the node from answering ARP for Services' addresses", func(c *C) *bool { return &c.Proxy.IPVSStrictARP }),
		text("proxy-healthz-bind-address", "address for the proxy's /healthz, or none (default 0.0.0.0:10256)", func(c *C) *string { return &c.Proxy.HealthzBindAddress }),
		text("proxy-metrics-bind-address", "address for /metrics and /proxyMode as of kube-proxy, or none (default none)", func(c *C) *string { return &c.Proxy.MetricsBindAddress }),
		list("cluster-dns", "addresses of the cluster DNS, comma-separated (default: the tenth of --service-cidr)", func(c *C) *[]string { return &c.DNS.ClusterDNS }),
		text("cluster-domain", "what names of Services end in (default cluster.local)", func(c *C) *string { return &c.DNS.ClusterDomain }),
	}
}

// BindFlags adds the flags of `nodeagent run` to fs; parsing them sets fields
// of c. Give it a configuration of its own and lay the result over the file's
// with Override, since flags are parsed before the file is known.
func BindFlags(fs *pflag.FlagSet, c *NodeAgentConfiguration) {
	for _, f := range flags() {
		f.bind(fs, c)
	}
}

// Override copies to c what the command line set on from (see BindFlags), and
// nothing else. Relative paths become absolute.
func Override(c, from *NodeAgentConfiguration, fs *pflag.FlagSet) {
	for _, f := range flags() {
		if fs.Changed(f.name) {
			f.copy(c, from)
		}
	}
}

// headers is the value of --manifest-url-header.
type headers map[string][]string

func (h *headers) String() string {
	// Values are often credentials and stay out of usage texts.
	return strings.Join(slices.Sorted(maps.Keys(*h)), ",")
}

func (h *headers) Set(s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return fmt.Errorf("%q must be NAME=VALUE", s)
	}
	if *h == nil {
		*h = headers{}
	}
	(*h)[name] = append((*h)[name], value)
	return nil
}

func (h *headers) Type() string { return "NAME=VALUE" }

// pairs is the value of --eviction-hard and the like.
type pairs struct {
	to   *map[string]string
	sign string
}

func (p *pairs) String() string {
	if p.to == nil {
		return ""
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(*p.to)) {
		out = append(out, name+p.sign+(*p.to)[name])
	}
	return strings.Join(out, ",")
}

func (p *pairs) Set(s string) error {
	if *p.to == nil {
		*p.to = map[string]string{}
	}
	for _, pair := range strings.Split(s, ",") {
		name, value, ok := strings.Cut(pair, p.sign)
		if pair != "" && (!ok || name == "") {
			return fmt.Errorf("%q must be SIGNAL%sVALUE", pair, p.sign)
		}
		if pair != "" {
			(*p.to)[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return nil
}

func (p *pairs) Type() string { return "SIGNAL" + p.sign + "VALUE" }
