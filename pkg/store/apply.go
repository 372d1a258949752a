package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

var _ Sink = (*Store)(nil)

// Fail implements Sink.
func (s *Store) Fail(name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.sources[name]
	if src == nil {
		s.o.Log.Error("report of a source that is not configured", "source", name, "err", err)
		return
	}
	if src.err == nil || src.err.Error() != err.Error() {
		s.o.Log.Warn("source cannot be read; its pods stay as they are", "source", name, "err", err)
	}
	src.tried, src.err = true, err
}

// Apply implements Sink.
func (s *Store) Apply(name string, snap Snapshot) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.wanted[name] == nil {
		s.o.Log.Error("snapshot of a source that is not configured", "source", name)
		return
	}
	wanted, reported := s.merge(s.wanted[name], snap)
	s.wanted[name] = wanted

	s.mu.Lock()
	src := s.sources[name]
	if src.err != nil {
		s.o.Log.Info("source can be read again", "source", name)
	}
	s.logNew(name, src.reported, reported)
	src.tried, src.synced, src.err = true, true, nil
	src.lastSync, src.objects, src.reported = s.o.Clock(), len(wanted), reported
	s.mu.Unlock()

	s.reconcile()
}

// merge makes the new set of wanted objects of one source: what the snapshot
// has, and what was known from origins that could not be read. What is known
// from those is never pushed aside by another origin, unless it is the same
// pod, which has then moved there.
func (s *Store) merge(old map[objectKey]manifest.Object, snap Snapshot) (wanted map[objectKey]manifest.Object, reported []string) {
	unreadable := map[string]bool{}
	for _, p := range snap.Problems {
		if p.Keep {
			unreadable[p.Origin] = true
		}
		reported = append(reported, p.String())
	}
	kept := map[objectKey]manifest.Object{}
	for key, obj := range old {
		if unreadable[obj.Origin] {
			kept[key] = obj
		}
	}
	wanted = make(map[objectKey]manifest.Object, len(snap.Objects))
	for _, obj := range snap.Objects {
		key := keyOf(obj)
		if first, ok := wanted[key]; ok {
			reported = append(reported, Conflict(obj, first.Place()))
			continue
		}
		if k, ok := kept[key]; ok && k.Origin != obj.Origin && !s.o.Equal(k, obj) {
			reported = append(reported, Conflict(obj, k.Place()))
			continue
		}
		wanted[key] = obj
	}
	for key, obj := range kept {
		if _, ok := wanted[key]; !ok {
			wanted[key] = obj
		}
	}
	return wanted, reported
}

// Conflict says that an object is not taken because the same object is named at by,
// the place of another.
func Conflict(loser manifest.Object, by string) string {
	return fmt.Sprintf("%s: %s is already defined by %s: remove or rename one of them", loser.Place(), keyOf(loser), by)
}

// logNew logs what was not a problem before; mu is held.
func (s *Store) logNew(name string, old, now []string) {
	for _, p := range now {
		if !slices.Contains(old, p) {
			s.o.Log.Warn("source has a problem", "source", name, "problem", p)
		}
	}
}

// candidate is what one source wants of a key.
type candidate struct {
	obj    manifest.Object
	source string
}

