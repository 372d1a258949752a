package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	v1 "k8s.io/api/core/v1"

	ociv1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// process reads what the kernel says of a container's process.
func process(t *testing.T, n *testbed.Node, pod, container string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("%s/proc/%d/status", n.Root(), n.ContainerPID(ids(t, n)[pod+"/"+container])))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		out[k] = strings.Join(strings.Fields(v), " ")
	}
	return out
}

// expectProcess compares some of it.
func expectProcess(t *testing.T, n *testbed.Node, pod, container string, want map[string]string) {
	t.Helper()
	got := process(t, n, pod, container)
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s/%s: %s is %q, want %q", pod, container, k, got[k], v)
		}
	}
}

// ids4 is how the kernel shows a user or group that is the same in every respect.
func ids4(id int) string { return fmt.Sprintf("%d %[1]d %[1]d %[1]d", id) }

// securityPod has one container for each thing that a security context says.
const securityPod = `
apiVersion: v1
kind: Pod
metadata: {name: ctx}
spec:
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsUser: 1000
    runAsGroup: 3000
    supplementalGroups: [4000, 4001]
    seccompProfile: {type: RuntimeDefault}
  containers:
  - {name: inherits, image: busybox, imagePullPolicy: Never, command: [sleep, "100000"]}
  - name: own
    image: busybox
    imagePullPolicy: Never
    command: [sleep, "100000"]
    securityContext:
      runAsUser: 2000
      allowPrivilegeEscalation: false
      capabilities: {add: [NET_ADMIN, SYS_TIME]}
  - name: bare
    image: busybox
    imagePullPolicy: Never
    command: [sleep, "100000"]
    securityContext:
      runAsUser: 0
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL], add: [CHOWN]}
      seccompProfile: {type: Unconfined}
  - name: privileged
    image: busybox
    imagePullPolicy: Never
    command: [sleep, "100000"]
    securityContext: {runAsUser: 0, privileged: true}
  - name: profiled
    image: busybox
    imagePullPolicy: Never
    command: [sleep, "100000"]
    securityContext:
      runAsUser: 0
      seccompProfile: {type: Localhost, localhostProfile: profiles/no-mkdir.json}
`

// TestSecurityContext is what the kernel holds of pods' security contexts, and
// what becomes of those that contradict themselves or the node.
func TestSecurityContext(t *testing.T) {
	n := newNode(t)
	seccomp := filepath.Join(n.StateDir(), "seccomp/profiles")
	if err := os.MkdirAll(seccomp, 0o755); err != nil {
		t.Fatal(err)
	}
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(filepath.Join(seccomp, "no-mkdir.json"), []byte(profile), 0o644); err != nil {
		t.Fatal(err)
	}
	importUsers(t, n)
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.Pods.AllowedUnsafeSysctls = []string{"kernel.msg*"} })
	n.StartAgent()
	writeSecurityPods(t, n)
	n.WaitPods(long, testbed.Running("ctx", "number", "named"))

	t.Run("processes", func(t *testing.T) { securityOfProcesses(t, n) })
	t.Run("the deck's demo", func(t *testing.T) {
		n.WaitPods(long, testbed.Running("security-context-demo"))
		expectProcess(t, n, "security-context-demo", "sec-ctx-demo", map[string]string{"Uid": ids4(2000), "NoNewPrivs": "1", "CapBnd": "00000000aa0435fb"})
		id := runningID(t, n, "security-context-demo", "sec-ctx-demo")
		out, code := n.ExecSync(id, "sh", "-c", "echo hello >/data/demo/testfile && stat -c %g /data/demo /data/demo/testfile")
		if code != 0 || strings.Join(strings.Fields(out), " ") != "2000 2000" {
			t.Errorf("groups of the volume and of a file in it: code %d, %q", code, out)
		}
	})
	t.Run("contradictions", func(t *testing.T) { contradictions(t, n) })
	t.Run("no AppArmor in the kernel", func(t *testing.T) {
		if _, err := os.Stat("/sys/module/apparmor"); err == nil {
			t.Skip("this kernel has AppArmor: test/vm covers it")
		}
		rejected(t, n, "hello-apparmor", "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host")
	})
	t.Run("supplementalGroupsPolicy", func(t *testing.T) {
		if os.Getenv("NODE_CONTAINERD") == testbed.Containerd24 {
			n.WaitPods(long, testbed.Running("strict"))
			expectProcess(t, n, "strict", "main", map[string]string{"Groups": "0 4000"})
			return
		}
		rejected(t, n, "strict", "SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node")
	})
	t.Run("sysctls", func(t *testing.T) {
		n.WaitPods(long, testbed.Running("sysctls"))
		if out := sh(t, n, "sysctls", "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/msgmax"); strings.Join(strings.Fields(out), " ") != "4000 5000 4242" {
			t.Errorf("the pod's sysctls are %s", out)
		}
		rejected(t, n, "forbidden", "SysctlForbidden", `forbidden sysctl: "net.core.somaxconn" not allowlisted`)
	})
	t.Run("runtime classes", func(t *testing.T) {
		described(t, n, "handless", "FailedCreatePodSandBox", `"no-such-handler"`)
		described(t, n, "classy", "FailedCreatePodSandBox", `runtimeclass.node.k8s.io "second" not found`)
		writeClass(n, "second", testbed.OtherHandler)
		classyPod(t, n)
	})
	t.Run("service accounts", func(t *testing.T) {
		described(t, n, "account", "FailedMount", `serviceaccount "builder" not found in namespace default`)
		n.WriteManifest("builder.yaml", "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: builder}\n")
		n.WaitPods(long, testbed.Running("account"))
		if out := sh(t, n, "account", "ls /var/run 2>&1 || true"); strings.Contains(out, "secrets") {
			t.Errorf("there is a token: %s", out)
		}
	})
	t.Run("users of its own", func(t *testing.T) { ownUsers(t, n) })
	t.Run("the image's user at every start", func(t *testing.T) { imageUserStays(t, n) })
}

