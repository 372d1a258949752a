package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/journal"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// defaultHistory is how many changes watchers may lag behind.
const defaultHistory = 1024

// SourceDecl names a source that is configured.
type SourceDecl struct {
	Name   string
	Target string // folder, URL, socket; for people to read
}

// Options are what a store needs; Dir, NodeName, Sources, Decode, Equal and Log
// are required.
type Options struct {
	// Dir is <stateDir>/pods; the store owns <Dir>/<uid>/pod.json and nothing
	// else there.
	Dir string
	// ResourceDir is <stateDir>/resources, with <resource>/<uid>.json for each
	// object that is no pod; empty: beside Dir.
	ResourceDir string
	// SecretDir has what ResourceDir would have of Secrets, and must be in memory:
	// what a Secret holds is on no disk on our account. Empty: nothing is kept of
	// Secrets, and a restarted store waits for their sources.
	SecretDir string
	NodeName  string
	// Sources that are configured, first the one that wins when two of them name
	// one pod.
	Sources []SourceDecl
	// Decode and Equal are manifest.Decode and manifest.SemanticEqual.
	Decode func([]byte, manifest.Options) ([]manifest.Object, []*manifest.Error)
	Equal  func(a, b manifest.Object) bool
	// Reconsider says of a final status in a checkpoint that it was not the pod's
	// own end and is to be judged anew; nil: none is.
	Reconsider func(v1.PodStatus) bool
	// Revisions may be shared with others; nil: a counter of its own.
	Revisions *journal.Counter
	// History is how many changes are kept for watchers; 0: 1,024.
	History int
	Clock   func() time.Time // nil: time.Now
	Log     *slog.Logger
	// WriteFile replaces a file atomically and durably, mode 0600; nil: the
	// disk's. Tests fill up a disk with it.
	WriteFile func(path string, data []byte) error
}

// Store holds the objects of the node. All methods may be called from any
// goroutine.
type Store struct {
	o       Options
	order   []string // names of sources, first wins
	journal *journal.Journal[Change]
	changes *journal.Journal[ResourceChange]

	// write serialises changes of what is desired and their checkpoints, so
	// that a slow disk never holds up readers. It is taken before mu. wanted and
	// dirty belong to it.
	write  sync.Mutex
	wanted map[string]map[objectKey]manifest.Object
	dirty  bool   // a checkpoint could not be written or removed
	latest uint64 // the highest Order so far

	mu      sync.RWMutex
	byKey   map[pod.Key]*entry
	byUID   map[types.UID]*entry
	others  map[objectKey]*resource // by kind and name, those of SourceAgent too
	sources map[string]*source
	notify  []func(types.UID)
	changed []func(kind string, key pod.Key)
}

// entry is one pod. Entries are replaced, never changed.
type entry struct {
	obj        manifest.Object // what the user wants; its Pod is never handed out
	uid        types.UID
	source     string
	accepted   time.Time
	generation int64
	deletion   *time.Time // when the grace period ends
	grace      *int64     // seconds
	amended    *Amendment // nil: nothing was
	rec        Record
}

func (e *entry) key() pod.Key { return pod.KeyOf(e.obj.Pod) }

type source struct {
	decl          SourceDecl
	tried, synced bool
	lastSync      time.Time
	objects       int
	err           error
	reported      []string // what the source and the merging of its snapshot found
	found         []string // what the store found: conflicts, a full disk
}

// Open reads the checkpoints below o.Dir. Pods whose source is not configured
// any more begin to end.
func Open(o Options) (*Store, error) {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.WriteFile == nil {
		o.WriteFile = WriteFile
	}
	if o.ResourceDir == "" {
		o.ResourceDir = filepath.Join(filepath.Dir(o.Dir), "resources")
	}
	if o.History == 0 {
		o.History = defaultHistory
	}
	if o.Revisions == nil {
		o.Revisions = journal.NewCounter(o.Clock())
	}
	s := &Store{
		o: o, byKey: map[pod.Key]*entry{}, byUID: map[types.UID]*entry{}, others: map[objectKey]*resource{},
		sources: map[string]*source{}, wanted: map[string]map[objectKey]manifest.Object{},
	}
	for _, d := range o.Sources {
		if s.sources[d.Name] != nil {
			return nil, fmt.Errorf("source %q is configured twice", d.Name)
		}
		s.order = append(s.order, d.Name)
		s.sources[d.Name] = &source{decl: d}
		s.wanted[d.Name] = map[objectKey]manifest.Object{}
	}
	if err := errors.Join(s.load(), s.loadResources()); err != nil {
		return nil, err
	}
	// What stood on the disk is no change: the history begins here.
	s.journal = journal.New[Change](o.Revisions, o.History)
	s.changes = journal.New[ResourceChange](o.Revisions, o.History)
	s.write.Lock()
	defer s.write.Unlock()
	for _, e := range s.entries() {
		if s.sources[e.source] == nil && e.deletion == nil {
			o.Log.Info("source taken out of the configuration: ending its pod", "pod", pod.Describe(e.rec.Pod), "source", e.source, "origin", e.obj.Origin)
		}
	}
	s.reconcile()
	return s, nil
}

