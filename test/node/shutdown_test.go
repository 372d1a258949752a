package node

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/logind"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// endedForShutdown is a condition: these pods have failed because the host goes down.
func endedForShutdown(names ...string) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		for _, name := range names {
			p, err := pods.Get(name)
			if err != nil {
				return err
			}
			if p.Status.Phase != v1.PodFailed || p.Status.Reason != "Terminated" || p.Status.Message != "Pod was terminated in response to imminent node shutdown." {
				return fmt.Errorf("%s: %s %s %q", name, p.Status.Phase, p.Status.Reason, p.Status.Message)
			}
			if err := disrupted(name)(pods); err != nil {
				return err
			}
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Terminated == nil {
					return fmt.Errorf("%s: %+v", name, c.State)
				}
			}
		}
		return nil
	}
}

// awaitReady waits until the node's condition Ready is that.
func awaitReady(t *testing.T, n *testbed.Node, want v1.ConditionStatus, message string) {
	t.Helper()
	n.Eventually(long, fmt.Sprintf("Ready is %s", want), func() error {
		var node v1.Node
		if err := json.Unmarshal(apiBody(t, n, "/api/v1/nodes/"+n.Name), &node); err != nil {
			return err
		}
		if !slices.ContainsFunc(node.Status.Conditions, func(c v1.NodeCondition) bool {
			return c.Type == v1.NodeReady && c.Status == want && strings.Contains(c.Message, message)
		}) {
			return fmt.Errorf("%+v", node.Status.Conditions)
		}
		return nil
	})
}

// shutdownNode is a node whose logind is the test's.
type shutdownNode struct {
	*testbed.Node
	t     *testing.T
	login *logind.Fake
	locks int
	names []string // of the pods that are to run
}

func (n *shutdownNode) start() {
	n.t.Helper()
	n.LaunchAgent([]string{"DBUS_SYSTEM_BUS_ADDRESS=" + n.login.Address})
}

// runs waits until all pods run and the shutdown would wait for them.
func (n *shutdownNode) runs() {
	n.t.Helper()
	n.WaitPods(long, testbed.Running(n.names...))
	awaitReady(n.t, n.Node, v1.ConditionTrue, "")
	n.locks++
	n.login.AwaitLocks(n.locks)
	n.Eventually(long, "the agent has its lock", func() error {
		if got := strings.Count(n.AgentLog(), "the host's shutdown waits for pods"); got < n.locks {
			return fmt.Errorf("%d of %d locks", got, n.locks)
		}
		return nil
	})
}

// ends announces a shutdown and waits until it may go on.
func (n *shutdownNode) ends() testbed.Pods {
	n.t.Helper()
	n.login.Announce(true)
	pods := n.WaitPods(long, endedForShutdown(n.names...))
	n.login.AwaitRelease()
	awaitReady(n.t, n.Node, v1.ConditionFalse, "node is shutting down")
	return pods
}

// TestHostShutdown: logind announces it, pods end in order, come again after the
// boot, and also when it is cancelled.
func TestHostShutdown(t *testing.T) {
	testbed.Require(t, "dbus-daemon")
	n := &shutdownNode{Node: newNode(t), t: t, login: logind.Start(t, t.TempDir(), "", time.Hour), names: []string{"plain", "once", "critical"}}
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration = 4*time.Minute, 2*time.Minute
	})
	n.WriteManifest("plain.yaml", manifest{name: "plain",
		spec:      fmt.Sprintf("volumes:\n- {name: out, hostPath: {path: %s, type: DirectoryOrCreate}}\n", n.Path("out")),
		container: "lifecycle: {preStop: {exec: {command: [/bin/sh, -c, 'echo hook > /out/hook']}}}\nvolumeMounts: [{name: out, mountPath: /out}]\n"}.String())
	n.WriteManifest("once.yaml", manifest{name: "once", spec: "restartPolicy: Never\n"}.String())
	n.WriteManifest("critical.yaml", manifest{name: "critical", spec: "priorityClassName: system-node-critical\n"}.String())
	n.start()
	n.runs()

	pods := n.ends()
	if _, err := n.Exec("test", "-s", n.Path("out/hook")); err != nil {
		t.Errorf("the preStop hook did not run: %v", err)
	}
	at := func(name string) time.Time {
		p, err := pods.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		return p.Status.ContainerStatuses[0].State.Terminated.FinishedAt.Time
	}
	for _, name := range []string{"plain", "once"} {
		if at("critical").Before(at(name)) {
			t.Errorf("the critical pod ended at %s, before %s at %s", at("critical"), name, at(name))
		}
	}
	n.WriteManifest("late.yaml", manifest{name: "late"}.String())
	n.WaitPods(long, func(pods testbed.Pods) error {
		p, err := pods.Get("late")
		if err == nil && (p.Status.Phase != v1.PodFailed || p.Status.Reason != "NodeShutdown") {
			err = fmt.Errorf("late: %s %s", p.Status.Phase, p.Status.Reason)
		}
		return err
	})

	// The next agent of this boot leaves them alone.
	n.KillAgent()
	n.start()
	n.Eventually(long, "the next agent answers", func() error { _, err := n.Pods(); return err })
	n.WaitPods(long, endedForShutdown(n.names...))
	if began := metric(t, n.Node, "kubelet_graceful_shutdown_start_time_seconds"); began == "" || began == "0" {
		t.Errorf("the shutdown began at %q", began)
	}

	n.KillAgent()
	n.login.Announce(false) // as the next boot has it
	n.Reboot()
	n.names = append(n.names, "late")
	n.start()
	n.runs()
	if end := metric(t, n.Node, "kubelet_graceful_shutdown_end_time_seconds"); end == "" || end == "0" {
		t.Errorf("the shutdown's end is %q", end)
	}

	n.ends()
	n.login.Announce(false) // it was cancelled
	n.runs()
}
