package podworker

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/logs"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/probe"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
	"github.com/nodeagent/nodeagent/pkg/store"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// runtimeRetry is how soon a worker looks again when the runtime did not answer.
const runtimeRetry = time.Second

// worker holds nothing that a restart could not find again: caches, the calls
// that are under way, and back-off of calls that failed.
type worker struct {
	m      *Manager
	uid    types.UID
	orphan *store.Record // set when no source knows the pod
	wake   chan struct{}
	probed chan struct{} // a container has become ready or unready

	admitted atomic.Bool
	queued   atomic.Bool // until pods that come first were judged
	// allocation is set aside for it; pending is why a resize waits.
	allocation atomic.Pointer[allocation]
	pending    atomic.Pointer[status.Refusal]
	refused    *status.Refusal
	// unschedulable is why the pod waits until the node is open to it.
	unschedulable string
	evicted       atomic.Pointer[evicted] // asked for from outside
	// outlived is an eviction that holds no more.
	outlived *evicted
	released atomic.Bool
	// discard is asked for from outside; discarded is when it was done.
	discard, discarded atomic.Bool
	// frugal asks to keep nothing of earlier runs, once.
	frugal   atomic.Bool
	mounted  map[string]volumes.Mounted // nil: not set up since this worker began
	ground   ground                     // set with mounted
	stopped  map[string]bool            // sandboxes
	running  map[string]bool            // containers seen alive
	messages map[string]string          // termination messages by container ID
	failures map[string]*failure        // by failureKey
	waiting  map[string]v1.ContainerStateWaiting
	stale    string                              // why volumes are not what their objects say now
	looked   *runtime.Pod                        // the last look
	probes   *probe.Pod                          // set by run
	notes    map[string]notes                    // what is noted down of containers that run, by ID
	expired  bool                                // its activeDeadlineSeconds are over, and its user was told
	given    map[string]*v1.ResourceRequirements // what containers were last given, by ID
	// resizeError is of the latest try.
	resizeError string

	// afresh asks to try at once what failed.
	afresh atomic.Bool

	mu      sync.Mutex
	killing map[string]time.Time
	hooks   map[hookID]*hook
	seen    string
	// starting ends the making of a sandbox that is under way.
	starting context.CancelFunc
}

func newWorker(m *Manager, uid types.UID, orphan *store.Record) *worker {
	w := &worker{
		m: m, uid: uid, orphan: orphan, wake: make(chan struct{}, 1), probed: make(chan struct{}, 1),
		stopped: map[string]bool{}, running: map[string]bool{}, messages: map[string]string{},
		failures: map[string]*failure{}, waiting: map[string]v1.ContainerStateWaiting{},
		killing: map[string]time.Time{}, hooks: map[hookID]*hook{}, notes: map[string]notes{}, given: map[string]*v1.ResourceRequirements{},
	}
	if orphan == nil {
		w.recall()
	}
	return w
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
	w.abandon()
}

// abandon gives up the making of a sandbox whose pod is to end: a network
// plugin may hang for minutes.
func (w *worker) abandon() {
	w.mu.Lock()
	cancel := w.starting
	w.mu.Unlock()
	if cancel == nil {
		return
	}
	if rec, ok := w.record(); !ok || rec.Pod.DeletionTimestamp != nil {
		cancel()
	}
}

// abandonable returns the context for what abandon may end.
func (w *worker) abandonable(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	set := func(f context.CancelFunc) {
		w.mu.Lock()
		w.starting = f
		w.mu.Unlock()
	}
	set(cancel)
	w.abandon() // the end may have been asked for since the plan was made
	return ctx, func() { set(nil); cancel() }
}

// lastSeen is the fingerprint of the worker's last look; empty before it.
func (w *worker) lastSeen() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}

// run looks and acts until the pod is gone or ctx ends.
func (w *worker) run(ctx context.Context) {
	var kills sync.WaitGroup
	defer kills.Wait()
	w.probes = w.m.Probes.Start(ctx, func() {
		select {
		case w.probed <- struct{}{}:
		default:
		}
	})
	defer w.probes.Stop()
	w.resumeEviction()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	pass := "create"
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.probed:
			// Whoever sends traffic must know at once: the runtime is not asked first.
			if rec, ok := w.record(); ok && w.looked != nil {
				w.writeStatus(rec, w.looked)
			}
		case <-w.wake:
		case <-timer.C:
		}
		began := w.m.Clock()
		next, done := w.sync(ctx, &kills)
		if done {
			return
		}
		w.m.Metrics.PodWorker(pass, w.m.Clock().Sub(began))
		pass = "sync"
		d := time.Hour
		if !next.IsZero() {
			d = max(0, next.Sub(w.m.Clock()))
		}
		timer.Reset(d)
	}
}

func (w *worker) record() (store.Record, bool) {
	if w.orphan != nil {
		return *w.orphan, true
	}
	return w.m.Store.ByUID(w.uid)
}

