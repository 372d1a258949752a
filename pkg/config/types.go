// Package config loads, defaults and validates NodeAgentConfiguration.
package config

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// APIVersion and Kind of the configuration file.
const (
	APIVersion = "nodeagent/v1alpha1"
	Kind       = "NodeAgentConfiguration"
)

// NodeAgentConfiguration is everything that can be set. The zero value of a
// field means its default; `nodeagent config` prints the effective values.
type NodeAgentConfiguration struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`

	// NodeName is the node's name; default: the host name, lower case.
	NodeName string `json:"nodeName,omitempty"`
	// NodeIP is the node's address, one per family; default: the address of the
	// interface with the default route, else the first global address. Empty on
	// a host that has no address yet.
	NodeIP []string `json:"nodeIP,omitempty"`
	// NodeLabels are matched by nodeSelector.
	NodeLabels map[string]string `json:"nodeLabels,omitempty"`

	// Manifests is a folder or a file; empty turns the source off.
	Manifests string `json:"manifests,omitempty"`
	// ManifestsPoll is the slow poll behind inotify. Default 20s.
	ManifestsPoll metav1.Duration `json:"manifestsPoll,omitempty"`
	// ManifestURL (http, https) is polled; empty turns the source off.
	ManifestURL string `json:"manifestURL,omitempty"`
	// ManifestURLHeader is sent with every request for ManifestURL.
	ManifestURLHeader map[string][]string `json:"manifestURLHeader,omitempty"`
	// ManifestURLCA is a file of PEM certificates that verify the server;
	// empty: the system's roots.
	ManifestURLCA string `json:"manifestURLCA,omitempty"`
	// ManifestURLInterval lies between polls. Default 20s.
	ManifestURLInterval metav1.Duration `json:"manifestURLInterval,omitempty"`
	// ManifestURLTimeout is for one request. Default 10s.
	ManifestURLTimeout metav1.Duration `json:"manifestURLTimeout,omitempty"`

	// StateDir survives reboots, RunDir does not. Defaults /var/lib/nodeagent, /run/nodeagent.
	StateDir string `json:"stateDir,omitempty"`
	RunDir   string `json:"runDir,omitempty"`
	// PodLogDir and ContainerLogDir: defaults /var/log/pods, /var/log/containers.
	PodLogDir       string `json:"podLogDir,omitempty"`
	ContainerLogDir string `json:"containerLogDir,omitempty"`
	// ContainerLogMaxSize (a quantity) is how large a running container's log
	// becomes before it is rotated, default 10Mi, negative: never;
	// ContainerLogMaxFiles how many files it has, the one that is written to
	// included, default 5.
	ContainerLogMaxSize  string `json:"containerLogMaxSize,omitempty"`
	ContainerLogMaxFiles int    `json:"containerLogMaxFiles,omitempty"`
	// ContainerLogMonitorInterval is how often a log is looked at when nothing
	// says that it grows. Default 10s.
	ContainerLogMonitorInterval metav1.Duration `json:"containerLogMonitorInterval,omitempty"`

	Runtime Runtime `json:"runtime,omitzero"`
	Network Network `json:"network,omitzero"`
	Images  Images  `json:"images,omitzero"`
	Pods    Pods    `json:"pods,omitzero"`

	// What is kept from pods, with kubelet's names and meaning: amounts of cpu,
	// memory, ephemeral-storage and pid.
	SystemReserved map[string]string `json:"systemReserved,omitempty"`
	KubeReserved   map[string]string `json:"kubeReserved,omitempty"`
	// SystemReservedCgroup and KubeReservedCgroup are the cgroups, as paths below
	// the root, of those that it is kept for.
	SystemReservedCgroup string `json:"systemReservedCgroup,omitempty"`
	KubeReservedCgroup   string `json:"kubeReservedCgroup,omitempty"`
	// EnforceNodeAllocatable is who is held to their share (see EnforcePods and
	// those below). Default ["pods"].
	EnforceNodeAllocatable []string `json:"enforceNodeAllocatable,omitempty"`
	// MaxPods is how many pods run at once; PodsPerCore bounds that by the number
	// of CPUs. Default 110; 0, no such bound.
	MaxPods     int `json:"maxPods,omitempty"`
	PodsPerCore int `json:"podsPerCore,omitempty"`
	// CPUCFSQuota makes limits of CPU quotas of CPUCFSQuotaPeriod. Default true;
	// 100ms, from 1ms to 1s.
	CPUCFSQuota       *bool           `json:"cpuCFSQuota,omitempty"`
	CPUCFSQuotaPeriod metav1.Duration `json:"cpuCFSQuotaPeriod,omitempty"`
	// MemoryThrottlingFactor is which part of what lies between a container's
	// request and limit it has before it is slowed down (memory.high); 0: it is not.
	MemoryThrottlingFactor float64 `json:"memoryThrottlingFactor,omitempty"`
	// MemoryReservationPolicy is None, or TieredReservation to keep what was
	// requested from being reclaimed (memory.min, memory.low). Default None.
	MemoryReservationPolicy string `json:"memoryReservationPolicy,omitempty"`
	// SingleProcessOOMKill leaves the other processes of a container alone.
	SingleProcessOOMKill bool `json:"singleProcessOOMKill,omitempty"`
	// FailSwapOn refuses to run pods on a host that swaps.
	FailSwapOn bool       `json:"failSwapOn,omitempty"`
	MemorySwap MemorySwap `json:"memorySwap,omitzero"`

	// Eviction, with kubelet's names and meaning. EvictionHard and EvictionSoft
	// are what must be left by signal (see Signals), as a quantity or a
	// percentage; 0% is none. Default of EvictionHard: memory.available 100Mi,
	// nodefs.available 10%, nodefs.inodesFree and imagefs.inodesFree 5%,
	// imagefs.available 15%.
	EvictionHard            map[string]string `json:"evictionHard,omitempty"`
	EvictionSoft            map[string]string `json:"evictionSoft,omitempty"`
	EvictionSoftGracePeriod map[string]string `json:"evictionSoftGracePeriod,omitempty"`
	EvictionMinimumReclaim  map[string]string `json:"evictionMinimumReclaim,omitempty"`
	// EvictionPressureTransitionPeriod is how long a condition of the node
	// outlasts its cause. Default 5m.
	EvictionPressureTransitionPeriod metav1.Duration `json:"evictionPressureTransitionPeriod,omitempty"`
	// EvictionMaxPodGracePeriod bounds the grace period of a pod that a soft
	// threshold evicts, in seconds; below 0: it is the pod's own.
	EvictionMaxPodGracePeriod int `json:"evictionMaxPodGracePeriod,omitempty"`
	// MergeDefaultEvictionSettings adds the defaults to an EvictionHard that does
	// not name them.
	MergeDefaultEvictionSettings bool `json:"mergeDefaultEvictionSettings,omitempty"`

	// Images are collected when their file system is used to the high
	// percentage, until it is down to the low one; 100 turns that off. Defaults
	// 85, 80.
	ImageGCHighThresholdPercent int `json:"imageGCHighThresholdPercent,omitempty"`
	ImageGCLowThresholdPercent  int `json:"imageGCLowThresholdPercent,omitempty"`
	// ImageMinimumGCAge keeps an image that has only just come; default 2m. An
	// image that nobody has used for ImageMaximumGCAge goes; 0: it stays.
	ImageMinimumGCAge metav1.Duration `json:"imageMinimumGCAge,omitempty"`
	ImageMaximumGCAge metav1.Duration `json:"imageMaximumGCAge,omitempty"`

	// Shutdown, with kubelet's names and meaning. ShutdownGracePeriod is how long
	// the host's shutdown waits for pods; the last ShutdownGracePeriodCriticalPods
	// of it are for critical ones. 0: it does not wait.
	ShutdownGracePeriod             metav1.Duration `json:"shutdownGracePeriod,omitempty"`
	ShutdownGracePeriodCriticalPods metav1.Duration `json:"shutdownGracePeriodCriticalPods,omitempty"`
	// ShutdownGracePeriodByPodPriority is in place of both.
	ShutdownGracePeriodByPodPriority []ShutdownPeriod `json:"shutdownGracePeriodByPodPriority,omitempty"`

	// Listen serves healthz, readyz and metrics. Default 127.0.0.1:10248, or
	// "none" with ServicesOnly beside a kubelet; "none" turns it off.
	Listen string `json:"listen,omitempty"`
	// API is the local API over TCP, besides the socket in RunDir.
	API API `json:"api,omitzero"`

	// Kubeconfig names the API server whose Services are served; empty: those
	// of the manifests only.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// ProxyMode is how Services get into the kernel (see ProxyModes). Default auto.
	ProxyMode string `json:"proxyMode,omitempty"`
	Proxy     Proxy  `json:"proxy,omitzero"`
	DNS       DNS    `json:"dns,omitzero"`

	Log Log `json:"log,omitzero"`
}

// ServicesOnly says that nothing but Services is asked for: an API server, and
// neither manifests nor a URL. Such an agent leaves the container runtime to
// whoever uses it until a pod is created over the local API.
func (c *NodeAgentConfiguration) ServicesOnly() bool {
	return c.Kubeconfig != "" && c.Manifests == "" && c.ManifestURL == ""
}

// Runtime is the CRI runtime.
type Runtime struct {
	// Endpoint is unix://PATH, "embedded", or "auto": the first socket that the
	// host has, else embedded, and from then on the one that the pods are on.
	// Default auto.
	Endpoint string `json:"endpoint,omitempty"`
	// CgroupDriver is "cgroupfs", "systemd" or "" for what the runtime says,
	// else what fits the host.
	CgroupDriver string `json:"cgroupDriver,omitempty"`
	// CgroupRoot is the parent of the kubepods cgroup. Default "/".
	CgroupRoot string `json:"cgroupRoot,omitempty"`
	// AdoptKubeletPods takes over sandboxes that kubelet made.
	AdoptKubeletPods bool `json:"adoptKubeletPods,omitempty"`
	// RelistInterval is the safety net behind events. Default 10s.
	RelistInterval metav1.Duration `json:"relistInterval,omitempty"`
	// Containerd is the program for the embedded runtime; default: found in PATH.
	Containerd string `json:"containerd,omitempty"`
	// MaxParallelStarts bounds pods in the middle of sandbox and container
	// creation. Default 2 × CPUs, at least 4.
	MaxParallelStarts int `json:"maxParallelStarts,omitempty"`
}

// Network is CNI and DNS of pods.
type Network struct {
	// PodCIDRs, one per family. Default ["10.88.0.0/16"].
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// ConfDir and BinDir of CNI. Defaults /etc/cni/net.d and /opt/cni/bin, or
	// /usr/lib/cni when that is where the plugins are.
	ConfDir string `json:"confDir,omitempty"`
	BinDir  string `json:"binDir,omitempty"`
	// ResolvConf is the host's resolver file. Default /etc/resolv.conf, or
	// systemd-resolved's when that is in use.
	ResolvConf string `json:"resolvConf,omitempty"`
}

// Proxy is how Services are served.
type Proxy struct {
	// ServiceCIDRs are the addresses of Services, one range per family. Default
	// ["10.96.0.0/16"]; with Kubeconfig none, since the cluster knows.
	ServiceCIDRs []string `json:"serviceCIDRs,omitempty"`
	// NodePortRange is FIRST-LAST (see ParsePortRange). Default 30000-32767.
	NodePortRange string `json:"nodePortRange,omitempty"`
	// NodePortAddresses are prefixes of the node's addresses that serve node
	// ports, or "primary" for those in NodeIP; empty: all but loopback.
	NodePortAddresses []string `json:"nodePortAddresses,omitempty"`
	// LoadBalancerIPs are addresses, prefixes or ranges FIRST-LAST (see
	// ParseAddrRange) that Services of type LoadBalancer get.
	LoadBalancerIPs []string `json:"loadBalancerIPs,omitempty"`
	// MasqueradeAll hides the client of every connection to a cluster IP.
	MasqueradeAll bool `json:"masqueradeAll,omitempty"`

	// DetectLocalMode says how the node's own pods are told from others (see
	// DetectLocalModes). Default: by whichever of the three below is set, else
	// NodeCIDR, the node's own pod range.
	DetectLocalMode        string   `json:"detectLocalMode,omitempty"`
	ClusterCIDRs           []string `json:"clusterCIDRs,omitempty"`
	PodBridgeInterface     string   `json:"podBridgeInterface,omitempty"`
	PodInterfaceNamePrefix string   `json:"podInterfaceNamePrefix,omitempty"`

	// IPVSScheduler is the kernel's name of one. Default rr.
	IPVSScheduler string `json:"ipvsScheduler,omitempty"`
	// IPVSStrictARP keeps the node from answering ARP for Services' addresses.
	IPVSStrictARP bool `json:"ipvsStrictARP,omitempty"`

	// HealthzBindAddress serves /healthz as kube-proxy does. Default
	// 0.0.0.0:10256; "none" turns it off.
	HealthzBindAddress string `json:"healthzBindAddress,omitempty"`
	// MetricsBindAddress serves /metrics and /proxyMode where kube-proxy does.
	// Default "none".
	MetricsBindAddress string `json:"metricsBindAddress,omitempty"`
}

// DNS is the cluster's, which the agent serves where there is no Kubeconfig.
type DNS struct {
	// ClusterDNS are its addresses, in ServiceCIDRs when the agent serves them.
	// Default: the tenth of each service range; none with proxy mode none.
	ClusterDNS []string `json:"clusterDNS,omitempty"`
	// ClusterDomain is what names of Services end in. Default cluster.local.
	ClusterDomain string `json:"clusterDomain,omitempty"`
}

// Images is the pulling and collecting of images.
type Images struct {
	// MaxParallelPulls default 4.
	MaxParallelPulls int `json:"maxParallelPulls,omitempty"`
	// CredentialsFile in the format of docker's config.json. Default
	// <stateDir>/config.json when it exists.
	CredentialsFile string `json:"credentialsFile,omitempty"`
	// PullBackoff and PullBackoffMax: 10s and 300s.
	PullBackoff    metav1.Duration `json:"pullBackoff,omitempty"`
	PullBackoffMax metav1.Duration `json:"pullBackoffMax,omitempty"`
	// PullProgressDeadline ends a pull that makes no progress. Default 5m.
	PullProgressDeadline metav1.Duration `json:"pullProgressDeadline,omitempty"`
	// PauseImage for sandboxes of the embedded runtime. Default: our own.
	PauseImage string `json:"pauseImage,omitempty"`
}

// Pods is how pods are run.
type Pods struct {
	// CrashBackoff and CrashBackoffMax: 10s doubling to 300s, not below 1s;
	// CrashBackoffReset: 10m of running without a crash.
	CrashBackoff      metav1.Duration `json:"crashBackoff,omitempty"`
	CrashBackoffMax   metav1.Duration `json:"crashBackoffMax,omitempty"`
	CrashBackoffReset metav1.Duration `json:"crashBackoffReset,omitempty"`
	// PidsLimit per pod; 0: no limit.
	PidsLimit int64 `json:"pidsLimit,omitempty"`
	// AllowedUnsafeSysctls are what pods may set besides the safe ones: names, and
	// prefixes that end in a star.
	AllowedUnsafeSysctls []string `json:"allowedUnsafeSysctls,omitempty"`
	// MaxDeadContainers per container name, besides the one whose log
	// `logs --previous` shows. Default 1.
	MaxDeadContainers int `json:"maxDeadContainers,omitempty"`
	// MaxTerminatedPods is how many finished pods keep their containers and
	// logs. Of those that finished before them, the ones accepted over the API
	// are deleted and the others keep their status only. Default 100.
	MaxTerminatedPods int `json:"maxTerminatedPods,omitempty"`
}

// API over TCP, for kubectl. What is not given of certificate and token the
// agent makes itself, below StateDir.
type API struct {
	// Listen is ADDRESS:PORT; "none" turns it off. Default DefaultAPIListen, or
	// "none" with ServicesOnly.
	Listen      string `json:"listen,omitempty"`
	TLSCertFile string `json:"tlsCertFile,omitempty"`
	TLSKeyFile  string `json:"tlsKeyFile,omitempty"`
	TokenFile   string `json:"tokenFile,omitempty"` // one bearer token, root only
}

// Log is the agent's own log.
type Log struct {
	Level  string `json:"level,omitempty"`  // debug, info, warn, error
	Format string `json:"format,omitempty"` // text, json
}
