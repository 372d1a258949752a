package config

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

const head = "apiVersion: nodeagent/v1alpha1\nkind: NodeAgentConfiguration\n"

func testHost() Host {
	return Host{
		Hostname:   "Node-1",
		Addresses:  []string{"192.0.2.7", "2001:db8::7"},
		CPUs:       8,
		Exists:     func(p string) bool { return p == "/run/systemd/resolve/resolv.conf" },
		HasPlugins: func(d string) bool { return d == "/usr/lib/cni" },
		ResolvConf: "nameserver 127.0.0.53\n",
	}
}

func TestLoadErrorsNameFileLineAndField(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown field", head + "nodeNam: a\n", "c.yaml:3: nodeNam: unknown field; known fields: api, "},
		{"case", head + "nodename: a\n", `c.yaml:3: nodename: unknown field; did you mean "nodeName"?`},
		{"unknown nested", head + "runtime:\n  endpoint: auto\n  endpiont: x\n", "c.yaml:5: runtime.endpiont: unknown field"},
		{"duplicate", head + "nodeName: a\nlisten: none\nnodeName: b\n", "c.yaml:5: nodeName: duplicate field, first set in line 3"},
		{"duplicate in map", head + "nodeLabels:\n  a: x\n  a: y\n", "c.yaml:5: nodeLabels.a: duplicate field"},
		{"number for string", head + "nodeName: 5\n", `c.yaml:3: nodeName: must be a string, is the number 5; write "5" in quotes`},
		{"bool for label", head + "nodeLabels:\n  gpu: yes\n  x: true\n", `c.yaml:5: nodeLabels.x: must be a string, is the boolean true`},
		{"string for list", head + "nodeIP: 192.0.2.1\n", `c.yaml:3: nodeIP: must be a list, is the string "192.0.2.1"`},
		{"list for string", head + "nodeName: [a]\n", "c.yaml:3: nodeName: must be a string, is a list"},
		{"scalar for struct", head + "runtime: auto\n", `c.yaml:3: runtime: must be a mapping of fields, is the string "auto"`},
		{"bad duration", head + "manifestsPoll: 5\n", "c.yaml:3: manifestsPoll: must be a duration such as 20s or 5m, is the number 5"},
		{"int overflow", head + "pods:\n  pidsLimit: 99999999999999999999\n", "c.yaml:4: pods.pidsLimit: must be a whole number"},
		{"int text", head + "images:\n  maxParallelPulls: four\n", "c.yaml:4: images.maxParallelPulls: must be a whole number"},
		{"bool text", head + "runtime:\n  adoptKubeletPods: 1\n", "c.yaml:4: runtime.adoptKubeletPods: must be true or false, is the number 1"},
		{"semantic", head + "network:\n  podCIDRs:\n  - 10.0.0.0/16\n  - 10.1.0.1/16\n", "c.yaml:6: network.podCIDRs[1]: 10.1.0.1/16 has bits set behind its length; did you mean 10.1.0.0/16?"},
		{"no kind", "apiVersion: nodeagent/v1alpha1\n", `c.yaml:1: kind: missing; must be "NodeAgentConfiguration"`},
		{"other kind", "\napiVersion: v1\nkind: Pod\n", `c.yaml:2: apiVersion: must be "nodeagent/v1alpha1", is "v1"`},
		{"empty", "# nothing\n", "c.yaml:1: the file is empty"},
		{"two documents", head + "---\n" + head, "c.yaml:3: a second document"},
		{"syntax", head + "nodeName: [\n", "c.yaml:3: not valid YAML"},
		{"half of TLS", head + "api:\n  tlsCertFile: x.crt\n", "c.yaml:3: api.tlsKeyFile: missing"},
		{"merge key", head + "runtime: &r\n  endpoint: auto\nimages:\n  <<: *r\n", "c.yaml:6: images: keys must be plain names"},
		{"proxy mode", head + "proxyMode: ebpf\n", `c.yaml:3: proxyMode: "ebpf" must be one of: auto, iptables, ipvs, nftables, userspace, none`},
		{"service range", head + "proxy:\n  serviceCIDRs:\n  - 10.88.0.0/17\nnetwork:\n  podCIDRs: [10.88.0.0/16]\n", "c.yaml:5: proxy.serviceCIDRs[0]: 10.88.0.0/17 overlaps 10.88.0.0/16 of network.podCIDRs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text), "c.yaml")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got  %v\nwant %s", err, tc.want)
			}
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
		})
	}
}