// reconcile brings every pod one step nearer to what is wanted. The write lock
// is held. It always decides from the whole state, so that a step that failed
// or had to wait needs no memory of its own: what waits behind a pod that is
// ending is simply what is wanted once it has ended.
func (s *Store) reconcile() {
	s.dirty = false
	found := map[string][]string{}
	winners := map[objectKey]candidate{}
	for _, name := range s.order {
		for _, key := range slices.SortedFunc(maps.Keys(s.wanted[name]), objectKey.compare) {
			obj := s.wanted[name][key]
			if w, taken := winners[key]; taken {
				found[name] = append(found[name], Conflict(obj, w.source+" "+w.obj.Place()))
				continue
			}
			winners[key] = candidate{obj, name}
		}
	}
	fail := func(name string, key objectKey, err error) {
		if errors.Is(err, errdefs.ErrInvalid) {
			found[name] = append(found[name], err.Error())
			return
		}
		s.dirty = true
		found[name] = append(found[name], fmt.Sprintf("cannot checkpoint %s; will try again: %v", key, err))
	}
	s.reconcileResources(winners, fail)
	for _, e := range s.entries() {
		key := podKey(e.key())
		w, ok := winners[key]
		delete(winners, key)
		if e.deletion != nil {
			continue // what is wanted now waits until it has ended
		}
		if err := s.step(e, w, ok); err != nil {
			fail(e.source, key, err)
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(winners), objectKey.compare) {
		w := winners[key]
		if other, taken := s.ByUID(w.obj.Pod.UID); taken {
			found[w.source] = append(found[w.source], fmt.Sprintf("%s: %s has the UID %s of pod %s: change its metadata.uid or remove it",
				w.obj.Origin, key, w.obj.Pod.UID, pod.KeyOf(other.Pod)))
			continue
		}
		if err := s.add(w); err != nil {
			fail(w.source, key, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, src := range s.sources {
		s.logNew(name, src.found, found[name])
		src.found = found[name]
	}
}

// step brings one live pod nearer to what is wanted of it.
func (s *Store) step(e *entry, w candidate, ok bool) error {
	switch {
	case !ok:
		return s.terminate(e, e.grace)
	case !s.same(e, w):
		s.o.Log.Info("pod is defined anew: replacing it", "pod", pod.Describe(e.rec.Pod), "source", w.source, "origin", w.obj.Origin)
		return s.terminate(e, e.grace)
	case e.source == w.source && e.obj.Origin == w.obj.Origin && bytes.Equal(e.obj.Canonical, w.obj.Canonical):
		return nil
	}
	next := *e
	next.obj, next.source = w.obj, w.source
	if !s.o.Equal(e.obj, w.obj) {
		next.generation++ // only the push source changes a spec in place
	}
	if err := s.checkpoint(&next, nil); err != nil {
		return err
	}
	s.publish(Modified, &next)
	s.wake(e.uid)
	return nil
}

// same says whether the pod may go on as what is wanted. A pod of the push
// source is identified by its UID, as the API server's are; its update rules
// were checked when it was accepted.
func (s *Store) same(e *entry, w candidate) bool {
	if w.source == SourcePush && w.obj.Pod.UID == e.uid {
		return true
	}
	return s.o.Equal(e.obj, w.obj)
}

func (s *Store) add(w candidate) error {
	e := &entry{obj: w.obj, uid: w.obj.Pod.UID, source: w.source, accepted: s.o.Clock(), generation: 1}
	if err := s.checkpoint(e, nil); err != nil {
		return err
	}
	s.publish(Added, e)
	s.wake(e.uid)
	return nil
}

// terminate begins the end of a live pod. grace is in seconds; nil means the
// pod's own. As with the API server, a pod that runs nothing any more needs
// none.
func (s *Store) terminate(e *entry, grace *int64) error {
	seconds := int64(v1.DefaultTerminationGracePeriodSeconds)
	if g := e.obj.Pod.Spec.TerminationGracePeriodSeconds; g != nil {
		seconds = *g
	}
	if grace != nil {
		seconds = *grace
	}
	if pod.IsTerminal(s.status(e).Phase) {
		seconds = 0
	}
	seconds = max(0, seconds)
	next := *e
	at := s.o.Clock().Add(pod.Grace(seconds))
	next.deletion, next.grace = &at, &seconds
	if err := s.checkpoint(&next, nil); err != nil {
		return err
	}
	s.publish(Modified, &next)
	s.wake(e.uid)
	return nil
}

// status is the one that is visible now; it may be newer than e's.
func (s *Store) status(e *entry) v1.PodStatus {
	if rec, ok := s.ByUID(e.uid); ok {
		return rec.Pod.Status
	}
	return e.rec.Pod.Status
}
