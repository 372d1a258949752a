package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// agentRun starts the agent with a kill point and waits until it is dead or the
// condition holds; it says which.
func agentRun(t *testing.T, n *testbed.Node, killAt int, cond func(testbed.Pods) error) (died bool) {
	t.Helper()
	ended := n.LaunchAgent([]string{fmt.Sprintf("NODEAGENT_KILL_AT=%d", killAt), "NODEAGENT_KILL_LOG=" + n.Path("kills")})
	deadline := time.After(long)
	for {
		select {
		case <-ended:
			n.KillAgent() // forgets it
			return true
		case <-deadline:
			t.Fatalf("kill point %d: the agent neither died nor got there", killAt)
		case <-time.After(20 * time.Millisecond):
			if pods, err := n.Pods(); err == nil && cond(pods) == nil {
				return false
			}
		}
	}
}

// TestKillBetweenActions kills the agent between every two actions of a pod's
// start, and then of its end. Each time the next agent finishes the work: one
// sandbox, one container, no restart; and in the end nothing is left.
func TestKillBetweenActions(t *testing.T) {
	n := newNode(t, testbed.WithBuildTags("killpoints"))
	m := manifest{name: "p", spec: "volumes:\n- name: mem\n  emptyDir: {medium: Memory}\n",
		container: "volumeMounts:\n- {name: mem, mountPath: /mem}\n"}
	limit := 100
	if testing.Short() {
		limit = 5
	}
	starts, ends := 0, 0
	for k, more := 1, true; more && k <= limit; k++ {
		more = false
		n.WriteManifest("p.yaml", m.String())
		if agentRun(t, n, k, testbed.Running("p")) {
			starts, more = k, true
			before := ids(t, n)
			n.StartAgent()
			n.WaitPods(long, testbed.Running("p"))
			after := ids(t, n)
			if id := before["p/main"]; id != "" && after["p/main"] != id {
				t.Errorf("start, kill point %d: the container was replaced: %v → %v", k, before, after)
			}
			oneOfEach(t, n, fmt.Sprintf("start, kill point %d", k))
		}
		n.KillAgent()

		n.RemoveManifest("p.yaml")
		if agentRun(t, n, k, testbed.Gone("p")) {
			ends, more = k, true
			n.StartAgent()
			n.WaitPods(long, testbed.Gone("p"))
		}
		expectClean(t, n)
		n.KillAgent()
	}
	b, _ := os.ReadFile(n.Path("kills"))
	t.Logf("killed at %d points of the start and %d of the end:\n%s", starts, ends, b)
	if starts < 4 || ends < 3 {
		t.Errorf("only %d and %d kill points were passed: the hooks are gone", starts, ends)
	}
}

// oneOfEach checks that a pod exists once, never restarted.
func oneOfEach(t *testing.T, n *testbed.Node, when string) {
	t.Helper()
	if s := n.Sandboxes(); len(s) != 1 {
		t.Errorf("%s: %d sandboxes", when, len(s))
	}
	if c := n.Containers(); len(c) != 1 || c[0].Metadata.Attempt != 0 {
		t.Errorf("%s: containers %v, want one of attempt 0", when, c)
	}
	if a := n.Addresses(); len(a) != 1 {
		t.Errorf("%s: reserved addresses %v, want one", when, a)
	}
	if c := n.PodCgroups(); len(c) != 1 {
		t.Errorf("%s: cgroups %v, want one", when, c)
	}
	if p := get(t, n, "p"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("%s: %d restarts", when, p.Status.ContainerStatuses[0].RestartCount)
	}
}

