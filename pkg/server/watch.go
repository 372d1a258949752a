package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

const (
	// watchTimeout ends a watch whose client set no timeoutSeconds, as
	// kube-apiserver does after 30 to 60 minutes.
	watchTimeout = 45 * time.Minute
	// streamWriteTimeout is how long a client may leave one message unread.
	streamWriteTimeout = 30 * time.Second
	// initialEventsEnd marks the bookmark after the initial events of a
	// streaming list (KEP-3157).
	initialEventsEnd = metav1.InitialEventsAnnotationKey
)

// watchOptions are the query parameters of a watch.
type watchOptions struct {
	// since is the revision to go on from, unless that is now; initial says to
	// send what there is first.
	since     uint64
	now       bool
	initial   bool
	listEnd   bool // mark the end of the initial events with a bookmark
	bookmarks bool
	timeout   time.Duration
}

func parseWatch(q url.Values) (watchOptions, error) {
	o := watchOptions{timeout: watchTimeout}
	var err error
	if o.bookmarks, err = boolParam(q, "allowWatchBookmarks"); err != nil {
		return o, err
	}
	if o.listEnd, err = boolParam(q, "sendInitialEvents"); err != nil {
		return o, err
	}
	match := metav1.ResourceVersionMatch(q.Get("resourceVersionMatch"))
	switch {
	case q.Has("sendInitialEvents") && match != metav1.ResourceVersionMatchNotOlderThan:
		return o, forbiddenOption("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
	case !q.Has("sendInitialEvents") && match != "":
		return o, forbiddenOption("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided")
	}
	if t, err := intParam(q, "timeoutSeconds"); err != nil {
		return o, err
	} else if t != nil && *t > 0 {
		o.timeout = time.Duration(min(*t, int64(24*time.Hour/time.Second))) * time.Second
	}
	rv := q.Get("resourceVersion")
	if rv == "" || rv == "0" || o.listEnd {
		o.now, o.initial = true, o.listEnd || !q.Has("sendInitialEvents")
		return o, nil
	}
	if o.since, err = strconv.ParseUint(rv, 10, 64); err != nil {
		return o, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion: Invalid value: %q: it is not one of this server's", rv))
	}
	return o, nil
}

func forbiddenOption(why string) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "",
		field.ErrorList{field.Forbidden(field.NewPath("resourceVersionMatch"), why)})
}

// watcher writes watch events as frames of JSON or protobuf.
type watcher struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	s     *Server
	f     format
	t     tables
	first bool // no Table was sent yet
	rev   uint64
}

func (s *Server) newWatcher(w http.ResponseWriter, r *http.Request) (*watcher, error) {
	f, err := negotiate(r, true, true)
	if err != nil {
		return nil, err
	}
	t, err := s.tables(r)
	if err != nil {
		return nil, err
	}
	return &watcher{w: w, rc: http.NewResponseController(w), s: s, f: f, t: t, first: true}, nil
}

// begin sends the head, so that the client knows that the watch stands.
func (x *watcher) begin() error {
	h := x.w.Header()
	h.Set("Content-Type", x.f.media)
	if x.f.media == mediaProtobuf {
		h.Set("Content-Type", mediaProtobuf+";stream=watch")
	}
	h.Set("Cache-Control", "no-cache, private")
	x.w.WriteHeader(http.StatusOK)
	return x.flush()
}

