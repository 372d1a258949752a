// Package push is the source behind the local API: pods that clients created
// there. What is accepted is on the disk before the client hears of it, and is
// accepted again by the next agent.
package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

const suffix = ".json"

// Store is where accepted pods go. Apply replaces all that this source wants.
type Store interface {
	store.Sink
	Get(key pod.Key) (store.Record, bool)
	ByUID(uid types.UID) (store.Record, bool)
	Sources() []store.SourceState
	Delete(key pod.Key, grace *int64, uid types.UID, resourceVersion string) (store.Record, error)
}

// Options are what a source needs; all but WriteFile are required.
type Options struct {
	// Dir holds one file per accepted pod, <uid>.json: its canonical form.
	Dir      string
	NodeName string
	Store    Store
	// Decode is manifest.Decode.
	Decode func([]byte, manifest.Options) ([]manifest.Object, []*manifest.Error)
	Log    *slog.Logger
	// WriteFile replaces a file atomically and durably; nil: the disk's. Tests
	// fill up a disk with it.
	WriteFile func(path string, data []byte) error
}

// Source keeps what clients created. Its methods may be called from any
// goroutine.
type Source struct {
	o Options

	mu       sync.Mutex // one change at a time
	objects  map[types.UID]manifest.Object
	problems []store.Problem
}

// New reads what earlier agents accepted. A file that cannot be read is
// reported and left alone; its pod runs on.
func New(o Options) (*Source, error) {
	if o.WriteFile == nil {
		o.WriteFile = store.WriteFile
	}
	s := &Source{o: o, objects: map[types.UID]manifest.Object{}}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of the pods accepted over the API: %w", err)
	}
	files, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("folder of the pods accepted over the API: %w", err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), suffix) {
			s.restore(filepath.Join(o.Dir, f.Name()))
		}
	}
	return s, nil
}

func (s *Source) restore(path string) {
	uid := types.UID(strings.TrimSuffix(filepath.Base(path), suffix))
	if rec, ok := s.o.Store.ByUID(uid); ok && rec.Pod.DeletionTimestamp != nil {
		// The agent was killed between the pod's deletion and the file's.
		s.remove(uid)
		return
	}
	obj, err := s.read(path, uid)
	if err != nil {
		s.o.Log.Error("an accepted pod cannot be read; if it runs, it goes on", "file", path, "err", err)
		// Keep holds on to everything known from the API: whose file it was is
		// not certain.
		s.problems = append(s.problems, store.Problem{Origin: store.SourcePush, Keep: true,
			Err: fmt.Errorf("%s: %w: remove the file, and create the pod again if it is gone", path, err)})
		return
	}
	s.objects[uid] = obj
}

func (s *Source) read(path string, uid types.UID) (manifest.Object, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return manifest.Object{}, err
	}
	objects, errs := s.o.Decode(data, manifest.Options{Origin: store.SourcePush, NodeName: s.o.NodeName})
	switch {
	case len(errs) > 0:
		return manifest.Object{}, errs[0]
	case len(objects) != 1:
		return manifest.Object{}, fmt.Errorf("it holds %d pods, not one", len(objects))
	case objects[0].Pod.UID != uid:
		return manifest.Object{}, fmt.Errorf("it is of the pod with UID %s", objects[0].Pod.UID)
	}
	return objects[0], nil
}

// Run hands the store what earlier agents accepted. Everything after that goes
// to the store at once.
func (s *Source) Run(ctx context.Context, _ store.Sink) error {
	s.mu.Lock()
	s.apply()
	s.mu.Unlock()
	<-ctx.Done()
	return nil
}

// apply tells the store everything that is wanted; s.mu is held. An object that
// lost its name to a source that comes first stays: it waits for it.
func (s *Source) apply() {
	snap := store.Snapshot{Problems: s.problems}
	for _, obj := range s.objects {
		snap.Objects = append(snap.Objects, obj)
	}
	slices.SortFunc(snap.Objects, func(a, b manifest.Object) int {
		return strings.Compare(string(a.Pod.UID), string(b.Pod.UID))
	})
	s.o.Store.Apply(store.SourcePush, snap)
}

// Create accepts a new pod. It is errdefs.ErrExists when its name is taken,
// by whatever source, and errdefs.ErrTransient when it cannot be kept.
func (s *Source) Create(_ context.Context, o manifest.Object) (*v1.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, uid := pod.KeyOf(o.Pod), o.Pod.UID
	if _, taken := s.o.Store.Get(key); taken || s.waits(key) {
		return nil, fmt.Errorf("pod %s: %w", key, errdefs.ErrExists)
	}
	if other, taken := s.o.Store.ByUID(uid); taken {
		return nil, fmt.Errorf("metadata.uid %s is that of pod %s: leave it out: %w", uid, pod.KeyOf(other.Pod), errdefs.ErrInvalid)
	}
	if err := s.keep(o); err != nil {
		return nil, err
	}
	s.objects[uid] = o
	s.apply()
	if rec, ok := s.o.Store.Get(key); ok && rec.Pod.UID == uid {
		return rec.Pod, nil
	}
	// The store could not note it down; nothing of it may come to life later.
	delete(s.objects, uid)
	s.remove(uid)
	s.apply()
	return nil, fmt.Errorf("pod %s was not accepted: %s: %w", key, s.reason(key), errdefs.ErrTransient)
}

