package podworker

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/status"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// ReasonEvicted is that of a pod which ends because the node, or the pod, is
// short of something, and of one that is refused for it.
const ReasonEvicted = "Evicted"

// Eviction is how a pod is ended for the node's sake.
type Eviction struct {
	Reason, Message string
	// Grace is what its containers get to end.
	Grace time.Duration
	// Disrupted says that it is no fault of the pod's.
	Disrupted bool
	// Passing says that the pod is to run again when the host's shutdown, which is
	// what it is ended for, is over.
	Passing bool
}

// evicted is an eviction that has begun, as it stands in the pod's folder: a
// restarted agent goes on with it.
type evicted struct {
	Reason    string    `json:"reason"`
	Message   string    `json:"message"`
	By        time.Time `json:"by"` // when its containers have to have ended
	Disrupted bool      `json:"disrupted,omitempty"`
	// Passing as in Eviction; Began is when it was asked for.
	Passing bool      `json:"passing,omitempty"`
	Began   time.Time `json:"began,omitzero"`
}

// evictedFile is in the folder of a pod that is evicted.
const evictedFile = "evicted.json"

// Evict ends a pod: it fails with this reason and message. Of a pod that nobody
// runs, that has finished or is to end anyway, and the second time, it does
// nothing.
func (m *Manager) Evict(uid types.UID, e Eviction) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	r, known := m.Store.ByUID(uid)
	if w == nil || !known || pod.IsTerminal(r.Pod.Status.Phase) || r.Pod.DeletionTimestamp != nil {
		return
	}
	now := m.Clock()
	begun := &evicted{Reason: e.Reason, Message: e.Message, By: now.Add(e.Grace), Disrupted: e.Disrupted, Passing: e.Passing, Began: now}
	if !w.evicted.CompareAndSwap(nil, begun) {
		return
	}
	m.Hook("before Evict")
	if err := m.noteEviction(uid, begun); err != nil {
		// The disk may be what is full: it ends all the same.
		m.Log.Warn("cannot note down that a pod is evicted; if the agent is killed now, it may live on", "pod", pod.Describe(r.Pod), "err", err)
	}
	m.Hook("after Evict")
	m.Recorder.PodEvent(r.Pod, "", v1.EventTypeWarning, e.Reason, e.Message)
	w.poke()
}

func (m *Manager) noteEviction(uid types.UID, e *evicted) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return store.WriteFile(filepath.Join(m.podDir(uid), evictedFile), b)
}

// readEviction finds an eviction that the agent before has begun; nil: none.
func (m *Manager) readEviction(uid types.UID) *evicted {
	b, err := os.ReadFile(filepath.Join(m.podDir(uid), evictedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var e evicted
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil {
		m.Log.Warn("cannot read how a pod is evicted; it lives on", "uid", uid, "err", err)
		return nil
	}
	return &e
}

// resumeEviction tells the user of an eviction that the agent before has begun.
func (w *worker) resumeEviction() {
	e := w.evicted.Load()
	if rec, ok := w.record(); ok && e != nil && !pod.IsTerminal(rec.Pod.Status.Phase) {
		w.m.Recorder.PodEvent(rec.Pod, "", v1.EventTypeWarning, e.Reason, e.Message)
	}
}

// refusal is what the status says of an eviction; nil: there is none.
func (e *evicted) refusal() *status.Refusal {
	if e == nil {
		return nil
	}
	return &status.Refusal{Reason: e.Reason, Message: e.Message}
}

func (e *evicted) by() time.Time {
	if e == nil {
		return time.Time{}
	}
	return e.By
}

// Active are the pods that run or are about to, without those that end.
func (m *Manager) Active() (pods []*v1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, w := range m.workers {
		r, ok := m.Store.ByUID(uid)
		if ok && w.admitted.Load() && w.evicted.Load() == nil && r.Pod.DeletionTimestamp == nil && !pod.IsTerminal(r.Pod.Status.Phase) {
			pods = append(pods, r.Pod)
		}
	}
	return pods
}

// Ended says that nothing of a pod runs any more and that its volumes are gone.
func (m *Manager) Ended(uid types.UID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ended(uid)
}

// ended is Ended; m.mu is held. Every pod gets a worker once the runtime answers.
func (m *Manager) ended(uid types.UID) bool {
	if _, known := m.Store.ByUID(uid); !known {
		return true
	}
	w := m.workers[uid]
	return w != nil && w.released.Load()
}

// Ending are the pods that were evicted, by this agent or the one before, and of
// which something is left.
func (m *Manager) Ending() (uids []types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.Store.Records() {
		uid, st := r.Pod.UID, r.Pod.Status
		gone := st.Phase == v1.PodFailed && st.Reason == ReasonEvicted && !IsRefusal(st)
		if w := m.workers[uid]; !gone && w != nil {
			gone = w.evicted.Load() != nil
		} else if !gone && !pod.IsTerminal(st.Phase) {
			gone = m.stands(m.readEviction(uid))
		}
		if gone && !m.ended(uid) {
			uids = append(uids, uid)
		}
	}
	return uids
}

// reclaimPoll is how often ReclaimDead looks whether the workers have done it.
const reclaimPoll = 50 * time.Millisecond

// ReclaimDead removes what nobody needs to run a pod: containers, logs and files
// of those that have finished, and of the others what is kept of earlier runs.
// It returns when that is done, or when ctx ends.
func (m *Manager) ReclaimDead(ctx context.Context) error {
	var asked []*worker
	m.mu.Lock()
	for uid, w := range m.workers {
		r, ok := m.Store.ByUID(uid)
		switch {
		case !ok:
		case pod.IsTerminal(r.Pod.Status.Phase) && w.released.Load():
			w.discard.Store(true)
			asked = append(asked, w)
		case !pod.IsTerminal(r.Pod.Status.Phase):
			w.frugal.Store(true)
			asked = append(asked, w)
		}
	}
	m.mu.Unlock()
	for _, w := range asked {
		w.poke()
	}
	for _, w := range asked {
		for w.discard.Load() && !w.discarded.Load() || w.frugal.Load() {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(reclaimPoll):
			}
		}
	}
	return nil
}
