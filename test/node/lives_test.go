package node

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// side is a container beside main: lines of one of the lists of a pod's spec.
func side(name, script, rest string) string {
	return fmt.Sprintf("- name: %s\n  image: busybox\n  imagePullPolicy: IfNotPresent\n  command: [/bin/sh, -c, %q]\n%s", name, script, indent(rest, "  "))
}

// ended is a condition: the pod has come to that end.
func ended(name string, phase v1.PodPhase, reason string) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		p, err := pods.Get(name)
		if err == nil && (p.Status.Phase != phase || p.Status.Reason != reason) {
			err = fmt.Errorf("%s: phase %s, reason %q: %+v", name, p.Status.Phase, p.Status.Reason, p.Status.ContainerStatuses)
		}
		return err
	}
}

// wantEvents waits for events that hold all of these texts in one line.
func wantEvents(n *testbed.Node, lines ...[]string) {
	n.Eventually(long, "events", func() error {
		out, err := n.CLI("get", "events")
		if err != nil {
			return err
		}
		for _, want := range lines {
			found := false
			for line := range strings.Lines(out) {
				has := true
				for _, text := range want {
					has = has && strings.Contains(line, text)
				}
				found = found || has
			}
			if !found {
				return fmt.Errorf("no event with %q in\n%s", want, out)
			}
		}
		return nil
	})
}

// order has a container note its beginning and its end in /data/order.
func order(name, until string) string {
	return "echo " + name + "+ >>/data/order; trap 'echo " + name + "- >>/data/order; exit 0' TERM; " + until
}

const untilTERM = "sleep 100000 & wait"

// TestLives: how containers begin, are watched, and end, on one node.
func TestLives(t *testing.T) {
	n := started(t)
	dir, volume, mounts := data(t, n)
	t.Run("probes", func(t *testing.T) { probesEndContainers(t, n) })
	t.Run("sidecars", func(t *testing.T) { sidecars(t, n, dir, volume, mounts) })
	t.Run("hooks", func(t *testing.T) { hooks(t, n, dir, volume, mounts) })
	t.Run("rules", func(t *testing.T) { rules(t, n, volume, mounts) })
	t.Run("amended", func(t *testing.T) { amended(t, n) })
	t.Run("resized", func(t *testing.T) { resized(t, n) })
	t.Run("deadline", func(t *testing.T) { deadline(t, n) })
}

// probesEndContainers: a container starts by its startup probe, and is restarted
// when its liveness probe fails; an agent that is killed forgets neither.
func probesEndContainers(t *testing.T, n *testbed.Node) {
	n.WriteManifest("lively.yaml", manifest{name: "lively", script: "mkdir /www; touch /www/healthz; httpd -f -p 8080 -h /www", container: `startupProbe: {exec: {command: [test, -e, /go]}, periodSeconds: 1, failureThreshold: 1000}
livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 2, terminationGracePeriodSeconds: 1}
readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
`}.String())
	started := func(want bool) func(testbed.Pods) error {
		return func(pods testbed.Pods) error {
			p, err := pods.Get("lively")
			if err == nil && (len(p.Status.ContainerStatuses) == 0 || *p.Status.ContainerStatuses[0].Started != want) {
				err = fmt.Errorf("started is not %t: %+v", want, p.Status.ContainerStatuses)
			}
			return err
		}
	}
	n.WaitPods(long, all(started(false), ready(false, "lively")))
	wantEvents(n, []string{"Unhealthy", "pod/lively", "Startup probe failed"})
	sh(t, n, "lively", "touch /go")
	n.WaitPods(long, all(started(true), ready(true, "lively")))
	sh(t, n, "lively", "rm /go")
	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, func(pods testbed.Pods) error {
		p, err := pods.Get("lively")
		if err != nil || p.Status.Phase == v1.PodUnknown {
			return fmt.Errorf("not looked at: %v", err)
		}
		if err := all(started(true), ready(true, "lively"))(pods); err != nil {
			t.Errorf("after the agent was killed: %v", err)
		}
		return nil
	})
	sh(t, n, "lively", "rm /www/healthz")
	n.WaitPods(long, all(restarts("lively", 1), started(false)))
	wantEvents(n, []string{"Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404"},
		[]string{"Killing", "Container main failed liveness probe, will be restarted"})
	n.RemoveManifest("lively.yaml")
	n.WaitPods(long, testbed.Gone("lively"))
}

