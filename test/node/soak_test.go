package node

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// soak is a model of what should run, beside the node on which it does.
type soak struct {
	t    *testing.T
	n    *testbed.Node
	rnd  *rand.Rand
	want map[string]int    // pod name → version of its manifest
	seen map[string]string // "name@version" → container id, once settled

	settings int // version of the ConfigMap that every pod mounts
}

// soakVolume is what every pod claims, and soakSecret what it mounts.
const soakVolume = `apiVersion: v1
kind: PersistentVolume
metadata: {name: shared}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteMany], hostPath: {path: %q, type: DirectoryOrCreate}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {password: soaked}
`

// soakSpec and soakContainer use what a killed agent has to pick up again. The
// probes have patience: what is busy here must not be restarted.
const soakSpec = `volumes:
- {name: mem, emptyDir: {medium: Memory}}
- {name: settings, configMap: {name: settings}}
- {name: keys, secret: {secretName: login}}
- {name: shared, persistentVolumeClaim: {claimName: shared}}
`

const soakContainer = `env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: login, key: password}}}]
volumeMounts:
- {name: mem, mountPath: /mem}
- {name: settings, mountPath: /settings}
- {name: keys, mountPath: /keys}
- {name: shared, mountPath: /shared}
startupProbe: {exec: {command: [test, -e, /keys/password]}, periodSeconds: 1, timeoutSeconds: 60, failureThreshold: 100}
readinessProbe: {exec: {command: [test, -e, /settings/version]}, periodSeconds: 1, timeoutSeconds: 60}
livenessProbe: {exec: {command: ["true"]}, periodSeconds: 2, timeoutSeconds: 60, failureThreshold: 100}
lifecycle: {postStart: {exec: {command: [touch, /mem/hooked]}}, preStop: {exec: {command: ["true"]}}}
`

// TestSoak kills the agent at random moments, with pods coming, changing and
// going. SOAK_KILLS says how often, SOAK_SEED repeats a run.
func TestSoak(t *testing.T) {
	kills, err := strconv.Atoi(os.Getenv("SOAK_KILLS"))
	if err != nil {
		kills = 8
	}
	seed, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64)
	if err != nil {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("SOAK_SEED=%d SOAK_KILLS=%d", seed, kills)
	n := newNode(t)
	s := &soak{t: t, n: n, rnd: rand.New(rand.NewPCG(seed, 1)), want: map[string]int{}, seen: map[string]string{}}
	n.WriteManifest("volume.yaml", fmt.Sprintf(soakVolume, n.Path("shared")))
	s.configure()
	n.StartAgent()
	for k := 1; k <= kills; k++ {
		for range 1 + s.rnd.IntN(3) {
			s.change()
		}
		// The moment of the kill is what is random here, so this waits for a
		// time and not for a condition.
		time.Sleep(time.Duration(s.rnd.IntN(1500)) * time.Millisecond)
		n.KillAgent()
		if s.rnd.IntN(3) == 0 {
			s.change() // while nobody looks
		}
		if s.rnd.IntN(8) == 0 {
			n.KillContainerd()
			n.StartContainerd()
		}
		n.StartAgent()
		if k%4 == 0 || k == kills {
			s.settle(k)
		}
		if t.Failed() {
			t.Fatalf("stopped after kill %d of %d: repeat with SOAK_SEED=%d", k, kills, seed)
		}
	}
	for name := range s.want {
		n.RemoveManifest(name + ".yaml")
	}
	n.WaitPods(2*long, func(p testbed.Pods) error {
		if len(p) > 0 {
			return fmt.Errorf("%d pods are left", len(p))
		}
		return nil
	})
	expectClean(t, n)
}

// configure changes the ConfigMap.
func (s *soak) configure() {
	s.settings++
	s.n.WriteManifest("settings.yaml", fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {version: 'v%d'}}", s.settings))
}

// change adds, replaces or removes one pod, or changes what all of them mount.
func (s *soak) change() {
	if s.rnd.IntN(4) == 0 {
		s.configure()
		return
	}
	name := fmt.Sprintf("p%d", s.rnd.IntN(6))
	if _, there := s.want[name]; there && s.rnd.IntN(2) == 0 {
		delete(s.want, name)
		s.n.RemoveManifest(name + ".yaml")
		return
	}
	s.want[name]++
	if s.want[name] == 1 {
		s.want[name] = 1 + s.rnd.IntN(1<<30) // a name that comes back is a new pod
	}
	s.n.WriteManifest(name+".yaml", manifest{name: name,
		script:    fmt.Sprintf(": version %d; %s", s.want[name], forever),
		spec:      soakSpec,
		container: soakContainer}.String())
}

