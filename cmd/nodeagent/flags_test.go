package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestEveryFlagTakesEffect: what is said on the command line arrives at the
// agent, over what the file says.
func TestEveryFlagTakesEffect(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(everyFlagsField), 0o600); err != nil {
		t.Fatal(err)
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	flags := flagCases(cwd)
	for name, f := range flags {
		p := newProgram(t)
		args := []string{"run", "--config", file, "--" + name}
		if f.value != "" {
			args = append(args, f.value)
		}
		if code := p.main(t, args...); code != 0 {
			t.Errorf("--%s %s: code %d, %s", name, f.value, code, &p.err)
			continue
		}
		if got := fmt.Sprint(f.field(p.ran[0])); got != f.want {
			t.Errorf("--%s %s: the agent gets %s, want %s", name, f.value, got, f.want)
		}
	}
	run, _, err := newProgram(t).app.root().Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	run.Flags().VisitAll(func(f *pflag.Flag) {
		if _, ok := flags[f.Name]; !ok && f.Name != "config" && f.Name != "help" {
			t.Errorf("--%s is not tested: what does it set?", f.Name)
		}
		// What an agent was told, its check, its cleanup and its config must be.
		for _, other := range []string{"config", "check", "cleanup"} {
			if c, _, err := newProgram(t).app.root().Find([]string{other}); err != nil || c.Flags().Lookup(f.Name) == nil && f.Name != "help" {
				t.Errorf("%s has no --%s: %v", other, f.Name, err)
			}
		}
	})
}

// everyFlagsField sets each field that a flag sets, to something else.
const everyFlagsField = `apiVersion: nodeagent/v1alpha1
kind: NodeAgentConfiguration
manifests: /f
manifestURL: https://f/f
manifestURLHeader: {F: [f]}
manifestURLCA: /f
manifestURLInterval: 1h
stateDir: /f
runDir: /f
podLogDir: /f
runtime: {endpoint: unix:///f}
network: {podCIDRs: [10.250.0.0/16], confDir: /f, binDir: /f}
nodeName: f
nodeIP: [192.0.2.250]
nodeLabels: {f: f}
log: {level: error, format: json}
listen: 127.0.0.1:1
proxyMode: ipvs
proxy:
  serviceCIDRs: [10.251.0.0/16]
  nodePortRange: 1-2
  nodePortAddresses: [10.252.0.0/16]
  loadBalancerIPs: [192.0.2.249]
  clusterCIDRs: [10.253.0.0/16]
  podBridgeInterface: f
  podInterfaceNamePrefix: f
  ipvsScheduler: lc
  healthzBindAddress: 127.0.0.1:2
  metricsBindAddress: 127.0.0.1:3
dns: {clusterDNS: [10.251.0.53], clusterDomain: f}
pods: {allowedUnsafeSysctls: [kernel.sem]}
evictionHard: {memory.available: 3Gi}
evictionSoft: {memory.available: 4Gi}
evictionSoftGracePeriod: {memory.available: 5m}
evictionMinimumReclaim: {nodefs.available: 2Gi}
evictionPressureTransitionPeriod: 9s
evictionMaxPodGracePeriod: 9
imageGCHighThresholdPercent: 90
imageGCLowThresholdPercent: 65
`

type flagCase struct {
	value string // "" is a flag without one
	field func(*config.NodeAgentConfiguration) any
	want  string
}

