package podworker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// stands says that an eviction holds still: one that was for the host's shutdown
// does not once that is over.
func (m *Manager) stands(e *evicted) bool { return e != nil && (!e.Passing || m.ShuttingDown()) }

// recall takes up what the agent before has begun.
func (w *worker) recall() {
	e := w.m.readEviction(w.uid)
	if w.m.stands(e) {
		w.evicted.Store(e)
	} else {
		w.outlived = e
	}
}

// revive makes a pod that was ended for a shutdown, which is over, run again as
// if that end had not been: what came to its end then is taken away where its
// restart policy would hold that against the pod.
func (w *worker) revive(ctx context.Context, rec store.Record, observed *runtime.Pod) (changed bool, err error) {
	if w.outlived == nil {
		return false, nil
	}
	for i := range observed.Containers {
		c := &observed.Containers[i]
		spec, _, known := pod.Container(rec.Pod, c.Name)
		if !known || c.State != runtime.StateExited || c.FinishedAt.Before(w.outlived.Began.Truncate(time.Second)) || lifecycle.Restarts(rec.Pod, spec, c) {
			continue
		}
		if err := w.m.Containers.RemoveContainer(ctx, c.ID); err != nil {
			return changed, err
		}
		w.m.removeContainerFiles(rec.Pod, observed, c.ID)
		changed = true
	}
	w.m.Hook("before the end of an eviction")
	err = os.Remove(filepath.Join(w.m.podDir(w.uid), evictedFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		w.outlived, err = nil, nil
	}
	return changed, err
}

// Alive are the pods of which something runs or is about to, also those that end.
func (m *Manager) Alive() (pods []*v1.Pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, w := range m.workers {
		if r, ok := m.Store.ByUID(uid); ok && w.admitted.Load() && !w.released.Load() {
			pods = append(pods, r.Pod)
		}
	}
	return pods
}

// Passing are the pods that end for the host's shutdown and have not ended.
func (m *Manager) Passing() (uids []types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, w := range m.workers {
		if e := w.evicted.Load(); e != nil && e.Passing && !m.ended(uid) {
			uids = append(uids, uid)
		}
	}
	return uids
}
