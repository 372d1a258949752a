package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// data makes a folder on the node that pods mount as /data, and returns the
// lines for the pod's and the container's spec.
func data(t *testing.T, n *testbed.Node) (dir, spec, container string) {
	t.Helper()
	dir = n.Path("data")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir, "volumes:\n- name: data\n  hostPath: {path: " + dir + ", type: Directory}\n",
		"volumeMounts:\n- {name: data, mountPath: /data}\n"
}

func TestRestartPolicies(t *testing.T) {
	n := started(t)
	n.WriteManifest("always.yaml", manifest{name: "always", script: "sleep 0.2; exit 3"}.String())
	n.WriteManifest("onfailure.yaml", manifest{name: "onfailure", spec: "restartPolicy: OnFailure\n",
		script: "exit 0"}.String())
	n.WriteManifest("never.yaml", manifest{name: "never", spec: "restartPolicy: Never\n", script: "exit 7"}.String())
	_, spec, container := data(t, n)
	n.WriteManifest("once.yaml", manifest{name: "once", spec: "restartPolicy: OnFailure\n" + spec, container: container,
		script: "[ -e /data/been ] && exit 0; touch /data/been; exit 1"}.String())

	n.WaitPods(long, waiting("always", "CrashLoopBackOff"))
	if out := cli(t, n, "get", "pods"); !strings.Contains(out, "CrashLoopBackOff") && !hasRow(out, "always", "1/1", "Running") && !strings.Contains(out, "Error") {
		t.Errorf("get pods does not show the crash loop:\n%s", out)
	}
	pods := n.WaitPods(long, all(
		testbed.Phase("onfailure", v1.PodSucceeded), testbed.Phase("never", v1.PodFailed), testbed.Phase("once", v1.PodSucceeded),
		func(p testbed.Pods) error {
			a, err := p.Get("always")
			if err != nil {
				return err
			}
			c := a.Status.ContainerStatuses[0]
			if c.RestartCount < 2 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 3 {
				return fmt.Errorf("always: %+v", c)
			}
			return nil
		}))
	never, _ := pods.Get("never")
	if s := never.Status.ContainerStatuses[0]; s.RestartCount != 0 || s.State.Terminated == nil || s.State.Terminated.ExitCode != 7 {
		t.Errorf("never: %+v", s)
	}
	once, _ := pods.Get("once")
	if s := once.Status.ContainerStatuses[0]; s.RestartCount != 1 {
		t.Errorf("once: %d restarts, want 1", s.RestartCount)
	}
}

func TestInitContainersRunInOrder(t *testing.T) {
	n := started(t)
	dir, spec, container := data(t, n)
	init := func(name string) string {
		return fmt.Sprintf("- name: %s\n  image: busybox\n  imagePullPolicy: IfNotPresent\n  command: [sh, -c, 'echo %s >>/data/order']\n%s",
			name, name, indent(container, "  "))
	}
	n.WriteManifest("p.yaml", manifest{name: "p", spec: spec + "initContainers:\n" + init("first") + init("second"),
		container: container, script: "echo main >>/data/order; " + forever}.String())
	n.WaitPods(long, testbed.Running("p"))
	fileHas(t, n, filepath.Join(dir, "order"), "first", "second", "main")
}

// TestReplace edits a spec: the old pod has fully ended before the new one
// starts, and exactly one of them exists afterwards.
func TestReplace(t *testing.T) {
	n := started(t)
	dir, spec, container := data(t, n)
	version := func(v string) string {
		return manifest{name: "p", spec: spec, container: container,
			script: "echo start-" + v + " >>/data/order; trap 'sleep 1; echo end-" + v + " >>/data/order; exit 0' TERM; sleep 100000 & wait"}.String()
	}
	n.WriteManifest("p.yaml", version("1"))
	first := n.WaitPods(long, testbed.Running("p"))["default/p"]
	fileHas(t, n, filepath.Join(dir, "order"), "start-1")
	n.WriteManifest("p.yaml", version("2"))
	n.WaitPods(long, func(p testbed.Pods) error {
		now, err := p.Get("p")
		if err == nil && now.UID == first.UID {
			err = fmt.Errorf("still the old pod")
		}
		if err != nil {
			return err
		}
		return testbed.Running("p")(p)
	})
	fileHas(t, n, filepath.Join(dir, "order"), "start-1", "end-1", "start-2")
	n.Eventually(long, "the old sandbox is removed", func() error {
		if s := n.Sandboxes(); len(s) != 1 {
			return fmt.Errorf("%d sandboxes", len(s))
		}
		return nil
	})
}

