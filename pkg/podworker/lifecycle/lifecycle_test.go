package lifecycle

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// world is a runtime that keeps state and refuses what a real one refuses.
type world struct {
	t        *testing.T
	pod      *v1.Pod
	now      time.Time
	observed runtime.Pod
	stopped  map[string]bool
	killing  map[string]time.Time
	end      bool
	endBy    time.Time
	made     int
	log      []string
	gone     bool
	known    map[string]Known // by container ID
	slow     map[string]bool  // containers that end when the test says so
}

func newWorld(t *testing.T, policy v1.RestartPolicy, init, app int) *world {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"}}
	p.Spec.RestartPolicy = policy
	for i := range init {
		p.Spec.InitContainers = append(p.Spec.InitContainers, v1.Container{Name: "init" + strconv.Itoa(i), Image: "i"})
	}
	for i := range app {
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "app" + strconv.Itoa(i), Image: "i"})
	}
	return &world{t: t, pod: p, now: epoch, stopped: map[string]bool{}, killing: map[string]time.Time{}, known: map[string]Known{}, slow: map[string]bool{}}
}

func (w *world) next() Plan {
	return Next(Input{
		Pod: w.pod, Observed: w.observed, Stopped: w.stopped, Killing: w.killing, End: w.end, EndBy: w.endBy,
		Known: w.known, Accepted: epoch,
		Backoff: Backoff{Base: 10 * time.Second, Max: 300 * time.Second, Reset: 10 * time.Minute}, KeepDead: 1, Now: w.now,
	})
}

// restart forgets what a killed agent forgets.
func (w *world) restart() {
	for id, k := range w.known {
		w.known[id] = Known{Hooked: k.Hooked, Started: k.Started, Ready: k.Ready} // what is noted down
	}
	w.stopped, w.killing = map[string]bool{}, map[string]time.Time{}
}

func (w *world) sandbox(id string) *runtime.Sandbox {
	for i := range w.observed.Sandboxes {
		if w.observed.Sandboxes[i].ID == id {
			return &w.observed.Sandboxes[i]
		}
	}
	w.t.Fatalf("%s: no sandbox %q", strings.Join(w.log, " "), id)
	return nil
}

func (w *world) container(id string) *runtime.Container {
	for i := range w.observed.Containers {
		if w.observed.Containers[i].ID == id {
			return &w.observed.Containers[i]
		}
	}
	w.t.Fatalf("%s: no container %q", strings.Join(w.log, " "), id)
	return nil
}

