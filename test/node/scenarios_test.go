package node

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// scene is one file of test/scenarios on the node that all of them share.
type scene struct {
	*testing.T
	n *testbed.Node
}

// scenarios says what must be seen of each file of test/scenarios, whose README
// says the same in words. What takes longest to come about is last.
func scenarios() []scenario {
	return []scenario{
		{"assign", scene.assign}, {"cpu", scene.cpu}, {"qos", scene.qos}, {"pod-resources", scene.podResources}, {"resize", scene.resize},
		{"volume", scene.volume}, {"persistent-volume", scene.persistentVolume}, {"projected", scene.projected},
		{"image-volume", scene.imageVolume}, {"containers-talk", scene.containersTalk},
		{"security-context", scene.securityContext}, {"service-account", scene.serviceAccount},
		{"share-processes", scene.shareProcesses}, {"user-namespace", scene.userNamespace},
		{"configmap", scene.configMap}, {"secret", scene.secret}, {"environment", scene.environment},
		{"downward-api", scene.downwardAPI}, {"host-aliases", scene.hostAliases}, {"debug", scene.debug},
		{"termination-message", scene.terminationMessage}, {"init-containers", scene.initContainers},
		{"lifecycle", scene.lifecycle}, {"memory", scene.memory}, {"probes", scene.probes},
	}
}

type scenario struct {
	file string
	seen func(scene)
}