// sync brings the pod as far as it gets without waiting for anything; next is
// when to look again at the latest.
func (w *worker) sync(ctx context.Context, kills *sync.WaitGroup) (next time.Time, done bool) {
	s := &turn{worker: w, kills: kills}
	defer s.release()
	if w.afresh.Swap(false) {
		clear(w.failures)
	}
	if w.frugal.Load() {
		defer w.frugal.Store(false)
	}
	refreshed, retry := false, time.Time{}
	for ctx.Err() == nil {
		rec, ok := w.record()
		if !ok {
			return time.Time{}, true
		}
		observed, err := w.m.Observer.Pod(ctx, w.uid)
		if err != nil {
			w.m.Log.Warn("cannot see what the runtime runs; will look again", "pod", pod.Describe(rec.Pod), "err", err)
			return w.m.Clock().Add(runtimeRetry), false
		}
		switch changed, err := w.revive(ctx, rec, &observed); {
		case err != nil:
			w.m.Log.Warn("cannot have a pod run again that was ended for a shutdown; will try again", "pod", pod.Describe(rec.Pod), "err", err)
			return w.m.Clock().Add(runtimeRetry), false
		case changed:
			continue
		}
		w.note(rec, &observed)
		if !w.admit(rec, &observed) {
			w.writeStatus(rec, &observed)
			return time.Time{}, false
		}
		rec.Pod = w.allocate(rec, &observed)
		if !refreshed {
			refreshed, retry = true, s.refresh(ctx, rec, &observed)
		}
		again, wakeAt, gone := s.turn(ctx, rec, observed)
		if gone {
			return time.Time{}, true
		}
		if !again {
			return earlier(wakeAt, retry), false
		}
	}
	return time.Time{}, true
}

// turn is one pass of sync: a plan, its actions, the status. It holds at most
// one of the manager's start slots.
type turn struct {
	*worker
	kills *sync.WaitGroup
	slot  bool
}

func (s *turn) release() {
	if s.slot {
		s.m.starts.Release(1)
		s.slot = false
	}
}

func (s *turn) turn(ctx context.Context, rec store.Record, observed runtime.Pod) (again bool, wakeAt time.Time, gone bool) {
	plan := lifecycle.Next(s.input(rec, observed))
	for name, wait := range plan.Waiting {
		s.backingOff(rec.Pod, name, wait)
	}
	s.noteExpiry(rec, &observed)
	s.writeStatus(rec, &observed)
	wakeAt = plan.WakeAt
	for _, a := range plan.Actions {
		if a.Kind == lifecycle.Release && s.released.Load() || a.Kind == lifecycle.Discard && s.discarded.Load() {
			continue
		}
		progress, retry, err := s.try(ctx, rec.Pod, &observed, a)
		if ctx.Err() != nil {
			return false, time.Time{}, false
		}
		if !retry.IsZero() && (wakeAt.IsZero() || retry.Before(wakeAt)) {
			wakeAt = retry
		}
		again = again || progress
		if a.Barrier && progress && err == nil {
			break
		}
		if a.Kind == lifecycle.Forget && err == nil {
			return false, time.Time{}, true
		}
		if err != nil && !independent(a.Kind) {
			break
		}
	}
	if !again {
		// Reasons to wait may have changed without anything being done.
		s.writeStatus(rec, &observed)
	}
	return again, wakeAt, false
}

// independent actions may fail without holding up those behind them: one
// container's bad image does not keep the others from starting.
func independent(k lifecycle.Kind) bool {
	switch k {
	case lifecycle.CreateContainer, lifecycle.StartContainer, lifecycle.KillContainer, lifecycle.RemoveContainer,
		lifecycle.RunPostStart, lifecycle.RunPreStop, lifecycle.ResizeContainer:
		return true
	default:
		return false
	}
}

func (s *turn) input(rec store.Record, observed runtime.Pod) lifecycle.Input {
	in := lifecycle.Input{
		Pod: rec.Pod, Observed: observed, Stopped: s.stopped,
		Killing: map[string]time.Time{}, Known: s.judge(rec.Pod, &observed), Accepted: rec.Accepted,
		End:     s.refused != nil || s.evicted.Load() != nil || pod.IsTerminal(rec.Pod.Status.Phase),
		EndBy:   s.evicted.Load().by(),
		Discard: s.discard.Load(),
		Backoff: s.m.Backoff, KeepDead: s.m.KeepDead, Now: s.m.Clock(),
	}
	if s.frugal.Load() {
		in.KeepDead = 0
	}
	s.mu.Lock()
	for id, t := range s.killing {
		in.Killing[id] = t
	}
	s.mu.Unlock()
	return in
}

// noteExpiry tells the user, once, that a pod was active for long enough.
func (s *turn) noteExpiry(rec store.Record, observed *runtime.Pod) {
	if s.expired || s.orphan != nil || rec.Pod.DeletionTimestamp != nil || pod.IsTerminal(rec.Pod.Status.Phase) ||
		!lifecycle.Expired(rec.Pod, *observed, rec.Accepted, s.m.Clock()) {
		return
	}
	s.expired = true
	s.m.Recorder.PodEvent(rec.Pod, "", v1.EventTypeNormal, status.ReasonDeadlineExceeded, status.MessageDeadlineExceeded)
}