func TestLoadReportsEveryErrorInOrder(t *testing.T) {
	_, err := Parse([]byte(head+"bogus: 1\nruntime:\n  relistInterval: x\nnodeName: [1]\n"), "c")
	var lines []string
	for l := range strings.Lines(err.Error()) {
		lines = append(lines, strings.SplitN(l, " ", 2)[0])
	}
	if want := []string{"c:3:", "c:5:", "c:6:"}; !reflect.DeepEqual(lines, want) {
		t.Fatalf("got %q, want %q", lines, want)
	}
}

func TestLoadMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("got %v", err)
	}
}

func TestLoadTakesPathsFromItsFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(file, []byte(head+"manifests: pods\nstateDir: /s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.Manifests != filepath.Join(dir, "pods") || c.StateDir != "/s" {
		t.Fatalf("manifests %q, stateDir %q", c.Manifests, c.StateDir)
	}
}

// TestEveryFieldSurvivesPrintAndParse sets each field to something that is not
// its zero value, so that a field the decoder cannot read shows up.
func TestEveryFieldSurvivesPrintAndParse(t *testing.T) {
	c := &NodeAgentConfiguration{}
	fill(reflect.ValueOf(c).Elem())
	c.APIVersion, c.Kind = APIVersion, Kind
	c.NodeIP, c.Network.PodCIDRs = []string{"192.0.2.1"}, []string{"10.1.0.0/16"}
	c.ManifestURL = "https://example.org/pods"
	c.Runtime.Endpoint, c.Runtime.CgroupDriver, c.Runtime.CgroupRoot = "unix:///x", "systemd", "/x"
	c.Listen, c.API.Listen = "127.0.0.1:1", "127.0.0.1:2"
	c.ContainerLogMaxSize, c.ContainerLogMaxFiles = "1Mi", 2
	c.ProxyMode, c.Log.Level, c.Log.Format = "none", "debug", "json"
	c.Proxy = Proxy{
		ServiceCIDRs: []string{"10.2.0.0/16"}, NodePortRange: "1-2", NodePortAddresses: []string{"primary"},
		LoadBalancerIPs: []string{"192.0.2.9"}, MasqueradeAll: true, DetectLocalMode: DetectNodeCIDR,
		ClusterCIDRs: []string{"10.3.0.0/16"}, PodBridgeInterface: "x", PodInterfaceNamePrefix: "x",
		IPVSScheduler: "sh", IPVSStrictARP: true, HealthzBindAddress: "127.0.0.1:3", MetricsBindAddress: "none",
	}
	c.Pods.AllowedUnsafeSysctls = []string{"net.*"}
	c.SystemReserved, c.KubeReserved = map[string]string{"cpu": "500m"}, map[string]string{"pid": "1k"}
	c.EnforceNodeAllocatable, c.CPUCFSQuota = []string{"pods"}, new(false)
	c.CPUCFSQuotaPeriod.Duration, c.MemoryThrottlingFactor = 50*time.Millisecond, 0.9
	c.MemoryReservationPolicy, c.MemorySwap.SwapBehavior = "TieredReservation", "NoSwap"
	c.EvictionHard, c.EvictionSoft = map[string]string{"memory.available": "1Gi"}, map[string]string{"nodefs.available": "5%"}
	c.EvictionSoftGracePeriod, c.EvictionMinimumReclaim = map[string]string{"nodefs.available": "1m"}, map[string]string{"pid.available": "1"}
	c.ImageGCHighThresholdPercent, c.ImageMaximumGCAge.Duration = 8, time.Hour
	c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration = 0, 0 // the list is in their place
	c.DNS = DNS{ClusterDNS: []string{"10.2.0.10"}, ClusterDomain: "x"}
	var b bytes.Buffer
	if err := c.Print(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Parse(b.Bytes(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, c) {
		t.Fatalf("got  %+v\nwant %+v", got, c)
	}
}

func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Float64:
		v.SetFloat(0.5)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(7)
	case reflect.Int32:
		v.SetInt(7)
	case reflect.Int64:
		v.SetInt(int64(5 * time.Second))
	case reflect.Slice:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e)
		v.Set(reflect.Append(v, e))
	case reflect.Map:
		e := reflect.New(v.Type().Elem()).Elem()
		fill(e)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("k"), e)
	}
}

