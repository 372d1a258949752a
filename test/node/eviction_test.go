package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestEviction runs a node whose own disk is small, so that nothing of the
// machine has to run short.
func TestEviction(t *testing.T) {
	n := newNode(t, testbed.WithBuildTags("killpoints"))
	if _, err := n.Exec("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", n.StateDir()); err != nil {
		t.Fatal(err)
	}
	t.Run("disk", func(t *testing.T) { evictForDisk(t, n) })
	t.Run("limits", func(t *testing.T) { evictOverLimits(t, n) })
	t.Run("memory", func(t *testing.T) { evictForMemory(t, n) })
	t.Run("images", func(t *testing.T) { collectImages(t, n) })
}

// writer is a pod that writes so many megabytes to an emptyDir.
func writer(name string, megabytes int) manifest {
	return manifest{name: name, script: fmt.Sprintf("dd if=/dev/zero of=/data/f bs=1M count=%d; %s", megabytes, forever),
		spec: "volumes:\n- {name: data, emptyDir: {}}\n", container: "volumeMounts: [{name: data, mountPath: /data}]\n"}
}

// evicted is a condition: the pod has failed with a message that begins so.
func evicted(name, message string) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		p, err := pods.Get(name)
		if err == nil && (p.Status.Phase != v1.PodFailed || p.Status.Reason != "Evicted" || !strings.HasPrefix(p.Status.Message, message)) {
			err = fmt.Errorf("%s: %s %s %q, want it evicted with %q", name, p.Status.Phase, p.Status.Reason, p.Status.Message, message)
		}
		return err
	}
}

// disrupted is a condition: the pod says that it is no fault of its own.
func disrupted(name string) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		p, err := pods.Get(name)
		if err == nil && !slices.ContainsFunc(p.Status.Conditions, func(c v1.PodCondition) bool {
			return c.Type == v1.DisruptionTarget && c.Status == v1.ConditionTrue && c.Reason == "TerminationByKubelet" && c.Message == p.Status.Message
		}) {
			err = fmt.Errorf("%s: %+v", name, p.Status.Conditions)
		}
		return err
	}
}

func evictForDisk(t *testing.T, n *testbed.Node) {
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.EvictionHard = map[string]string{"nodefs.available": "32Mi"}
		c.EvictionPressureTransitionPeriod.Duration = time.Hour
	})
	n.StartAgent()
	n.WriteManifest("modest.yaml", writer("modest", 1).String())
	n.WaitPods(long, testbed.Running("modest"))
	n.WriteManifest("hog.yaml", writer("hog", 70).String())
	hog := evicted("hog", "The node was low on resource: ephemeral-storage. Threshold quantity: 32Mi, available: ")
	n.WaitPods(long, all(hog, disrupted("hog"), testbed.Running("modest")))
	expectPressure(t, n, v1.NodeDiskPressure, v1.ConditionTrue)

	critical := manifest{name: "critical", spec: "priorityClassName: system-node-critical\n"}
	n.WriteManifest("critical.yaml", critical.String())
	n.WriteManifest("late.yaml", manifest{name: "late"}.String())
	refused := evicted("late", "Pod was rejected: The node had condition: [DiskPressure]. ")
	n.WaitPods(long, all(refused, testbed.Running("critical", "modest")))
	n.Eventually(long, "events", func() error {
		out := cli(t, n, "get", "events")
		for _, want := range []string{"EvictionThresholdMet", "Attempting to reclaim ephemeral-storage", "NodeHasDiskPressure", "Evicted"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no %s:\n%s", want, out)
			}
		}
		return nil
	})
	n.Eventually(long, "one eviction is counted", func() error {
		if got := metric(t, n, `kubelet_evictions{eviction_signal="nodefs.available"}`); got != "1" {
			return fmt.Errorf("%q are", got)
		}
		return nil
	})

	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, all(hog, disrupted("hog"), refused, testbed.Running("critical", "modest")))
	expectPressure(t, n, v1.NodeDiskPressure, v1.ConditionTrue)
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.EvictionPressureTransitionPeriod.Duration = time.Second })
	n.SignalAgent(syscall.SIGHUP)
	expectPressure(t, n, v1.NodeDiskPressure, v1.ConditionFalse)
	n.SignalAgent(syscall.SIGHUP) // what was refused is judged anew
	n.WaitPods(long, all(hog, testbed.Running("late", "critical", "modest")))
	clearManifests(t, n, "critical")
}

