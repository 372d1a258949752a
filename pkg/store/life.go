package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// SetStatus writes the status that everybody sees; writing the same again is
// free, and a pod that is not known needs none. A pod that has succeeded or
// failed stays so: another phase is not taken over. Its status is on the disk
// before anybody sees it, so that it never runs again after a restart.
func (s *Store) SetStatus(uid types.UID, st v1.PodStatus) error {
	if pod.IsTerminal(st.Phase) {
		// Desired state must not change between the checkpoint and its
		// publication.
		s.write.Lock()
		defer s.write.Unlock()
	}
	s.mu.RLock()
	e := s.byUID[uid]
	s.mu.RUnlock()
	if e == nil {
		return nil
	}
	old := e.rec.Pod.Status
	if pod.IsTerminal(old.Phase) && st.Phase != old.Phase || apiequality.Semantic.DeepEqual(old, st) {
		return nil
	}
	if pod.IsTerminal(st.Phase) {
		if err := s.checkpoint(e, &st); err != nil {
			return fmt.Errorf("keep the status of pod %s: %w", pod.Describe(e.rec.Pod), err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	cur := s.byUID[uid]
	if cur == nil || pod.IsTerminal(cur.rec.Pod.Status.Phase) && st.Phase != cur.rec.Pod.Status.Phase {
		return nil
	}
	s.publishStatus(cur, st)
	return nil
}

// Finished says that nothing of an ending pod is left; it goes, and what waited
// for its name begins. Saying it again is free. A pod that is to live is
// errdefs.ErrConflict.
func (s *Store) Finished(uid types.UID) error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	e := s.byUID[uid]
	s.mu.RUnlock()
	if e == nil {
		return nil
	}
	if e.deletion == nil {
		return fmt.Errorf("pod %s is not to end: %w", pod.Describe(e.rec.Pod), errdefs.ErrConflict)
	}
	if err := os.Remove(s.path(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget pod %s: %w", pod.Describe(e.rec.Pod), err)
	}
	// The folder belongs to the pod's worker; an empty one is nobody's.
	_ = os.Remove(s.dir(uid))
	gone := *e
	s.publish(Deleted, &gone)
	s.wake(uid)
	s.reconcile()
	return nil
}

// current is the pod of a key; a uid or resourceVersion that is not empty must be
// its own, else it is errdefs.ErrConflict. s.write is held.
func (s *Store) current(key pod.Key, uid types.UID, resourceVersion string) (*entry, error) {
	s.mu.RLock()
	e := s.byKey[key]
	s.mu.RUnlock()
	if e == nil {
		return nil, fmt.Errorf("pod %s: %w", key, errdefs.ErrNotFound)
	}
	return e, Precondition(e.rec, uid, resourceVersion)
}

// Delete ends the pod of a key and forgets that its source wants it. grace is
// in seconds; nil means the pod's own. Of a pod that is ending already, only a
// shorter grace changes anything. A uid that is not empty must be the current
// one, else it is errdefs.ErrConflict.
func (s *Store) Delete(key pod.Key, grace *int64, uid types.UID) (Record, error) {
	s.write.Lock()
	defer s.write.Unlock()
	e, err := s.current(key, uid, "")
	if err != nil {
		return Record{}, err
	}
	if w := s.wanted[e.source]; w != nil {
		delete(w, podKey(key))
		s.mu.Lock()
		s.sources[e.source].objects = len(w)
		s.mu.Unlock()
	}
	switch {
	case e.deletion == nil:
		err = s.terminate(e, grace)
	case grace != nil && s.o.Clock().Add(pod.Grace(*grace)).Before(*e.deletion):
		err = s.terminate(e, grace)
	}
	if err != nil {
		s.dirty = true // Retry ends it all the same
		return Record{}, fmt.Errorf("pod %s ends as soon as it can be noted down: %w: %w", key, errdefs.ErrTransient, err)
	}
	rec, _ := s.Get(key)
	return rec, nil
}

// Precondition checks what a caller believes a record to be; empty means
// anything.
func Precondition(r Record, uid types.UID, resourceVersion string) error {
	if uid != "" && uid != r.Pod.UID {
		return fmt.Errorf("pod %s has UID %s, not %s as the request says: %w", pod.KeyOf(r.Pod), r.Pod.UID, uid, errdefs.ErrConflict)
	}
	if resourceVersion != "" && resourceVersion != r.Pod.ResourceVersion {
		return fmt.Errorf("pod %s has changed since resourceVersion %s: read it again and repeat the change: %w", pod.KeyOf(r.Pod), resourceVersion, errdefs.ErrConflict)
	}
	return nil
}
