package push

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// resourceID names an accepted object that is no pod.
type resourceID struct {
	kind string
	uid  types.UID
}

func (a resourceID) compare(b resourceID) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.uid, b.uid))
}

func idOf(o manifest.Object) resourceID { return resourceID{o.Kind(), o.Other.GetUID()} }

func (s *Source) resourceDir(kind string) string {
	return filepath.Join(filepath.Dir(s.o.Dir), manifest.ResourceName(kind))
}

// pathOf is the file of an accepted object of any kind.
func (s *Source) pathOf(o manifest.Object) string {
	if o.Pod != nil {
		return s.path(o.Pod.UID)
	}
	return filepath.Join(s.resourceDir(o.Kind()), string(o.Other.GetUID())+suffix)
}

// restoreResource is restore for another kind.
func (s *Source) restoreResource(kind, path string) {
	uid := types.UID(strings.TrimSuffix(filepath.Base(path), suffix))
	data, err := os.ReadFile(path)
	var obj manifest.Object
	if err == nil {
		obj, err = s.decode(data, kind, uid)
	}
	if rec, ok := s.o.Store.ResourceByUID(kind, uid); ok && err != nil && rec.Source == store.SourcePush {
		s.o.Log.Warn("the file of an accepted object is damaged: using its checkpoint", "file", path, "err", err)
		if obj, err = s.decode(rec.Canonical, kind, uid); err == nil {
			s.putBack(obj)
		}
	}
	if err != nil {
		s.o.Log.Error("an accepted object cannot be read", "file", path, "err", err)
		s.damaged[path] = err
		return
	}
	s.others[idOf(obj)] = obj
}

// CreateResource accepts a new object that is no pod. An object that the agent
// derived gives way to it; errors are those of Create.
func (s *Source) CreateResource(_ context.Context, o manifest.Object) (store.Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := strings.ToLower(o.Kind()) + " " + o.Key().String()
	if cur, taken := s.o.Store.Resource(o.Kind(), o.Key()); taken && cur.Source != store.SourceAgent {
		return store.Resource{}, fmt.Errorf("%s: %w", what, errdefs.ErrExists)
	}
	for _, other := range s.others {
		if other.Kind() == o.Kind() && other.Key() == o.Key() {
			return store.Resource{}, fmt.Errorf("%s: %w", what, errdefs.ErrExists) // displaced by another source
		}
	}
	if other, taken := s.o.Store.ResourceByUID(o.Kind(), o.Other.GetUID()); taken {
		return store.Resource{}, fmt.Errorf("metadata.uid %s is that of %s: leave it out: %w", o.Other.GetUID(), other.Key(), errdefs.ErrInvalid)
	}
	if err := s.keep(o); err != nil {
		return store.Resource{}, errors.Join(err, removeFile(s.pathOf(o)))
	}
	s.others[idOf(o)] = whole(o)
	s.apply()
	if rec, ok := s.o.Store.Resource(o.Kind(), o.Key()); ok && rec.Object.GetUID() == o.Other.GetUID() {
		return rec, nil
	}
	// The store could not note it down; nothing of it may come to life later.
	delete(s.others, idOf(o))
	err := fmt.Errorf("%s was not accepted: %s: %w", what, s.reason(o.Key()), errdefs.ErrTransient)
	s.apply()
	return store.Resource{}, errors.Join(err, removeFile(s.pathOf(o)))
}

// UpdateResource takes a new form of an object that was created here; the caller
// has checked that the change is allowed. Errors are those of Update.
func (s *Source) UpdateResource(_ context.Context, o manifest.Object, resourceVersion string) (store.Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.myResource(o.Kind(), o.Key(), o.Other.GetUID(), resourceVersion)
	if err != nil {
		return rec, err
	}
	old, ok := s.others[idOf(o)]
	if !ok {
		return rec, fmt.Errorf("%s %s is being deleted: %w", strings.ToLower(o.Kind()), o.Key(), errdefs.ErrConflict)
	}
	if bytes.Equal(old.Canonical, o.Canonical) || manifest.SemanticEqual(old, o) && manifest.MetadataEqual(old, o) {
		return rec, nil
	}
	if err := s.keep(o); err != nil {
		s.putBack(old)
		return rec, err
	}
	s.others[idOf(o)] = whole(o)
	s.apply()
	if now, ok := s.o.Store.Resource(o.Kind(), o.Key()); ok && bytes.Equal(now.Canonical, o.Canonical) {
		return now, nil
	}
	s.others[idOf(o)] = old
	err = fmt.Errorf("%s %s was not changed: %s: %w", strings.ToLower(o.Kind()), o.Key(), s.reason(o.Key()), errdefs.ErrTransient)
	s.putBack(old)
	s.apply()
	return rec, err
}

// myResource is the record of an object that was created here, if it is the one
// that the caller means; empty means any.
func (s *Source) myResource(kind string, key pod.Key, uid types.UID, resourceVersion string) (store.Resource, error) {
	rec, ok := s.o.Store.Resource(kind, key)
	what := strings.ToLower(kind) + " " + key.String()
	switch {
	case !ok:
		return rec, fmt.Errorf("%s: %w", what, errdefs.ErrNotFound)
	case rec.Source != store.SourcePush:
		return rec, fmt.Errorf("%s comes from the %s source (%s): change it there: %w", what, rec.Source, rec.Origin, errdefs.ErrConflict)
	case uid != "" && uid != rec.Object.GetUID():
		return rec, fmt.Errorf("%s has UID %s, not %s as the request says: %w", what, rec.Object.GetUID(), uid, errdefs.ErrConflict)
	case resourceVersion != "" && resourceVersion != rec.Object.GetResourceVersion():
		return rec, fmt.Errorf("%s has changed since resourceVersion %s: read it again and repeat the change: %w", what, resourceVersion, errdefs.ErrConflict)
	}
	return rec, nil
}

// DeleteResource removes an object that was created here, and returns what it
// was.
func (s *Source) DeleteResource(_ context.Context, kind string, key pod.Key, uid types.UID, resourceVersion string) (store.Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.myResource(kind, key, uid, resourceVersion)
	if err != nil {
		return rec, err
	}
	id := resourceID{kind, rec.Object.GetUID()}
	// The file goes first: from here on the object is gone, also when this agent
	// is before the store has heard of it.
	if err := removeFile(filepath.Join(s.resourceDir(kind), string(id.uid)+suffix)); err != nil {
		return rec, err
	}
	delete(s.others, id)
	s.apply()
	return rec, nil
}
