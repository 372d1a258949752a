package probe

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestReadinessFollowsTheProbe: the first probe comes when the delay is over,
// the rest each period, and the owner is told of changes only.
func TestReadinessFollowsTheProbe(t *testing.T) {
	w := newWorld(t)
	changes := make(chan bool, 100)
	pod := w.Start(t.Context(), func() { changes <- true })
	exit := int32(0)
	w.exec = func(string, []string) (string, int32, error) { return "not yet", exit, nil }
	c := execProbe("c1")
	c.Spec.ReadinessProbe.InitialDelaySeconds = 5
	pod.Update(web, []Container{c})
	if pod.Result("c1").Ready {
		t.Error("ready before it was asked")
	}
	w.pass(1, 4*time.Second)
	w.pass(1, time.Second)
	<-changes
	if !pod.Result("c1").Ready {
		t.Error("not ready after a success")
	}
	w.pass(1, time.Second)
	w.until("a second probe", func() bool { return w.asked == 2 && len(w.alarms) == 1 })
	w.mu.Lock()
	exit = 1
	w.mu.Unlock()
	w.pass(1, time.Second)
	<-changes
	if pod.Result("c1").Ready {
		t.Error("ready after a failure")
	}
	pod.Update(web, []Container{c}) // nothing new
	w.until("counted", func() bool {
		return w.counts["web main Readiness true"] == 2 && w.counts["web main Readiness false"] == 1
	})
	if want := []string{"web main Warning Unhealthy Readiness probe failed: not yet"}; !slices.Equal(w.events, want) || len(changes) != 0 {
		t.Errorf("events %q, want %q; %d more changes", w.events, want, len(changes))
	}
	pod.Stop()
	if len(w.counts) != 0 || w.asked != 3 {
		t.Errorf("after the end: counts %v, %d probes", w.counts, w.asked)
	}
}

// TestKnownReadinessStays: what an earlier agent knew holds until the threshold
// says otherwise; the container is asked at once.
func TestKnownReadinessStays(t *testing.T) {
	w := newWorld(t)
	pod := w.Start(t.Context(), func() {})
	defer pod.Stop()
	w.exec = func(string, []string) (string, int32, error) { return "", 1, nil }
	was, wasNot := execProbe("was"), execProbe("was not")
	was.Known.Ready, was.Spec.ReadinessProbe.FailureThreshold = true, 2
	wasNot.Spec.ReadinessProbe.InitialDelaySeconds = 60
	wasNot.Began = start.Add(-time.Hour)
	pod.Update(web, []Container{was, wasNot})
	w.until("both asked", func() bool { return w.asked == 2 && len(w.alarms) == 2 })
	if !pod.Result("was").Ready || pod.Result("was not").Ready {
		t.Errorf("ready %t and %t, want true and false", pod.Result("was").Ready, pod.Result("was not").Ready)
	}
}

// TestNewContainerBeginsAnew: a restarted container is not ready because the
// one before it was, and the old one is asked no more.
func TestNewContainerBeginsAnew(t *testing.T) {
	w := newWorld(t)
	changes := make(chan bool, 100)
	pod := w.Start(t.Context(), func() { changes <- true })
	defer pod.Stop()
	asked := map[string]int{}
	w.exec = func(id string, _ []string) (string, int32, error) { asked[id]++; return "", 0, nil }
	pod.Update(web, []Container{execProbe("c1")})
	<-changes
	w.until("it waits", func() bool { return len(w.alarms) == 1 })
	next := execProbe("c2")
	next.Spec.ReadinessProbe.SuccessThreshold = 2
	pod.Update(web, []Container{next})
	w.until("the new one is asked", func() bool { return asked["c2"] == 1 && len(w.alarms) == 2 })
	if pod.Result("c1").Ready || pod.Result("c2").Ready {
		t.Errorf("ready: old %t, new %t", pod.Result("c1").Ready, pod.Result("c2").Ready)
	}
	w.pass(2, time.Second)
	<-changes
	if !pod.Result("c2").Ready || asked["c1"] != 1 {
		t.Errorf("new one ready: %t; the old one was asked %d times", pod.Result("c2").Ready, asked["c1"])
	}
}

