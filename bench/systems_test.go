//go:build bench

package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

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
		if err := os.WriteFile(filepath.Join(stage, p), []byte(l.manifest(l, p)), 0o644); err != nil {
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
	p *testbed.Program
}

func (a *agent) name() string { return "nodeagent" }
func (a *agent) pid() int     { return a.p.PID() }

func (a *agent) start(l *lab) {
	a.dir = l.n.Manifests()
	l.n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.Log.Level = "info"
		c.Runtime.Endpoint = "unix://" + l.runtime()
	})
	// The tap is the same runtime under another name, which the agent cannot know.
	if err := os.Remove(filepath.Join(l.n.StateDir(), "runtime")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.t.Fatal(err)
	}
	a.p = l.n.Run("agent.log", l.program(testbed.Binary(l.t, "")), "run", "--config", l.n.ConfigFile())
	l.healthy(a.p, "nodeagent", "agent.log", "http://127.0.0.1:10248/readyz")
}

func (a *agent) stop(l *lab) { l.end(a.p, syscall.SIGTERM) }

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
	return "kubelet"
}
func (k *kubelet) pid() int { return k.p.PID() }

// kubeletConfig is what kubeadm writes as far as it concerns a kubelet without
// an API server (kubeadm leaves every interval and limit to the defaults), with
// what this machine needs: cgroup v1 allowed, the node's own paths, and no
// eviction, as the disk is shared with other work.
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
clusterDNS: [192.0.2.53]
clusterDomain: cluster.local
healthzBindAddress: 127.0.0.1
healthzPort: 10248
address: 127.0.0.1
resolvConf: /etc/resolv.conf
enforceNodeAllocatable: []
evictionHard: {memory.available: "0%%", nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%"}
imageGCHighThresholdPercent: 100
maxPods: 250
`

// kubeletTuned is what an operator can set to make it quicker and quieter.
const kubeletTuned = `fileCheckFrequency: 1s
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
volumeStatsAggPeriod: -1s
featureGates: {EventedPLEG: true}
`

func (k *kubelet) start(l *lab) {
	k.dir = l.n.Path("kubelet-manifests")
	conf := l.n.Path("kubelet.yaml")
	text := fmt.Sprintf(kubeletConfig, l.n.Dir, l.runtime(), l.n.Name)
	if k.tuned {
		text += kubeletTuned
	}
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	k.p = l.n.Run("kubelet.log", l.program(filepath.Join(testbed.BuildDir(), "kubernetes/kubelet")),
		"--config", conf, "--root-dir", l.n.Path("kubelet"), "--hostname-override", l.n.Name)
	l.healthy(k.p, "kubelet", "kubelet.log", "http://127.0.0.1:10248/healthz")
}

// stop kills: kubelet would take as long as it has goroutines to end.
func (k *kubelet) stop(l *lab) { l.end(k.p, syscall.SIGKILL) }

// healthy waits for a system to answer.
func (l *lab) healthy(p *testbed.Program, name, log, url string) {
	l.t.Helper()
	l.n.Eventually(2*time.Minute, name+" is healthy", func() error {
		select {
		case <-p.Done():
			b, _ := os.ReadFile(l.n.Path(log))
			lines := strings.Split(string(b), "\n")
			l.t.Fatalf("%s ended:\n%s", name, strings.Join(lines[max(0, len(lines)-30):], "\n"))
		default:
		}
		_, err := l.n.HTTPGet(url)
		return err
	})
}

func (l *lab) end(p *testbed.Program, sig syscall.Signal) {
	l.t.Helper()
	if err := p.End(sig); err != nil {
		l.t.Fatal(err)
	}
}
