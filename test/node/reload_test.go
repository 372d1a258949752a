package node

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestReload: a new configuration is taken up without a restart of anything;
// one that is wrong, or right and impossible, leaves the agent as it was.
func TestReload(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WriteManifest("gpu.yaml", manifest{name: "gpu", spec: "nodeSelector: {gpu: nvidia}\n"}.String())
	n.WaitPods(long, all(testbed.Running("p"), failed("gpu", "NodeAffinity")))
	before, pid := ids(t, n), n.AgentPID()

	good := n.Config
	good.NodeLabels = map[string]string{"gpu": "nvidia"}
	reload := func(c config.NodeAgentConfiguration, says string) {
		t.Helper()
		seen := len(n.AgentLog())
		n.EditConfig(func(now *config.NodeAgentConfiguration) { *now = c })
		n.SignalAgent(syscall.SIGHUP)
		n.Eventually(long, "the agent says "+says, func() error {
			if log := n.AgentLog()[seen:]; !strings.Contains(log, says) {
				return fmt.Errorf("it says: %s", log)
			}
			return nil
		})
	}
	reload(good, "configuration re-read")
	n.WaitPods(long, testbed.Running("p", "gpu"))

	for field, change := range map[string]func(*config.NodeAgentConfiguration){
		"log.level": func(c *config.NodeAgentConfiguration) { c.Log.Level = "loud" },
		"podLogDir": func(c *config.NodeAgentConfiguration) { c.PodLogDir = n.Path("elsewhere") },
		"not-there.crt": func(c *config.NodeAgentConfiguration) {
			c.API = config.API{Listen: "127.0.0.1:8443", TLSCertFile: "not-there.crt", TLSKeyFile: "k", TokenFile: "t"}
		},
		"192.0.2.99:1": func(c *config.NodeAgentConfiguration) { c.Listen = "192.0.2.99:1" }, // nobody's address
	} {
		bad := good
		change(&bad)
		reload(bad, field)
		reload(good, "ready")
		n.WaitPods(long, testbed.Running("p", "gpu"))
	}
	if now := ids(t, n); now["p/main"] != before["p/main"] || n.AgentPID() != pid {
		t.Errorf("agent %d → %d, containers %v → %v", pid, n.AgentPID(), before, now)
	}
}

// failed is a condition: the pod failed for that reason.
func failed(name, reason string) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		p, err := pods.Get(name)
		if err == nil && p.Status.Reason != reason {
			err = fmt.Errorf("%s: phase %s, reason %q, want %q", name, p.Status.Phase, p.Status.Reason, reason)
		}
		return err
	}
}
