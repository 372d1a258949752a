package podworker

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
)

func (n *node) ready(uid types.UID) func() bool {
	return func() bool { return podReady(n.records[uid].Pod.Status) }
}

func podReady(st v1.PodStatus) bool {
	for i := range st.Conditions {
		if st.Conditions[i].Type == v1.PodReady {
			return st.Conditions[i].Status == v1.ConditionTrue
		}
	}
	return false
}

func (n *node) phase(uid types.UID, want v1.PodPhase) func() bool {
	return func() bool { r, ok := n.records[uid]; return ok && r.Pod.Status.Phase == want }
}

func (n *node) status(uid types.UID) v1.PodStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.records[uid].Pod.Status
}

func (n *node) ids(uid types.UID) (ids []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.snapshot(uid).Containers {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	return ids
}

func deletion(after time.Duration) func(p *v1.Pod) {
	return func(p *v1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now().Add(after)} }
}

func TestPodRunsAndEndsWithoutTraces(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	p := testPod("a", v1.RestartPolicyAlways, "one", "two")
	n.want(p)
	a := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	st := n.status("a")
	if st.Phase != v1.PodRunning || st.PodIP == "" || st.HostIP != "192.0.2.1" || st.ContainerStatuses[0].ContainerID == "" {
		t.Fatalf("%+v", st)
	}
	if links, _ := os.ReadDir(dir + "/links"); len(links) != 2 {
		t.Fatalf("links %v", links)
	}
	n.edit("a", deletion(time.Minute))
	a.Wake("a")
	n.until("finished", func() bool { return n.finished["a"] })
	for _, d := range []string{"/pods/a", "/logs/default_web-a_a"} {
		if _, err := os.Stat(dir + d); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", d, err)
		}
	}
	if links, _ := os.ReadDir(dir + "/links"); len(links) != 0 {
		t.Errorf("links left: %v", links)
	}
}

// TestStartIsMeasuredOnce: a pod that the next agent finds running has not
// started just now.
func TestStartIsMeasuredOnce(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	p := testPod("a", v1.RestartPolicyAlways, "one")
	p.Status.Phase = v1.PodPending
	n.want(p)
	first := n.agent(dir, nil)
	n.until("measured", func() bool { return n.starts == 1 })
	first.stop()
	n.edit("a", func(p *v1.Pod) { p.Status = v1.PodStatus{Phase: v1.PodUnknown} }) // as the store does on opening
	next := n.agent(dir, nil)
	n.until("found running", n.ready("a"))
	next.stop()
	if n.starts != 1 {
		t.Errorf("measured %d times", n.starts)
	}
}

// TestKilledBetweenAnyTwoActions ends the manager at every point of a pod's
// start and of its end; the next one goes on, doubles nothing (the node
// refuses) and keeps the containers that already ran.
func TestKilledBetweenAnyTwoActions(t *testing.T) {
	for _, ending := range []bool{false, true} {
		for at := int64(1); ; at++ {
			n, dir := newNode(t), t.TempDir()
			n.want(livelyPod("a"))
			if ending {
				first := n.agent(dir, nil)
				n.until("ready", n.ready("a"))
				first.stop()
				n.edit("a", deletion(time.Minute))
			}
			var passed atomic.Int64
			var first *agent
			ready := make(chan struct{})
			killed := make(chan struct{})
			first = n.agent(dir, func(o *Options) {
				o.Hook = func(string) {
					<-ready
					if passed.Add(1) == at {
						first.kill()
						close(killed)
						n.mu.Lock()
						n.changed.Broadcast()
						n.mu.Unlock()
					}
				}
			})
			close(ready)
			reached := false
			goal := n.ready("a")
			if ending {
				goal = func() bool { return n.finished["a"] }
			}
			n.until("killed or done", func() bool {
				select {
				case <-killed:
					reached = true
					return true
				default:
					return goal()
				}
			})
			first.stop()
			before := n.ids("a")
			n.agent(dir, nil)
			n.until("the goal after a kill", goal)
			if after := n.ids("a"); !ending && !isSubset(before, after) {
				t.Fatalf("killed at %d: containers were %v, are %v", at, before, after)
			}
			if !reached {
				if at < 5 {
					t.Fatalf("only %d points", at)
				}
				break
			}
		}
	}
}

