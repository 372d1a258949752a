package podworker

import (
	"log/slog"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/probe"
)

// probedPod has one container whose readiness a command tells.
func probedPod(uid string, success, failure int32) *v1.Pod {
	p := testPod(uid, v1.RestartPolicyAlways, "one")
	p.Spec.Containers[0].ReadinessProbe = &v1.Probe{
		ProbeHandler:   v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"ready?"}}},
		TimeoutSeconds: 1, PeriodSeconds: 1, SuccessThreshold: success, FailureThreshold: failure,
	}
	return p
}

// probing has probes repeated as fast as after says.
func (n *node) probing(after func(time.Duration) <-chan time.Time) func(*Options) {
	return func(o *Options) {
		o.Probes = probe.New(probe.Options{Runtime: n, Recorder: n, Metrics: n, Clock: time.Now, After: after, Log: slog.New(slog.DiscardHandler)})
	}
}

func soon(d time.Duration) <-chan time.Time { return time.After(min(d, time.Millisecond)) }

// once lets the first probe of each container happen and no other.
func once(d time.Duration) <-chan time.Time {
	if d <= 0 {
		return time.After(0)
	}
	return nil
}

func (n *node) answer(exit int32) {
	n.mu.Lock()
	n.probeExit = exit
	n.mu.Unlock()
}

func (n *node) unready(uid string) func() bool {
	return func() bool {
		p := n.records[probedPod(uid, 1, 1).UID].Pod
		return p != nil && p.Status.Phase == v1.PodRunning && !podReady(p.Status)
	}
}

// TestReadinessProbe: the pod runs unready until the probe says otherwise, and
// goes on being probed while it ends.
func TestReadinessProbe(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.answer(1)
	n.want(probedPod("a", 1, 1))
	a := n.agent(dir, n.probing(soon))
	n.until("runs unready", n.unready("a"))
	st := n.status("a")
	if c := st.ContainerStatuses[0]; c.Ready || c.Started == nil || !*c.Started {
		t.Errorf("container %+v", c)
	}
	for _, c := range st.Conditions {
		if (c.Type == v1.PodReady || c.Type == v1.ContainersReady) &&
			(c.Status != v1.ConditionFalse || c.Reason != "ContainersNotReady" || c.Message != "containers with unready status: [one]") {
			t.Errorf("condition %+v", c)
		}
	}
	n.until("an event says so", n.said("/one Unhealthy: Readiness probe failed: "))
	n.answer(0)
	n.until("ready", n.ready("a"))
	id := n.ids("a")[0]
	n.mu.Lock()
	n.ignoring[id] = true
	n.mu.Unlock()
	n.edit("a", deletion(time.Hour))
	a.Wake("a")
	n.until("it is told to end", n.said("Killing"))
	n.answer(1)
	n.until("it ends and is unready", n.unready("a"))
	n.edit("a", func(p *v1.Pod) { deletion(0)(p); p.DeletionGracePeriodSeconds = new(int64) })
	a.Wake("a")
	n.until("finished", func() bool { return n.finished["a"] })
}

// TestReadinessSurvivesTheAgent: a restart changes nothing of what is ready,
// from the first status on (kubernetes/kubernetes issues 100277, 135795); a
// container that is restarted meanwhile has to show that it is.
func TestReadinessSurvivesTheAgent(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(probedPod("good", 1, 2))
	n.want(probedPod("bad", 2, 1))
	first := n.agent(dir, n.probing(once))
	n.until("one is ready, the other is not", func() bool { return n.ready("good")() && n.unready("bad")() && n.probes == 2 })
	first.stop()

	n.answer(1)
	for _, uid := range []string{"good", "bad"} {
		n.edit(probedPod(uid, 1, 1).UID, func(p *v1.Pod) { p.Status = v1.PodStatus{Phase: v1.PodUnknown} })
	}
	second := n.agent(dir, n.probing(once))
	n.until("it is as it was", func() bool {
		if n.unready("good")() || n.ready("bad")() {
			t.Errorf("the agent's restart changed it: good %+v, bad %+v", n.records["good"].Pod.Status, n.records["bad"].Pod.Status)
			return true
		}
		return n.ready("good")() && n.unready("bad")() && n.probes == 4
	})
	second.stop()

	n.exit(n.ids("good")[0], 1)
	n.agent(dir, n.probing(once))
	n.until("its successor is not ready", func() bool {
		c := n.records["good"].Pod.Status.ContainerStatuses
		return len(c) > 0 && c[0].RestartCount == 1 && c[0].State.Running != nil && !c[0].Ready
	})
}