func TestDefault(t *testing.T) {
	c := &NodeAgentConfiguration{}
	Default(c, testHost())
	if err := Validate(c); err != nil {
		t.Fatalf("the defaults are not valid: %v", err)
	}
	for _, tc := range []struct{ field, got, want string }{
		{"nodeName", c.NodeName, "node-1"},
		{"nodeIP", strings.Join(c.NodeIP, ","), "192.0.2.7,2001:db8::7"},
		{"binDir", c.Network.BinDir, "/usr/lib/cni"},
		{"resolvConf", c.Network.ResolvConf, "/run/systemd/resolve/resolv.conf"},
		{"stateDir", c.StateDir, "/var/lib/nodeagent"},
		{"runDir", c.RunDir, "/run/nodeagent"},
		{"listen", c.Listen, "127.0.0.1:10248"},
		{"endpoint", c.Runtime.Endpoint, "auto"},
		{"proxyMode", c.ProxyMode, "auto"},
		{"clusterDNS", strings.Join(c.DNS.ClusterDNS, ","), "10.96.0.10"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.field, tc.got, tc.want)
		}
	}
	if c.Runtime.MaxParallelStarts != 16 {
		t.Errorf("maxParallelStarts %d, want 16", c.Runtime.MaxParallelStarts)
	}
	before := *c
	Default(c, Host{Hostname: "other", CPUs: 1})
	if !reflect.DeepEqual(before, *c) {
		t.Error("Default a second time changed the configuration")
	}
}

func TestDefaultOfAnEmptyHostIsUsable(t *testing.T) {
	c := &NodeAgentConfiguration{}
	Default(c, Host{Hostname: "n"})
	if err := Validate(c); err != nil {
		t.Fatal(err)
	}
	if c.Network.BinDir != "/opt/cni/bin" || c.Network.ResolvConf != "/etc/resolv.conf" || c.Runtime.MaxParallelStarts != 4 {
		t.Errorf("%+v", c)
	}
}

func TestDefaultKeepsABackoffAboveTheUsualCeiling(t *testing.T) {
	c := &NodeAgentConfiguration{NodeName: "n"}
	c.Pods.CrashBackoff.Duration = time.Hour
	Default(c, Host{})
	if err := Validate(c); err != nil {
		t.Fatal(err)
	}
}