// contradictory pods never start: image, security context, and what their
// container waits with.
func contradictory() map[string][3]string {
	return map[string][3]string{
		"asroot":    {"busybox", "{runAsNonRoot: true}", "container has runAsNonRoot and image will run as root (pod: "},
		"byname":    {"users.local/named:1", "{runAsNonRoot: true}", "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root (pod: "},
		"zero":      {"users.local/number:1", "{runAsNonRoot: true, runAsUser: 0}", "container's runAsUser breaks non-root policy (pod: "},
		"noprofile": {"busybox", `{seccompProfile: {type: Localhost, localhostProfile: ""}}`, "localhostProfile must be set if seccompProfile type is Localhost."},
	}
}

func writeSecurityPods(t *testing.T, n *testbed.Node) {
	user := func(name, image, context string) {
		n.WriteManifest(name+".yaml", strings.Replace(manifest{name: name, container: "securityContext: " + context + "\n"}.String(), "image: busybox", "image: "+image, 1))
	}
	n.WriteManifest("ctx.yaml", securityPod)
	user("number", "users.local/number:1", "{runAsNonRoot: true}")
	user("named", "users.local/named:1", "{}")
	for name, c := range contradictory() {
		user(name, c[0], c[1])
	}
	n.WriteManifest("armor.yaml", deck(t, "hello-apparmor"))
	n.WriteManifest("demo.yaml", deck(t, "security-context-demo"))
	pod := func(name, spec, container string) {
		n.WriteManifest(name+".yaml", manifest{name: name, spec: spec + "\n", container: container}.String())
	}
	pod("strict", "securityContext: {supplementalGroupsPolicy: Strict, supplementalGroups: [4000], runAsUser: 1000}", "")
	pod("sysctls", `securityContext: {sysctls: [{name: net.ipv4.ip_local_port_range, value: "4000 5000"}, {name: kernel.msgmax, value: "4242"}]}`, "")
	pod("forbidden", `securityContext: {sysctls: [{name: net.core.somaxconn, value: "7"}]}`, "")
	n.WriteManifest("users.yaml", manifest{name: "users", spec: "hostUsers: false\nvolumes: [{name: data, emptyDir: {}}]\n",
		script: "id -u >/data/owner; " + forever, container: "volumeMounts: [{name: data, mountPath: /data}]\n"}.String())
	pod("classy", "runtimeClassName: second", "resources: {limits: {cpu: 100m, memory: 32Mi}}\n")
	pod("handless", "runtimeClassName: nobody", "")
	writeClass(n, "nobody", "no-such-handler")
	pod("account", "serviceAccountName: builder\nautomountServiceAccountToken: true", "")
}

func writeClass(n *testbed.Node, name, handler string) {
	n.WriteManifest("class-"+name+".yaml", "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: "+name+"}\nhandler: "+handler+
		"\noverhead: {podFixed: {cpu: 250m, memory: 16Mi}}\n")
}

func contradictions(t *testing.T, n *testbed.Node) {
	for name, c := range contradictory() {
		pods := n.WaitPods(long, waiting(name, "CreateContainerConfigError"))
		p, _ := pods.Get(name)
		if msg := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.HasPrefix(msg, c[2]) {
			t.Errorf("%s: %q, want %q…", name, msg, c[2])
		}
		described(t, n, name, "Error: "+c[2])
	}
}