// TestNothingHappens makes changes that must not restart a container.
func TestNothingHappens(t *testing.T) {
	n := started(t)
	m := manifest{name: "p", labels: "tier: a"}
	n.WriteManifest("p.yaml", m.String())
	before := n.WaitPods(long, testbed.Running("p"))["default/p"]
	id := runningID(t, n, "p", "main")

	n.WriteManifest("p.yaml", m.String()) // the same bytes
	m.labels = "tier: b"
	n.WriteManifest("p.yaml", m.String())
	after := n.WaitPods(long, func(p testbed.Pods) error {
		now, err := p.Get("p")
		if err == nil && now.Labels["tier"] != "b" {
			err = fmt.Errorf("labels %v", now.Labels)
		}
		return err
	})["default/p"]
	if after.UID != before.UID {
		t.Errorf("a label change replaced the pod: %s → %s", before.UID, after.UID)
	}

	n.WriteManifest("q.yaml", m.String()) // moved to another file
	n.RemoveManifest("p.yaml")
	n.WriteManifest("probe.yaml", manifest{name: "probe"}.String())
	n.WaitPods(long, testbed.Running("p", "probe")) // the folder was read since
	if got := runningID(t, n, "p", "main"); got != id {
		t.Errorf("the container was restarted: %s → %s", id, got)
	}
	if p := get(t, n, "p"); p.UID != before.UID || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("uid %s → %s, %d restarts", before.UID, p.UID, p.Status.ContainerStatuses[0].RestartCount)
	}
}

// TestContainerAndSandboxLost kills processes behind the agent's back.
func TestContainerAndSandboxLost(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WaitPods(long, testbed.Running("p"))
	if err := n.Signal(n.ContainerPID(runningID(t, n, "p", "main")), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p := n.WaitPods(long, restarts("p", 1))["default/p"]
	if last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 137 {
		t.Errorf("last state %+v, want exit code 137", last)
	}
	sandbox := n.Sandboxes()[0].Id
	for _, proc := range n.Processes() {
		if proc.Args[0] == "/pause" {
			if err := n.Signal(proc.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.WaitPods(long, func(pods testbed.Pods) error {
		for _, s := range n.Sandboxes() {
			if s.Id != sandbox && s.State == 0 {
				return testbed.Running("p")(pods)
			}
		}
		return fmt.Errorf("no new sandbox yet")
	})
	n.WaitPods(long, testbed.Running("p"))
	if got := len(ids(t, n)); got != 1 {
		t.Errorf("%d containers run, want 1", got)
	}
}

func TestHostNetworkAndHostPort(t *testing.T) {
	n := started(t, testbed.WithOutside())
	n.WriteManifest("host.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: host}, spec: {hostNetwork: true, containers: [
		{name: nginx, image: "nginx:stable-alpine", ports: [{containerPort: 80}]}]}}`)
	n.WriteManifest("port.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: port}, spec: {containers: [
		{name: nginx, image: "nginx:stable-alpine", ports: [{containerPort: 80, hostPort: 8081}]}]}}`)
	pods := n.WaitPods(long, testbed.Running("host", "port"))
	if p, _ := pods.Get("host"); p.Status.PodIP != testbed.NodeIP {
		t.Errorf("host network pod: address %q, want the node's", p.Status.PodIP)
	}
	for _, url := range []string{"http://" + testbed.NodeIP + ":80/", "http://" + testbed.NodeIP + ":8081/"} {
		n.Eventually(long, url+" from outside", func() error { _, err := n.HTTPGetOutside(url); return err })
	}
	n.RemoveManifest("host.yaml")
	n.RemoveManifest("port.yaml")
	n.WaitPods(long, testbed.Gone("host", "port"))
	expectClean(t, n)
	if _, err := n.HTTPGetOutside("http://" + testbed.NodeIP + ":8081/"); err == nil {
		t.Error("the host port still answers after its pod is gone")
	}
}

func TestResources(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p",
		spec:      "shareProcessNamespace: true\nvolumes:\n- name: mem\n  emptyDir: {medium: Memory, sizeLimit: 1Mi}\n",
		container: "resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 500m, memory: 32Mi}}\nvolumeMounts:\n- {name: mem, mountPath: /mem}\n"}.String())
	p := n.WaitPods(long, testbed.Running("p"))["default/p"]
	if p.Status.QOSClass != v1.PodQOSBurstable {
		t.Errorf("QoS class %q, want Burstable", p.Status.QOSClass)
	}
	id := runningID(t, n, "p", "main")
	limit, code := n.ExecSync(id, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max")
	if code != 0 || strings.TrimSpace(limit) != "33554432" {
		t.Errorf("memory limit in the container: %q (code %d), want 33554432", limit, code)
	}
	cgroups := n.PodCgroups()
	if len(cgroups) != 1 || !strings.Contains(cgroups[0], "/burstable/pod"+string(p.UID)) {
		t.Errorf("pod cgroups %v, want one below burstable", cgroups)
	}
	if out, code := n.ExecSync(id, "sh", "-c", "dd if=/dev/zero of=/mem/f bs=1M count=2"); code == 0 || !strings.Contains(out, "No space") {
		t.Errorf("2 MiB into a 1 MiB volume: code %d, %q", code, out)
	}
	if out, _ := n.ExecSync(id, "cat", "/proc/1/cmdline"); strings.Contains(out, "trap") {
		t.Errorf("process 1 is the container's own in a shared process namespace: %q", out)
	}
}