func TestFlagsOverrideTheFile(t *testing.T) {
	file, err := Parse([]byte(head+"nodeName: from-file\nlisten: none\nnodeLabels: {a: file}\nmanifestURL: http://h/p\n"), "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	wd, _ := os.Getwd()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	set := &NodeAgentConfiguration{}
	BindFlags(fs, set)
	err = fs.Parse([]string{"--node-name=from-flag", "--node-labels=b=flag,c=", "--pod-cidr=10.1.0.0/16,fd00::/64",
		"--manifest-url-header=Authorization=Bearer a=b", "--manifest-url-header", "Accept=x", "--manifest-url-interval=1s",
		"--manifests=pods", "--runtime-endpoint=embedded", "--proxy-mode=none"})
	if err != nil {
		t.Fatal(err)
	}
	Override(file, set, fs)
	want := &NodeAgentConfiguration{
		APIVersion: APIVersion, Kind: Kind, NodeName: "from-flag", Listen: "none",
		NodeLabels: map[string]string{"b": "flag", "c": ""}, ManifestURL: "http://h/p",
		ManifestURLHeader: map[string][]string{"Authorization": {"Bearer a=b"}, "Accept": {"x"}},
		Manifests:         filepath.Join(wd, "pods"), ProxyMode: "none",
	}
	want.ManifestURLInterval.Duration = time.Second
	want.Network.PodCIDRs = []string{"10.1.0.0/16", "fd00::/64"}
	want.Runtime.Endpoint = "embedded"
	if !reflect.DeepEqual(file, want) {
		t.Fatalf("got  %+v\nwant %+v", file, want)
	}
	if err := Validate(file); err != nil {
		t.Fatal(err)
	}
}

func TestFlagErrors(t *testing.T) {
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	c := &NodeAgentConfiguration{}
	BindFlags(fs, c)
	if err := fs.Parse([]string{"--manifest-url-header", "NoEquals"}); err == nil || !strings.Contains(err.Error(), "NAME=VALUE") {
		t.Errorf("got %v", err)
	}
	if err := fs.Parse([]string{"--proxy-mode=ebpf"}); err != nil {
		t.Fatal(err)
	}
	if err := Validate(c); err == nil || !strings.Contains(err.Error(), "must be one of: auto, ") {
		t.Errorf("got %v", err)
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		want string
		set  func(*NodeAgentConfiguration)
	}{
		{"nodeName: ", func(c *NodeAgentConfiguration) { c.NodeName = "Upper" }},
		{"nodeIP[1]: 192.0.2.2 is of the same family as 192.0.2.1", func(c *NodeAgentConfiguration) { c.NodeIP = []string{"192.0.2.1", "192.0.2.2"} }},
		{"nodeIP[0]: ", func(c *NodeAgentConfiguration) { c.NodeIP = []string{"0.0.0.0"} }},
		{"nodeIP[0]: ", func(c *NodeAgentConfiguration) { c.NodeIP = []string{"::ffff:192.0.2.1"} }},
		{"nodeLabels.a b: ", func(c *NodeAgentConfiguration) { c.NodeLabels = map[string]string{"a b": ""} }},
		{"nodeLabels.a: ", func(c *NodeAgentConfiguration) { c.NodeLabels = map[string]string{"a": "x y"} }},
		{"manifestURL: ", func(c *NodeAgentConfiguration) { c.ManifestURL = "ftp://x" }},
		{"manifestURL: ", func(c *NodeAgentConfiguration) { c.ManifestURL = "http://" }},
		{"manifestURLCA: set without", func(c *NodeAgentConfiguration) { c.ManifestURLCA = "/ca" }},
		{"manifestURLCA: has no use", func(c *NodeAgentConfiguration) { c.ManifestURLCA, c.ManifestURL = "/ca", "http://h" }},
		{"manifestURLHeader.A B: not a header name", func(c *NodeAgentConfiguration) {
			c.ManifestURL, c.ManifestURLHeader = "http://h", map[string][]string{"A B": {"x"}}
		}},
		{"manifestURLHeader.A: the value", func(c *NodeAgentConfiguration) {
			c.ManifestURL, c.ManifestURLHeader = "http://h", map[string][]string{"A": {"x\r\nB: y"}}
		}},
		{"network.podCIDRs[0]: 10.0.0.0/31 has no room", func(c *NodeAgentConfiguration) { c.Network.PodCIDRs = []string{"10.0.0.0/31"} }},
		{"network.podCIDRs[1]: ", func(c *NodeAgentConfiguration) { c.Network.PodCIDRs = []string{"10.0.0.0/16", "10.1.0.0/16"} }},
		{"runtime.endpoint: ", func(c *NodeAgentConfiguration) { c.Runtime.Endpoint = "/run/containerd.sock" }},
		{"runtime.endpoint: ", func(c *NodeAgentConfiguration) { c.Runtime.Endpoint = "unix://run/x" }},
		{"runtime.cgroupRoot: ", func(c *NodeAgentConfiguration) { c.Runtime.CgroupRoot = "kube" }},
		{"runtime.cgroupDriver: ", func(c *NodeAgentConfiguration) { c.Runtime.CgroupDriver = "cgroup" }},
		{"pods.crashBackoff: 500ms is below", func(c *NodeAgentConfiguration) { c.Pods.CrashBackoff.Duration = 500 * time.Millisecond }},
		{"pods.crashBackoff: 1m0s is above pods.crashBackoffMax", func(c *NodeAgentConfiguration) {
			c.Pods.CrashBackoff.Duration, c.Pods.CrashBackoffMax.Duration = time.Minute, time.Second
		}},
		{"manifestsPoll: -1s", func(c *NodeAgentConfiguration) { c.ManifestsPoll.Duration = -time.Second }},
		{"pods.allowedUnsafeSysctls[1]: vm.swappiness is not known to belong to a namespace", func(c *NodeAgentConfiguration) {
			c.Pods.AllowedUnsafeSysctls = []string{"net/core/somaxconn", "vm.swappiness"}
		}},
		{`pods.allowedUnsafeSysctls[1]: "net.*.x" must be`, func(c *NodeAgentConfiguration) {
			c.Pods.AllowedUnsafeSysctls = []string{"kernel.msg*", "net.*.x"}
		}},
		{"pods.pidsLimit: -1", func(c *NodeAgentConfiguration) { c.Pods.PidsLimit = -1 }},
		{"listen: ", func(c *NodeAgentConfiguration) { c.Listen = "10248" }},
		{"listen: ", func(c *NodeAgentConfiguration) { c.Listen = "localhost:10248" }},
		{"listen: ", func(c *NodeAgentConfiguration) { c.Listen = "127.0.0.1:0" }},
		{"api.listen: none, so that", func(c *NodeAgentConfiguration) { c.API.Listen, c.API.TokenFile = ListenNone, "/t" }},
		{"api.tlsCertFile: missing", func(c *NodeAgentConfiguration) { c.API.TLSKeyFile = "/k" }},
		{"api.listen: ", func(c *NodeAgentConfiguration) { c.API.Listen = "6443" }},
		{"log.level: ", func(c *NodeAgentConfiguration) { c.Log.Level = "trace" }},
		{"log.format: ", func(c *NodeAgentConfiguration) { c.Log.Format = "xml" }},
		{`proxyMode: "x" must be one of`, func(c *NodeAgentConfiguration) { c.ProxyMode = "x" }},
		{"proxy.serviceCIDRs[0]: 10.96.0.0/29 has no room", proxied(func(p *Proxy) { p.ServiceCIDRs = []string{"10.96.0.0/29"} })},
		{"proxy.serviceCIDRs[1]: 10.98.0.0/16 is of the same family", proxied(func(p *Proxy) { p.ServiceCIDRs = append(p.ServiceCIDRs, "10.98.0.0/16") })},
		{"proxy.serviceCIDRs[0]: 10.96.0.0/16 overlaps 10.96.128.0/17 of network.podCIDRs", func(c *NodeAgentConfiguration) { c.Network.PodCIDRs = []string{"10.96.128.0/17"} }},
		{"proxy.serviceCIDRs[0]: 10.96.0.0/16 overlaps 10.0.0.0/8 of proxy.clusterCIDRs", proxied(func(p *Proxy) { p.ClusterCIDRs = []string{"10.0.0.0/8"} })},
		{"proxy.serviceCIDRs[0]: 192.0.2.0/24 holds 192.0.2.7, an address of this node", func(c *NodeAgentConfiguration) {
			c.Proxy.ServiceCIDRs, c.DNS.ClusterDNS = []string{"192.0.2.0/24"}, nil
		}},
		{`proxy.nodePortRange: "32767-30000" must be two ports`, proxied(func(p *Proxy) { p.NodePortRange = "32767-30000" })},
		{`proxy.nodePortRange: "0-5" must be two ports`, proxied(func(p *Proxy) { p.NodePortRange = "0-5" })},
		{`proxy.nodePortAddresses[0]: "eth0" is not a network`, proxied(func(p *Proxy) { p.NodePortAddresses = []string{"eth0"} })},
		{`proxy.nodePortAddresses[1]: "primary" goes with nothing else`, proxied(func(p *Proxy) { p.NodePortAddresses = []string{"10.0.0.0/8", "primary"} })},
		{`proxy.loadBalancerIPs[0]: "x" must be an address`, proxied(func(p *Proxy) { p.LoadBalancerIPs = []string{"x"} })},
		{`proxy.loadBalancerIPs[0]: "192.0.2.9-192.0.2.1" must lead from`, proxied(func(p *Proxy) { p.LoadBalancerIPs = []string{"192.0.2.9-192.0.2.1"} })},
		{`proxy.loadBalancerIPs[0]: 192.0.2.1/24 has bits set`, proxied(func(p *Proxy) { p.LoadBalancerIPs = []string{"192.0.2.1/24"} })},
		{`proxy.loadBalancerIPs[0]: 10.95.0.0-10.97.0.0 overlaps 10.96.0.0/16 of proxy.serviceCIDRs`, proxied(func(p *Proxy) { p.LoadBalancerIPs = []string{"10.95.0.0-10.97.0.0"} })},
		{`proxy.detectLocalMode: BridgeInterface needs proxy.podBridgeInterface`, proxied(func(p *Proxy) { p.DetectLocalMode = DetectBridgeInterface })},
		{`proxy.podBridgeInterface: "a/b" cannot be`, proxied(func(p *Proxy) { p.PodBridgeInterface = "a/b" })},
		{`proxy.ipvsScheduler: "fair" must be one of`, proxied(func(p *Proxy) { p.IPVSScheduler = "fair" })},
		{`proxy.healthzBindAddress: "10256" must be`, proxied(func(p *Proxy) { p.HealthzBindAddress = "10256" })},
		{"dns.clusterDNS[0]: 10.97.0.10 is not within proxy.serviceCIDRs (10.96.0.0/16)", func(c *NodeAgentConfiguration) { c.DNS.ClusterDNS = []string{"10.97.0.10"} }},
		{`dns.clusterDomain: "a_b": `, func(c *NodeAgentConfiguration) { c.DNS.ClusterDomain = "a_b" }},
		{"stateDir: ", func(c *NodeAgentConfiguration) { c.StateDir = "/a\x00b" }},
	} {
		c := &NodeAgentConfiguration{}
		Default(c, testHost())
		tc.set(c)
		err := Validate(c)
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("got  %v\nwant %s", err, tc.want)
		}
	}
}