// load fills the store from checkpoints. Live pods stay wanted by their source
// until it has something else to say.
func (s *Store) load() error {
	saved, err := s.readCheckpoints()
	if err != nil {
		return err
	}
	// Two of one key should not be; the newer one is what the user wants.
	slices.SortFunc(saved, func(a, b savedEntry) int { return b.accepted.Compare(a.accepted) })
	for _, c := range saved {
		e := c.entry
		key := e.key()
		if other := s.byKey[key]; other != nil {
			s.o.Log.Error("two checkpoints of one pod: leaving the older one to be ended as an orphan", "pod", key, "keep", other.uid, "drop", e.uid)
			s.setAside(e.uid)
			continue
		}
		e.rec = s.present(e, c.status, s.o.Revisions.Next())
		s.byKey[key], s.byUID[e.uid] = e, e
		if w := s.wanted[e.source]; w != nil && e.deletion == nil {
			w[keyOf(e.obj)] = e.obj
			s.sources[e.source].objects++
		}
	}
	return nil
}

// present makes the pod that is handed out. The spec is shared between
// revisions: records are not modified.
func (s *Store) present(e *entry, status v1.PodStatus, revision uint64) Record {
	p := *e.obj.Pod
	p.UID = e.uid
	p.ResourceVersion = strconv.FormatUint(revision, 10)
	p.CreationTimestamp = metav1.NewTime(e.accepted)
	p.Generation = e.generation
	if e.deletion != nil {
		at := metav1.NewTime(*e.deletion)
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, e.grace
	}
	p.Annotations = make(map[string]string, len(e.obj.Pod.Annotations)+4)
	for k, v := range e.obj.Pod.Annotations {
		p.Annotations[k] = v
	}
	p.Annotations[pod.AnnotationConfigSource] = e.source
	p.Annotations[pod.AnnotationConfigHash] = e.obj.SpecHash
	p.Annotations[pod.AnnotationConfigSeen] = e.accepted.UTC().Format(time.RFC3339Nano)
	if e.source != SourcePush {
		p.Annotations[pod.AnnotationConfigMirror] = string(e.uid) // kubectl looks for events by it
	}
	p.Annotations[pod.AnnotationOrigin] = e.obj.Origin
	p.Spec = e.amended.spec(p.Spec)
	p.Status = e.amended.status(status)
	return Record{
		Pod: &p, Canonical: e.obj.Canonical, SpecHash: e.obj.SpecHash,
		Source: e.source, Origin: e.obj.Origin, Accepted: e.accepted,
	}
}

// publish makes a new desired state of a pod visible, with the status that it
// has.
func (s *Store) publish(kind string, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := v1.PodStatus{Phase: v1.PodPending}
	if cur := s.byUID[e.uid]; cur != nil {
		status = cur.rec.Pod.Status
	}
	revision := s.o.Revisions.Next()
	e.rec = s.present(e, status, revision)
	if kind == Deleted {
		delete(s.byKey, e.key())
		delete(s.byUID, e.uid)
	} else {
		s.byKey[e.key()], s.byUID[e.uid] = e, e
	}
	s.journal.Append(revision, Change{Type: kind, Record: e.rec, Revision: revision})
}

// publishStatus makes a new status visible; mu is held.
func (s *Store) publishStatus(cur *entry, status v1.PodStatus) {
	revision := s.o.Revisions.Next()
	next, p := *cur, *cur.rec.Pod
	p.Status, p.ResourceVersion = cur.amended.status(status), strconv.FormatUint(revision, 10)
	next.rec.Pod = &p
	s.byKey[next.key()], s.byUID[next.uid] = &next, &next
	s.journal.Append(revision, Change{Type: Modified, Record: next.rec, Revision: revision})
}

// wake tells listeners that what is desired of a pod has changed; mu is not
// held.
func (s *Store) wake(uid types.UID) {
	s.mu.RLock()
	fns := s.notify
	s.mu.RUnlock()
	for _, fn := range fns {
		fn(uid)
	}
}

// Notify has fn called whenever what is desired of a pod changes: it is new,
// has other labels or images, is to end, or is gone. Status does not count. fn
// returns at once and only reads from the store.
func (s *Store) Notify(fn func(uid types.UID)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notify = append(slices.Clone(s.notify), fn)
}

// NotifyResources is Notify for objects that are no pods: fn is called whenever
// one is new, changes, be it in its status, or is gone.
func (s *Store) NotifyResources(fn func(kind string, key pod.Key)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = append(slices.Clone(s.changed), fn)
}