// settle waits until the node is what it should be, and checks that nothing is
// doubled, leaked or restarted.
func (s *soak) settle(kill int) {
	s.t.Helper()
	s.n.WaitPods(2*long, func(pods testbed.Pods) error {
		if len(pods) != len(s.want) {
			return fmt.Errorf("after kill %d: %d pods, want %d (%v)", kill, len(pods), len(s.want), s.want)
		}
		for name, version := range s.want {
			p, err := pods.Get(name)
			if err != nil {
				return err
			}
			if want := fmt.Sprintf(": version %d;", version); len(p.Spec.Containers[0].Command) < 3 || p.Spec.Containers[0].Command[2][:len(want)] != want {
				return fmt.Errorf("%s is not of version %d yet", name, version)
			}
			if err := ready(true, name)(pods); err != nil {
				return err
			}
		}
		return nil
	})
	s.n.Eventually(long, fmt.Sprintf("settings of version %d everywhere after kill %d", s.settings, kill), s.configured)
	s.n.Eventually(long, fmt.Sprintf("one of each after kill %d", kill), s.exact)
	running := ids(s.t, s.n)
	for name, version := range s.want {
		id, key := running[name+"/main"], fmt.Sprintf("%s@%d", name, version)
		if old := s.seen[key]; old != "" && old != id {
			s.t.Errorf("after kill %d: %s was restarted: %s → %s", kill, key, old, id)
		}
		s.seen[key] = id
		if c := get(s.t, s.n, name).Status.ContainerStatuses[0]; c.RestartCount != 0 || c.ContainerID != "containerd://"+id {
			s.t.Errorf("after kill %d: %s: status %+v, container %s", kill, key, c, id)
		}
	}
}

// configured says that each pod has the ConfigMap's latest version.
func (s *soak) configured() error {
	files, err := filepath.Glob(s.n.StateDir() + "/pods/*/volumes/kubernetes.io~configmap/settings/version")
	if err != nil || len(files) != len(s.want) {
		return fmt.Errorf("%d pods have settings, want %d: %v", len(files), len(s.want), err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || string(b) != fmt.Sprintf("v%d", s.settings) {
			return fmt.Errorf("%s is %q: %v", f, b, err)
		}
	}
	return nil
}

// strays describes the shims that belong to no sandbox.
func (s *soak) strays() []string {
	known := map[string]bool{}
	for _, b := range s.n.Sandboxes() {
		known[b.Id] = true
	}
	var out []string
	for _, shim := range s.n.Shims() {
		if i := slices.Index(shim.Args, "-id"); i < 0 || i+1 >= len(shim.Args) || !known[shim.Args[i+1]] {
			tree, _ := s.n.Exec("sh", "-c", fmt.Sprintf("readlink /proc/%[1]d/cwd; for c in $(cat /proc/%[1]d/task/*/children); do echo; cat /proc/$c/stat; tr '\\0' ' ' </proc/$c/cmdline; done", shim.PID))
			out = append(out, fmt.Sprintf("%v in and with %q", shim.Args, tree))
		}
	}
	return out
}

// exact compares what is on the node with what should be.
func (s *soak) exact() error {
	want := len(s.want)
	perPod := map[string]int{}
	for _, b := range s.n.Sandboxes() {
		if b.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			perPod[b.Labels[pod.LabelPodName]]++
		}
	}
	for name, count := range perPod {
		if count != 1 {
			return fmt.Errorf("%s has %d sandboxes", name, count)
		}
	}
	for what, got := range map[string]int{
		"sandboxes": len(s.n.Sandboxes()), "shims": len(s.n.Shims()), "addresses": len(s.n.Addresses()),
		"cgroups": len(s.n.PodCgroups()), "tmpfs mounts": len(s.n.Mounts("kubernetes.io~empty-dir/mem")), "secrets": len(s.n.Mounts("kubernetes.io~secret/keys")),
		"network namespaces": len(s.n.Mounts("/run/netns/cni-")),
	} {
		if got != want {
			return fmt.Errorf("%d %s, want %d; shims: %v", got, what, want, s.strays())
		}
	}
	dirs, err := os.ReadDir(s.n.StateDir() + "/pods")
	if err == nil && len(dirs) != want {
		err = fmt.Errorf("%d pod folders, want %d", len(dirs), want)
	}
	return err
}