// note remembers what this look shows and measures how late exits are seen.
func (w *worker) note(rec store.Record, observed *runtime.Pod) {
	w.mu.Lock()
	w.seen = fingerprint(observed)
	w.mu.Unlock()
	w.looked = observed
	alive := map[string]bool{}
	var written []logs.Container
	for i := range observed.Containers {
		c := &observed.Containers[i]
		switch c.State {
		case runtime.StateRunning:
			alive[c.ID] = true
			written = append(written, logs.Container{ID: c.ID, PodFolder: filepath.Base(w.m.logDir(rec.Pod)), Name: c.Name, Attempt: c.Attempt})
			delete(w.waiting, c.Name)
		case runtime.StateExited:
			if w.running[c.ID] {
				w.m.Metrics.ExitHandled(w.m.Clock().Sub(c.FinishedAt))
				delete(w.waiting, c.Name)
			}
			if _, read := w.messages[c.ID]; !read {
				w.messages[c.ID] = w.m.terminationMessage(rec.Pod, c)
			}
		}
	}
	for id := range w.messages {
		if !hasContainer(observed, id) {
			delete(w.messages, id)
		}
	}
	for id := range w.given {
		if !hasContainer(observed, id) {
			delete(w.given, id)
		}
	}
	w.running = alive
	w.m.Logs.Follow(w.uid, written)
}

func hasContainer(p *runtime.Pod, id string) bool {
	for i := range p.Containers {
		if p.Containers[i].ID == id {
			return true
		}
	}
	return false
}

// admit decides once whether the node runs the pod. What already has a sandbox
// is never asked again: pods do not die because labels change.
func (w *worker) admit(rec store.Record, observed *runtime.Pod) bool {
	if w.admitted.Load() || w.orphan != nil || rec.Pod.DeletionTimestamp != nil || pod.IsTerminal(rec.Pod.Status.Phase) {
		return true
	}
	w.m.admission.Lock()
	defer w.m.admission.Unlock()
	isNew := len(observed.Sandboxes) == 0
	if isNew && w.refused == nil {
		defer w.m.wakeQueued()
		if w.unschedulable = w.m.Unschedulable(rec.Pod, rec.Source); w.unschedulable != "" {
			w.m.Recorder.PodEvent(rec.Pod, "", v1.EventTypeWarning, "FailedScheduling", w.unschedulable)
			return false
		}
		v := w.m.place(rec, w.m.neighbours(rec))
		if w.queued.Store(v.queued); v.queued {
			return false
		}
		for _, p := range v.preempted {
			w.m.Evict(p.UID, Eviction{Reason: reasonPreempting, Message: messagePreempting, Grace: pod.GracePeriod(p), Disrupted: true})
		}
		if v.waits != "" {
			// What it lacks comes free: the manager wakes it when a pod has ended.
			w.m.Recorder.PodEvent(rec.Pod, "", v1.EventTypeNormal, "Waiting", "Waits for another pod to end: "+v.waits)
			return false
		}
		if w.refused = v.refused; w.refused != nil {
			w.m.Recorder.PodEvent(rec.Pod, "", v1.EventTypeWarning, w.refused.Reason, w.refused.Message)
		}
	}
	if w.refused != nil {
		return false
	}
	if isNew {
		w.m.Recorder.PodEvent(rec.Pod, "", v1.EventTypeNormal, "Scheduled", fmt.Sprintf("Successfully assigned %s to %s", pod.KeyOf(rec.Pod), w.m.Hostname))
	}
	w.admitted.Store(true)
	return true
}

func (w *worker) writeStatus(rec store.Record, observed *runtime.Pod) {
	if w.orphan != nil {
		return
	}
	if cur, ok := w.m.Store.ByUID(w.uid); ok {
		rec = cur
	}
	desired, evicted := rec.Pod, w.evicted.Load()
	rec.Pod = w.allocated(desired)
	st := status.Compute(status.Input{
		Pod: rec.Pod, Observed: *observed, Waiting: w.waiting, Refused: w.refused, Unschedulable: w.unschedulable, Messages: w.messages,
		Evicted: evicted.refusal(), Disrupted: evicted != nil && evicted.Disrupted,
		Known: w.judge(rec.Pod, observed), ResizeError: w.resizeError, ResizePending: w.pendingResize(desired), NodeIPs: w.m.NodeIPs, RuntimeName: w.m.RuntimeName, Accepted: rec.Accepted, Now: w.m.Clock(),
	})
	// One that was Unknown was started by an earlier agent.
	became := st.Phase == v1.PodRunning && rec.Pod.Status.Phase == v1.PodPending
	if err := w.m.Store.SetStatus(w.uid, st); err != nil {
		w.m.Log.Warn("cannot keep the pod's status; will try again", "pod", pod.Describe(rec.Pod), "err", err)
		return
	}
	if became {
		w.m.Metrics.PodStarted(w.m.Clock().Sub(rec.Accepted))
	}
}
