package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestRuntimeIsKept: an agent that chooses its runtime by itself goes on with
// the one that its pods run on, also when it starts while that one is away. A
// second runtime in its place would run every pod twice.
func TestRuntimeIsKept(t *testing.T) {
	n := newNode(t)
	// Where a host's own containerd listens; /run is the node's.
	if out, err := n.Exec("sh", "-c", "mkdir -p /run/containerd && ln -s "+n.RuntimeSocket()+" /run/containerd/containerd.sock"); err != nil {
		t.Fatal(err, out)
	}
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.Runtime.Endpoint = config.EndpointAuto })
	n.StartAgent()
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WaitPods(long, testbed.Running("p"))
	before := ids(t, n)

	n.KillAgent()
	n.KillContainerd()
	n.StartAgent()
	n.Eventually(long, "the agent misses its runtime", func() error {
		if log := n.AgentLog(); !strings.Contains(log, "the container runtime does not answer") {
			return fmt.Errorf("the log ends with: %s", log[max(0, len(log)-500):])
		}
		return nil
	})
	n.StartContainerd()
	n.WriteManifest("q.yaml", manifest{name: "q"}.String())
	n.WaitPods(long, testbed.Running("p", "q"))
	if now := ids(t, n); now["p/main"] != before["p/main"] {
		t.Errorf("p was restarted: %v → %v", before, now)
	}

	n.StopAgent()
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.Runtime.Endpoint = config.EndpointEmbedded })
	<-n.LaunchAgent(nil)
	if log := n.AgentLog(); !strings.Contains(log, "runtime.endpoint") {
		t.Errorf("an agent with pods elsewhere took another runtime; its log ends with: %s", log[max(0, len(log)-500):])
	}
}