func TestValidateLogs(t *testing.T) {
	for _, tc := range []struct {
		want, size string
		files      int
	}{
		{`containerLogMaxSize: "x" must be a size such as 10Mi`, "x", 5},
		{`containerLogMaxSize: "0" leaves no room`, "0", 5},
		{`containerLogMaxFiles: 1 must be at least 2`, "1Mi", 1},
		{"", "-1", 2},
	} {
		c := &NodeAgentConfiguration{ContainerLogMaxSize: tc.size, ContainerLogMaxFiles: tc.files}
		Default(c, testHost())
		err := Validate(c)
		if (err == nil) != (tc.want == "") || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("got  %v\nwant %s", err, tc.want)
		}
	}
}

func proxied(f func(*Proxy)) func(*NodeAgentConfiguration) {
	return func(c *NodeAgentConfiguration) { f(&c.Proxy) }
}

// With an API server the ranges are the cluster's, and its DNS may be anywhere.
func TestACluster(t *testing.T) {
	c := &NodeAgentConfiguration{Kubeconfig: "/kc", DNS: DNS{ClusterDNS: []string{"169.254.20.10"}}}
	Default(c, testHost())
	if err := Validate(c); err != nil || len(c.Proxy.ServiceCIDRs) > 0 {
		t.Errorf("service ranges %v, %v", c.Proxy.ServiceCIDRs, err)
	}
}