func evictOverLimits(t *testing.T, n *testbed.Node) {
	limited := func(name, script string) string {
		return manifest{name: name, script: script + "; " + forever, container: "resources: {limits: {ephemeral-storage: 4Mi}}\n"}.String()
	}
	const logs = "yes $(head -c 1000 /dev/zero | tr '\\0' x) | head -c 6000000"
	n.WriteManifest("layer.yaml", limited("layer", "dd if=/dev/zero of=/f bs=1M count=8"))
	n.WriteManifest("keeps.yaml", limited("keeps", "dd if=/dev/zero of=/f bs=1M count=1"))
	n.WriteManifest("talks.yaml", limited("talks", logs)+`  - name: other
    image: busybox
    imagePullPolicy: IfNotPresent
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"]
    resources: {limits: {ephemeral-storage: 32Mi}}
`)
	n.WaitPods(long, all(
		evicted("layer", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
		evicted("talks", `Container main exceeded its local ephemeral storage limit "4Mi". `),
		testbed.Running("keeps", "critical"),
	))
	clearManifests(t, n, "critical")
}

// evictForMemory kills the agent on both sides of the note that a pod is evicted.
func evictForMemory(t *testing.T, n *testbed.Node) {
	n.WriteManifest("hog.yaml", manifest{name: "hog", script: "x=$(head -c 20000000 /dev/zero | tr '\\0' x); " + forever,
		container: "resources: {requests: {memory: 1Mi}}\n"}.String())
	n.WriteManifest("frugal.yaml", manifest{name: "frugal", container: "resources: {requests: {memory: 900Mi}}\n"}.String())
	pods := n.WaitPods(long, testbed.Running("hog", "frugal", "critical"))
	n.KillAgent()
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.EvictionHard = map[string]string{"memory.available": "0%"}
		c.EvictionSoft, c.EvictionSoftGracePeriod = map[string]string{"memory.available": "99%"}, map[string]string{"memory.available": "1s"}
		c.EvictionMaxPodGracePeriod = 1
	})
	noted := func(name string) bool {
		p, _ := pods.Get(name)
		_, err := os.Stat(filepath.Join(n.Root(), n.StateDir(), "pods", string(p.UID), "evicted.json"))
		return err == nil
	}
	never := func(testbed.Pods) error { return errors.New("it is to die") }
	for killAt, want := range map[int]bool{1: false, 2: true} {
		if killAt == 1 && noted("hog") {
			continue // it went first
		}
		agentRun(t, n, killAt, never)
		if noted("hog") != want || noted("frugal") {
			t.Errorf("kill point %d: hog %t, frugal %t", killAt, noted("hog"), noted("frugal"))
		}
	}
	n.StartAgent()
	const low = "The node was low on resource: memory. Threshold quantity: "
	n.WaitPods(long, all(evicted("hog", low), disrupted("hog"), evicted("frugal", low), testbed.Running("critical")))
	hog, frugal := get(t, n, "hog"), get(t, n, "frugal")
	if !strings.Contains(hog.Status.Message, "Container main was using ") || !strings.HasSuffix(hog.Status.Message, ", request is 1Mi, has larger consumption of memory. ") {
		t.Errorf("%q", hog.Status.Message)
	}
	if strings.Contains(frugal.Status.Message, "Container") {
		t.Errorf("%q", frugal.Status.Message)
	}
	expectPressure(t, n, v1.NodeMemoryPressure, v1.ConditionTrue)
	n.WriteManifest("late.yaml", manifest{name: "late"}.String())
	n.WaitPods(long, all(evicted("late", "Pod was rejected: The node had condition: [MemoryPressure]. "), testbed.Running("critical")))
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.EvictionSoft, c.EvictionSoftGracePeriod = nil, nil })
	n.SignalAgent(syscall.SIGHUP)
	expectPressure(t, n, v1.NodeMemoryPressure, v1.ConditionFalse)
	n.WaitPods(long, all(evicted("hog", low), testbed.Running("critical")))
	clearManifests(t, n, "critical")
}

