package node

import (
	"fmt"
	"math/rand/v2"
	"os"
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
}

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

// change adds, replaces or removes one pod.
func (s *soak) change() {
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
		spec:      "volumes:\n- name: mem\n  emptyDir: {medium: Memory}\n",
		container: "volumeMounts:\n- {name: mem, mountPath: /mem}\n"}.String())
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
			if err := testbed.Running(name)(pods); err != nil {
				return err
			}
		}
		return nil
	})
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
		"cgroups": len(s.n.PodCgroups()), "tmpfs mounts": len(s.n.Mounts("kubernetes.io~empty-dir/mem")),
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
