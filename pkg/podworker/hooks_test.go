package podworker

import (
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

func execHook(cmd string) *v1.LifecycleHandler {
	return &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{cmd}}}
}

func hookedPod(uid string, post, pre *v1.LifecycleHandler) *v1.Pod {
	p := testPod(uid, v1.RestartPolicyAlways, "one", "two")
	p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: post, PreStop: pre}
	return p
}

// count is how many events hold a text.
func (n *node) count(text string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(n.events), func(e string) bool { return !strings.Contains(e, text) }))
}

// TestPostStartHook: a container whose hook fails is ended and started again. The next agent runs no hook that had ended.
func TestPostStartHook(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.answer(1)
	n.want(hookedPod("a", execHook("hello"), nil))
	first := n.agent(dir, nil)
	n.until("ended for its hook", n.said("/one Killing: FailedPostStartHook"))
	if n.count("/one FailedPostStartHook: PostStartHook failed") == 0 {
		t.Errorf("events %q", n.events)
	}
	n.answer(0)
	n.until("ready", n.ready("a"))
	first.stop()
	runs := n.count(" runs hello")
	second := n.agent(dir, nil)
	n.until("seen by the next agent", func() bool { return n.relists > 1 && podReady(n.records["a"].Pod.Status) })
	second.stop()
	if again := n.count(" runs hello"); again != runs {
		t.Errorf("the hook was run %d times, and %d times more by the next agent", runs, again-runs)
	}
}

// TestContainerRunsOnceItsHookHasEnded: until then it does not show as running,
// and nothing behind it begins.
func TestContainerRunsOnceItsHookHasEnded(t *testing.T) {
	n := newNode(t)
	n.want(hookedPod("a", execHook("hang"), nil))
	a := n.agent(t.TempDir(), nil)
	n.until("its hook runs", n.said(" runs hang"))
	n.until("it waits", func() bool {
		cs := n.records["a"].Pod.Status.ContainerStatuses
		return len(cs) == 2 && cs[0].State.Waiting != nil && cs[0].ContainerID != "" && cs[1].ContainerID == ""
	})
	n.edit("a", deletion(0))
	a.Wake("a")
	n.until("finished", func() bool { return n.finished["a"] })
}

// TestPreStopHook: it runs once, before the container is stopped, and no longer
// than the grace period.
func TestPreStopHook(t *testing.T) {
	n := newNode(t)
	n.want(hookedPod("a", nil, execHook("hang")))
	a := n.agent(t.TempDir(), nil)
	n.until("ready", n.ready("a"))
	n.edit("a", deletion(time.Hour))
	a.Wake("a")
	n.until("its hook runs", n.said(" runs hang"))
	n.until("the other one has ended", func() bool { return n.records["a"].Pod.Status.ContainerStatuses[1].State.Terminated != nil })
	if st := n.status("a"); st.ContainerStatuses[0].State.Running == nil {
		t.Errorf("%+v", st.ContainerStatuses[0])
	}
	n.edit("a", deletion(-time.Second))
	a.Wake("a")
	n.until("finished", func() bool { return n.finished["a"] })
	if runs, kills := n.count(" runs hang"), n.count("/one Killing: Stopping container one"); runs != 1 || kills != 1 {
		t.Errorf("%d runs of the hook, %d events", runs, kills)
	}
}

func TestPreStopHookThatFails(t *testing.T) {
	n := newNode(t)
	n.answer(3)
	n.want(hookedPod("a", nil, execHook("bye")))
	a := n.agent(t.TempDir(), nil)
	n.until("ready", n.ready("a"))
	n.edit("a", deletion(time.Hour))
	a.Wake("a")
	n.until("finished", func() bool { return n.finished["a"] })
	if n.count("/one FailedPreStopHook: PreStopHook failed") != 1 {
		t.Errorf("events %q", n.events)
	}
}

// TestLivenessProbe: a container that fails it is ended and started again.
func TestLivenessProbe(t *testing.T) {
	n := newNode(t)
	p := probedPod("a", 1, 1)
	c := &p.Spec.Containers[0]
	c.LivenessProbe, c.StartupProbe, c.ReadinessProbe = c.ReadinessProbe, c.ReadinessProbe.DeepCopy(), nil
	n.want(p)
	n.agent(t.TempDir(), n.probing(soon))
	n.until("ready", n.ready("a"))
	n.answer(1)
	n.until("it is told why", n.said("/one Killing: Container one failed liveness probe, will be restarted"))
	n.until("its successor has not started", n.said("/one Killing: Container one failed startup probe, will be restarted"))
	n.answer(0)
	n.until("ready again", n.ready("a"))
	if st := n.status("a").ContainerStatuses[0]; st.RestartCount < 2 || !*st.Started {
		t.Errorf("%+v", st)
	}
}