// collectImages: nobody uses one image; another is wanted by a pod that waits, one
// is used, one is pinned.
func collectImages(t *testing.T, n *testbed.Node) {
	n.WriteManifest("waits.yaml", strings.ReplaceAll(manifest{name: "waits", container: "envFrom: [{configMapRef: {name: missing}}]\n"}.String(), "image: busybox", "image: nginx:stable-alpine"))
	n.WaitPods(long, waiting("waits", "CreateContainerConfigError"))
	before := imageNames(t, n)
	for _, name := range []string{"library/alpine", "library/nginx", "busybox", "pause"} {
		if !strings.Contains(before, name) {
			t.Fatalf("the node has no image %s: %s", name, before)
		}
	}
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.ImageMinimumGCAge.Duration, c.ImageMaximumGCAge.Duration = time.Second, 2*time.Second
	})
	n.SignalAgent(syscall.SIGHUP)
	n.Eventually(long, "the image that nobody uses is gone", func() error {
		if now := imageNames(t, n); strings.Contains(now, "library/alpine") {
			return errors.New(now)
		}
		return nil
	})
	now := imageNames(t, n)
	for _, name := range []string{"library/nginx", "busybox", "pause"} {
		if !strings.Contains(now, name) {
			t.Errorf("image %s is gone: %s", name, now)
		}
	}
	n.Eventually(long, "it is counted", func() error {
		if metric(t, n, `kubelet_image_garbage_collected_total{reason="age"}`) == "" {
			return errors.New("it is not")
		}
		return nil
	})
	n.WaitPods(long, all(waiting("waits", "CreateContainerConfigError"), testbed.Running("critical")))
}

func imageNames(t *testing.T, n *testbed.Node) string {
	t.Helper()
	r, err := n.CRIImages().ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range r.Images {
		names = append(names, i.RepoTags...)
	}
	return strings.Join(names, " ")
}

// clearManifests ends all pods but one.
func clearManifests(t *testing.T, n *testbed.Node, keep string) {
	t.Helper()
	pods, err := n.Pods()
	if err != nil {
		t.Fatal(err)
	}
	var gone []func(testbed.Pods) error
	for _, p := range pods {
		if p.Name != keep {
			n.RemoveManifest(p.Name + ".yaml")
			gone = append(gone, testbed.Gone(p.Name))
		}
	}
	n.WaitPods(long, all(gone...))
}

func expectPressure(t *testing.T, n *testbed.Node, condition v1.NodeConditionType, want v1.ConditionStatus) {
	t.Helper()
	n.Eventually(long, fmt.Sprintf("%s is %s", condition, want), func() error {
		var node v1.Node
		if err := json.Unmarshal(apiBody(t, n, "/api/v1/nodes/"+n.Name), &node); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == condition && c.Status == want {
				return nil
			}
		}
		return fmt.Errorf("%+v", node.Status.Conditions)
	})
}

// metric is the value of one series; empty when there is none.
func metric(t *testing.T, n *testbed.Node, series string) string {
	t.Helper()
	for line := range strings.Lines(string(apiBody(t, n, "/metrics"))) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// apiBody is what the API says at a path; empty while the agent comes up.
func apiBody(t *testing.T, n *testbed.Node, path string) []byte {
	t.Helper()
	resp, err := n.API().Get("http://node" + path)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return b
}