// TestAgentKilled: containers do not notice, changes made meanwhile are seen.
func TestAgentKilled(t *testing.T) {
	n := started(t)
	for _, name := range []string{"a", "b", "c"} {
		n.WriteManifest(name+".yaml", manifest{name: name}.String())
	}
	pods := n.WaitPods(long, testbed.Running("a", "b", "c"))
	a := pods["default/a"]
	before := ids(t, n)
	n.KillAgent()
	if now := ids(t, n); fmt.Sprint(now) != fmt.Sprint(before) {
		t.Fatalf("containers died with the agent: %v → %v", before, now)
	}
	n.RemoveManifest("b.yaml")
	n.WriteManifest("d.yaml", manifest{name: "d"}.String())
	if err := n.Signal(n.ContainerPID(before["c/main"]), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.StartAgent()
	n.WaitPods(long, all(testbed.Running("a", "d"), restarts("c", 1), testbed.Gone("b")))
	after := ids(t, n)
	if after["a/main"] != before["a/main"] {
		t.Errorf("a was restarted: %v → %v", before, after)
	}
	now := get(t, n, "a")
	if !now.Status.StartTime.Equal(a.Status.StartTime) || now.UID != a.UID {
		t.Errorf("a: start time %v → %v, uid %s → %s", a.Status.StartTime, now.Status.StartTime, a.UID, now.UID)
	}
	if s := now.Status.ContainerStatuses[0]; s.RestartCount != 0 || !s.State.Running.StartedAt.Equal(&a.Status.ContainerStatuses[0].State.Running.StartedAt) {
		t.Errorf("a: container %+v, before %+v", s, a.Status.ContainerStatuses[0])
	}
}

func TestContainerdKilled(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WaitPods(long, testbed.Running("p"))
	before := ids(t, n)
	n.KillContainerd()
	n.WriteManifest("q.yaml", manifest{name: "q"}.String()) // arrives while the runtime is away
	n.StartContainerd()
	n.WaitPods(long, testbed.Running("p", "q"))
	if now := ids(t, n); now["p/main"] != before["p/main"] {
		t.Errorf("p was restarted with containerd: %v → %v", before, now)
	}
	if p := get(t, n, "p"); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("%d restarts", p.Status.ContainerStatuses[0].RestartCount)
	}
}