// tell is wake for objects that are no pods; mu is not held.
func (s *Store) tell(key objectKey) {
	s.mu.RLock()
	fns := s.changed
	s.mu.RUnlock()
	for _, fn := range fns {
		fn(key.kind, key.Key)
	}
}

// entries are all pods, sorted by key.
func (s *Store) entries() []*entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entriesLocked()
}

func (s *Store) entriesLocked() []*entry {
	all := make([]*entry, 0, len(s.byKey))
	for _, e := range s.byKey {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *entry) int { return compareKeys(a.key(), b.key()) })
	return all
}

func compareKeys(a, b pod.Key) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// Records are all pods, sorted by namespace and name.
func (s *Store) Records() []Record {
	records, _ := s.List()
	return records
}

// List is Records with the revision they are of.
func (s *Store) List() ([]Record, uint64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := s.entriesLocked()
	out := make([]Record, len(all))
	for i, e := range all {
		out[i] = e.rec
	}
	return out, s.o.Revisions.Current()
}

// Get is the pod of a key.
func (s *Store) Get(key pod.Key) (Record, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.byKey[key]; e != nil {
		return e.rec, true
	}
	return Record{}, false
}

// ByUID is the pod of a UID.
func (s *Store) ByUID(uid types.UID) (Record, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.byUID[uid]; e != nil {
		return e.rec, true
	}
	return Record{}, false
}

// Revision grows with every change; it is the resourceVersion of lists.
func (s *Store) Revision() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.o.Revisions.Current()
}

// Watch delivers every change after revision since, in order, until ctx ends or
// the reader falls behind the history; then the channel is closed. A since of 0
// begins with all pods as Added; one that is older than the history is
// errdefs.ErrExpired.
func (s *Store) Watch(ctx context.Context, since uint64) (<-chan Change, error) {
	// Nothing is appended while the lock is held: the pods and the revision fit.
	s.mu.RLock()
	defer s.mu.RUnlock()
	var initial []Change
	if since == 0 {
		since = s.o.Revisions.Current()
		for _, e := range s.entriesLocked() {
			revision, _ := strconv.ParseUint(e.rec.Pod.ResourceVersion, 10, 64) // our own
			initial = append(initial, Change{Type: Added, Record: e.rec, Revision: revision})
		}
	}
	return s.journal.Follow(ctx, since, initial)
}

// Sources is the state of every configured source, first the one that wins.
func (s *Store) Sources() []SourceState {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]SourceState, 0, len(s.order))
	for _, name := range s.order {
		src := s.sources[name]
		st := SourceState{
			Name: name, Target: src.decl.Target, Tried: src.tried, Synced: src.synced,
			LastSync: src.lastSync, Objects: src.objects, Problems: slices.Concat(src.reported, src.found),
		}
		var unserved []string
		for key, r := range s.others {
			if r.rec.Source == name && r.rec.Problem != "" {
				unserved = append(unserved, fmt.Sprintf("%s: %s: %s", r.obj.Place(), key, r.rec.Problem))
			}
		}
		slices.Sort(unserved)
		st.Problems = append(st.Problems, unserved...)
		if src.err != nil {
			st.Error = src.err.Error()
		}
		out = append(out, st)
	}
	return out
}

// AllTried says that every source has been read once, well or not.
func (s *Store) AllTried() bool { return s.all(func(src *source) bool { return src.tried }) }

// AllSynced says that every source has delivered since the store was opened.
func (s *Store) AllSynced() bool { return s.all(func(src *source) bool { return src.synced }) }

func (s *Store) all(cond func(*source) bool) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, src := range s.sources {
		if !cond(src) {
			return false
		}
	}
	return true
}

// Synced says that a source has delivered since the store was opened, or is
// not configured.
func (s *Store) Synced(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	src := s.sources[name]
	return src == nil || src.synced
}

// KnownUIDs are the pods that came from a source, ending ones included.
func (s *Store) KnownUIDs(name string) pod.UIDSet {
	s.mu.RLock()
	defer s.mu.RUnlock()
	set := pod.UIDSet{}
	for uid, e := range s.byUID {
		if e.source == name {
			set[uid] = struct{}{}
		}
	}
	return set
}

// Retry does again what a full disk prevented; it is free when nothing was.
// The agent calls it every few seconds.
func (s *Store) Retry() {
	s.write.Lock()
	defer s.write.Unlock()
	if s.dirty {
		s.reconcile()
	}
}

// Awaiting are the pods that a source wants and that are not there yet: the one
// of that name before has to end first, or the disk is full.
func (s *Store) Awaiting() (pods []*v1.Pod) {
	s.write.Lock()
	defer s.write.Unlock()
	for _, wanted := range s.wanted {
		for _, obj := range wanted {
			if obj.Pod == nil {
				continue
			}
			if _, there := s.ByUID(obj.Pod.UID); !there {
				pods = append(pods, obj.Pod)
			}
		}
	}
	return pods
}