// TestBesideAKubelet: who serves Services only leaves kubelet its port.
func TestBesideAKubelet(t *testing.T) {
	kubelet := Host{Exists: func(path string) bool { return path == "/var/lib/kubelet" }}
	for _, tc := range []struct {
		name string
		c    NodeAgentConfiguration
		host Host
		want string
	}{
		{"beside kubelet", NodeAgentConfiguration{Kubeconfig: "/k"}, kubelet, ListenNone},
		{"without", NodeAgentConfiguration{Kubeconfig: "/k"}, Host{}, "127.0.0.1:10248"},
		{"with manifests", NodeAgentConfiguration{Kubeconfig: "/k", Manifests: "/m"}, kubelet, "127.0.0.1:10248"},
		{"as configured", NodeAgentConfiguration{Kubeconfig: "/k", Listen: "127.0.0.1:1"}, kubelet, "127.0.0.1:1"},
	} {
		if Default(&tc.c, tc.host); tc.c.Listen != tc.want {
			t.Errorf("%s: listens on %s, want %s", tc.name, tc.c.Listen, tc.want)
		}
	}
}

func TestDefaultDNSInEachRange(t *testing.T) {
	c := &NodeAgentConfiguration{Proxy: Proxy{ServiceCIDRs: []string{"10.7.0.0/28", "fd07::/112"}}}
	Default(c, testHost())
	if want := []string{"10.7.0.10", "fd07::a"}; !reflect.DeepEqual(c.DNS.ClusterDNS, want) || Validate(c) != nil {
		t.Errorf("%v, %v", c.DNS.ClusterDNS, Validate(c))
	}
}

