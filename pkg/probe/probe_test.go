package probe

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
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
	if pod.Ready("c1") {
		t.Error("ready before it was asked")
	}
	w.pass(1, 4*time.Second)
	w.pass(1, time.Second)
	<-changes
	if !pod.Ready("c1") {
		t.Error("not ready after a success")
	}
	w.pass(1, time.Second)
	w.until("a second probe", func() bool { return w.asked == 2 && len(w.alarms) == 1 })
	w.mu.Lock()
	exit = 1
	w.mu.Unlock()
	w.pass(1, time.Second)
	<-changes
	if pod.Ready("c1") {
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
	was.Ready, was.Spec.ReadinessProbe.FailureThreshold = true, 2
	wasNot.Spec.ReadinessProbe.InitialDelaySeconds = 60
	wasNot.Started = start.Add(-time.Hour)
	pod.Update(web, []Container{was, wasNot})
	w.until("both asked", func() bool { return w.asked == 2 && len(w.alarms) == 2 })
	if !pod.Ready("was") || pod.Ready("was not") {
		t.Errorf("ready %t and %t, want true and false", pod.Ready("was"), pod.Ready("was not"))
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
	if pod.Ready("c1") || pod.Ready("c2") {
		t.Errorf("ready: old %t, new %t", pod.Ready("c1"), pod.Ready("c2"))
	}
	w.pass(2, time.Second)
	<-changes
	if !pod.Ready("c2") || asked["c1"] != 1 {
		t.Errorf("new one ready: %t; the old one was asked %d times", pod.Ready("c2"), asked["c1"])
	}
}

// TestProbeThatCannotBeMade says nothing of the container.
func TestProbeThatCannotBeMade(t *testing.T) {
	w := newWorld(t)
	pod := w.Start(t.Context(), func() { t.Error("a change") })
	w.exec = func(string, []string) (string, int32, error) { return "", 0, errors.New("the runtime is away") }
	c := execProbe("c")
	c.Ready = true
	pod.Update(web, []Container{c})
	w.until("it was tried", func() bool { return len(w.events) == 1 && len(w.alarms) == 1 })
	if !pod.Ready("c") || w.asked != tries || len(w.counts) != 0 ||
		w.events[0] != "web main Warning Unhealthy Readiness probe errored and resulted in unknown state: the runtime is away" {
		t.Errorf("ready %t, %d tries, counts %v, events %q", pod.Ready("c"), w.asked, w.counts, w.events)
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
