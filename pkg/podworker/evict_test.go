package podworker

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/runtime"
)

func large() Eviction {
	return Eviction{Reason: ReasonEvicted, Message: "too large", Grace: time.Second, Disrupted: true}
}

// awaitEnd waits until nothing of a pod is left; n.until would hold the store.
func awaitEnd(t *testing.T, a *agent, uid types.UID) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !a.Ended(uid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s has not ended", uid)
		}
	}
}

// evictions are the events of evictions so far.
func (n *node) evictions() []string {
	return slices.DeleteFunc(slices.Clone(n.events), func(e string) bool { return !strings.Contains(e, "Evicted: too large") })
}

// running is the container of a pod that runs.
func (n *node) running(uid types.UID) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.snapshot(uid).Containers {
		if c.State == runtime.StateRunning {
			return c.ID
		}
	}
	return ""
}

func TestEvictedPodFailsAndStaysSo(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	a := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	if active := a.Active(); len(active) != 1 || a.Ended("a") {
		t.Errorf("active %v", active)
	}
	for range 2 {
		a.Evict("a", large())
	}
	a.Evict("unknown", large())
	if active := a.Active(); len(active) != 0 {
		t.Errorf("it may be evicted again: %v", active)
	}
	n.until("failed and given back", func() bool {
		return n.records["a"].Pod.Status.Phase == v1.PodFailed && !n.cgroups["a"] && !n.volumes["a"]
	})
	awaitEnd(t, a, "a")
	a.Evict("a", large())
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.records["a"].Pod.Status
	target := slices.IndexFunc(st.Conditions, func(c v1.PodCondition) bool { return c.Type == v1.DisruptionTarget })
	if st.Reason != "Evicted" || st.Message != "too large" || target < 0 {
		t.Errorf("%+v", st)
	}
	if len(n.evictions()) != 1 {
		t.Errorf("events %v", n.events)
	}
}

// TestEvictionGoesOn: the agent dies after it has decided and before anything
// else; the next one does not decide anew.
func TestEvictionGoesOn(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	a := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	a.stop()
	if err := a.noteEviction("a", &evicted{Reason: ReasonEvicted, Message: "too large", By: time.Now().Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	if got := New(Options{Store: n, PodsDir: dir + "/pods"}).Ending(); len(got) != 1 || got[0] != "a" {
		t.Errorf("%v ends", got)
	}
	a = n.agent(dir, nil)
	n.until("failed", func() bool { return n.records["a"].Pod.Status.Phase == v1.PodFailed && !n.volumes["a"] })
	awaitEnd(t, a, "a")
	if got := a.Ending(); len(got) != 0 {
		t.Errorf("%v ends", got)
	}
	a.stop()
	if st := n.status("a"); st.Reason != "Evicted" || st.Message != "too large" || len(n.evictions()) != 1 {
		t.Errorf("%+v, events %v", st, n.events)
	}
	n.agent(dir, nil).stop()
	if len(n.evictions()) != 1 {
		t.Errorf("events %v", n.events)
	}
}

// TestEvictionNeedsNoDisk: the disk that is full is why it is done.
func TestEvictionNeedsNoDisk(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	a := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	if err := os.MkdirAll(filepath.Join(dir, "pods", "a", evictedFile), 0o755); err != nil { // nothing can be written there
		t.Fatal(err)
	}
	a.Evict("a", large())
	n.until("failed", n.phase("a", v1.PodFailed))
}

func TestReclaimDead(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("done", v1.RestartPolicyNever, "one"))
	n.want(testPod("again", v1.RestartPolicyAlways, "one"))
	a := n.agent(dir, func(o *Options) { o.KeepDead = 5 })
	n.until("ready", func() bool { return n.ready("done")() && n.ready("again")() })
	for i := range 2 {
		n.exit(n.running("again"), 1)
		n.until("restarted", func() bool { return len(n.snapshot("again").Containers) == i+2 && n.ready("again")() })
	}
	n.exit(n.running("done"), 0)
	awaitEnd(t, a, "done")
	if len(n.ids("done")) != 1 || len(n.ids("again")) < 2 {
		t.Fatalf("%v %v", n.ids("done"), n.ids("again"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.ReclaimDead(ctx); err != nil {
		t.Fatal(err)
	}
	if len(n.ids("done")) != 0 || len(n.ids("again")) != 1 {
		t.Errorf("%v %v", n.ids("done"), n.ids("again"))
	}
	if st := n.status("done"); st.Phase != v1.PodSucceeded {
		t.Errorf("%+v", st)
	}
}