// livelyPod has a sidecar and hooks beside its containers.
func livelyPod(uid string) *v1.Pod {
	p := hookedPod(uid, execHook("hello"), execHook("bye"))
	always := v1.ContainerRestartPolicyAlways
	p.Spec.InitContainers = []v1.Container{{Name: "side", Image: "img", RestartPolicy: &always,
		Lifecycle: &v1.Lifecycle{PostStart: execHook("hello"), PreStop: execHook("bye")}}}
	return p
}

func isSubset(a, b []string) bool {
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return true
}

func TestExitIsActedOnByItsEvent(t *testing.T) {
	n := newNode(t)
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	n.agent(t.TempDir(), func(o *Options) { o.RelistInterval = time.Hour })
	n.until("ready", n.ready("a"))
	n.exit(n.ids("a")[0], 1)
	n.until("restarted", func() bool {
		s := n.records["a"].Pod.Status.ContainerStatuses
		return len(s) == 1 && s[0].RestartCount == 1 && s[0].State.Running != nil && s[0].LastTerminationState.Terminated.ExitCode == 1
	})
}

func TestMissedEventIsFoundByTheRelist(t *testing.T) {
	n := newNode(t)
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	n.agent(t.TempDir(), nil)
	n.until("ready", n.ready("a"))
	n.mu.Lock()
	n.onEvent = nil
	n.mu.Unlock()
	n.exit(n.ids("a")[0], 1)
	n.until("restarted", func() bool { return n.records["a"].Pod.Status.ContainerStatuses[0].RestartCount == 1 })
}

// TestRelistOutlivesAHungRuntime: the loop, whose rounds the watchdog counts,
// goes on while the runtime answers nothing.
func TestRelistOutlivesAHungRuntime(t *testing.T) {
	n := newNode(t)
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	a := n.agent(t.TempDir(), nil)
	n.until("ready", n.ready("a"))
	n.mu.Lock()
	n.frozen = true
	n.mu.Unlock()
	for range 2 {
		began := time.Now()
		n.until("another round", func() bool { return a.LastRelist().After(began) })
	}
}

func TestFinishedPodKeepsItsContainersAndGivesTheRestBack(t *testing.T) {
	n := newNode(t)
	n.want(testPod("a", v1.RestartPolicyNever, "one"))
	n.agent(t.TempDir(), nil)
	n.until("ready", n.ready("a"))
	n.exit(n.ids("a")[0], 0)
	n.until("succeeded", n.phase("a", v1.PodSucceeded))
	n.until("given back", func() bool { return !n.cgroups["a"] && !n.volumes["a"] && !n.pods["a"].Sandboxes[0].Ready })
	if len(n.ids("a")) != 1 {
		t.Fatal("the container and its log are gone")
	}
}

func TestImageProblemsShowAndOtherContainersRun(t *testing.T) {
	n := newNode(t)
	p := testPod("a", v1.RestartPolicyAlways, "bad", "good")
	p.Spec.Containers[0].Image = "missing"
	n.noImage["missing"] = images.State{Reason: images.ReasonBackOff, Message: "Back-off pulling image", RetryAt: time.Now().Add(time.Hour)}
	n.want(p)
	a := n.agent(t.TempDir(), nil)
	n.until("the other runs and the reason shows", func() bool {
		s := n.records["a"].Pod.Status.ContainerStatuses
		return len(s) == 2 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "ImagePullBackOff" && s[1].State.Running != nil
	})
	n.mu.Lock()
	delete(n.noImage, "missing")
	n.mu.Unlock()
	a.Wake("a")
	n.until("ready", n.ready("a"))
}

