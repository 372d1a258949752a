package podworker

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// reconsider does what the store does of a pod that is to run again.
func (n *node) reconsider(uid string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, r := range n.records {
		if string(id) == uid {
			p := r.Pod.DeepCopy()
			p.Status = v1.PodStatus{Phase: v1.PodPending}
			r.Pod = p
			n.records[id] = r
		}
	}
}

// TestPodsEndedForAShutdown run again when it is over, whatever their restart
// policy, and not before: not when the agent is killed meanwhile.
func TestPodsEndedForAShutdown(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("always", v1.RestartPolicyAlways, "one"))
	n.want(testPod("never", v1.RestartPolicyNever, "one"))
	a := n.agent(dir, nil)
	n.until("ready", func() bool { return n.ready("always")() && n.ready("never")() })
	if got := len(a.Alive()); got != 2 {
		t.Errorf("%d pods run", got)
	}
	for _, p := range a.Alive() {
		a.Evict(p.UID, Eviction{Reason: "Terminated", Message: "the host goes down", Grace: time.Second, Disrupted: true, Passing: true})
	}
	failed := func() bool { return n.phase("always", v1.PodFailed)() && n.phase("never", v1.PodFailed)() }
	n.until("failed", failed)
	a.stop()

	down := func(o *Options) { o.ShuttingDown = func() bool { return true } }
	a = n.agent(dir, down)
	awaitEnd(t, a, "always")
	awaitEnd(t, a, "never")
	if alive, left := a.Alive(), a.Passing(); len(alive)+len(left) > 0 {
		t.Errorf("%d run, %v end", len(alive), left)
	}
	a.stop()
	n.until("still failed", failed)

	n.reconsider("always")
	n.reconsider("never")
	if got := New(Options{Store: n, PodsDir: dir + "/pods"}).Ending(); len(got) != 0 {
		t.Errorf("%v ends still", got)
	}
	n.agent(dir, nil)
	n.until("ready again", func() bool { return n.ready("always")() && n.ready("never")() })
	for _, uid := range []string{"always", "never"} {
		if _, err := os.Stat(filepath.Join(dir, "pods", uid, evictedFile)); !os.IsNotExist(err) {
			t.Errorf("%s: what ended it is noted down still: %v", uid, err)
		}
	}
}
