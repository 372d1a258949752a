package store

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// objectKey tells objects of all kinds apart.
type objectKey struct {
	kind string
	pod.Key
}

func keyOf(o manifest.Object) objectKey { return objectKey{o.Kind(), o.Key()} }
func podKey(key pod.Key) objectKey      { return objectKey{"Pod", key} }
func (k objectKey) String() string      { return strings.ToLower(k.kind) + " " + k.Key.String() }
func (k objectKey) compare(o objectKey) int {
	return cmp.Or(cmp.Compare(k.kind, o.kind), compareKeys(k.Key, o.Key))
}

// resource is one object that is no pod. Like entries they are replaced, never
// changed.
type resource struct {
	obj        manifest.Object // what the user wants
	generation int64
	rec        Resource
}

func (r *resource) key() objectKey { return keyOf(r.obj) }

// reconcileResources makes all objects that are no pods what is wanted, and
// takes them out of winners. Nothing has to end here: they change, come and go
// at once.
func (s *Store) reconcileResources(winners map[objectKey]candidate, fail func(name string, key objectKey, err error)) {
	s.mu.RLock()
	known := maps.Clone(s.others)
	s.mu.RUnlock()
	for _, key := range slices.SortedFunc(maps.Keys(known), objectKey.compare) {
		r := known[key]
		w, ok := winners[key]
		if r.rec.Source == SourceAgent && !ok {
			continue
		}
		if ok && s.sameResource(r, w) {
			delete(winners, key)
			if err := s.changeResource(r, w); err != nil {
				fail(w.source, key, err)
			}
			continue
		}
		if err := s.forgetResource(r); err != nil {
			delete(winners, key)
			fail(r.rec.Source, key, err)
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(winners), objectKey.compare) {
		w := winners[key]
		if w.obj.Other == nil {
			continue
		}
		delete(winners, key)
		s.latest = max(s.latest+1, s.o.Revisions.Next())
		r := &resource{obj: w.obj, generation: 1, rec: Resource{Source: w.source, Accepted: s.o.Clock(), Order: s.latest}}
		if err := s.putResource(Added, r, w.obj.Other); err != nil {
			fail(w.source, key, err)
		}
	}
}

// sameResource says whether an object may go on as what is wanted: it changes in
// place unless its identity does.
func (s *Store) sameResource(r *resource, w candidate) bool {
	return r.rec.Source != SourceAgent && r.obj.Other.GetUID() == w.obj.Other.GetUID()
}

func (s *Store) changeResource(r *resource, w candidate) error {
	if r.rec.Source == w.source && r.obj.Origin == w.obj.Origin && bytes.Equal(r.obj.Canonical, w.obj.Canonical) {
		return nil
	}
	next := *r
	next.obj, next.rec.Source = w.obj, w.source
	shown := w.obj.Other
	if s.o.Equal(r.obj, w.obj) && manifest.MetadataEqual(r.obj, w.obj) {
		// Moved, or written otherwise: who compares pointers sees no change.
		next.obj.Other, shown = r.obj.Other, r.rec.Object
	} else if r.rec.Resolved {
		shown = shown.DeepCopyObject().(manifest.Resource)
		manifest.CarryOver(shown, r.rec.Object, r.obj.Other)
	}
	if !s.o.Equal(r.obj, w.obj) {
		next.generation++
	}
	if err := manifest.RefusedChange(shown, r.rec.Object); err != nil {
		return errdefs.Errorf(errdefs.ErrInvalid, "%s: %s stays as it was: %v", w.obj.Place(), r.key(), err)
	}
	return s.putResource(Modified, &next, shown)
}

// putResource keeps an object and makes it visible; s.write is held.
func (s *Store) putResource(kind string, r *resource, shown manifest.Resource) error {
	r.rec.Wanted, r.rec.Canonical, r.rec.Origin = r.obj.Other, r.obj.Canonical, r.obj.Origin
	r.rec.Object = shown
	if r.rec.Source != SourceAgent {
		if err := s.checkpointResource(r); err != nil {
			return err
		}
	}
	defer s.tell(r.key())
	s.mu.Lock()
	defer s.mu.Unlock()
	revision := s.o.Revisions.Next()
	r.rec.Object = s.presentResource(r, shown, revision)
	s.others[r.key()] = r
	s.changes.Append(revision, ResourceChange{Type: kind, Resource: r.rec, Revision: revision})
	return nil
}

// presentResource is a copy with the metadata that a server sets.
func (s *Store) presentResource(r *resource, shown manifest.Resource, revision uint64) manifest.Resource {
	o := shown.DeepCopyObject().(manifest.Resource)
	o.SetUID(r.obj.Other.GetUID())
	o.SetResourceVersion(strconv.FormatUint(revision, 10))
	o.SetCreationTimestamp(metav1.NewTime(r.rec.Accepted))
	o.SetGeneration(r.generation)
	o.SetLabels(r.obj.Other.GetLabels())
	o.SetManagedFields(r.obj.Other.GetManagedFields())
	annotations := make(map[string]string, len(r.obj.Other.GetAnnotations())+4)
	maps.Copy(annotations, r.obj.Other.GetAnnotations())
	annotations[pod.AnnotationConfigSource] = r.rec.Source
	annotations[pod.AnnotationConfigSeen] = r.rec.Accepted.UTC().Format(time.RFC3339Nano)
	if r.obj.Origin != "" {
		annotations[pod.AnnotationOrigin] = r.obj.Origin
	}
	if r.rec.Problem != "" {
		annotations[pod.AnnotationProblem] = r.rec.Problem
	}
	o.SetAnnotations(annotations)
	return o
}

// forgetResource removes an object; s.write is held.
func (s *Store) forgetResource(r *resource) error {
	if r.rec.Source != SourceAgent {
		if err := s.removeResourceCheckpoint(r); err != nil {
			return err
		}
	}
	defer s.tell(r.key())
	s.mu.Lock()
	defer s.mu.Unlock()
	revision := s.o.Revisions.Next()
	gone := r.rec
	gone.Object = s.presentResource(r, r.rec.Object, revision)
	delete(s.others, r.key())
	s.changes.Append(revision, ResourceChange{Type: Deleted, Resource: gone, Revision: revision})
	return nil
}

// SetResource writes back what a controller made of an object: r is a record
// that was read from the store, with Object replaced by a changed copy (spec
// fields that were allocated, status) and with Problem. Metadata is the store's
// and not taken over. Writing the same again is free. It is errdefs.ErrConflict
// when the object has changed since it was read, and errdefs.ErrNotFound when it
// is gone: read again and decide anew. What was written is on the disk when
// SetResource returns, and comes back as Object after a restart.
func (s *Store) SetResource(r Resource) error {
	s.write.Lock()
	defer s.write.Unlock()
	key := objectKey{r.Kind(), r.Key()}
	s.mu.RLock()
	cur := s.others[key]
	s.mu.RUnlock()
	switch {
	case cur == nil || cur.obj.Other.GetUID() != r.Object.GetUID():
		return fmt.Errorf("%s: %w", key, errdefs.ErrNotFound)
	case cur.rec.Object.GetResourceVersion() != r.Object.GetResourceVersion():
		return fmt.Errorf("%s has changed since it was read: %w", key, errdefs.ErrConflict)
	}
	next := *cur
	next.rec.Problem, next.rec.Resolved = r.Problem, true
	if cur.rec.Resolved && cur.rec.Problem == r.Problem && apiequality.Semantic.DeepEqual(r.Object, cur.rec.Object) {
		return nil
	}
	if err := s.putResource(Modified, &next, r.Object); err != nil {
		return fmt.Errorf("keep %s: %w: %w", key, errdefs.ErrTransient, err)
	}
	return nil
}

// PutDerived stores an object that the agent itself made, as of SourceAgent. It
// replaces the one that PutDerived stored before under that name; the same again
// is free. An object of a real source has the name first: that is
// errdefs.ErrExists. Nobody changes the object afterwards.
func (s *Store) PutDerived(o manifest.Resource) error {
	s.write.Lock()
	defer s.write.Unlock()
	obj := manifest.Object{Other: o}
	key := keyOf(obj)
	s.mu.RLock()
	cur := s.others[key]
	s.mu.RUnlock()
	if cur != nil && cur.rec.Source != SourceAgent {
		return fmt.Errorf("%s comes from the %s source (%s): %w", key, cur.rec.Source, cur.rec.Origin, errdefs.ErrExists)
	}
	if o.GetUID() == "" {
		o.SetUID(manifest.UID(s.o.NodeName, key.Namespace, key.Name, key.kind))
	}
	if cur == nil {
		s.latest = max(s.latest+1, s.o.Revisions.Next())
		r := &resource{obj: obj, generation: 1, rec: Resource{Source: SourceAgent, Accepted: s.o.Clock(), Order: s.latest}}
		return s.putResource(Added, r, o)
	}
	if s.o.Equal(cur.obj, obj) && manifest.MetadataEqual(cur.obj, obj) {
		return nil
	}
	next := *cur
	next.obj = obj
	next.generation++
	return s.putResource(Modified, &next, o)
}

// DeleteDerived removes what PutDerived stored; it is free when there is nothing
// of that kind and name, or a real source's.
func (s *Store) DeleteDerived(kind string, key pod.Key) {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.RLock()
	cur := s.others[objectKey{kind, key}]
	s.mu.RUnlock()
	if cur != nil && cur.rec.Source == SourceAgent {
		_ = s.forgetResource(cur) // has no file that could fail
	}
}

// Resources are all objects of a kind ("Service"; empty: of every kind but Pod),
// sorted by kind, namespace and name, and the revision they are of.
func (s *Store) Resources(kind string) ([]Resource, uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.resourcesLocked(kind), s.o.Revisions.Current()
}

func (s *Store) resourcesLocked(kind string) []Resource {
	var out []Resource
	for key, r := range s.others {
		if kind == "" || key.kind == kind {
			out = append(out, r.rec)
		}
	}
	slices.SortFunc(out, func(a, b Resource) int {
		return objectKey{a.Kind(), a.Key()}.compare(objectKey{b.Kind(), b.Key()})
	})
	return out
}

// Resource is the object of a kind and key.
func (s *Store) Resource(kind string, key pod.Key) (Resource, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.others[objectKey{kind, key}]; r != nil {
		return r.rec, true
	}
	return Resource{}, false
}

// ResourceByUID is the object of a kind and UID.
func (s *Store) ResourceByUID(kind string, uid types.UID) (Resource, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for key, r := range s.others {
		if key.kind == kind && r.obj.Other.GetUID() == uid {
			return r.rec, true
		}
	}
	return Resource{}, false
}

// WatchResources is Watch for objects that are no pods, of every kind: readers
// skip what they do not want. Revisions are those of Watch, from one counter.
func (s *Store) WatchResources(ctx context.Context, since uint64) (<-chan ResourceChange, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var initial []ResourceChange
	if since == 0 {
		since = s.o.Revisions.Current()
		for _, r := range s.resourcesLocked("") {
			revision, _ := strconv.ParseUint(r.Object.GetResourceVersion(), 10, 64) // our own
			initial = append(initial, ResourceChange{Type: Added, Resource: r, Revision: revision})
		}
	}
	return s.changes.Follow(ctx, since, initial)
}