func TestSandboxFailureIsAnEventAndHeals(t *testing.T) {
	n := newNode(t)
	n.failRun = errors.New("no CNI")
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	a := n.agent(t.TempDir(), nil)
	n.until("event", n.said("FailedCreatePodSandBox: no CNI"))
	n.mu.Lock()
	n.failRun = nil
	n.mu.Unlock()
	a.WakeAll()
	n.until("ready", n.ready("a"))
}

// TestFailedCallWaitsForItsTurn: what failed is not called again before its
// time, whatever wakes the worker; only the end of the trouble shortens that.
func TestFailedCallWaitsForItsTurn(t *testing.T) {
	n := newNode(t)
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	frozen := time.Now()
	a := n.agent(t.TempDir(), func(o *Options) { o.Clock = func() time.Time { return frozen } })
	n.until("ready", n.ready("a"))
	n.mu.Lock()
	n.failStop = errors.New("no CNI")
	n.mu.Unlock()
	n.lose("a")
	n.until("the failure shows", n.said("FailedSync: StopSandbox: no CNI"))
	for range 3 {
		n.mu.Lock()
		seen := n.relists
		n.mu.Unlock()
		a.Wake("a")
		n.until("two relists", func() bool { return n.relists >= seen+2 })
	}
	n.mu.Lock()
	stops := n.stops
	n.failStop = nil
	n.mu.Unlock()
	if stops != 1 {
		t.Errorf("a sandbox that cannot be stopped was asked to %d times", stops)
	}
	a.WakeAll()
	n.until("ready again", func() bool {
		return len(n.pods["a"].Sandboxes) > 0 && n.pods["a"].Sandboxes[0].Attempt == 1 && n.ready("a")()
	})
}

// TestEndOfAPodWhoseSandboxHangs: nobody waits for a network plugin on behalf
// of a pod that is to go.
func TestEndOfAPodWhoseSandboxHangs(t *testing.T) {
	n := newNode(t)
	n.hanging = true
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	n.want(testPod("b", v1.RestartPolicyAlways, "one"))
	a := n.agent(t.TempDir(), func(o *Options) { o.MaxStarts = 1 })
	n.until("one hangs, the other waits for its turn", n.said("hangs"))
	for _, uid := range []types.UID{"a", "b"} {
		n.edit(uid, deletion(time.Minute))
		a.Wake(uid)
	}
	n.until("both are gone", func() bool { return n.finished["a"] && n.finished["b"] })
	if n.said("Failed")() {
		t.Errorf("giving up on purpose shows as a failure: %v", n.events)
	}
}

