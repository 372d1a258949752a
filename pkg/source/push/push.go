// Package push is the source behind the local API: what clients created there. What is accepted is on the disk before the client hears of it, and is
// accepted again by the next agent.
package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
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
	Delete(key pod.Key, grace *int64, uid types.UID) (store.Record, error)
	Resource(kind string, key pod.Key) (store.Resource, bool)
	ResourceByUID(kind string, uid types.UID) (store.Resource, bool)
}

// Options are what a source needs; all are required.
type Options struct {
	// Dir holds one file per accepted pod, <uid>.json: its canonical form. Folders
	// beside it hold those of other kinds ("services", …).
	Dir      string
	NodeName string
	Store    Store
	// Decode is manifest.Decode.
	Decode func([]byte, manifest.Options) ([]manifest.Object, []*manifest.Error)
	Log    *slog.Logger
}

// Source keeps what clients created. Its methods may be called from any
// goroutine.
type Source struct {
	o Options

	mu      sync.Mutex // one change at a time
	objects map[types.UID]manifest.Object
	others  map[resourceID]manifest.Object
	damaged map[string]error // by file
}

// New reads what earlier agents accepted.
func New(o Options) (*Source, error) {
	s := &Source{o: o, objects: map[types.UID]manifest.Object{}, others: map[resourceID]manifest.Object{}, damaged: map[string]error{}}
	err := readFolder(o.Dir, s.restore)
	for _, k := range manifest.Kinds() {
		err = errors.Join(err, readFolder(s.resourceDir(k.Name), func(path string) { s.restoreResource(k.Name, path) }))
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// readFolder makes a folder of accepted objects when there is none, and has each
// file in it read.
func readFolder(dir string, read func(path string)) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("folder of objects accepted over the API: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("folder of objects accepted over the API: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		switch filepath.Ext(f.Name()) {
		case suffix:
			read(path)
		case store.HalfWritten:
			// Its client has had no answer. One that stays harms nobody.
			_ = os.Remove(path)
		}
	}
	return nil
}

// restore takes up one accepted pod. A damaged file is written anew from the
// store's checkpoint of its pod; without one it is reported and left alone.
func (s *Source) restore(path string) {
	uid := types.UID(strings.TrimSuffix(filepath.Base(path), suffix))
	data, err := os.ReadFile(path)
	var obj manifest.Object
	if err == nil {
		obj, err = s.decode(data, "Pod", uid)
	}
	if rec, ok := s.o.Store.ByUID(uid); ok && err != nil && rec.Source == store.SourcePush {
		s.o.Log.Warn("the file of an accepted pod is damaged: using the pod's checkpoint", "file", path, "err", err)
		if obj, err = s.decode(rec.Canonical, "Pod", uid); err == nil {
			s.putBack(obj)
		}
	}
	if err != nil {
		s.o.Log.Error("an accepted pod cannot be read", "file", path, "err", err)
		s.damaged[path] = err
		return
	}
	s.objects[uid] = obj
}

func (s *Source) decode(data []byte, kind string, uid types.UID) (manifest.Object, error) {
	objects, errs := s.o.Decode(data, manifest.Options{Origin: store.SourcePush, NodeName: s.o.NodeName})
	switch {
	case len(errs) > 0:
		return manifest.Object{}, errs[0]
	case len(objects) != 1:
		return manifest.Object{}, fmt.Errorf("it holds %d objects, not one", len(objects))
	case objects[0].Kind() != kind || objects[0].Meta().GetUID() != uid:
		return manifest.Object{}, fmt.Errorf("it is of the %s with UID %s", objects[0].Kind(), objects[0].Meta().GetUID())
	}
	objects[0].RestoreManagedFields()
	return whole(objects[0]), nil
}

// whole drops the line: a request is no file that somebody could look it up in.
func whole(o manifest.Object) manifest.Object {
	o.Line = 0
	return o
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
	var snap store.Snapshot
	for _, path := range slices.Sorted(maps.Keys(s.damaged)) {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			delete(s.damaged, path)
			continue
		}
		snap.Problems = append(snap.Problems, store.Problem{Origin: path,
			Err: fmt.Errorf("%w: remove the file and create the object again", s.damaged[path])})
	}
	for _, obj := range s.objects {
		snap.Objects = append(snap.Objects, obj)
	}
	slices.SortFunc(snap.Objects, func(a, b manifest.Object) int {
		return strings.Compare(string(a.Pod.UID), string(b.Pod.UID))
	})
	for _, id := range slices.SortedFunc(maps.Keys(s.others), resourceID.compare) {
		snap.Objects = append(snap.Objects, s.others[id])
	}
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
		return nil, errors.Join(err, s.forget(uid))
	}
	s.objects[uid] = whole(o)
	s.apply()
	if rec, ok := s.o.Store.Get(key); ok && rec.Pod.UID == uid {
		return rec.Pod, nil
	}
	// The store could not note it down; nothing of it may come to life later.
	delete(s.objects, uid)
	err := fmt.Errorf("pod %s was not accepted: %s: %w", key, s.reason(key), errdefs.ErrTransient)
	s.apply()
	return nil, errors.Join(err, s.forget(uid))
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