func (w *world) do(a Action) {
	w.log = append(w.log, strings.TrimSpace(fmt.Sprintf("%s(%s)", a.Kind, a.Container)))
	switch a.Kind {
	case CreateSandbox:
		for _, s := range w.observed.Sandboxes {
			if s.Ready || !w.stopped[s.ID] {
				w.t.Fatalf("a second sandbox beside %s: %v", s.ID, w.log)
			}
		}
		w.made++
		w.observed.Sandboxes = slices.Insert(w.observed.Sandboxes, 0, runtime.Sandbox{ID: "s" + strconv.Itoa(w.made), Attempt: a.Attempt, Ready: true})
	case StopSandbox:
		s := w.sandbox(a.Sandbox)
		s.Ready = false
		w.stopped[s.ID] = true
		for i := range w.observed.Containers {
			if c := &w.observed.Containers[i]; c.SandboxID == s.ID && c.State == runtime.StateRunning {
				w.exit(c.Name, 137)
			}
		}
	case RemoveSandbox:
		if w.sandbox(a.Sandbox).Ready {
			w.t.Fatalf("removing a ready sandbox: %v", w.log)
		}
		w.observed.Sandboxes = slices.DeleteFunc(w.observed.Sandboxes, func(s runtime.Sandbox) bool { return s.ID == a.Sandbox })
		w.observed.Containers = slices.DeleteFunc(w.observed.Containers, func(c runtime.Container) bool { return c.SandboxID == a.Sandbox })
	case CreateContainer:
		if !w.sandbox(a.Sandbox).Ready {
			w.t.Fatalf("a container in a dead sandbox: %v", w.log)
		}
		for _, c := range w.observed.Containers {
			if c.Name == a.Container && (c.Attempt >= a.Attempt || c.State == runtime.StateRunning) {
				w.t.Fatalf("doubled container %s attempt %d: %v", a.Container, a.Attempt, w.log)
			}
		}
		w.made++
		spec, _, _ := pod.Container(w.pod, a.Container)
		w.observed.Containers = slices.Insert(w.observed.Containers, 0, runtime.Container{
			ID: "c" + strconv.Itoa(w.made), Name: a.Container, SandboxID: a.Sandbox, Attempt: a.Attempt, Init: a.Init, State: runtime.StateCreated,
			SpecImage: spec.Image, CreatedAt: w.now, Annotations: map[string]string{pod.AnnotationBackoffLevel: strconv.Itoa(a.Level), pod.AnnotationReset: a.Reset}})
	case StartContainer:
		c := w.container(a.ID)
		if c.State != runtime.StateCreated || c.Interrupted {
			w.t.Fatalf("starting a container that is %s: %v", c.State, w.log)
		}
		c.State, c.StartedAt = runtime.StateRunning, w.now
	case KillContainer:
		w.killing[a.ID] = a.Deadline
		if c := w.container(a.ID); !w.slow[c.Name] && (c.State == runtime.StateRunning || c.State == runtime.StateUnknown) {
			w.exitID(a.ID, 143)
		}
	case RunPostStart, RunPreStop:
		k := w.known[a.ID]
		k.Stopping = k.Stopping || a.Kind == RunPreStop
		w.known[a.ID] = k
	case RemoveContainer:
		if w.container(a.ID).State == runtime.StateRunning {
			w.t.Fatalf("removing a running container: %v", w.log)
		}
		w.observed.Containers = slices.DeleteFunc(w.observed.Containers, func(c runtime.Container) bool { return c.ID == a.ID })
	case Forget:
		w.gone = true
	}
}

func (w *world) exitID(id string, code int32) {
	c := w.container(id)
	c.State, c.ExitCode, c.FinishedAt = runtime.StateExited, code, w.now
	delete(w.killing, id)
}

func (w *world) exit(name string, code int32) {
	c := w.observed.Newest(name)
	if c == nil || c.State != runtime.StateRunning {
		w.t.Fatalf("%s does not run: %v", name, w.log)
	}
	w.exitID(c.ID, code)
}

// settle acts until there is nothing to do now.
func (w *world) settle() Plan {
	for range 100 {
		plan := w.next()
		if idle(plan) {
			return plan
		}
		for _, a := range plan.Actions {
			if w.do(a); a.Barrier {
				break
			}
		}
		if w.gone {
			return plan
		}
	}
	w.t.Fatalf("does not settle: %v", w.log)
	return Plan{}
}

// idle says that nothing but the repetition of what goes on is to be done.
func idle(p Plan) bool {
	return !slices.ContainsFunc(p.Actions, func(a Action) bool { return a.Kind != Release && a.Kind != RunPostStart })
}

