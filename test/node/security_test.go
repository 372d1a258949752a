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
)

// process reads what the kernel says of a container's process.
func process(t *testing.T, n *testbed.Node, pod, container string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("%s/proc/%d/status", n.Root(), n.ContainerPID(runningID(t, n, pod, container))))
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
	n.StartAgent()
	user := func(name, image, context string) {
		n.WriteManifest(name+".yaml", strings.Replace(manifest{name: name, container: "securityContext: " + context + "\n"}.String(), "image: busybox", "image: "+image, 1))
	}
	n.WriteManifest("ctx.yaml", securityPod)
	user("number", "users.local/number:1", "{runAsNonRoot: true}")
	user("named", "users.local/named:1", "{}")
	n.WriteManifest("armor.yaml", deck(t, "hello-apparmor"))
	n.WriteManifest("strict.yaml", manifest{name: "strict", spec: "securityContext: {supplementalGroupsPolicy: Strict, supplementalGroups: [4000], runAsUser: 1000}\n"}.String())
	refused := map[string][3]string{
		"asroot":    {"busybox", "{runAsNonRoot: true}", "container has runAsNonRoot and image will run as root (pod: "},
		"byname":    {"users.local/named:1", "{runAsNonRoot: true}", "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root (pod: "},
		"zero":      {"users.local/number:1", "{runAsNonRoot: true, runAsUser: 0}", "container's runAsUser breaks non-root policy (pod: "},
		"noprofile": {"busybox", `{seccompProfile: {type: Localhost, localhostProfile: ""}}`, "localhostProfile must be set if seccompProfile type is Localhost."},
	}
	for name, r := range refused {
		user(name, r[0], r[1])
	}
	n.WaitPods(long, testbed.Running("ctx", "number", "named"))

	t.Run("processes", func(t *testing.T) { securityOfProcesses(t, n) })
	t.Run("refused", func(t *testing.T) {
		for name, r := range refused {
			pods := n.WaitPods(long, waiting(name, "CreateContainerConfigError"))
			p, _ := pods.Get(name)
			if msg := p.Status.ContainerStatuses[0].State.Waiting.Message; !strings.HasPrefix(msg, r[2]) {
				t.Errorf("%s: %q, want %q…", name, msg, r[2])
			}
			if out := cli(t, n, "describe", "pod", name); !strings.Contains(out, "Error: "+r[2]) {
				t.Errorf("%s: no event says %q:\n%s", name, r[2], out)
			}
		}
	})
	t.Run("no AppArmor in the kernel", func(t *testing.T) {
		if _, err := os.Stat("/sys/module/apparmor"); err == nil {
			t.Skip("this kernel has AppArmor: test/vm covers it")
		}
		pods := n.WaitPods(long, testbed.Phase("hello-apparmor", v1.PodFailed))
		p, _ := pods.Get("hello-apparmor")
		if p.Status.Reason != "AppArmor" || p.Status.Message != "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host" {
			t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
		}
	})
	t.Run("supplementalGroupsPolicy", func(t *testing.T) {
		if os.Getenv("NODE_CONTAINERD") == testbed.Containerd24 {
			n.WaitPods(long, testbed.Running("strict"))
			expectProcess(t, n, "strict", "main", map[string]string{"Groups": "0 4000"})
			return
		}
		pods := n.WaitPods(long, testbed.Phase("strict", v1.PodFailed))
		if p, _ := pods.Get("strict"); p.Status.Reason != "SupplementalGroupsPolicyNotSupported" {
			t.Errorf("%s: %s", p.Status.Reason, p.Status.Message)
		}
	})
	t.Run("the image's user at every start", func(t *testing.T) { imageUserStays(t, n) })
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
		if err := n.Signal(n.ContainerPID(runningID(t, n, "number", "main")), 9); err != nil {
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