// reason is what the store says about an object that it did not take.
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
		s.putBack(old)
		return nil, err
	}
	s.objects[o.Pod.UID] = whole(o)
	s.apply()
	if now, ok := s.o.Store.Get(key); ok && now.Pod.UID == o.Pod.UID && bytes.Equal(now.Canonical, o.Canonical) {
		return now.Pod, nil
	}
	s.objects[o.Pod.UID] = old
	err = fmt.Errorf("pod %s was not changed: %s: %w", key, s.reason(key), errdefs.ErrTransient)
	s.putBack(old)
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
	rec, err := s.mine(key)
	if err != nil {
		return nil, err
	}
	if err := store.Precondition(rec, uid, resourceVersion); err != nil {
		return nil, err
	}
	// The file goes first: from here on the pod ends, also when this agent does
	// before the store has heard of it.
	if err := s.forget(rec.Pod.UID); err != nil {
		return nil, err
	}
	delete(s.objects, rec.Pod.UID)
	rec, err = s.o.Store.Delete(key, grace, rec.Pod.UID)
	if err != nil {
		return nil, err
	}
	return rec.Pod, nil
}

func (s *Source) path(uid types.UID) string { return filepath.Join(s.o.Dir, string(uid)+suffix) }

// keep writes an accepted pod down. After an error the file is the old one, or
// the new one that a power cut may undo.
func (s *Source) keep(o manifest.Object) error {
	path := s.pathOf(o)
	err := store.WriteFile(path, readable(o))
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("%s %s cannot be kept: %w: %w", strings.ToLower(o.Kind()), o.Key(), err, errdefs.ErrTransient)
	}
	return nil
}

// indentable is the size up to which a file may become larger by being readable:
// it must stay within what a document may have.
const indentable = 1 << 20

// readable is the file of an object: its canonical form for people.
func readable(o manifest.Object) []byte {
	var b bytes.Buffer
	if err := json.Indent(&b, o.Canonical, "", "  "); err != nil || b.Len() > indentable {
		return o.Canonical
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// putBack makes the file of a pod say what is true of it; the user is told when
// it cannot.
func (s *Source) putBack(o manifest.Object) {
	path := s.pathOf(o)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, readable(o)) {
		return
	}
	if err := s.keep(o); err != nil {
		s.o.Log.Error("the file of an accepted object is not what the object is, and counts when the agent restarts: apply it again", "file", path, "err", err)
	}
}

// forget removes the file of a pod, for good.
func (s *Source) forget(uid types.UID) error { return removeFile(s.path(uid)) }

func removeFile(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("forget an accepted object: %w: %w", err, errdefs.ErrTransient)
	}
	return nil
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
