//go:build bench

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// system is something that runs pods. Between start and stop, drop makes pods
// run and remove makes them go.
type system interface {
	name() string
	start(*lab)
	drop(l *lab, pods []string)
	remove(l *lab, pods []string)
	// pid of the process whose memory and CPU count; 0 when there is none.
	pid() int
	stop(*lab)
}

// manifest of every measured pod: it says on the shared folder that it runs,
// then waits on a FIFO to be told to exit.
func manifest(l *lab, pod string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  namespace: default
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:latest
    imagePullPolicy: IfNotPresent
    command: ["/bin/sh", "-c", %[2]q]
    volumeMounts:
    - {name: bench, mountPath: /bench}
  volumes:
  - name: bench
    hostPath: {path: %[3]s, type: Directory}
`, pod, script(pod), l.shared)
}

// script touches POD.up, and POD.again after a restart, and exits when told.
func script(pod string) string {
	return fmt.Sprintf("if [ -e /bench/%[1]s.up ]; then : >/bench/%[1]s.again; else : >/bench/%[1]s.up; fi; "+
		"trap 'exit 0' TERM; if [ -p /bench/%[1]s.fifo ]; then read x </bench/%[1]s.fifo; exit 1; fi; sleep 100000 & wait", pod)
}

// folder is a system that is given manifests in a folder.
type folder struct{ dir string }

func (f *folder) drop(l *lab, pods []string) {
	stage := l.n.Path("stage")
	for _, p := range pods {
		if err := os.WriteFile(filepath.Join(stage, p), []byte(manifest(l, p)), 0o644); err != nil {
			l.t.Fatal(err)
		}
	}
	l.began = time.Now()
	for _, p := range pods {
		if err := os.Rename(filepath.Join(stage, p), filepath.Join(f.dir, p+".yaml")); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (f *folder) remove(l *lab, pods []string) {
	for _, p := range pods {
		if err := os.Remove(filepath.Join(f.dir, p+".yaml")); err != nil {
			l.t.Fatal(err)
		}
	}
}

type agent struct {
	folder
	n *testbed.Node
}

func (a *agent) name() string { return "nodeagent" }
func (a *agent) pid() int     { return a.n.AgentPID() }
func (a *agent) start(l *lab) {
	a.n, a.dir = l.n, l.n.Manifests()
	a.n.EditConfig(func(c *config.NodeAgentConfiguration) { c.Log.Level = "info" })
	a.n.StartAgent()
	l.n.Eventually(time.Minute, "nodeagent is ready", func() error {
		_, err := l.n.HTTPGet("http://127.0.0.1:10248/readyz")
		return err
	})
}
func (a *agent) stop(*lab) { a.n.StopAgent() }

// kubelet is k8s.io/kubernetes' own, standalone: with a manifest folder and no
// API server.
type kubelet struct {
	folder
	tuned bool
	p     *testbed.Program
}

func (k *kubelet) name() string {
	if k.tuned {
		return "kubelet, tuned"
	}
	return "kubelet, defaults"
}
func (k *kubelet) pid() int { return k.p.PID() }

// kubeletConfig is what kubeadm writes where it matters to a standalone
// kubelet, with what this machine needs: cgroup v1 allowed, the node's own
// paths, and no eviction, as the disk is shared with other work.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: %[1]s/kubelet-manifests
podLogsDir: %[1]s/logs/pods
containerRuntimeEndpoint: unix://%[2]s
cgroupDriver: cgroupfs
cgroupRoot: /%[3]s
failCgroupV1: false
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
healthzBindAddress: 127.0.0.1
healthzPort: 10248
address: 127.0.0.1
resolvConf: /etc/resolv.conf
enforceNodeAllocatable: []
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%"}
imageGCHighThresholdPercent: 100
fileCheckFrequency: %[4]s
maxPods: 250
`

func (k *kubelet) start(l *lab) {
	k.dir = l.n.Path("kubelet-manifests")
	freq := "20s"
	if k.tuned {
		freq = "1s"
	}
	conf := l.n.Path("kubelet.yaml")
	text := fmt.Sprintf(kubeletConfig, l.n.Dir, l.n.RuntimeSocket(), l.n.Name, freq)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	k.p = l.n.Run("kubelet.log", filepath.Join(testbed.BuildDir(), "kubernetes/kubelet"),
		"--config", conf, "--root-dir", l.n.Path("kubelet"), "--hostname-override", l.n.Name)
	l.n.Eventually(2*time.Minute, "kubelet is healthy", func() error {
		select {
		case <-k.p.Done():
			b, _ := os.ReadFile(l.n.Path("kubelet.log"))
			lines := strings.Split(string(b), "\n")
			l.t.Fatalf("kubelet ended:\n%s", strings.Join(lines[max(0, len(lines)-30):], "\n"))
		default:
		}
		_, err := l.n.HTTPGet("http://127.0.0.1:10248/healthz")
		return err
	})
}

func (k *kubelet) stop(l *lab) {
	if err := k.p.End(syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
}

// floor makes the three CRI calls of every pod and nothing else, some at once.
type floor struct {
	inFlight int

	mu        sync.Mutex
	sandboxes map[string]*runtimeapi.RunPodSandboxResponse
	configs   map[string]*runtimeapi.PodSandboxConfig
}

func (f *floor) name() string {
	return fmt.Sprintf("floor (%d in flight)", f.inFlight)
}
func (f *floor) pid() int { return 0 }
func (f *floor) start(l *lab) {
	f.sandboxes, f.configs = map[string]*runtimeapi.RunPodSandboxResponse{}, map[string]*runtimeapi.PodSandboxConfig{}
	_ = l
}
func (f *floor) stop(*lab) {}

func (f *floor) drop(l *lab, pods []string) {
	var g errgroup.Group
	g.SetLimit(f.inFlight)
	l.began = time.Now()
	for _, p := range pods {
		g.Go(func() error { return f.run(l, p) })
	}
	if err := g.Wait(); err != nil {
		l.t.Fatal(err)
	}
}

func (f *floor) run(l *lab, pod string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	uid := "floor-" + pod
	sb := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod, Namespace: "default", Uid: uid},
		LogDirectory: l.n.Path("logs/pods/default_" + pod + "_" + uid),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/" + l.n.Name + "/kubepods/besteffort/pod" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
	s, err := l.n.CRI().RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sb})
	if err != nil {
		return fmt.Errorf("floor: sandbox of %s: %w", pod, err)
	}
	f.mu.Lock()
	f.sandboxes[pod], f.configs[pod] = s, sb
	f.mu.Unlock()
	return f.container(ctx, l, pod, 0)
}