// sidecars begin before the others, one after another, and end after them; a
// pod completes although they run.
func sidecars(t *testing.T, n *testbed.Node, dir, volume, mounts string) {
	m := manifest{name: "job", container: mounts, script: "echo main+ >>/data/order; sleep 1; echo main- >>/data/order",
		spec: volume + "restartPolicy: Never\ninitContainers:\n" +
			side("first", "sleep 1; touch /up; "+order("first", untilTERM), mounts+"restartPolicy: Always\nstartupProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}\n") +
			side("setup", "echo setup >>/data/order", mounts) +
			side("second", order("second", untilTERM), mounts+"restartPolicy: Always\n")}
	n.WriteManifest("job.yaml", m.String())
	n.WaitPods(long, ended("job", v1.PodSucceeded, ""))
	fileHas(t, n, filepath.Join(dir, "order"), "first+", "setup", "second+", "main+", "main-", "second-", "first-")
	n.RemoveManifest("job.yaml")
	n.WaitPods(long, testbed.Gone("job"))
	clear(t, n, dir)
}

func clear(t *testing.T, n *testbed.Node, dir string) {
	t.Helper()
	if out, err := n.Exec("sh", "-c", "rm -rf "+dir+"/*"); err != nil {
		t.Fatal(out, err)
	}
}

// hooks: what is behind a container waits for its postStart hook; the preStop
// hook comes before TERM.
func hooks(t *testing.T, n *testbed.Node, dir, volume, mounts string) {
	const hook = `lifecycle:
  postStart: {exec: {command: [sh, -c, "sleep 1; echo hello >>/data/order"]}}
  preStop: {exec: {command: [sh, -c, "echo bye >>/data/order"]}}
`
	m := manifest{name: "hooked", container: mounts + hook, spec: volume, script: "trap 'echo term >>/data/order; exit 0' TERM; " + untilTERM}
	text := m.String() + indent(side("next", "echo next >>/data/order; "+forever, mounts), "  ")
	n.WriteManifest("hooked.yaml", text)
	n.WriteManifest("failing.yaml", manifest{name: "failing", container: "lifecycle: {postStart: {httpGet: {port: 1}}}\n"}.String())
	n.WaitPods(long, testbed.Running("hooked"))
	fileHas(t, n, filepath.Join(dir, "order"), "hello", "next")
	wantEvents(n, []string{"FailedPostStartHook", "pod/failing", "PostStartHook failed"}, []string{"Killing", "pod/failing", "FailedPostStartHook"})
	n.WaitPods(long, waiting("failing", "CrashLoopBackOff"))
	n.RemoveManifest("hooked.yaml")
	n.RemoveManifest("failing.yaml")
	n.WaitPods(long, testbed.Gone("hooked", "failing"))
	fileHas(t, n, filepath.Join(dir, "order"), "hello", "next", "bye", "term")
	clear(t, n, dir)
}

// rules restart a container, or all of the pod in its sandbox.
func rules(t *testing.T, n *testbed.Node, volume, mounts string) {
	n.WriteManifest("again.yaml", manifest{name: "again", script: "[ -e /data/again ] && exit 0; touch /data/again; exit 42", spec: volume + "restartPolicy: Never\n",
		container: mounts + "restartPolicy: Never\nrestartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]\n"}.String())
	n.WriteManifest("anew.yaml", manifest{name: "anew", script: "if [ -e /data/anew ]; then " + forever + "; fi; touch /data/anew; sleep 1; exit 88",
		spec:      volume + "restartPolicy: Never\ninitContainers:\n" + side("setup", "true", ""),
		container: mounts + "restartPolicy: Never\nrestartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [88]}}]\n"}.String()+
		indent(side("beside", forever, ""), "  "))
	n.WaitPods(long, all(ended("again", v1.PodSucceeded, ""), func(pods testbed.Pods) error {
		p, err := pods.Get("anew")
		if err != nil {
			return err
		}
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if c.RestartCount != 1 {
				return fmt.Errorf("%s: %+v", c.Name, c)
			}
		}
		return testbed.Running("anew")(pods)
	}))
	made := 0
	for _, s := range n.Sandboxes() {
		if s.Metadata.Name == "anew" {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d sandboxes, want 1", made)
	}
	n.RemoveManifest("again.yaml")
	n.RemoveManifest("anew.yaml")
	n.WaitPods(long, testbed.Gone("again", "anew"))
}