func (w *world) running() (names []string) {
	for _, c := range w.observed.Containers {
		if c.State == runtime.StateRunning {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (w *world) wantRunning(names ...string) {
	w.t.Helper()
	if got := w.running(); !slices.Equal(got, names) {
		w.t.Fatalf("running %v, want %v after %v", got, names, w.log)
	}
}

func TestStartsInitContainersInOrderThenTheRest(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyAlways, 2, 2)
	w.settle()
	w.wantRunning("init0")
	w.exit("init0", 0)
	w.settle()
	w.wantRunning("init1")
	w.exit("init1", 1)
	w.settle()
	w.wantRunning("init1") // the first retry is at once
	w.exit("init1", 0)
	w.settle()
	w.wantRunning("app0", "app1")
}

func TestCrashBackoffDoublesAndResets(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyAlways, 0, 1)
	w.settle()
	for i, want := range []time.Duration{0, 10, 20, 40, 80, 160, 300, 300} {
		w.exit("app0", 1)
		w.restart() // the level is read back from the container
		plan := w.settle()
		if want == 0 {
			w.wantRunning("app0")
			continue
		}
		wait := plan.Waiting["app0"]
		if wait.Delay != want*time.Second || !plan.WakeAt.Equal(w.now.Add(want*time.Second)) {
			t.Fatalf("crash %d: waits %s, wakes at %s, want %ds", i, wait.Delay, plan.WakeAt, want)
		}
		w.now = plan.WakeAt.Add(-time.Nanosecond)
		w.settle()
		w.wantRunning()
		w.now = plan.WakeAt
		w.settle()
		w.wantRunning("app0")
	}
	if got := w.observed.Newest("app0").Attempt; got != 8 {
		t.Fatalf("restart count %d, want 8", got)
	}
	w.now = w.now.Add(10 * time.Minute)
	w.exit("app0", 1)
	w.settle()
	w.wantRunning("app0")
}

func TestRestartPolicies(t *testing.T) {
	for _, tc := range []struct {
		policy v1.RestartPolicy
		code   int32
		runs   bool
	}{
		{v1.RestartPolicyAlways, 0, true}, {v1.RestartPolicyAlways, 1, true},
		{v1.RestartPolicyOnFailure, 0, false}, {v1.RestartPolicyOnFailure, 1, true},
		{v1.RestartPolicyNever, 0, false}, {v1.RestartPolicyNever, 1, false},
	} {
		w := newWorld(t, tc.policy, 0, 1)
		w.settle()
		w.exit("app0", tc.code)
		plan := w.settle()
		if runs := len(w.running()) == 1; runs != tc.runs || plan.Ended == tc.runs {
			t.Errorf("%s, exit %d: runs %t, ended %t", tc.policy, tc.code, runs, plan.Ended)
		}
		if !tc.runs && w.observed.Sandboxes[0].Ready {
			t.Errorf("%s, exit %d: a finished pod keeps its sandbox", tc.policy, tc.code)
		}
	}
}

func TestInitFailureWithNeverEndsThePod(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyNever, 1, 1)
	w.settle()
	w.exit("init0", 3)
	if plan := w.settle(); !plan.Ended {
		t.Fatalf("not ended: %v", w.log)
	}
	w.wantRunning()
}

// TestInterruptedStart: the agent was killed in the midst of a start. The pod
// has not failed and its container was not restarted.
func TestInterruptedStart(t *testing.T) {
	for _, name := range []string{"init0", "app0"} {
		w := newWorld(t, v1.RestartPolicyNever, 1, 1)
		if name == "app0" {
			w.settle()
			w.exit("init0", 0)
		}
		for w.observed.Newest(name) == nil || w.observed.Newest(name).State != runtime.StateCreated {
			w.do(w.next().Actions[0])
		}
		c := w.observed.Newest(name)
		c.Interrupted = true
		id := c.ID
		w.settle()
		if now := w.observed.Newest(name); now.ID == id || now.Attempt != 0 || now.State != runtime.StateRunning {
			t.Errorf("%s: %+v: %v", name, now, w.log)
		}
	}
}

func TestLostSandboxIsRebuiltOnlyForThoseWhoRunAgain(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyAlways, 1, 2)
	w.settle()
	w.exit("init0", 0)
	w.settle()
	w.observed.Sandboxes[0].Ready = false
	w.exit("app0", 137)
	w.settle()
	w.wantRunning("init0") // app1 went down with the old sandbox
	w.exit("init0", 0)
	w.settle()
	w.wantRunning("app0", "app1")
	if a := w.observed.Newest("app1").Attempt; a != 1 {
		t.Fatalf("attempt %d, want 1", a)
	}

	w = newWorld(t, v1.RestartPolicyNever, 0, 1)
	w.settle()
	w.observed.Sandboxes[0].Ready = false
	w.exit("app0", 137)
	if plan := w.settle(); !plan.Ended || len(w.observed.Sandboxes) != 1 {
		t.Fatalf("a Never pod was rebuilt: %v", w.log)
	}
}

func TestImageChangeRestartsThatContainerOnly(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyAlways, 0, 2)
	w.settle()
	other := w.observed.Newest("app1").ID
	w.pod.Spec.Containers[0].Image = "new"
	w.settle()
	w.wantRunning("app0", "app1")
	if c := w.observed.Newest("app0"); c.SpecImage != "new" || c.Attempt != 1 || w.observed.Newest("app1").ID != other {
		t.Fatalf("%+v", c)
	}
}