func (x *watcher) flush() error {
	if err := x.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// send writes one frame.
func (x *watcher) send(t watch.EventType, object any) error {
	b, err := x.frame(t, object)
	if err != nil {
		return err
	}
	// Not every writer can have a deadline; a real connection can.
	_ = x.rc.SetWriteDeadline(x.s.o.Now().Add(streamWriteTimeout))
	if _, err := x.w.Write(b); err != nil {
		return err
	}
	return x.flush()
}

func (x *watcher) frame(t watch.EventType, object any) ([]byte, error) {
	if x.f.media == mediaProtobuf {
		return protobufFrame(t, object)
	}
	b, err := json.Marshal(struct {
		Type   watch.EventType `json:"type"`
		Object any             `json:"object"`
	}{t, object})
	return append(b, '\n'), err
}

// fail tells an error inside the stream and ends it.
func (x *watcher) fail(err error) error {
	st := toStatus(err, "", "")
	st.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	return x.send(watch.Error, &st)
}

// row wraps a row as a Table; only the first one of a watch has columns.
func (x *watcher) row(columns []metav1.TableColumnDefinition, rv string, row metav1.TableRow) *metav1.Table {
	if !x.first {
		columns = nil
	}
	x.first = false
	return table(columns, rv, []metav1.TableRow{row})
}

// object sends one object in the form that the client wants.
func (x *watcher) object(t watch.EventType, v *view, o manifest.Resource) error {
	switch x.f.as {
	case asTable:
		return x.send(t, x.row(v.columns, o.GetResourceVersion(), v.row(x.t, o)))
	case asMetadata:
		return x.send(t, metadataOf(o))
	}
	return x.send(t, o)
}

// bookmark tells how far the watch has come.
func (x *watcher) bookmark(v *view, end bool) error {
	var annotations map[string]string
	if end {
		annotations = map[string]string{initialEventsEnd: "true"}
	}
	o := v.empty()
	o.SetResourceVersion(strconv.FormatUint(x.rev, 10))
	o.SetAnnotations(annotations)
	switch x.f.as {
	case asTable:
		t := table(nil, o.GetResourceVersion(), nil)
		if end {
			// Where else a table has room for it; kube-apiserver does the same.
			t.Rows = append(t.Rows, metav1.TableRow{Cells: make([]any, len(v.columns)), Object: runtime.RawExtension{Object: metadataOf(o)}})
		}
		return x.send(watch.Bookmark, t)
	case asMetadata:
		return x.send(watch.Bookmark, metadataOf(o))
	}
	return x.send(watch.Bookmark, o)
}

// watchObjects streams what happens to the selected objects until the client
// goes, the timeout comes, or the server ends.
func (s *Server) watchObjects(w http.ResponseWriter, r *http.Request, v *view, namespace string) error {
	sel, err := v.selection(r.URL.Query(), namespace)
	if err != nil {
		return err
	}
	o, err := parseWatch(r.URL.Query())
	if err != nil {
		return err
	}
	x, err := s.newWatcher(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), o.timeout)
	defer cancel()
	records, revision := v.list()
	if o.now {
		o.since = revision
	}
	x.rev = o.since
	changes, err := v.watch(ctx, o.since)
	if berr := x.begin(); berr != nil {
		return nil // from here on the client has its answer; errors end the stream
	}
	if err != nil {
		_ = x.fail(err)
		return nil
	}
	// A client that is cut off here goes on from the last one it was sent.
	slices.SortStableFunc(records, func(a, b record) int { return cmp.Compare(revisionOf(a.object), revisionOf(b.object)) })
	m := newMatcher(sel)
	for _, rec := range records {
		if m.begin(rec.object, o) && x.object(watch.Added, v, rec.object) != nil {
			return nil
		}
	}
	if o.listEnd && x.bookmark(v, true) != nil {
		return nil
	}
	s.follow(r, x, o, v, m, changes)
	return nil
}

// revisionOf is an object's resourceVersion, a number of the store's.
func revisionOf(o metav1.Object) uint64 {
	n, _ := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	return n
}

// follow sends what happens, with bookmarks in between, until the client goes,
// the timeout comes, or the server ends.
func (s *Server) follow(r *http.Request, x *watcher, o watchOptions, v *view, m *matcher, changes <-chan change) {
	tick := time.NewTicker(s.bookmarkEvery)
	defer tick.Stop()
	for {
		select {
		case c, ok := <-changes:
			if !ok {
				// Ended: by the timeout, or because we were too slow; the client
				// goes on from the last revision it saw.
				if o.bookmarks && r.Context().Err() == nil {
					_ = x.bookmark(v, false)
				}
				return
			}
			x.rev = max(x.rev, c.revision)
			if t, send := m.judge(c.what, c.object); send && x.object(t, v, c.object) != nil {
				return
			}
		case <-tick.C:
			if o.bookmarks && x.bookmark(v, false) != nil {
				return
			}
		}
	}
}

// matcher turns the store's changes into what a client with a selector has to
// see: an object that stops matching is deleted for it, one that starts is added.
type matcher struct {
	sel selection
	// known says for each object that was seen whether the client has it; one that
	// is missing may be either.
	known map[types.UID]bool
}

func newMatcher(sel selection) *matcher {
	return &matcher{sel: sel, known: map[types.UID]bool{}}
}

// begin says whether an object is one of the initial ones to send. Of a client
// that does not want those, it notes what it saw in the list it made, when the
// object has not changed since.
func (m *matcher) begin(p metav1.Object, o watchOptions) bool {
	if o.initial || revisionOf(p) <= o.since {
		m.known[p.GetUID()] = m.sel.matches(p)
	}
	return o.initial && m.known[p.GetUID()]
}

// judge says whether a change is sent, and as what.
func (m *matcher) judge(change string, p metav1.Object) (watch.EventType, bool) {
	uid := p.GetUID()
	had, seen := m.known[uid]
	matches := m.sel.matches(p)
	if m.sel.namespace != "" && p.GetNamespace() != m.sel.namespace {
		return "", false
	}
	switch watch.EventType(change) {
	case watch.Added:
		m.known[uid] = matches
		return watch.Added, matches
	case watch.Deleted:
		delete(m.known, uid)
		return watch.Deleted, had || (!seen && matches)
	}
	m.known[uid] = matches
	switch {
	case matches && seen && !had:
		return watch.Added, true
	case matches:
		return watch.Modified, true
	case had || (!seen && !m.sel.fixed()):
		return watch.Deleted, true
	}
	return "", false
}

// fixed says that no change of an object changes whether it is selected.
func (s selection) fixed() bool {
	if !s.labels.Empty() {
		return false
	}
	for _, r := range s.fields.Requirements() {
		switch r.Field {
		case "metadata.name", "metadata.namespace", "spec.nodeName":
		default:
			return false
		}
	}
	return true
}