// amended: a container for debugging sees the processes of another one, a gate
// is opened from outside, and both stay when the agent is killed.
func amended(t *testing.T, n *testbed.Node) {
	n.WriteManifest("gated.yaml", manifest{name: "gated", spec: "readinessGates: [{conditionType: example.com/open}]\n"}.String())
	n.WaitPods(long, all(testbed.Running("gated"), podReady("gated", false)))
	patch(t, n, "gated", "status", `{"status":{"conditions":[{"type":"example.com/open","status":"True"}]}}`)
	patch(t, n, "gated", "ephemeralcontainers", `{"spec":{"ephemeralContainers":[{"name":"debug","image":"busybox","imagePullPolicy":"IfNotPresent","targetContainerName":"main","command":["sleep","100000"]}]}}`)
	debugging := func(pods testbed.Pods) error {
		p, err := pods.Get("gated")
		if err == nil && (len(p.Status.EphemeralContainerStatuses) != 1 || p.Status.EphemeralContainerStatuses[0].State.Running == nil) {
			err = fmt.Errorf("%+v", p.Status.EphemeralContainerStatuses)
		}
		return err
	}
	n.WaitPods(long, all(podReady("gated", true), debugging))
	id := runningID(t, n, "gated", "debug")
	if out, _ := n.ExecSync(id, "cat", "/proc/1/cmdline"); !strings.Contains(out, "trap") {
		t.Errorf("process 1 is not the target's: %q", out)
	}
	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, all(testbed.Running("gated"), podReady("gated", true), debugging))
	if now := runningID(t, n, "gated", "debug"); now != id {
		t.Errorf("started again: %s, %s", id, now)
	}
	n.RemoveManifest("gated.yaml")
	n.WaitPods(long, testbed.Gone("gated"))
}

// patch changes a pod, or what is below it, over the API.
func patch(t *testing.T, n *testbed.Node, pod, sub, body string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPatch, "http://agent/api/v1/namespaces/default/pods/"+pod+"/"+sub, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/strategic-merge-patch+json")
	resp, err := n.API().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, b)
	}
}

// resized: the processes of a container have other limits and notice nothing,
// whichever agent is there; a container that wants it so is restarted.
func resized(t *testing.T, n *testbed.Node) {
	const small = "resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {cpu: 200m, memory: 32Mi}}\n"
	n.WriteManifest("sized.yaml", manifest{name: "sized", container: small}.String())
	n.WriteManifest("again.yaml", manifest{name: "again", container: small + "resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]\n"}.String())
	n.WaitPods(long, testbed.Running("sized", "again"))
	id := runningID(t, n, "sized", "main")
	limits := func(pod, memory string) func(testbed.Pods) error {
		return func(pods testbed.Pods) error {
			p, err := pods.Get(pod)
			if err != nil {
				return err
			}
			if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].Resources == nil || p.Status.ContainerStatuses[0].Resources.Limits.Memory().String() != memory {
				return fmt.Errorf("%s: %+v", pod, p.Status.ContainerStatuses)
			}
			return nil
		}
	}
	kernel := func(pod, memory, cpu string) {
		t.Helper()
		const script = `cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max; cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d" " -f1 /sys/fs/cgroup/cpu.max`
		if got := strings.Fields(sh(t, n, pod, script)); len(got) != 2 || got[0] != memory || got[1] != cpu {
			t.Errorf("%s: the kernel has %q, want %s and %s", pod, got, memory, cpu)
		}
	}
	kernel("sized", "33554432", "20000")
	for _, to := range []struct{ memory, cpu, bytes, quota string }{{"64Mi", "400m", "67108864", "40000"}, {"24Mi", "100m", "25165824", "10000"}} {
		body := `{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"100m","memory":"16Mi"},"limits":{"memory":"` + to.memory + `","cpu":"` + to.cpu + `"}}}]}}`
		patch(t, n, "sized", "resize", body)
		n.WaitPods(long, limits("sized", to.memory))
		kernel("sized", to.bytes, to.quota)
	}
	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, all(testbed.Running("sized", "again"), limits("sized", "24Mi")))
	kernel("sized", "25165824", "10000")
	if now := runningID(t, n, "sized", "main"); now != id {
		t.Errorf("started again: %s, %s", id, now)
	}
	patch(t, n, "again", "resize", `{"spec":{"containers":[{"name":"main","resources":{"limits":{"memory":"48Mi"}}}]}}`)
	n.WaitPods(long, all(restarts("again", 1), limits("again", "48Mi")))
	kernel("again", "50331648", "20000")
	n.RemoveManifest("sized.yaml")
	n.RemoveManifest("again.yaml")
	n.WaitPods(long, testbed.Gone("sized", "again"))
}

// podReady is a condition: the pod is Ready or not.
func podReady(name string, want bool) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		p, err := pods.Get(name)
		if err != nil {
			return err
		}
		for _, c := range p.Status.Conditions {
			if c.Type == v1.PodReady && (c.Status == v1.ConditionTrue) == want {
				return nil
			}
		}
		return fmt.Errorf("%s: ready is not %t: %+v", name, want, p.Status.Conditions)
	}
}

func deadline(t *testing.T, n *testbed.Node) {
	n.WriteManifest("short.yaml", manifest{name: "short", spec: "activeDeadlineSeconds: 2\n"}.String())
	n.WaitPods(long, ended("short", v1.PodFailed, "DeadlineExceeded"))
	wantEvents(n, []string{"DeadlineExceeded", "pod/short", "Pod was active on the node longer than the specified deadline"})
	n.RemoveManifest("short.yaml")
	n.WaitPods(long, testbed.Gone("short"))
	expectClean(t, n)
}