func TestDetectLocalByWhatIsSet(t *testing.T) {
	for want, p := range map[string]Proxy{
		DetectNodeCIDR:        {},
		DetectClusterCIDR:     {ClusterCIDRs: []string{"10.1.0.0/16"}},
		DetectBridgeInterface: {PodBridgeInterface: "br0"},
		DetectInterfacePrefix: {PodInterfaceNamePrefix: "veth"},
	} {
		c := &NodeAgentConfiguration{Proxy: p}
		Default(c, testHost())
		if c.Proxy.DetectLocalMode != want {
			t.Errorf("%+v: %s", p, c.Proxy.DetectLocalMode)
		}
	}
}

func TestParseAddrRange(t *testing.T) {
	for s, want := range map[string]string{
		"192.0.2.7":             "192.0.2.7 192.0.2.7",
		"192.0.2.8/30":          "192.0.2.8 192.0.2.11",
		"192.0.2.7-192.0.2.9":   "192.0.2.7 192.0.2.9",
		"192.0.2.7 - 192.0.2.9": "192.0.2.7 192.0.2.9",
		"fd00::/127":            "fd00:: fd00::1",
		"fd00::1-fd00::ff":      "fd00::1 fd00::ff",
	} {
		first, last, err := ParseAddrRange(s)
		if got := first.String() + " " + last.String(); err != nil || got != want {
			t.Errorf("%s: %s, %v", s, got, err)
		}
	}
}

func TestReadHost(t *testing.T) {
	h, err := ReadHost()
	if err != nil {
		t.Fatal(err)
	}
	if h.Hostname == "" || h.CPUs < 1 || !h.Exists("/proc/self") || len(h.Addresses) > 2 {
		t.Fatalf("%+v", h)
	}
}

func TestExampleConfigurationIsAccepted(t *testing.T) {
	c, err := Load("../../systemd/nodeagent.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Manifests != "/etc/nodeagent/manifests" {
		t.Errorf("manifests %q", c.Manifests)
	}
}