func TestDeletionHonoursTheDeadlineAndLeavesNothing(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyAlways, 0, 2)
	w.settle()
	grace := int64(30)
	w.pod.DeletionGracePeriodSeconds = &grace
	w.pod.DeletionTimestamp = &metav1.Time{Time: w.now.Add(30 * time.Second)}
	for _, a := range w.next().Actions {
		if a.Kind != KillContainer || !a.Deadline.Equal(w.pod.DeletionTimestamp.Time) {
			t.Fatalf("%+v", a)
		}
	}
	w.now = w.now.Add(time.Hour) // the agent was down meanwhile
	for _, a := range w.next().Actions {
		if d := a.Deadline.Sub(w.now); d != MinGrace {
			t.Fatalf("late kill with %s", d)
		}
	}
	w.settle()
	if !w.gone || len(w.observed.Sandboxes)+len(w.observed.Containers) != 0 {
		t.Fatalf("left behind: %+v after %v", w.observed, w.log)
	}
}

func TestShorterGraceOvertakes(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyAlways, 0, 1)
	w.settle()
	id := w.observed.Containers[0].ID
	w.pod.DeletionTimestamp = &metav1.Time{Time: w.now.Add(30 * time.Second)}
	w.killing[id] = w.pod.DeletionTimestamp.Time
	if plan := w.next(); len(plan.Actions) != 0 {
		t.Fatalf("kills twice: %+v", plan.Actions)
	}
	zero := int64(0)
	w.pod.DeletionGracePeriodSeconds = &zero
	w.pod.DeletionTimestamp = &metav1.Time{Time: w.now}
	if plan := w.next(); len(plan.Actions) != 1 || plan.Actions[0].Deadline.After(w.now) {
		t.Fatalf("does not overtake: %+v", plan.Actions)
	}
}

func TestEvictionIsInAHurry(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyAlways, 0, 2)
	w.settle()
	w.end, w.endBy = true, w.now.Add(time.Second)
	plan := w.next()
	if len(plan.Actions) != 2 {
		t.Fatalf("%+v", plan.Actions)
	}
	for _, a := range plan.Actions {
		if a.Kind != KillContainer || !a.Deadline.Equal(w.endBy) {
			t.Errorf("%+v", a)
		}
	}
}

func TestDeadContainersAreCollected(t *testing.T) {
	w := newWorld(t, v1.RestartPolicyAlways, 0, 1)
	w.settle()
	for range 6 {
		w.exit("app0", 1)
		w.now = w.now.Add(time.Hour)
		w.settle()
	}
	if n := len(w.observed.Containers); n != 2 { // the running one and the one before
		t.Fatalf("%d containers kept", n)
	}
}

// TestRandomWalk kills the agent between any two actions, lets containers and
// sandboxes die, and checks (in world.do) that nothing is ever doubled; at the
// end the pod runs, and a deletion leaves nothing.
func TestRandomWalk(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := newWorld(t, []v1.RestartPolicy{v1.RestartPolicyAlways, v1.RestartPolicyOnFailure}[r.IntN(2)], r.IntN(3), 1+r.IntN(3))
		for range 60 {
			for _, a := range w.next().Actions {
				if r.IntN(4) == 0 {
					w.restart()
					break
				}
				w.do(a)
			}
			w.now = w.now.Add(time.Duration(r.IntN(200)) * time.Second)
			if names := w.running(); len(names) > 0 && r.IntN(3) == 0 {
				w.exit(names[r.IntN(len(names))], 1)
			}
			if r.IntN(10) == 0 && len(w.observed.Sandboxes) > 0 {
				w.observed.Sandboxes[0].Ready = false
			}
		}
		for range 20 {
			w.settle()
			w.now = w.now.Add(5 * time.Minute)
			for _, n := range w.running() {
				if strings.HasPrefix(n, "init") {
					w.exit(n, 0)
				}
			}
		}
		if n := len(w.running()); n != len(w.pod.Spec.Containers) {
			t.Fatalf("seed %d: %d containers run, want %d: %v", seed, n, len(w.pod.Spec.Containers), w.log)
		}
		w.pod.DeletionTimestamp = &metav1.Time{Time: w.now}
		w.restart()
		w.settle()
		if !w.gone || len(w.observed.Sandboxes)+len(w.observed.Containers) != 0 {
			t.Fatalf("seed %d: left behind %+v", seed, w.observed)
		}
	}
}