func flagCases(cwd string) map[string]flagCase {
	type C = config.NodeAgentConfiguration
	return map[string]flagCase{
		"manifests":                           {"pods", func(c *C) any { return c.Manifests }, cwd + "/pods"},
		"manifest-url":                        {"https://x/p", func(c *C) any { return c.ManifestURL }, "https://x/p"},
		"manifest-url-header":                 {"A=b=c", func(c *C) any { return c.ManifestURLHeader }, "map[A:[b=c]]"},
		"manifest-url-ca":                     {"ca.pem", func(c *C) any { return c.ManifestURLCA }, cwd + "/ca.pem"},
		"manifest-url-interval":               {"3s", func(c *C) any { return c.ManifestURLInterval.Duration }, "3s"},
		"allowed-unsafe-sysctls":              {"kernel.msg*,net.core.somaxconn", func(c *C) any { return c.Pods.AllowedUnsafeSysctls }, "[kernel.msg* net.core.somaxconn]"},
		"system-reserved":                     {"cpu=500m,pid=10", func(c *C) any { return c.SystemReserved }, "map[cpu:500m pid:10]"},
		"kube-reserved":                       {"memory=1Gi", func(c *C) any { return c.KubeReserved }, "map[memory:1Gi]"},
		"enforce-node-allocatable":            {"none", func(c *C) any { return c.EnforceNodeAllocatable }, "[none]"},
		"max-pods":                            {"7", func(c *C) any { return c.MaxPods }, "7"},
		"eviction-hard":                       {"memory.available<1Gi,nodefs.available<7%", func(c *C) any { return c.EvictionHard }, "map[memory.available:1Gi nodefs.available:7%]"},
		"eviction-soft":                       {"memory.available<2Gi", func(c *C) any { return c.EvictionSoft }, "map[memory.available:2Gi]"},
		"eviction-soft-grace-period":          {"memory.available=3m", func(c *C) any { return c.EvictionSoftGracePeriod }, "map[memory.available:3m]"},
		"eviction-minimum-reclaim":            {"nodefs.available=1Gi", func(c *C) any { return c.EvictionMinimumReclaim }, "map[nodefs.available:1Gi]"},
		"eviction-pressure-transition-period": {"7s", func(c *C) any { return c.EvictionPressureTransitionPeriod.Duration }, "7s"},
		"eviction-max-pod-grace-period":       {"8", func(c *C) any { return c.EvictionMaxPodGracePeriod }, "8"},
		"image-gc-high-threshold":             {"70", func(c *C) any { return c.ImageGCHighThresholdPercent }, "70"},
		"image-gc-low-threshold":              {"60", func(c *C) any { return c.ImageGCLowThresholdPercent }, "60"},
		"fail-swap-on":                        {"", func(c *C) any { return c.FailSwapOn }, "true"},

		"state-dir":        {"/x/", func(c *C) any { return c.StateDir }, "/x"},
		"run-dir":          {"/x", func(c *C) any { return c.RunDir }, "/x"},
		"pod-log-dir":      {"/x", func(c *C) any { return c.PodLogDir }, "/x"},
		"runtime-endpoint": {"embedded", func(c *C) any { return c.Runtime.Endpoint }, "embedded"},
		"pod-cidr":         {"10.1.0.0/16,fd01::/64", func(c *C) any { return c.Network.PodCIDRs }, "[10.1.0.0/16 fd01::/64]"},
		"cni-conf-dir":     {"/x", func(c *C) any { return c.Network.ConfDir }, "/x"},
		"cni-bin-dir":      {"/x", func(c *C) any { return c.Network.BinDir }, "/x"},
		"node-name":        {"x", func(c *C) any { return c.NodeName }, "x"},
		"node-ip":          {"192.0.2.1,2001:db8::1", func(c *C) any { return c.NodeIP }, "[192.0.2.1 2001:db8::1]"},
		"node-labels":      {"a=b,c=", func(c *C) any { return c.NodeLabels }, "map[a:b c:]"},
		"log-level":        {"debug", func(c *C) any { return c.Log.Level }, "debug"},
		"log-format":       {"text", func(c *C) any { return c.Log.Format }, "text"},
		"listen":           {"none", func(c *C) any { return c.Listen }, "none"},
		"api-listen":       {"none", func(c *C) any { return c.API.Listen }, "none"},
		"proxy-mode":       {"none", func(c *C) any { return c.ProxyMode }, "none"},
		"kubeconfig":       {"kc", func(c *C) any { return c.Kubeconfig }, cwd + "/kc"},
		"service-cidr":     {"10.251.0.0/24,fd02::/64", func(c *C) any { return c.Proxy.ServiceCIDRs }, "[10.251.0.0/24 fd02::/64]"},

		"service-node-port-range":    {"7-9", func(c *C) any { return c.Proxy.NodePortRange }, "7-9"},
		"nodeport-addresses":         {"primary", func(c *C) any { return c.Proxy.NodePortAddresses }, "[primary]"},
		"load-balancer-ips":          {"192.0.2.7,192.0.2.8-192.0.2.9", func(c *C) any { return c.Proxy.LoadBalancerIPs }, "[192.0.2.7 192.0.2.8-192.0.2.9]"},
		"masquerade-all":             {"", func(c *C) any { return c.Proxy.MasqueradeAll }, "true"},
		"detect-local-mode":          {"NodeCIDR", func(c *C) any { return c.Proxy.DetectLocalMode }, "NodeCIDR"},
		"cluster-cidr":               {"10.1.0.0/16", func(c *C) any { return c.Proxy.ClusterCIDRs }, "[10.1.0.0/16]"},
		"pod-bridge-interface":       {"br0", func(c *C) any { return c.Proxy.PodBridgeInterface }, "br0"},
		"pod-interface-name-prefix":  {"veth", func(c *C) any { return c.Proxy.PodInterfaceNamePrefix }, "veth"},
		"ipvs-scheduler":             {"sh", func(c *C) any { return c.Proxy.IPVSScheduler }, "sh"},
		"ipvs-strict-arp":            {"", func(c *C) any { return c.Proxy.IPVSStrictARP }, "true"},
		"proxy-healthz-bind-address": {"none", func(c *C) any { return c.Proxy.HealthzBindAddress }, "none"},
		"proxy-metrics-bind-address": {"127.0.0.1:10249", func(c *C) any { return c.Proxy.MetricsBindAddress }, "127.0.0.1:10249"},
		"cluster-dns":                {"10.251.0.54", func(c *C) any { return c.DNS.ClusterDNS }, "[10.251.0.54]"},
		"cluster-domain":             {"x.y", func(c *C) any { return c.DNS.ClusterDomain }, "x.y"},
	}
}

// TestTwoAgents on one state folder: the second ends at once and says who is
// there and what to do.
func TestTwoAgents(t *testing.T) {
	state := t.TempDir()
	lock := filepath.Join(state, "lock")
	if err := os.WriteFile(lock, []byte("4711\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(lock)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	p := newProgram(t)
	p.app.agent = realDaemon()
	code := p.main(t, "run", "--state-dir", state, "--run-dir", t.TempDir(), "--runtime-endpoint", "unix:///nonexistent", "--listen", "none")
	if code != 1 || p.out.Len() > 0 {
		t.Errorf("code %d, out %q, err %q", code, &p.out, &p.err)
	}
	for _, want := range []string{state, "pid 4711", "--state-dir"} {
		if !strings.Contains(p.err.String(), want) {
			t.Errorf("it says %q, which lacks %q", &p.err, want)
		}
	}
	left, err := os.ReadDir(state)
	if err != nil || len(left) != 1 {
		t.Errorf("the second one left %v, %v", left, err)
	}
}