func TestShimKilled(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WriteManifest("other.yaml", manifest{name: "other"}.String())
	n.WaitPods(long, testbed.Running("p", "other"))
	before := ids(t, n)
	var sandbox string
	for _, s := range n.Sandboxes() {
		if s.Metadata.Name == "p" {
			sandbox = s.Id
		}
	}
	for _, s := range n.Shims() {
		if strings.Contains(strings.Join(s.Args, " "), sandbox) {
			if err := n.Signal(s.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.WaitPods(long, func(pods testbed.Pods) error {
		for _, s := range n.Sandboxes() {
			if s.Metadata.Name == "p" && s.Id != sandbox && s.State == 0 {
				return testbed.Running("p")(pods)
			}
		}
		return fmt.Errorf("p has no new sandbox yet")
	})
	n.WaitPods(long, testbed.Running("p", "other"))
	now := ids(t, n)
	if now["other/main"] != before["other/main"] {
		t.Errorf("the other pod was restarted: %v → %v", before, now)
	}
	// The dead sandbox stays for as long as its container's logs do, without an address.
	n.Eventually(long, "one ready sandbox per pod, one address each", func() error {
		ready := 0
		for _, s := range n.Sandboxes() {
			if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
				ready++
			}
		}
		if a := len(n.Addresses()); ready != 2 || a != 2 {
			return fmt.Errorf("%d ready sandboxes, %d addresses", ready, a)
		}
		return nil
	})
}

func TestReboot(t *testing.T) {
	n := started(t)
	for _, name := range []string{"a", "b"} {
		n.WriteManifest(name+".yaml", manifest{name: name}.String())
	}
	before := n.WaitPods(long, testbed.Running("a", "b"))
	n.Reboot()
	n.StartAgent()
	after := n.WaitPods(long, testbed.Running("a", "b"))
	for key := range before {
		if before[key].UID != after[key].UID {
			t.Errorf("%s: uid %s → %s", key, before[key].UID, after[key].UID)
		}
	}
	if len(after) != 2 || len(ids(t, n)) != 2 {
		t.Errorf("pods %v, containers %v", after, ids(t, n))
	}
	n.Eventually(long, "addresses of before the reboot are given back", func() error {
		if a := n.Addresses(); len(a) != 2 {
			return fmt.Errorf("reserved addresses: %v", a)
		}
		return nil
	})
	n.RemoveManifest("a.yaml")
	n.RemoveManifest("b.yaml")
	n.WaitPods(long, testbed.Gone("a", "b"))
	expectClean(t, n)
}

func TestSecondAgentIsRefused(t *testing.T) {
	n := started(t)
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	first := n.Command(testbed.Binary(t, ""), "run", "--config", n.ConfigFile())
	cmd := exec.CommandContext(ctx, first.Path, first.Args[1:]...)
	cmd.Env = first.Env
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		t.Fatalf("a second agent on the same state folder: %v: %s", err, out)
	}
	if !strings.Contains(string(out), n.StateDir()) {
		t.Errorf("the error does not name the state folder: %s", out)
	}
	if _, err := n.Pods(); err != nil {
		t.Errorf("the first agent does not answer any more: %v", err)
	}
}

// TestDiskFull fills the state folder: what runs goes on, and what could not
// be done is done when there is room again.
func TestDiskFull(t *testing.T) {
	n := newNode(t)
	if _, err := n.Exec("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", n.StateDir()); err != nil {
		t.Fatal(err)
	}
	n.StartAgent()
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WaitPods(long, testbed.Running("p"))
	before := ids(t, n)
	if out, err := n.Exec("sh", "-c", "dd if=/dev/zero of="+n.StateDir()+"/fill bs=4k 2>/dev/null; df "+n.StateDir()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n.WriteManifest("q.yaml", manifest{name: "q"}.String())
	n.KillAgent()
	told := strings.Count(n.AgentLog(), "no space left")
	n.LaunchAgent(nil) // on a full disk it may or may not come up; it must not harm
	n.Eventually(long, "the new agent has tried", func() error {
		if strings.Count(n.AgentLog(), "no space left") == told {
			return fmt.Errorf("the log has no word of the full disk")
		}
		return nil
	})
	if now := ids(t, n); now["p/main"] != before["p/main"] {
		t.Fatalf("a full disk ended p: %v → %v", before, now)
	}
	if _, err := n.Exec("rm", n.StateDir()+"/fill"); err != nil {
		t.Fatal(err)
	}
	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, testbed.Running("p", "q"))
	if now := ids(t, n); now["p/main"] != before["p/main"] {
		t.Errorf("p was restarted: %v → %v", before, now)
	}
}

// shipImages puts the demo images where an agent imports them from.
func shipImages(t *testing.T, n *testbed.Node) {
	t.Helper()
	if err := os.MkdirAll(n.StateDir()+"/images", 0o755); err != nil {
		t.Fatal(err)
	}
	archive, err := os.ReadFile(testbed.Images(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.StateDir()+"/images/demo.tar", archive, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestEmbedded runs on a private containerd that the agent supervises.
func TestEmbedded(t *testing.T) {
	n := newNode(t, testbed.WithContainerd(testbed.NoContainerd))
	shipImages(t, n)
	n.StartAgent()
	n.WriteManifest("web.yaml", deck(t, "pod-example"))
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	pods := n.WaitPods(long, testbed.Running("pod-example", "p"))
	web, _ := pods.Get("pod-example")
	n.Eventually(long, "nginx answers", func() error { _, err := n.HTTPGet("http://" + web.Status.PodIP + "/"); return err })
	containerID := web.Status.ContainerStatuses[0].ContainerID

	n.KillAgent()
	if _, err := n.HTTPGet("http://" + web.Status.PodIP + "/"); err != nil {
		t.Fatalf("the pod died with the agent: %v", err)
	}
	n.StartAgent()
	web = n.WaitPods(long, testbed.Running("pod-example", "p"))["default/pod-example"]
	if s := web.Status.ContainerStatuses[0]; s.ContainerID != containerID || s.RestartCount != 0 {
		t.Errorf("after the agent's kill: %+v, want container %s", s, containerID)
	}

	killEmbedded(t, n)
	n.WriteManifest("q.yaml", manifest{name: "q"}.String())
	web = n.WaitPods(long, testbed.Running("pod-example", "p", "q"))["default/pod-example"]
	if s := web.Status.ContainerStatuses[0]; s.ContainerID != containerID || s.RestartCount != 0 {
		t.Errorf("after containerd's kill: %+v, want container %s", s, containerID)
	}

	n.Reboot()
	n.StartAgent()
	n.WaitPods(long, testbed.Running("pod-example", "p", "q"))
}

func killEmbedded(t *testing.T, n *testbed.Node) {
	t.Helper()
	killed := 0
	for _, p := range n.Processes() {
		if strings.HasSuffix(p.Args[0], "containerd") {
			if err := n.Signal(p.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed++
		}
	}
	if killed != 1 {
		t.Fatalf("%d containerd processes, want the embedded one: %v", killed, n.Processes())
	}
}

// TestSharedRuntime: a sandbox that is not ours is left alone.
func TestSharedRuntime(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WaitPods(long, testbed.Running("p"))
	n.StopAgent()

	other := n.Config
	n.EditConfig(func(c *config.NodeAgentConfiguration) { // another agent on the same containerd
		c.NodeName = "other"
		c.StateDir, c.RunDir, c.Manifests = n.Path("state2"), n.Path("run2"), n.Path("manifests2")
		c.Runtime.CgroupRoot = "/" + n.Name + "/second"
	})
	for _, d := range []string{"state2", "run2", "manifests2"} {
		if err := os.MkdirAll(n.Path(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := ids(t, n)
	n.LaunchAgent(nil)
	n.Eventually(long, "the second agent is ready", func() error {
		_, err := n.HTTPGet("http://127.0.0.1:10248/readyz")
		return err
	})
	n.StopAgent()
	if now := ids(t, n); fmt.Sprint(now) != fmt.Sprint(before) {
		t.Errorf("another agent touched what is not its own: %v → %v", before, now)
	}
	n.Config = other
}