// waits says that an accepted pod of that name was displaced by another source.
func (s *Source) waits(key pod.Key) bool {
	for _, o := range s.objects {
		if pod.KeyOf(o.Pod) == key {
			return true
		}
	}
	return false
}

// reason is what the store says about a pod that it did not take.
func (s *Source) reason(key pod.Key) string {
	for _, src := range s.o.Store.Sources() {
		for _, p := range src.Problems {
			if src.Name == store.SourcePush && strings.Contains(p, key.String()) {
				return p
			}
		}
	}
	return "the store did not take it: see nodeagent get sources"
}

// Update takes a new form of a pod that was created here; the caller has
// checked that the change is allowed. It is errdefs.ErrNotFound when there is
// no such pod, errdefs.ErrConflict when it is another source's, is being
// deleted, or resourceVersion is not the current one.
func (s *Source) Update(_ context.Context, key pod.Key, o manifest.Object, resourceVersion string) (*v1.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, err := s.mine(key)
	if err != nil {
		return nil, err
	}
	if err := store.Precondition(rec, o.Pod.UID, resourceVersion); err != nil {
		return nil, err
	}
	old, ok := s.objects[rec.Pod.UID]
	if !ok || rec.Pod.DeletionTimestamp != nil {
		return nil, fmt.Errorf("pod %s is being deleted: %w", key, errdefs.ErrConflict)
	}
	if bytes.Equal(old.Canonical, o.Canonical) || manifest.SemanticEqual(old, o) && manifest.MetadataEqual(old, o) {
		return rec.Pod, nil
	}
	if err := s.keep(o); err != nil {
		return nil, err
	}
	s.objects[o.Pod.UID] = o
	s.apply()
	if now, ok := s.o.Store.Get(key); ok && now.Pod.UID == o.Pod.UID && bytes.Equal(now.Canonical, o.Canonical) {
		return now.Pod, nil
	}
	s.objects[o.Pod.UID] = old
	err = fmt.Errorf("pod %s was not changed: %s: %w", key, s.reason(key), errdefs.ErrTransient)
	err = errors.Join(err, s.keep(old))
	s.apply()
	return nil, err
}

// mine is the record of a pod that was created here.
func (s *Source) mine(key pod.Key) (store.Record, error) {
	rec, ok := s.o.Store.Get(key)
	switch {
	case !ok:
		return rec, fmt.Errorf("pod %s: %w", key, errdefs.ErrNotFound)
	case rec.Source != store.SourcePush:
		return rec, fmt.Errorf("pod %s comes from the %s source (%s): change it there: %w", key, rec.Source, rec.Origin, errdefs.ErrConflict)
	}
	return rec, nil
}

// Delete begins the end of a pod that was created here. grace is in seconds,
// nil means the pod's own; a shorter one than before shortens the end. Errors
// are those of Update.
func (s *Source) Delete(_ context.Context, key pod.Key, grace *int64, uid types.UID, resourceVersion string) (*v1.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.mine(key); err != nil {
		return nil, err
	}
	// The store notes the deletion down first: from there on a restart cannot
	// bring the pod back, see restore.
	rec, err := s.o.Store.Delete(key, grace, uid, resourceVersion)
	if err != nil && !errors.Is(err, errdefs.ErrTransient) {
		return nil, err
	}
	if now, ok := s.o.Store.Get(key); ok {
		delete(s.objects, now.Pod.UID)
		s.remove(now.Pod.UID)
	}
	if err != nil {
		return nil, err
	}
	delete(s.objects, rec.Pod.UID)
	s.remove(rec.Pod.UID)
	return rec.Pod, nil
}

func (s *Source) path(uid types.UID) string { return filepath.Join(s.o.Dir, string(uid)+suffix) }

func (s *Source) keep(o manifest.Object) error {
	err := s.o.WriteFile(s.path(o.Pod.UID), o.Canonical)
	if err == nil {
		err = syncFolder(s.o.Dir)
	}
	if err != nil {
		s.remove(o.Pod.UID)
		return fmt.Errorf("pod %s cannot be kept: %w: %w", pod.KeyOf(o.Pod), err, errdefs.ErrTransient)
	}
	return nil
}

// remove forgets a pod's file. One that stays behind comes back with the next
// agent, so the user is told.
func (s *Source) remove(uid types.UID) {
	if err := os.Remove(s.path(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Error("cannot remove the file of a deleted pod: remove it, or the pod comes back when the agent restarts", "file", s.path(uid), "err", err)
	}
}

// syncFolder makes the names in a folder survive a power cut: nobody but us
// could bring an accepted pod again.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