// TestProbeThatCannotBeMade says nothing of the container.
func TestProbeThatCannotBeMade(t *testing.T) {
	w := newWorld(t)
	pod := w.Start(t.Context(), func() { t.Error("a change") })
	w.exec = func(string, []string) (string, int32, error) { return "", 0, errors.New("the runtime is away") }
	c := execProbe("c")
	c.Known.Ready = true
	pod.Update(web, []Container{c})
	w.until("it was tried", func() bool { return len(w.events) == 1 && len(w.alarms) == 1 })
	if !pod.Result("c").Ready || w.asked != tries || len(w.counts) != 0 ||
		w.events[0] != "web main Warning Unhealthy Readiness probe errored and resulted in unknown state: the runtime is away" {
		t.Errorf("ready %t, %d tries, counts %v, events %q", pod.Result("c").Ready, w.asked, w.counts, w.events)
	}
	pod.Stop()
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	c := execProbe("c")
	c.Spec.Env = []v1.EnvVar{{Name: "PORT", Value: "80"}}
	c.Spec.ReadinessProbe.Exec.Command = []string{"check", "$(PORT)", "$(NONE)", "$$(PORT)"}
	for name, tc := range map[string]struct {
		exit int32
		err  error
		want answer
	}{
		"zero":           {want: answer{good: true, output: "said"}},
		"another code":   {exit: 3, want: answer{output: "said"}},
		"takes too long": {err: context.DeadlineExceeded, want: answer{output: "command timed out after 1s"}},
	} {
		w.exec = func(_ string, cmd []string) (string, int32, error) {
			if !slices.Equal(cmd, []string{"check", "80", "$(NONE)", "$(PORT)"}) {
				t.Errorf("command %q", cmd)
			}
			return "said", tc.exit, tc.err
		}
		if got := w.ask(t.Context(), c, c.Spec.ReadinessProbe); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// kinds is a container with all three probes, whose commands are named after
// them, and answers by name.
func kinds(w *world) (Container, map[string]int32) {
	exits := map[string]int32{}
	w.exec = func(_ string, cmd []string) (string, int32, error) { return "", exits[cmd[0]], nil }
	c := execProbe("c")
	probe := func(name string, failures int32) *v1.Probe {
		p := c.Spec.ReadinessProbe.DeepCopy()
		p.Exec.Command, p.FailureThreshold = []string{name}, failures
		return p
	}
	c.Spec.StartupProbe, c.Spec.LivenessProbe, c.Spec.ReadinessProbe = probe("startup", 3), probe("liveness", 2), probe("readiness", 1)
	return c, exits
}

func (w *world) set(exits map[string]int32, name string, exit int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	exits[name] = exit
}

// notStarted is a pod whose container has a probe of each kind, and whose startup
// probe has failed once.
func notStarted(t *testing.T) (*world, map[string]int32, *Pod) {
	t.Helper()
	w := newWorld(t)
	c, exits := kinds(w)
	exits["startup"] = 1
	pod := w.Start(t.Context(), func() { w.mu.Lock(); defer w.mu.Unlock(); w.changed.Broadcast() })
	t.Cleanup(pod.Stop)
	pod.Update(web, []Container{c})
	w.pass(1, time.Second)
	return w, exits, pod
}

// TestStartupGatesTheOthers: nothing else is asked until the startup probe was
// good, and then it is asked no more. A liveness probe that fails has said its
// last word.
func TestStartupGatesTheOthers(t *testing.T) {
	w, exits, pod := notStarted(t)
	w.until("asked twice", func() bool { return w.counts["web main Startup false"] == 2 })
	if r := pod.Result("c"); r != (Result{}) || w.counts["web main Liveness true"]+w.counts["web main Readiness true"] != 0 {
		t.Fatalf("before it has started: %+v, counts %v", r, w.counts)
	}
	w.set(exits, "startup", 0)
	w.pass(1, time.Second)
	w.until("started, alive and ready", func() bool {
		return pod.Result("c") == Result{Started: true, Ready: true} && w.counts["web main Liveness true"] == 1
	})
	w.set(exits, "liveness", 1)
	w.pass(2, time.Second)
	w.pass(2, time.Second)
	w.until("not alive", func() bool { return pod.Result("c") == Result{Started: true, Ready: true, Failed: Liveness} })
	w.pass(1, time.Second) // readiness alone goes on
	w.until("readiness is asked", func() bool { return w.counts["web main Readiness true"] == 4 })
	if n, s := w.counts["web main Liveness false"], w.counts["web main Startup true"]; n != 2 || s != 1 {
		t.Errorf("%d liveness probes failed, %d startup probes were good; want 2 and 1", n, s)
	}
}

func TestStartupFails(t *testing.T) {
	w, _, pod := notStarted(t)
	w.pass(1, time.Second)
	w.until("failed", func() bool { return pod.Result("c") == Result{Failed: Startup} && len(w.alarms) == 0 })
}

// TestStartedStays: a container that had started is not asked again whether it
// has, and one that had not does not become ready.
func TestStartedStays(t *testing.T) {
	w := newWorld(t)
	c, exits := kinds(w)
	exits["startup"], exits["readiness"] = 1, 1
	c.Spec.ReadinessProbe.FailureThreshold = 2
	other := c
	other.ID = "other"
	c.Known, other.Known = Result{Started: true, Ready: true}, Result{Ready: true}
	pod := w.Start(t.Context(), func() {})
	defer pod.Stop()
	pod.Update(web, []Container{c, other})
	w.until("all asked", func() bool { return w.asked == 3 && len(w.alarms) == 3 })
	if a, b := pod.Result("c"), pod.Result("other"); a != c.Known || b != (Result{}) {
		t.Errorf("%+v and %+v", a, b)
	}
	if w.counts["web main Startup false"] != 1 || w.counts["web main Liveness true"] != 1 {
		t.Errorf("counts %v", w.counts)
	}
}

// TestEndingPodIsAskedOnlyWhetherItIsReady.
func TestEndingPodIsAskedOnlyWhetherItIsReady(t *testing.T) {
	w := newWorld(t)
	c, exits := kinds(w)
	pod := w.Start(t.Context(), func() { w.mu.Lock(); defer w.mu.Unlock(); w.changed.Broadcast() })
	defer pod.Stop()
	pod.Update(web, []Container{c})
	w.until("all wait", func() bool { return len(w.alarms) == 2 })
	ending := web.DeepCopy()
	ending.DeletionTimestamp = &metav1.Time{Time: start}
	pod.Update(ending, []Container{c})
	w.set(exits, "liveness", 1)
	w.set(exits, "readiness", 1)
	w.pass(2, 5*time.Second)
	w.until("unready", func() bool { return pod.Result("c") == Result{Started: true} })
	if n := w.counts["web main Liveness false"]; n != 0 {
		t.Errorf("%d liveness probes of a pod that ends", n)
	}
}

// TestPeriodOfAnAnnotation: probes may come more often than each second.
func TestPeriodOfAnAnnotation(t *testing.T) {
	w := newWorld(t)
	p := web.DeepCopy()
	p.Annotations = map[string]string{"readiness.probe-period.nodeagent.dev/main": "200ms", "liveness.probe-period.nodeagent.dev/main": "5s"}
	pod := w.Start(t.Context(), func() {})
	defer pod.Stop()
	pod.Update(p, []Container{execProbe("c")})
	for n := range 3 {
		w.until("asked", func() bool { return w.asked == n+1 })
		w.pass(1, 200*time.Millisecond)
	}
	if got := Period(p, "main", Liveness); got != 5*time.Second || Period(p, "other", Readiness) != 0 {
		t.Errorf("%s", got)
	}
}
