//go:build bench

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// floors stands among the systems for the bare programs.
const floors = "floors"

// proxy is one program in one mode.
type proxy struct {
	name    string
	program string // nodeagent or kube-proxy
	mode    string
	legacy  bool // iptables is the legacy one
}

func proxies() []proxy {
	return []proxy{
		{"nodeagent nftables", "nodeagent", "nftables", false},
		{"nodeagent iptables", "nodeagent", "iptables", false},
		{"nodeagent iptables-legacy", "nodeagent", "iptables", true},
		{"nodeagent userspace", "nodeagent", "userspace", false},
		{"kube-proxy nftables", "kube-proxy", "nftables", false},
		{"kube-proxy iptables", "kube-proxy", "iptables", false},
	}
}

// stand is a node of its own on which one proxy runs.
type stand struct {
	t    *testing.T
	n    *testbed.Node
	path string // of the proxy, to find iptables in
	p    *testbed.Program
}

// newStand makes the node, with servers outside that answer.
func newStand(t *testing.T, c *cluster, legacy bool) *stand {
	t.Helper()
	n := testbed.NewNode(t, testbed.WithContainerd(testbed.NoContainerd), testbed.WithoutImages(), testbed.WithoutRegistry(), testbed.WithOutside())
	s := &stand{t: t, n: n, path: "/usr/sbin:/usr/bin:/sbin:/bin"}
	if c != nil {
		if err := c.addNode(t.Context(), n.Name, c.cp.Join(n)); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range answering[1:] {
		if _, err := n.Exec("ip", "-n", "outside", "addr", "add", addr+"/24", "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, n)
	family := "nft"
	if legacy {
		family = "legacy"
	}
	s.chooseIptables(family)
	return s
}

// chooseIptables puts one of Debian's two kinds in front of the host's choice.
func (s *stand) chooseIptables(family string) {
	dir := s.n.Path("iptables")
	if err := os.Mkdir(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	for _, v := range []string{"", "6"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			from := fmt.Sprintf("/usr/sbin/ip%stables-%s%s", v, family, suffix)
			if _, err := os.Stat(from); err != nil {
				s.t.Fatalf("%v (hack/install-deps.sh test installs iptables)", err)
			}
			if err := os.Symlink(from, filepath.Join(dir, fmt.Sprintf("ip%stables%s", v, suffix))); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	s.path = dir + ":" + s.path
}

// kubeProxyConfiguration is what kubeadm sets, for a mode, a node and a
// kubeconfig; conntrack's sizes are the host's and not the node's to change.
const kubeProxyConfiguration = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clusterCIDR: 10.244.0.0/16
hostnameOverride: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

// start runs the proxy and returns at once.
func (s *stand) start(c *cluster, p proxy) {
	s.t.Helper()
	kubeconfig := s.n.Path("kubeconfig")
	if err := os.WriteFile(kubeconfig, c.cp.Kubeconfig("system:kube-proxy"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	var args []string
	if p.program == "nodeagent" {
		s.n.EditConfig(func(cfg *config.NodeAgentConfiguration) {
			cfg.Kubeconfig, cfg.Manifests, cfg.ProxyMode = kubeconfig, "", p.mode
			cfg.Runtime.Endpoint, cfg.Log.Level = "auto", "info"
			cfg.Proxy.ClusterCIDRs = []string{"10.244.0.0/16"}
		})
		args = []string{testbed.Binary(s.t, ""), "run", "--config", s.n.ConfigFile()}
	} else {
		program, err := testbed.KubernetesProgram("kube-proxy")
		if err != nil {
			s.t.Fatal(err)
		}
		file := s.n.Path("kube-proxy.yaml")
		text := fmt.Sprintf(kubeProxyConfiguration, p.mode, s.n.Name, kubeconfig)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
		args = []string{program, "--config", file}
	}
	s.p = s.n.Run("proxy.log", "env", append([]string{"PATH=" + s.path}, args...)...)
}

func (s *stand) stop() {
	s.t.Helper()
	if err := s.p.End(syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
}

// alive fails the test with the proxy's last words when it has ended.
func (s *stand) alive() error {
	select {
	case <-s.p.Done():
		b, _ := os.ReadFile(s.n.Path("proxy.log"))
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		return fmt.Errorf("it has ended:\n%s", strings.Join(lines[max(0, len(lines)-15):], "\n"))
	default:
		return nil
	}
}

// kernel counts what is in the kernel. Of maps and sets it is their elements.
func (s *stand) kernel(iptables bool) (rules, chains, elements int) {
	s.t.Helper()
	if iptables {
		out, err := s.n.Exec("env", "PATH="+s.path, "iptables-save")
		if err != nil {
			s.t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			switch line[0] {
			case '-':
				rules++
			case ':':
				chains++
			}
		}
		if out, err = s.n.Exec("ipset", "save"); err != nil {
			s.t.Fatal(err)
		}
		return rules, chains, strings.Count(out, "add ")
	}
	out, err := s.n.Exec("nft", "-a", "list", "ruleset")
	if err != nil {
		s.t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(out) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		inside = inside || word == "elements"
		switch {
		case inside:
			elements += strings.Count(line, ",")
			if strings.Contains(line, "}") {
				elements, inside = elements+1, false
			}
		case word == "chain":
			chains++
		case word == "table", word == "map", word == "set":
		case strings.Contains(line, "# handle "):
			rules++
		}
	}
	return rules, chains, elements
}