// rejected waits until the node has refused a pod for that.
func rejected(t *testing.T, n *testbed.Node, pod, reason, message string) {
	t.Helper()
	pods := n.WaitPods(long, testbed.Phase(pod, v1.PodFailed))
	if p, _ := pods.Get(pod); p.Status.Reason != reason || p.Status.Message != "Pod was rejected: "+message {
		t.Errorf("%s: %s: %s", pod, p.Status.Reason, p.Status.Message)
	}
}

func securityOfProcesses(t *testing.T, n *testbed.Node) {
	const defaults, all = "00000000a80425fb", "000001ffffffffff"
	bounding := process(t, n, "ctx", "privileged")["CapBnd"]
	if len(bounding) != len(all) || bounding <= "000001f000000000" {
		t.Errorf("a privileged container has only %s", bounding)
	}
	expectProcess(t, n, "ctx", "inherits", map[string]string{"Uid": ids4(1000), "Gid": ids4(3000), "Groups": "3000 4000 4001",
		"CapBnd": defaults, "CapEff": "0000000000000000", "NoNewPrivs": "0", "Seccomp": "2"})
	// A process that is not root has no effective set, whatever is added.
	expectProcess(t, n, "ctx", "own", map[string]string{"Uid": ids4(2000), "Gid": ids4(3000),
		"CapBnd": "00000000aa0435fb", "CapEff": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"})
	expectProcess(t, n, "ctx", "bare", map[string]string{"Uid": ids4(0), "CapBnd": "0000000000000001", "CapEff": "0000000000000001", "Seccomp": "0"})
	expectProcess(t, n, "ctx", "privileged", map[string]string{"Uid": ids4(0), "CapEff": bounding, "Seccomp": "0"})
	expectProcess(t, n, "ctx", "profiled", map[string]string{"Seccomp": "2"})
	expectProcess(t, n, "number", "main", map[string]string{"Uid": ids4(1000)})
	expectProcess(t, n, "named", "main", map[string]string{"Uid": ids4(33)})
	for _, c := range []struct {
		container, script string
		fails             string
	}{
		{"bare", "echo x >/tmp/x", "Read-only file system"},
		{"profiled", "mkdir /tmp/d", "Operation not permitted"},
		{"privileged", "mkdir /tmp/d && mount -t tmpfs none /tmp/d && umount /tmp/d", ""},
		{"inherits", "mkdir /tmp/d", ""},
	} {
		out, code := n.ExecSync(runningID(t, n, "ctx", c.container), "sh", "-c", c.script)
		if (code != 0) != (c.fails != "") || !strings.Contains(out, c.fails) {
			t.Errorf("%s: %s: code %d, %q; want %q", c.container, c.script, code, out, c.fails)
		}
	}
}

// described waits until what describe prints of a pod holds these.
func described(t *testing.T, n *testbed.Node, pod string, want ...string) {
	t.Helper()
	n.Eventually(long, "an event of pod "+pod, func() error {
		out, err := n.CLI("describe", "pod", pod)
		for _, w := range want {
			if err == nil && !strings.Contains(out, w) {
				return fmt.Errorf("it lacks %q:\n%s", w, out)
			}
		}
		return err
	})
}

// classyPod: the second handler runs it, and its cgroup has room for the overhead.
func classyPod(t *testing.T, n *testbed.Node) {
	t.Helper()
	pods := n.WaitPods(long, testbed.Running("classy"))
	p, _ := pods.Get("classy")
	for _, s := range n.Sandboxes() {
		if s.Metadata.Name == "classy" && s.RuntimeHandler != testbed.OtherHandler {
			t.Errorf("the sandbox's handler is %q", s.RuntimeHandler)
		}
	}
	found := 0
	for _, dir := range n.PodCgroups() {
		if filepath.Base(dir) != "pod"+string(p.UID) {
			continue
		}
		below := dir[strings.Index(dir, "/"+n.Name+"/"):] // of any controller
		for file, want := range map[string]string{"memory.limit_in_bytes": "50331648", "memory.max": "50331648", "cpu.cfs_quota_us": "35000", "cpu.max": "35000 100000"} {
			for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu"} {
				b, err := os.ReadFile(filepath.Join(root, below, file))
				if err != nil {
					continue
				}
				found++
				if got := strings.TrimSpace(string(b)); got != want {
					t.Errorf("%s is %s, want %s", file, got, want)
				}
			}
		}
	}
	if found == 0 {
		t.Errorf("no cgroup of the pod has limits: %v", n.PodCgroups())
	}
}

// ownUsers: a runtime that cannot give a pod users of its own must not give it
// the host's instead, as containerd 1.6 does.
func ownUsers(t *testing.T, n *testbed.Node) {
	if os.Getenv("NODE_CONTAINERD") != testbed.Containerd24 {
		n.WaitPods(long, waiting("users", "ContainerCreating"))
		described(t, n, "users", "FailedCreatePodSandBox", "can't set `spec.hostUsers: false`, runtime does not support user namespaces")
		if err := absent(n, "users"); err != nil {
			t.Error(err)
		}
		return
	}
	n.WaitPods(long, testbed.Running("users"))
	of := func() (first string) {
		t.Helper()
		ids(t, n) // waits until the one that was killed is known to be gone
		m := strings.Fields(sh(t, n, "users", "cat /proc/self/uid_map"))
		if len(m) != 3 || m[0] != "0" || m[1] == "0" || m[2] != "65536" {
			t.Fatalf("the users are %v", m)
		}
		expectProcess(t, n, "users", "main", map[string]string{"Uid": strings.Join([]string{m[1], m[1], m[1], m[1]}, " ")})
		return m[1]
	}
	first := of()
	if out := sh(t, n, "users", "stat -c %u /data/owner /etc/hosts; cat /data/owner"); strings.Join(strings.Fields(out), " ") != "0 0 0" {
		t.Errorf("files of the pod's root, by owner: %s", out)
	}
	n.KillAgent()
	n.StartAgent()
	before := n.WaitPods(long, testbed.Running("users"))
	p, _ := before.Get("users")
	if err := n.Signal(n.ContainerPID(ids(t, n)["users/main"]), 9); err != nil {
		t.Fatal(err)
	}
	n.WaitPods(long, restarts("users", p.Status.ContainerStatuses[0].RestartCount+1))
	if now := of(); now != first {
		t.Errorf("the pod's users were %s and are %s", first, now)
	}
}

// importUsers gives the node images whose configuration names a user.
func importUsers(t *testing.T, n *testbed.Node) {
	t.Helper()
	images := map[name.Reference]ociv1.Image{}
	for ref, user := range map[string]string{"users.local/number:1": "1000", "users.local/named:1": "www"} {
		img := testbed.ImageSet(t)["docker.io/library/busybox:latest"]
		layer, err := testbed.Layer(map[string]string{"etc/passwd": "root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\n", "etc/group": "root:x:0:\n"})
		if err == nil {
			img, err = mutate.AppendLayers(img, layer)
		}
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config := cfg.Config
		config.User = user
		if img, err = mutate.Config(img, config); err != nil {
			t.Fatal(err)
		}
		parsed, err := name.ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		images[parsed] = img
	}
	file := n.Path("users.tar")
	if err := tarball.MultiRefWriteToFile(file, images); err != nil {
		t.Fatal(err)
	}
	n.Import(file)
}

// imageUserStays is CVE-2019-11245: from the second start on, and with an image
// that was there already, containers ran as root.
func imageUserStays(t *testing.T, n *testbed.Node) {
	kill := func(restarted int32) {
		t.Helper()
		pods := n.WaitPods(long, restarts("number", restarted-1))
		if p, _ := pods.Get("number"); p.Status.ContainerStatuses[0].RestartCount != restarted-1 {
			t.Errorf("restarted %d times, want %d", p.Status.ContainerStatuses[0].RestartCount, restarted-1)
		}
		if err := n.Signal(n.ContainerPID(ids(t, n)["number/main"]), 9); err != nil {
			t.Fatal(err)
		}
		n.WaitPods(long, restarts("number", restarted))
		expectProcess(t, n, "number", "main", map[string]string{"Uid": ids4(1000)})
	}
	kill(1)
	kill(2)
	n.KillAgent()
	n.StartAgent()
	kill(3)
}

// TestHostsFileOutgrown is CVE-2020-8557: the hosts file is the host's disk, and
// whoever fills it goes.
func TestHostsFileOutgrown(t *testing.T) {
	n := started(t)
	for name, megabytes := range map[string]int{"greedy": 40, "modest": 1} {
		n.WriteManifest(name+".yaml", manifest{name: name, script: fmt.Sprintf("dd if=/dev/zero bs=1M count=%d >>/etc/hosts; %s", megabytes, forever)}.String())
	}
	pods := n.WaitPods(long, all(testbed.Phase("greedy", v1.PodFailed), testbed.Running("modest")))
	if p, _ := pods.Get("greedy"); p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, "/etc/hosts") {
		t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
	}
}