// container makes the two calls that a restart needs, too.
func (f *floor) container(ctx context.Context, l *lab, pod string, attempt uint32) error {
	f.mu.Lock()
	s, sb := f.sandboxes[pod], f.configs[pod]
	f.mu.Unlock()
	c, err := l.n.CRI().CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.PodSandboxId, SandboxConfig: sb,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main", Attempt: attempt},
			Image:    &runtimeapi.ImageSpec{Image: "busybox:latest"},
			Command:  []string{"/bin/sh", "-c", script(pod)},
			LogPath:  fmt.Sprintf("main/%d.log", attempt),
			Mounts:   []*runtimeapi.Mount{{HostPath: l.shared, ContainerPath: "/bench"}},
			Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
		}})
	if err != nil {
		return fmt.Errorf("floor: container of %s: %w", pod, err)
	}
	if _, err := l.n.CRI().StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return fmt.Errorf("floor: start of %s: %w", pod, err)
	}
	return nil
}

func (f *floor) remove(l *lab, pods []string) { l.sweep() }

// lab is one node on which systems take turns.
type lab struct {
	t      *testing.T
	n      *testbed.Node
	shared string    // the folder that pods write to
	began  time.Time // when the last drop began
	w      *watcher
	count  int
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, n: testbed.NewNode(t)}
	l.shared = l.n.Path("shared")
	for _, d := range []string{l.shared, l.n.Path("stage"), l.n.Path("kubelet-manifests"), l.n.Path("kubelet")} {
		if err := os.MkdirAll(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	rootCgroup(l)
	l.w = newWatcher(t, l.shared)
	// The agent writes the default network, which all three then use.
	a := &agent{}
	a.start(l)
	a.stop(l)
	return l
}

// rootCgroup makes the node's cgroup, which kubelet wants to exist.
func rootCgroup(l *lab) {
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, h := range append(hierarchies, "/sys/fs/cgroup/cgroup.procs") {
		if _, err := os.Stat(h); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Join(filepath.Dir(h), l.n.Name), 0o755); err != nil {
			l.t.Fatal(err)
		}
	}
}

// names are new pod names.
func (l *lab) names(n int) []string {
	pods := make([]string, n)
	for i := range pods {
		l.count++
		pods[i] = fmt.Sprintf("b%05d", l.count)
	}
	return pods
}

// gone removes pods and waits until none of them runs.
func (l *lab) gone(s system, pods []string) {
	s.remove(l, pods)
	l.n.Eventually(5*time.Minute, s.name()+" ends its pods", func() error {
		for _, b := range l.n.Sandboxes() {
			if b.State == runtimeapi.PodSandboxState_SANDBOX_READY {
				return fmt.Errorf("sandbox %s is ready", b.Metadata.Name)
			}
		}
		return nil
	})
}

// sweep removes every sandbox, whoever made it.
func (l *lab) sweep() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(4)
	for _, b := range l.n.Sandboxes() {
		g.Go(func() error {
			if _, err := l.n.CRI().StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.Id}); err != nil {
				return err
			}
			_, err := l.n.CRI().RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: b.Id})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		l.t.Fatal(err)
	}
}