func TestRefusedPodFailsAndNothingIsMade(t *testing.T) {
	n := newNode(t)
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	n.agent(t.TempDir(), func(o *Options) {
		o.Admit = func(*v1.Pod, []*v1.Pod) *status.Refusal {
			return &status.Refusal{Reason: "NodeAffinity", Message: "no"}
		}
	})
	n.until("failed", n.phase("a", v1.PodFailed))
	n.mu.Lock()
	defer n.mu.Unlock()
	if st := n.records["a"].Pod.Status; st.Reason != "NodeAffinity" || n.made != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestShorterGraceOvertakesALongerOne(t *testing.T) {
	n := newNode(t)
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	a := n.agent(t.TempDir(), nil)
	n.until("ready", n.ready("a"))
	n.mu.Lock()
	n.ignoring[n.pods["a"].Containers[0].ID] = true
	n.mu.Unlock()
	n.edit("a", deletion(time.Hour))
	a.Wake("a")
	n.until("killing", n.said("Killing"))
	zero := int64(0)
	n.edit("a", func(p *v1.Pod) { deletion(0)(p); p.DeletionGracePeriodSeconds = &zero })
	a.Wake("a")
	n.until("finished", func() bool { return n.finished["a"] })
}

func TestOrphanEndsOnlyOnceItsSourceHasSynced(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	p := testPod("a", v1.RestartPolicyAlways, "one")
	n.want(p)
	first := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	first.stop()
	n.mu.Lock()
	delete(n.records, "a") // the checkpoint was lost
	n.synced = false
	n.mu.Unlock()
	n.relists = 0
	n.agent(dir, nil)
	n.until("two relists", func() bool { return n.relists > 2 })
	if len(n.ids("a")) != 1 {
		t.Fatal("ended on nobody's word")
	}
	n.mu.Lock()
	n.synced = true
	n.mu.Unlock()
	n.until("gone", func() bool { return len(n.pods["a"].Containers)+len(n.pods["a"].Sandboxes) == 0 })
}

// TestKubeletsPodOfAnAPIServer: an adopted pod ends on the word of the source it
// came from, which for kubelet's "api" is nobody that this agent has.
func TestKubeletsPodOfAnAPIServer(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	first := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	first.stop()
	n.mu.Lock()
	delete(n.records, "a")
	n.pods["a"].Sandboxes[0].Annotations = map[string]string{pod.AnnotationConfigSource: "api"}
	n.mu.Unlock()
	n.relists = 0
	n.agent(dir, nil)
	n.until("two relists", func() bool { return n.relists > 2 })
	if len(n.ids("a")) != 1 {
		t.Fatal("ended on nobody's word")
	}
	n.mu.Lock()
	n.pods["a"].Sandboxes[0].Labels = map[string]string{pod.LabelOwner: "us"}
	n.mu.Unlock()
	n.until("ours is gone", func() bool { return len(n.pods["a"].Containers)+len(n.pods["a"].Sandboxes) == 0 })
}

func TestTerminationMessage(t *testing.T) {
	dir := t.TempDir()
	m := New(Options{PodsDir: dir + "/pods", PodLogDir: dir + "/logs"})
	p := testPod("a", v1.RestartPolicyNever, "one")
	c := &runtime.Container{Name: "one", ExitCode: 1}
	path, err := m.makeMessageFile(p, "one", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 5000)+"end"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := m.terminationMessage(p, c); len(got) != maxMessage || !strings.HasSuffix(got, "end") {
		t.Fatalf("%d bytes", len(got))
	}
	// A container that puts a link there reads nothing of the host.
	if err := errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)); err != nil {
		t.Fatal(err)
	}
	if got := m.terminationMessage(p, c); strings.Contains(got, "root:") {
		t.Fatal("followed a link")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p.Spec.Containers[0].TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
	log := filepath.Join(m.logDir(p), "one", "0.log")
	if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, []byte("2026-01-01T00:00:00Z stdout P hel\n2026-01-01T00:00:00Z stdout F lo\n2026-01-01T00:00:00Z stderr F bye\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := m.terminationMessage(p, c); got != "hello\nbye\n" {
		t.Fatalf("%q", got)
	}
}

// TestHostPortGoesToOnePod has many pods want one port at once, and asks again
// after a restart: the one that runs keeps it.
func TestHostPortGoesToOnePod(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	uids := []types.UID{"a", "b", "c", "d"}
	for _, uid := range uids {
		p := testPod(string(uid), v1.RestartPolicyAlways, "one")
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostPort: 80, Protocol: v1.ProtocolTCP}}
		n.want(p)
	}
	judge := func(o *Options) { o.Admit = Admission(func() map[string]string { return nil }, NodeSecurity{}) }
	runs := func() (running []types.UID, refused int) {
		for _, uid := range uids {
			switch st := n.records[uid].Pod.Status; {
			case podReady(st):
				running = append(running, uid)
			case IsRefusal(st):
				refused++
			}
		}
		return running, refused
	}
	settled := func() bool { r, f := runs(); return len(r)+f == len(uids) }
	a := n.agent(dir, judge)
	n.until("all judged", settled)
	a.stop()
	first, refused := runs()
	if len(first) != 1 || refused != 3 {
		t.Fatalf("%v run, %d are refused", first, refused)
	}
	for _, uid := range uids {
		n.edit(uid, func(p *v1.Pod) { p.Status = v1.PodStatus{Phase: v1.PodPending} }) // as the store does on opening
	}
	b := n.agent(dir, judge)
	n.until("all judged again", settled)
	b.stop()
	again, _ := runs()
	if !slices.Equal(first, again) {
		t.Fatalf("%v ran, after a restart %v does", first, again)
	}
}

