package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// sh runs a shell script in a pod's main container; it must succeed.
func sh(t *testing.T, n *testbed.Node, pod, script string) string {
	t.Helper()
	out, code := n.ExecSync(runningID(t, n, pod, "main"), "sh", "-c", script)
	if code != 0 {
		t.Errorf("%s: %s: code %d: %s", pod, script, code, out)
	}
	return strings.TrimSpace(out)
}

// TestNamespaces: each of the host's namespaces is shared when asked for, and
// only then.
func TestNamespaces(t *testing.T) {
	n := started(t)
	shared := map[string]string{"hostPID": "pid", "hostIPC": "ipc", "hostNetwork": "net"}
	names := []string{"plain"}
	n.WriteManifest("plain.yaml", manifest{name: "plain"}.String())
	for field := range shared {
		name := strings.ToLower(field)
		names = append(names, name)
		n.WriteManifest(name+".yaml", manifest{name: name, spec: field + ": true\n"}.String())
	}
	n.WaitPods(long, testbed.Running(names...))
	of := func(pid int, ns string) string {
		link, err := os.Readlink(fmt.Sprintf("%s/proc/%d/ns/%s", n.Root(), pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	for _, name := range names {
		pid := n.ContainerPID(runningID(t, n, name, "main"))
		for field, ns := range shared {
			if want := name == strings.ToLower(field); (of(pid, ns) == of(1, ns)) != want {
				t.Errorf("%s: shares the host's %s namespace: %v, want %v", name, ns, !want, want)
			}
		}
	}
}

// TestProcessAttributes: what a container's process is started with.
func TestProcessAttributes(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    workingDir: /tmp/deep
    stdin: true
    tty: true
    env:
    - {name: A, value: one}
    - {name: B, value: "$(A)-two $$(A) $(NONE)"}
    command: ["/bin/sh", "-c"]
    args: ["echo 'B=$(B)'; tty; pwd; hostname; exec sleep 100000"]
`)
	n.WaitPods(long, testbed.Running("p"))
	n.Eventually(long, "the container's log", func() error {
		out, err := n.CLI("logs", "p")
		got := strings.Fields(out)
		if want := "B=one-two $(A) $(NONE) /dev/pts/0 /tmp/deep p"; err != nil || strings.Join(got, " ") != want {
			return fmt.Errorf("%v: %q, want %q", err, got, want)
		}
		return nil
	})
	if out := sh(t, n, "p", "cat /etc/hosts"); !strings.HasSuffix(out, "\tp") {
		t.Errorf("/etc/hosts lacks the pod's name: %s", out)
	}
}

// TestOOMKilled: a container that outgrows its limit is told apart from one
// that crashed, and is started again.
func TestOOMKilled(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p", script: "x=x; while :; do x=$x$x; done",
		container: "resources: {limits: {memory: 8Mi}}\n"}.String())
	n.WaitPods(long, func(pods testbed.Pods) error {
		p, err := pods.Get("p")
		if err != nil {
			return err
		}
		for _, s := range p.Status.ContainerStatuses {
			if l := s.LastTerminationState.Terminated; l != nil && l.Reason == "OOMKilled" && l.ExitCode == 137 && s.RestartCount > 0 {
				return nil
			}
		}
		return fmt.Errorf("containers %+v", p.Status.ContainerStatuses)
	})
}

// TestSizeLimit: a pod that fills its emptyDir beyond the limit is evicted, and
// stays so when the agent is killed; one that keeps to it is left alone.
func TestSizeLimit(t *testing.T) {
	n := started(t)
	for name, kilobytes := range map[string]int{"greedy": 3000, "modest": 500} {
		n.WriteManifest(name+".yaml", manifest{name: name, script: fmt.Sprintf("dd if=/dev/zero of=/data/f bs=1k count=%d; %s", kilobytes, forever),
			spec:      "volumes:\n- {name: data, emptyDir: {sizeLimit: 1Mi}}\n",
			container: "volumeMounts: [{name: data, mountPath: /data}]\n"}.String())
	}
	evicted := func(pods testbed.Pods) error {
		p, err := pods.Get("greedy")
		if err == nil && (p.Status.Phase != v1.PodFailed || p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, `"data" exceeds the limit "1Mi"`)) {
			err = fmt.Errorf("greedy: %+v", p.Status)
		}
		return err
	}
	n.WaitPods(long, all(evicted, testbed.Running("modest")))
	n.Eventually(long, "its volume is gone", func() error {
		if out := cli(t, n, "get", "volumes", "-A"); strings.Contains(out, "greedy") || !strings.Contains(out, "modest") {
			return fmt.Errorf("volumes:\n%s", out)
		}
		return nil
	})
	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, all(evicted, testbed.Running("modest")))
	if out := cli(t, n, "describe", "pod", "greedy"); !strings.Contains(out, "Evicted") {
		t.Errorf("describe pod:\n%s", out)
	}
}

// TestDualStack: a pod has an address of each family and answers on both.
func TestDualStack(t *testing.T) {
	n := newNode(t)
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.Network.PodCIDRs = []string{"10.99.0.0/24", "fd00:99::/64"}
	})
	n.StartAgent()
	n.WriteManifest("web.yaml", deck(t, "pod-example"))
	p := n.WaitPods(long, testbed.Running("pod-example"))["default/pod-example"]
	if len(p.Status.PodIPs) != 2 || !strings.HasPrefix(p.Status.PodIPs[0].IP, "10.99.0.") || !strings.HasPrefix(p.Status.PodIPs[1].IP, "fd00:99::") {
		t.Fatalf("addresses %v", p.Status.PodIPs)
	}
	for _, url := range []string{"http://" + p.Status.PodIPs[0].IP + "/", "http://[" + p.Status.PodIPs[1].IP + "]/"} {
		n.Eventually(long, url, func() error { _, err := n.HTTPGet(url); return err })
	}
}

// TestHostPaths: every type, the kinds of access, and mounts that travel.
func TestHostPaths(t *testing.T) {
	n := started(t)
	host := n.Path("host")
	if err := os.MkdirAll(filepath.Join(host, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var volumes, mounts strings.Builder
	for name, typ := range map[string]string{"dir": "Directory", "file": "File", "newdir": "DirectoryOrCreate", "newfile": "FileOrCreate", "any": "''"} {
		path := filepath.Join(host, name)
		if name == "any" {
			path = host
		}
		fmt.Fprintf(&volumes, "- {name: %s, hostPath: {path: %s, type: %s}}\n", name, path, typ)
		fmt.Fprintf(&mounts, "- {name: %s, mountPath: /m/%s, readOnly: %v}\n", name, name, name == "file")
	}
	fmt.Fprintf(&volumes, "- {name: socket, hostPath: {path: %s, type: Socket}}\n- {name: device, hostPath: {path: /dev/null, type: CharDevice}}\n", n.SocketPath())
	volumes.WriteString("- {name: travel, hostPath: {path: " + filepath.Join(host, "dir") + "}}\n")
	mounts.WriteString("- {name: travel, mountPath: /m/travel, mountPropagation: HostToContainer}\n")
	n.WriteManifest("p.yaml", manifest{name: "p", spec: "volumes:\n" + volumes.String(), container: "volumeMounts:\n" + mounts.String()}.String())
	n.WaitPods(long, testbed.Running("p"))

	rows := map[string]int{}
	for line := range strings.Lines(cli(t, n, "get", "volumes", "--no-headers")) {
		f := strings.Fields(line)
		rows[f[1]]++
		if want := map[bool]string{true: "read-only", false: "read-write"}[f[1] == "file"]; f[2] != "hostPath" || f[3] != want || rows[f[1]] > 1 {
			t.Errorf("get volumes: %s", line)
		}
	}
	if len(rows) != strings.Count(mounts.String(), "mountPath:") {
		t.Errorf("get volumes shows %v", rows)
	}

	sh(t, n, "p", "echo x >/m/newfile && echo y >/m/newdir/y && echo z >/m/dir/z")
	if out, code := n.ExecSync(runningID(t, n, "p", "main"), "sh", "-c", "cat /m/file; echo x >>/m/file"); code == 0 || !strings.Contains(out, "Read-only") {
		t.Errorf("a write to a read-only file: code %d: %s", code, out)
	}
	for name, want := range map[string]string{"newfile": "x\n", "newdir/y": "y\n", "dir/z": "z\n", "file": "hello\n"} {
		if b, err := os.ReadFile(filepath.Join(host, name)); err != nil || string(b) != want {
			t.Errorf("%s on the host: %q, %v", name, b, err)
		}
	}
	if _, err := n.Exec("mount", "-t", "tmpfs", "tmpfs", filepath.Join(host, "dir")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Exec("touch", filepath.Join(host, "dir", "later")); err != nil {
		t.Fatal(err)
	}
	sh(t, n, "p", "test -e /m/travel/later && test ! -e /m/dir/later")
	if _, err := n.Exec("umount", filepath.Join(host, "dir")); err != nil {
		t.Fatal(err)
	}

	n.WriteManifest("wrong.yaml", manifest{name: "wrong", spec: "volumes:\n- {name: v, hostPath: {path: " + host + "/file, type: Directory}}\n",
		container: "volumeMounts: [{name: v, mountPath: /v}]\n"}.String())
	n.Eventually(long, "an event says what is wrong", func() error {
		out, err := n.CLI("get", "events")
		if err == nil && !(strings.Contains(out, "FailedMount") && strings.Contains(out, "not a directory")) {
			err = fmt.Errorf("events:\n%s", out)
		}
		return err
	})
	n.RemoveManifest("wrong.yaml")
	n.RemoveManifest("p.yaml")
	n.WaitPods(long, testbed.Gone("p", "wrong"))
	expectClean(t, n)
	if b, err := os.ReadFile(filepath.Join(host, "dir/z")); err != nil || string(b) != "z\n" {
		t.Errorf("the host's files after the pod: %q, %v", b, err)
	}
}

// TestCgroupsByQoS: kubelet's tree, on this host's cgroup version.
func TestCgroupsByQoS(t *testing.T) {
	n := started(t)
	for name, res := range map[string]string{
		"guaranteed": "{limits: {cpu: 100m, memory: 32Mi}}", "burstable": "{requests: {cpu: 50m}}", "besteffort": "{}",
	} {
		n.WriteManifest(name+".yaml", manifest{name: name, container: "resources: " + res + "\n"}.String())
	}
	pods := n.WaitPods(long, testbed.Running("guaranteed", "burstable", "besteffort"))
	cgroups := strings.Join(n.PodCgroups(), "\n")
	for name, where := range map[string]string{"guaranteed": "/kubepods/pod", "burstable": "/kubepods/burstable/pod", "besteffort": "/kubepods/besteffort/pod"} {
		p, _ := pods.Get(name)
		if !strings.Contains(cgroups, where+string(p.UID)) {
			t.Errorf("%s is not at %s:\n%s", name, where, cgroups)
		}
		if strings.ToLower(string(p.Status.QOSClass)) != name {
			t.Errorf("%s: QoS class %s", name, p.Status.QOSClass)
		}
		score := sh(t, n, name, "cat /proc/1/oom_score_adj")
		t.Logf("%s: OOM score %s", name, score)
	}
}

// TestForeignSandbox: on a shared runtime nothing is touched that carries no
// owner label of this node, whatever else it carries.
func TestForeignSandbox(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WaitPods(long, testbed.Running("p"))
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	r, err := n.CRI().RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "foreign", Namespace: "default", Uid: "u1"},
		LogDirectory: n.Path("logs"),
		Labels:       map[string]string{"io.kubernetes.pod.name": "foreign", "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "u1"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/" + n.Name + "/foreign", SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_POD}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	addresses := len(n.Addresses())
	n.KillAgent()
	n.StartAgent()
	n.RemoveManifest("p.yaml")
	n.WaitPods(long, testbed.Gone("p"))
	n.Eventually(long, "p is gone and the other one is not", func() error {
		s := n.Sandboxes()
		if len(s) != 1 || s[0].Id != r.PodSandboxId || s[0].State != runtimeapi.PodSandboxState_SANDBOX_READY || len(n.Addresses()) != addresses-1 {
			return fmt.Errorf("sandboxes %v, addresses %v", s, n.Addresses())
		}
		return nil
	})
	if out := cli(t, n, "get", "containers", "-A"); strings.Contains(out, "foreign") {
		t.Errorf("it shows as ours:\n%s", out)
	}
	if _, err := n.CRI().RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
		t.Fatal(err)
	}
}

// TestLogFiles: kubelet's folders and the links that log collectors follow.
func TestLogFiles(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p", script: "echo out; echo err >&2; " + forever}.String())
	p := n.WaitPods(long, testbed.Running("p"))["default/p"]
	file := fmt.Sprintf("%s/default_p_%s/main/0.log", n.Config.PodLogDir, p.UID)
	n.Eventually(long, file, func() error {
		b, err := os.ReadFile(file)
		if err == nil && !(strings.Contains(string(b), " stdout F out\n") && strings.Contains(string(b), " stderr F err\n")) {
			err = fmt.Errorf("%q", b)
		}
		return err
	})
	id := strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	link := fmt.Sprintf("%s/p_default_main-%s.log", n.Config.ContainerLogDir, id)
	if to, err := os.Readlink(link); err != nil || to != file {
		t.Errorf("%s leads to %q, %v; want %s", link, to, err, file)
	}
	n.RemoveManifest("p.yaml")
	n.WaitPods(long, testbed.Gone("p"))
	n.Eventually(long, "the logs are gone with the pod", func() error {
		for _, path := range []string{filepath.Dir(filepath.Dir(file)), link} {
			if _, err := os.Lstat(path); err == nil {
				return fmt.Errorf("%s is still there", path)
			}
		}
		return nil
	})
}

// TestTerminationMessage is kubelet's: from the file, or the log when asked.
func TestTerminationMessage(t *testing.T) {
	n := started(t)
	n.WriteManifest("p.yaml", manifest{name: "p", script: "echo why >/dev/termination-log; exit 3", spec: "restartPolicy: Never\n"}.String())
	p := n.WaitPods(long, testbed.Phase("p", v1.PodFailed))["default/p"]
	if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || strings.TrimSpace(s.Message) != "why" || s.ExitCode != 3 || s.Reason != "Error" {
		t.Errorf("state %+v", p.Status.ContainerStatuses[0].State)
	}
}
