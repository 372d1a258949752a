package server

import (
	"context"
	"strconv"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// view is one kind of objects as clients see and change it: what all kinds have
// in common (lists, watches, tables, patches, dry runs) is written once, over it.
type view struct {
	servedKind
	reader
	// writer is nil for what is only read.
	writer
	// fields are those that clients may select objects by.
	fields  func(metav1.Object) fields.Set
	columns []metav1.TableColumnDefinition
	row     func(tables, manifest.Resource) metav1.TableRow
}

// record is an object and where it comes from.
type record struct {
	// object has its type set, is shared, and is never changed.
	object         manifest.Resource
	source, origin string
	// wanted and canonical are as in store.Resource.
	wanted    manifest.Resource
	canonical []byte
}

func (r record) key() pod.Key {
	return pod.Key{Namespace: r.object.GetNamespace(), Name: r.object.GetName()}
}

// change is one step in the life of an object, at a revision.
type change struct {
	what     string // store.Added, …
	object   manifest.Resource
	revision uint64
}

// reader is where a view's objects are.
type reader interface {
	// list is all objects in a stable order, and the revision they are of.
	list() ([]record, uint64)
	get(key pod.Key) (record, bool)
	// watch is as Pods.Watch.
	watch(ctx context.Context, since uint64) (<-chan change, error)
}

// writer changes a view's objects. None of its methods is called for a dry run
// but replace, which then says what would be.
type writer interface {
	create(ctx context.Context, o manifest.Object) (manifest.Resource, error)
	// replace makes raw the new form of the object, by the API server's update
	// rules. What comes between is errdefs.ErrConflict.
	replace(ctx context.Context, rec record, raw []byte, mode writeMode) (manifest.Resource, error)
	// remove begins the end of the object. What it returns has still to end; nil
	// is gone already.
	remove(ctx context.Context, rec record, o metav1.DeleteOptions) (manifest.Resource, error)
}

// typed is the object as clients see it, with its type.
func (k servedKind) typed(o manifest.Resource) manifest.Resource {
	if o.GetObjectKind().GroupVersionKind().Kind == k.Name {
		return o
	}
	c := o.DeepCopyObject().(manifest.Resource)
	c.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(k.APIVersion, k.Name))
	return c
}

// find is the object of a key.
func (v *view) find(key pod.Key) (record, error) {
	rec, ok := v.get(key)
	if !ok {
		return rec, apierrors.NewNotFound(v.groupResource(), key.Name)
	}
	return rec, nil
}

// mapped turns what comes in from one channel into changes on another one,
// until the first is closed or ctx ends.
func mapped[C any](ctx context.Context, in <-chan C, err error, f func(C) (change, bool)) (<-chan change, error) {
	if err != nil {
		return nil, err
	}
	out := make(chan change)
	// The goroutine belongs to ctx, as the one that feeds it.
	go func() {
		defer close(out)
		for c := range in {
			next, ok := f(c)
			if !ok {
				continue
			}
			select {
			case out <- next:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// podReader are the store's pods.
type podReader struct{ pods Pods }

func podRecord(r store.Record) record {
	return record{object: podKind.typed(r.Pod), source: r.Source, origin: r.Origin, canonical: r.Canonical}
}

func (p podReader) list() ([]record, uint64) {
	all, revision := p.pods.List()
	out := make([]record, 0, len(all))
	for _, r := range all {
		out = append(out, podRecord(r))
	}
	return out, revision
}

func (p podReader) get(key pod.Key) (record, bool) {
	r, ok := p.pods.Get(key)
	if !ok || r.Pod == nil {
		return record{}, false
	}
	return podRecord(r), true
}

func (p podReader) watch(ctx context.Context, since uint64) (<-chan change, error) {
	in, err := p.pods.Watch(ctx, since)
	return mapped(ctx, in, err, func(c store.Change) (change, bool) {
		// A pod that is gone is told with the revision at which it went.
		shown := *c.Record.Pod
		shown.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		if c.Revision != 0 {
			shown.ResourceVersion = strconv.FormatUint(c.Revision, 10)
		}
		return change{c.Type, &shown, c.Revision}, true
	})
}

// resourceReader are the store's objects of another kind.
type resourceReader struct {
	kind      servedKind
	resources Resources
}

func (k servedKind) record(r store.Resource) record {
	return record{object: k.typed(r.Object), source: r.Source, origin: r.Origin, wanted: r.Wanted, canonical: r.Canonical}
}

func (v resourceReader) list() ([]record, uint64) {
	all, revision := v.resources.Resources(v.kind.Name)
	out := make([]record, 0, len(all))
	for _, r := range all {
		out = append(out, v.kind.record(r))
	}
	return out, revision
}

func (v resourceReader) get(key pod.Key) (record, bool) {
	r, ok := v.resources.Resource(v.kind.Name, key)
	if !ok {
		return record{}, false
	}
	return v.kind.record(r), true
}

func (v resourceReader) watch(ctx context.Context, since uint64) (<-chan change, error) {
	in, err := v.resources.WatchResources(ctx, since)
	return mapped(ctx, in, err, func(c store.ResourceChange) (change, bool) {
		if c.Resource.Kind() != v.kind.Name {
			return change{}, false
		}
		return change{c.Type, v.kind.typed(c.Resource.Object), c.Revision}, true
	})
}

// eventReader is the recorder's memory.
type eventReader struct{ events Events }

func (e eventReader) list() ([]record, uint64) {
	all, revision := e.events.List()
	out := make([]record, 0, len(all))
	for i := range all {
		out = append(out, record{object: shownEvent(&all[i])})
	}
	return out, revision
}

func (e eventReader) get(key pod.Key) (record, bool) {
	all, _ := e.events.List()
	for i := range all {
		if all[i].Namespace == key.Namespace && all[i].Name == key.Name {
			return record{object: shownEvent(&all[i])}, true
		}
	}
	return record{}, false
}

func (e eventReader) watch(ctx context.Context, since uint64) (<-chan change, error) {
	in, err := e.events.Watch(ctx, since)
	return mapped(ctx, in, err, func(ev v1.Event) (change, bool) {
		what := store.Modified
		if ev.Count <= 1 {
			what = store.Added
		}
		return change{what, shownEvent(&ev), revisionOf(&ev)}, true
	})
}

// nodeReader is the one node there is.
type nodeReader struct{ node NodeObject }

func (n nodeReader) list() ([]record, uint64) {
	node, revision := n.node.Node()
	return []record{n.record(node)}, revision
}

func (n nodeReader) get(key pod.Key) (record, bool) {
	node, _ := n.node.Node()
	return n.record(node), node.Name == key.Name
}

// record has what clients may change in it, as far as the writer lets them.
func (n nodeReader) record(node *v1.Node) record {
	return record{object: node, source: store.SourcePush}
}

func (n nodeReader) watch(ctx context.Context, since uint64) (<-chan change, error) {
	in, err := n.node.WatchNode(ctx, since)
	return mapped(ctx, in, err, func(node *v1.Node) (change, bool) {
		return change{store.Modified, node, revisionOf(node)}, true
	})
}

// shownEvent is the event as clients see it, with its type.
func shownEvent(e *v1.Event) *v1.Event {
	c := *e
	c.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}
	return &c
}