// TestScenarios runs the tasks of upstream's documentation, all on one node.
func TestScenarios(t *testing.T) {
	testbed.Require(t, "etcd")
	n := newNode(t)
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.NodeLabels = map[string]string{"disktype": "ssd"} })
	n.StartAgent()
	root, err := testbed.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "test/scenarios")
	documented(t, dir)
	if err := os.MkdirAll(n.Path("mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	fileIs(t, n.Path("mnt/index.html"), "Hello from storage\n")
	for _, s := range scenarios() {
		text, err := os.ReadFile(filepath.Join(dir, s.file+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		n.WriteManifest(s.file+".yaml", strings.ReplaceAll(string(text), "/mnt/data", n.Path("mnt")))
	}
	for _, s := range scenarios() {
		t.Run(s.file, func(t *testing.T) { s.seen(scene{t, n}) })
	}
	for _, s := range scenarios() {
		n.RemoveManifest(s.file + ".yaml")
	}
	n.WaitPods(2*long, func(pods testbed.Pods) error {
		if len(pods) > 0 {
			return fmt.Errorf("%d pods are left", len(pods))
		}
		return nil
	})
	expectClean(t, n)
	fileHas(t, n, n.Path("mnt/lifecycle"), "started", "stopping", "term")
	signal := "term"
	if os.Getenv("NODE_CONTAINERD") == testbed.Containerd24 {
		signal = "usr1"
	}
	fileHas(t, n, n.Path("mnt/signal"), signal)
}

// documented compares files, tests and the README's table.
func documented(t *testing.T, dir string) {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var tested, told, there []string
	for _, s := range scenarios() {
		tested = append(tested, s.file+".yaml")
	}
	for _, row := range regexp.MustCompile(`(?m)^\| (\S+\.yaml) \|`).FindAllStringSubmatch(string(readme), -1) {
		told = append(told, row[1])
	}
	for _, f := range files {
		there = append(there, filepath.Base(f))
	}
	slices.Sort(tested)
	slices.Sort(told)
	if !slices.Equal(tested, there) || !slices.Equal(told, there) {
		t.Errorf("the folder has %v, the README %v, this test %v", there, told, tested)
	}
}

func fileIs(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (s scene) running(pods ...string) { s.Helper(); s.n.WaitPods(long, testbed.Running(pods...)) }

// pod waits until a pod is as it should be.
func (s scene) pod(name string, is func(v1.Pod) error) {
	s.Helper()
	s.n.WaitPods(long, func(pods testbed.Pods) error {
		p, err := pods.Get(name)
		if err == nil {
			err = is(p)
		}
		return err
	})
}

// reads waits until a script in a running container prints these words.
func (s scene) reads(pod, container, script, want string) {
	s.Helper()
	s.running(pod)
	s.n.Eventually(long, pod+"/"+container+": "+script, func() error {
		id := ids(s.T, s.n)[pod+"/"+container]
		if id == "" {
			return fmt.Errorf("%s does not run", container)
		}
		if out, _ := s.n.ExecSync(id, "sh", "-c", script); strings.Join(strings.Fields(out), " ") != want {
			return fmt.Errorf("%q, want %q", out, want)
		}
		return nil
	})
}

// logs waits until a container's log has these lines, one after another.
func (s scene) logs(pod, container, lines string) {
	s.Helper()
	s.n.Eventually(long, "the log of "+pod+"/"+container, func() error {
		out, err := s.n.CLI("logs", pod, "-c", container)
		if err == nil && !strings.Contains(out, lines) {
			err = fmt.Errorf("%q lacks %q", out, lines)
		}
		return err
	})
}

// of reads a file of whichever version of cgroups the container sees.
func of(v1file, v2file string) string {
	return "cat /sys/fs/cgroup/" + v1file + " 2>/dev/null || cat /sys/fs/cgroup/" + v2file
}

func (s scene) assign() {
	s.running("assign-selector", "assign-required", "assign-preferred")
	s.n.WaitPods(long, ended("assign-elsewhere", v1.PodFailed, "NodeAffinity"))
}

func (s scene) cpu() {
	s.n.WaitPods(long, ended("cpu-too-much", v1.PodFailed, "OutOfcpu"))
	s.reads("cpu-limited", "busy", of("cpu/cpu.cfs_quota_us", "cpu.max")+" | cut -d' ' -f1", "5000")
	s.reads("cpu-limited", "busy", "("+of("cpu/cpu.stat", "cpu.stat")+`) | awk '$1 == "nr_throttled" && $2 > 0 { print "throttled" }'`, "throttled")
}

func (s scene) qos() {
	for pod, class := range map[string]v1.PodQOSClass{"qos-guaranteed": v1.PodQOSGuaranteed, "qos-limits-only": v1.PodQOSGuaranteed,
		"qos-burstable": v1.PodQOSBurstable, "qos-besteffort": v1.PodQOSBestEffort} {
		s.running(pod)
		p := get(s.T, s.n, pod)
		if p.Status.QOSClass != class {
			s.Errorf("%s is %s", pod, p.Status.QOSClass)
		}
		parent := map[v1.PodQOSClass]string{v1.PodQOSGuaranteed: "kubepods", v1.PodQOSBurstable: "burstable", v1.PodQOSBestEffort: "besteffort"}[class]
		if i := slices.IndexFunc(s.n.PodCgroups(), func(dir string) bool { return strings.HasSuffix(dir, "/"+parent+"/pod"+string(p.UID)) }); i < 0 {
			s.Errorf("%s has no cgroup below %s: %v", pod, parent, s.n.PodCgroups())
		}
		if len(p.Spec.Containers[0].Resources.Requests) != len(p.Spec.Containers[0].Resources.Limits) && pod != "qos-burstable" {
			s.Errorf("%s: requests %v of limits %v", pod, p.Spec.Containers[0].Resources.Requests, p.Spec.Containers[0].Resources.Limits)
		}
	}
}

func (s scene) podResources() {
	const quota, memory = "cpu/cpu.cfs_quota_us", "memory/memory.limit_in_bytes"
	for container, want := range map[string]string{"own": "10000 33554432", "shares": "20000 100663296"} {
		s.reads("pod-resources", container, "("+of(quota, "cpu.max")+") | cut -d' ' -f1; "+of(memory, "memory.max"), want)
	}
	if p := get(s.T, s.n, "pod-resources"); p.Status.QOSClass != v1.PodQOSBurstable {
		s.Errorf("the pod is %s", p.Status.QOSClass)
	}
}

func (s scene) resize() {
	s.running("resize")
	const cpu, memory = "cpu/cpu.cfs_quota_us", "memory/memory.limit_in_bytes"
	s.reads("resize", "main", of(cpu, "cpu.max")+" | cut -d' ' -f1", "20000")
	patch(s.T, s.n, "resize", "resize", `{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"150m"},"limits":{"cpu":"300m"}}}]}}`)
	s.reads("resize", "main", of(cpu, "cpu.max")+" | cut -d' ' -f1", "30000")
	if c := get(s.T, s.n, "resize").Status.ContainerStatuses[0]; c.RestartCount != 0 {
		s.Errorf("CPU took a restart: %+v", c)
	}
	patch(s.T, s.n, "resize", "resize", `{"spec":{"containers":[{"name":"main","resources":{"requests":{"memory":"32Mi"},"limits":{"memory":"64Mi"}}}]}}`)
	s.n.WaitPods(long, restarts("resize", 1))
	s.reads("resize", "main", of(memory, "memory.max"), "67108864")
	s.pod("resize", func(p v1.Pod) error {
		c := p.Status.ContainerStatuses[0]
		if c.Resources == nil || c.Resources.Limits.Memory().String() != "64Mi" || c.Resources.Limits.Cpu().String() != "300m" || c.RestartCount != 1 {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}

func (s scene) memory() {
	s.n.WaitPods(long, ended("memory-too-much", v1.PodFailed, "OutOfmemory"))
	s.logs("memory-modest", "filler", "filled\n")
	s.reads("memory-modest", "filler", of("memory/memory.limit_in_bytes", "memory.max"), "67108864")
	s.reads("memory-modest", "filler", "["+` "$(`+of("memory/memory.usage_in_bytes", "memory.current")+`)" -ge 25165824 ] && echo counted`, "counted")
	s.pod("memory-greedy", func(p v1.Pod) error {
		for _, c := range p.Status.ContainerStatuses {
			if last := c.LastTerminationState.Terminated; c.RestartCount > 0 && last != nil && last.Reason == "OOMKilled" && last.ExitCode == 137 {
				return nil
			}
		}
		return fmt.Errorf("%+v", p.Status.ContainerStatuses)
	})
}

func (s scene) initContainers() {
	s.running("init-page")
	s.n.Eventually(long, "the page", func() error {
		body, err := s.n.HTTPGet("http://" + get(s.T, s.n, "init-page").Status.PodIP + "/")
		if err == nil && !strings.Contains(body, "prepared") {
			err = fmt.Errorf("%q", body)
		}
		return err
	})
	s.n.WaitPods(long, ended("init-sidecar", v1.PodSucceeded, ""))
	s.logs("init-sidecar", "follower", "worked\n")
	s.pod("init-fails", func(p v1.Pod) error {
		if p.Status.Phase != v1.PodPending || len(p.Status.InitContainerStatuses) == 0 || p.Status.InitContainerStatuses[0].RestartCount == 0 {
			return fmt.Errorf("%s: %+v", p.Status.Phase, p.Status.InitContainerStatuses)
		}
		return nil
	})
	s.logs("init-fails", "never-well", "not today\n")
	s.n.Eventually(long, "get pods shows it", func() error {
		out := cli(s.T, s.n, "get", "pods")
		if !hasRow(out, "init-fails", "0/1", "Init:CrashLoopBackOff") && !hasRow(out, "init-fails", "0/1", "Init:Error") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// lifecycle's end is seen when all pods have gone.
func (s scene) lifecycle() {
	s.running("lifecycle")
	fileHas(s.T, s.n, s.n.Path("mnt/lifecycle"), "started")
	s.running("stop-signal")
	fileHas(s.T, s.n, s.n.Path("mnt/signal"), "ready")
}

func (s scene) probes() {
	s.n.WaitPods(long, all(ready(true, "probes-tcp", "liveness-grpc", "startup-slow"), restarts("liveness-exec", 1), restarts("liveness-http", 1)))
	wantEvents(s.n, []string{"Unhealthy", "pod/liveness-exec", "Liveness probe failed: cat: can't open '/tmp/healthy'"},
		[]string{"Killing", "pod/liveness-exec", "Container main failed liveness probe, will be restarted"},
		[]string{"Unhealthy", "pod/liveness-http", "Liveness probe failed: HTTP probe failed with statuscode: 404"},
		[]string{"Unhealthy", "pod/startup-slow", "Startup probe failed"})
	for _, pod := range []string{"probes-tcp", "liveness-grpc", "startup-slow"} {
		if c := get(s.T, s.n, pod).Status.ContainerStatuses[0]; c.RestartCount != 0 {
			s.Errorf("%s: %+v", pod, c)
		}
	}
}
