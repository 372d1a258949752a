// Package node is the node tier: the real agent on a real containerd in
// namespaces of its own. NODE_CONTAINERD picks the runtime (1.6 or 2.4).
package node

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// long is how much patience a condition gets on a busy machine with the race
// detector on; nothing waits this long when all is well.
const long = 90 * time.Second

// newNode is a node whose agent restarts crashed containers quickly.
func newNode(t *testing.T, opts ...testbed.Option) *testbed.Node {
	t.Helper()
	t.Parallel()
	n := testbed.NewNode(t, opts...)
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.Pods.CrashBackoff = metav1.Duration{Duration: time.Second}
		c.Pods.CrashBackoffMax = metav1.Duration{Duration: 2 * time.Second}
	})
	return n
}

// started is newNode with the agent running.
func started(t *testing.T, opts ...testbed.Option) *testbed.Node {
	t.Helper()
	n := newNode(t, opts...)
	n.StartAgent()
	return n
}

// deck reads one of the manifests of the user's slides.
func deck(t *testing.T, name string) string {
	t.Helper()
	root, err := testbed.Root()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "test/deck", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// manifest is a pod of one busybox container "main" that runs a shell script;
// spec lines are added to the pod's spec, container lines to the container's.
type manifest struct {
	name, script string
	labels       string // "k: v, k: v"
	spec         string // lines without indentation
	container    string
}

// forever keeps a container alive until TERM, which it obeys at once.
const forever = "trap 'exit 0' TERM; sleep 100000 & wait"

func (m manifest) String() string {
	if m.script == "" {
		m.script = forever
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  labels: {%s}
spec:
  terminationGracePeriodSeconds: 5
%s  containers:
  - name: main
    image: busybox
    imagePullPolicy: IfNotPresent
    command: ["/bin/sh", "-c", %q]
%s`, m.name, m.labels, indent(m.spec, "  "), m.script, indent(m.container, "    "))
}

func indent(s, by string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(by + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}

// containersOf lists the runtime's containers of a pod, newest first.
func containersOf(n *testbed.Node, podName string) []*runtimeapi.Container {
	var cs []*runtimeapi.Container
	for _, c := range n.Containers() {
		if c.Labels[pod.LabelPodName] == podName {
			cs = append(cs, c)
		}
	}
	sort.Slice(cs, func(i, j int) bool { return cs[i].CreatedAt > cs[j].CreatedAt })
	return cs
}

// runningID is the only running container of that name in the pod.
func runningID(t *testing.T, n *testbed.Node, podName, container string) string {
	t.Helper()
	var ids []string
	for _, c := range containersOf(n, podName) {
		if c.Metadata.Name == container && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			ids = append(ids, c.Id)
		}
	}
	if len(ids) != 1 {
		t.Fatalf("pod %s: running containers %q: %v, want exactly one", podName, container, ids)
	}
	return ids[0]
}

// ids maps "pod/container" to the id of every running container, and fails when
// a name has two.
func ids(t *testing.T, n *testbed.Node) map[string]string {
	t.Helper()
	var m map[string]string
	// containerd 2 lists a container of a killed shim as running for a while
	// after it has killed it and said so in an event.
	n.Eventually(long, "no container runs twice", func() error {
		m = map[string]string{}
		for _, c := range n.Containers() {
			if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				continue
			}
			key := c.Labels[pod.LabelPodName] + "/" + c.Metadata.Name
			if m[key] != "" {
				return fmt.Errorf("%s runs twice: %s and %s", key, m[key], c.Id)
			}
			m[key] = c.Id
		}
		return nil
	})
	return m
}

// expectClean waits until nothing of any pod is left on the node.
func expectClean(t *testing.T, n *testbed.Node) {
	t.Helper()
	n.Eventually(long, "nothing of the pods is left", func() error { return leftovers(n) })
}

func leftovers(n *testbed.Node) error {
	if s := n.Sandboxes(); len(s) > 0 {
		return fmt.Errorf("sandboxes: %v", s)
	}
	if c := n.Containers(); len(c) > 0 {
		return fmt.Errorf("containers: %v", c)
	}
	if s := n.Shims(); len(s) > 0 {
		return fmt.Errorf("shims: %v", s)
	}
	if a := n.Addresses(); len(a) > 0 {
		return fmt.Errorf("reserved addresses: %v", a)
	}
	if c := n.PodCgroups(); len(c) > 0 {
		return fmt.Errorf("cgroups: %v", c)
	}
	if m := n.Mounts(n.StateDir() + "/pods"); len(m) > 0 {
		return fmt.Errorf("mounts: %v", m)
	}
	if m := n.Mounts("/run/netns/cni-"); len(m) > 0 {
		return fmt.Errorf("network namespaces: %v", m)
	}
	d, err := os.ReadDir(filepath.Join(n.StateDir(), "pods"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if len(d) > 0 {
		return fmt.Errorf("pod folders: %v", d)
	}
	return nil
}

// absent says that the runtime has no sandbox of a pod.
func absent(n *testbed.Node, podName string) error {
	for _, s := range n.Sandboxes() {
		if s.Metadata.Name == podName {
			return fmt.Errorf("sandbox %s of %s is there: %v", s.Id, podName, s.State)
		}
	}
	return nil
}

// cli runs a sub-command that must succeed.
func cli(t *testing.T, n *testbed.Node, args ...string) string {
	t.Helper()
	out, err := n.CLI(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// get is one pod as the API shows it.
func get(t *testing.T, n *testbed.Node, name string) v1.Pod {
	t.Helper()
	pods, err := n.Pods()
	if err != nil {
		t.Fatal(err)
	}
	p, err := pods.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// restarts is a condition: the pod's first container was restarted at least
// that often and runs.
func restarts(name string, atLeast int32) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		if err := testbed.Running(name)(pods); err != nil {
			return err
		}
		p, _ := pods.Get(name)
		if got := p.Status.ContainerStatuses[0].RestartCount; got < atLeast {
			return fmt.Errorf("%s: %d restarts, want %d", name, got, atLeast)
		}
		return nil
	}
}

// all is a condition made of several.
func all(conds ...func(testbed.Pods) error) func(testbed.Pods) error {
	return func(p testbed.Pods) error {
		for _, c := range conds {
			if err := c(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// waiting is a condition: the pod's first container waits for that reason.
func waiting(name, reason string) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		p, err := pods.Get(name)
		if err != nil {
			return err
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Waiting != nil && c.State.Waiting.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("%s: phase %s, containers %+v; want one waiting for %s", name, p.Status.Phase, p.Status.ContainerStatuses, reason)
	}
}

// fileHas waits until a file holds exactly these lines.
func fileHas(t *testing.T, n *testbed.Node, file string, want ...string) {
	t.Helper()
	n.Eventually(long, "content of "+file, func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if got := strings.Fields(string(b)); strings.Join(got, " ") != strings.Join(want, " ") {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}