// TestHostPortIsWaitedFor: a port that a pod on its way out still has is no
// reason to refuse the next one for ever.
func TestHostPortIsWaitedFor(t *testing.T) {
	n := newNode(t)
	withPort := func(uid string) *v1.Pod {
		p := testPod(uid, v1.RestartPolicyAlways, "one")
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostPort: 80, Protocol: v1.ProtocolTCP}}
		return p
	}
	n.want(withPort("old"))
	a := n.agent(t.TempDir(), func(o *Options) { o.Admit = Admission(func() map[string]string { return nil }, NodeSecurity{}) })
	n.until("ready", n.ready("old"))
	id := n.ids("old")[0]
	n.mu.Lock()
	n.ignoring[id] = true
	n.mu.Unlock()
	n.edit("old", deletion(time.Hour))
	a.Wake("old")
	n.want(withPort("new"))
	a.Wake("new")
	n.until("the new one waits", n.said("web-new/ Waiting"))
	n.exit(id, 0)
	n.until("the new one runs", n.ready("new"))
}

// TestUnschedulable: a pod that the node is not open to waits, and says why,
// until it is; the agent after that does not ask again.
func TestUnschedulable(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	var closed atomic.Bool
	closed.Store(true)
	ask := func(o *Options) {
		o.Unschedulable = func(*v1.Pod, string) string {
			if closed.Load() {
				return "cordoned"
			}
			return ""
		}
	}
	a := n.agent(dir, ask)
	n.until("it waits", func() bool {
		st := n.records["a"].Pod.Status
		return len(st.Conditions) == 1 && st.Phase == v1.PodPending && st.StartTime == nil && st.Conditions[0].Type == v1.PodScheduled &&
			st.Conditions[0].Reason == v1.PodReasonUnschedulable && st.Conditions[0].Message == "cordoned"
	})
	n.until("it is said", n.said("web-a/ FailedScheduling"))
	closed.Store(false)
	a.WakeAll()
	n.until("ready", n.ready("a"))
	n.until("that is said, too", n.said("web-a/ Scheduled"))
	a.stop()
	closed.Store(true)
	seen := n.relists
	b := n.agent(dir, ask)
	n.until("two relists", func() bool { return n.relists >= seen+2 })
	b.stop()
	if !n.ready("a")() {
		t.Errorf("what runs is asked again: %+v", n.records["a"].Pod.Status)
	}
}

// TestDiscardLeavesTheStatusOnly: a finished pod's containers and logs go, it
// does not run again, also not under the next agent.
func TestDiscardLeavesTheStatusOnly(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("a", v1.RestartPolicyNever, "one"))
	a := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	a.Discard("a") // too early: nothing happens
	n.exit(n.ids("a")[0], 0)
	n.until("succeeded", n.phase("a", v1.PodSucceeded))
	n.until("discarded", func() bool {
		_, err := os.Stat(dir + "/logs/default_web-a_a")
		return errors.Is(err, os.ErrNotExist) && len(n.snapshot("a").Containers)+len(n.snapshot("a").Sandboxes) == 0
	})
	a.stop()
	seen := n.relists
	b := n.agent(dir, nil)
	n.until("two relists", func() bool { return n.relists >= seen+2 })
	b.stop()
	st := n.records["a"].Pod.Status
	if st.Phase != v1.PodSucceeded || st.ContainerStatuses[0].State.Terminated == nil || n.finished["a"] || len(n.ids("a")) != 0 {
		t.Errorf("finished %t, containers %v, status %+v", n.finished["a"], n.ids("a"), st)
	}
}