// TestActiveDeadline: the time counts from the pod's start, whichever agent is there.
func TestActiveDeadline(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	p := testPod("a", v1.RestartPolicyAlways, "one")
	limit := int64(3600)
	p.Spec.ActiveDeadlineSeconds = &limit
	n.want(p)
	first := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	first.stop()
	n.agent(dir, func(o *Options) { o.Clock = func() time.Time { return time.Now().Add(time.Hour) } })
	n.until("failed", n.phase("a", v1.PodFailed))
	if st := n.status("a"); st.Reason != "DeadlineExceeded" || st.ContainerStatuses[0].State.Terminated == nil || !n.hasEvent("web-a/ DeadlineExceeded: Pod was active") {
		t.Errorf("%+v, events %q", st, n.events)
	}
}

func (n *node) hasEvent(text string) bool { return n.count(text) > 0 }

func TestNames(t *testing.T) {
	yes, other := true, "other.example"
	m := &Manager{Options: Options{Hostname: "node", ClusterDomain: "cluster.local"}}
	for name, tc := range map[string]struct {
		set    func(*v1.PodSpec)
		kernel string
	}{
		"its own":           {func(*v1.PodSpec) {}, "web-a"},
		"hostname":          {func(s *v1.PodSpec) { s.Hostname = "db-0" }, "db-0"},
		"full":              {func(s *v1.PodSpec) { s.Subdomain, s.SetHostnameAsFQDN = "db", &yes }, "web-a.db.default.svc.cluster.local"},
		"full, no domain":   {func(s *v1.PodSpec) { s.SetHostnameAsFQDN = &yes }, "web-a"},
		"full, of the host": {func(s *v1.PodSpec) { s.Subdomain, s.SetHostnameAsFQDN, s.HostNetwork = "db", &yes, true }, "node"},
		"override":          {func(s *v1.PodSpec) { s.Hostname, s.Subdomain, s.HostnameOverride = "db-0", "db", &other }, other},
	} {
		p := testPod("a", v1.RestartPolicyAlways, "one")
		tc.set(&p.Spec)
		if got := m.kernelName(p); got != tc.kernel {
			t.Errorf("%s: %s, want %s", name, got, tc.kernel)
		}
	}
}

// TestNameThatIsTooLong keeps the pod from starting, and says why.
func TestNameThatIsTooLong(t *testing.T) {
	n := newNode(t)
	p := testPod("a", v1.RestartPolicyAlways, "one")
	yes := true
	p.Spec.SetHostnameAsFQDN, p.Spec.Hostname, p.Spec.Subdomain = &yes, strings.Repeat("h", 30), strings.Repeat("s", 30)
	n.want(p)
	n.agent(t.TempDir(), nil)
	n.until("it says so", n.said("FailedCreatePodSandBox: Failed to construct FQDN"))
	if pod.MaxFQDN != 64 || len(n.ids("a")) > 0 {
		t.Errorf("containers %v", n.ids("a"))
	}
}

// TestOrphanIsToldToo: of a pod that no source knows, the hook is noted on the
// container.
func TestOrphanIsToldToo(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	first := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	first.stop()
	n.mu.Lock()
	n.pods["a"].Containers[0].Annotations[pod.AnnotationPreStop] = `{"exec":{"command":["bye"]}}`
	delete(n.records, "a")
	n.mu.Unlock()
	n.agent(dir, nil)
	n.until("its hook was run", n.said(" runs bye"))
	n.until("nothing of it is left", func() bool { return len(n.pods["a"].Sandboxes) == 0 })
}

// TestRuntimeThatHasLostEverything begins to count anew: what is noted down of
// containers before is not of these.
func TestRuntimeThatHasLostEverything(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(hookedPod("a", execHook("hello"), nil))
	first := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	first.stop()
	n.mu.Lock()
	delete(n.pods, "a")
	n.mu.Unlock()
	before := n.count(" runs hello")
	n.agent(dir, nil)
	n.until("the hook is run", func() bool {
		return len(slices.DeleteFunc(slices.Clone(n.events), func(e string) bool { return !strings.Contains(e, " runs hello") })) > before
	})
}
