package server

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/store"
)

// frames are what a watch answers.
type frames struct {
	t   testing.TB
	dec *json.Decoder
	// rev is the revision of the last frame; they grow.
	rev uint64
}

type frame struct {
	Type   string
	Object json.RawMessage
}

// object is what all kinds of objects in frames have in common.
type object struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta
	Status          json.RawMessage
}

// watch starts a watch; the head of its answer is there when it returns.
func (s *started) watch(t testing.TB, path string, header ...string) *frames {
	t.Helper()
	resp := s.get(t, path, header...)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != mediaJSON {
		t.Fatalf("%s: %s, %s: %s", path, resp.Status, resp.Header.Get("Content-Type"), body(t, resp))
	}
	return &frames{t: t, dec: json.NewDecoder(resp.Body)}
}

func (f *frames) next() frame {
	f.t.Helper()
	var x frame
	if err := f.dec.Decode(&x); err != nil {
		f.t.Fatal("the watch ended: ", err)
	}
	return x
}

// want reads as many frames as are wanted, "TYPE name" each.
func (f *frames) want(want ...string) object {
	f.t.Helper()
	var last object
	for _, w := range want {
		x := f.next()
		last = object{}
		if err := json.Unmarshal(x.Object, &last); err != nil {
			f.t.Fatal(err)
		}
		if got := strings.TrimSpace(x.Type + " " + last.Metadata.Name); got != w {
			f.t.Fatalf("frame %q, want %q: %s", got, w, x.Object)
		}
		rev, err := strconv.ParseUint(last.Metadata.ResourceVersion, 10, 64)
		if err != nil || rev < f.rev {
			f.t.Fatalf("frame %q has resourceVersion %q after %d", w, last.Metadata.ResourceVersion, f.rev)
		}
		f.rev = rev
	}
	return last
}

// expired reads the error that says that the revision is too old.
func (f *frames) expired() {
	f.t.Helper()
	x := f.next()
	var st metav1.Status
	if err := json.Unmarshal(x.Object, &st); err != nil || x.Type != "ERROR" || st.Kind != "Status" || st.Code != http.StatusGone || st.Reason != metav1.StatusReasonExpired {
		f.t.Fatalf("frame %s %s, want an ERROR of code 410, reason Expired", x.Type, x.Object)
	}
	f.end()
}

// end reads that nothing more comes.
func (f *frames) end() {
	f.t.Helper()
	var x frame
	if err := f.dec.Decode(&x); err != io.EOF {
		f.t.Fatalf("the watch goes on: %v, %s %s", err, x.Type, x.Object)
	}
}

// listed is the revision of a list made now.
func (s *started) listed(t testing.TB) string {
	t.Helper()
	var list v1.PodList
	s.call(t, "GET", podsPath, "").code(200).into(&list)
	return list.ResourceVersion
}

func phase(p v1.PodPhase) v1.PodStatus { return v1.PodStatus{Phase: p} }

func TestWatch(t *testing.T) {
	s := start(t, nil)
	s.create(t, "web", "")
	s.fromFile(t, "static")
	w := s.watch(t, podsPath+"?watch=true")
	w.want("ADDED web")
	if o := w.want("ADDED static"); o.Kind != "Pod" || o.APIVersion != "v1" {
		t.Errorf("the object is a %s of %s", o.Kind, o.APIVersion)
	}
	s.status(t, "web", phase(v1.PodRunning))
	if o := w.want("MODIFIED web"); !strings.Contains(string(o.Status), "Running") {
		t.Errorf("status %s", o.Status)
	}
	s.call(t, "POST", "/api/v1/namespaces/other/pods", podYAML("away", ""), "Content-Type", mediaYAML).code(201)
	s.create(t, "new", "")
	w.want("ADDED new")
	s.call(t, "DELETE", podsPath+"/web", "").code(200)
	if o := w.want("MODIFIED web"); o.Metadata.DeletionTimestamp == nil {
		t.Error("the pod does not show that it ends")
	}
	s.finish(t, "web")
	w.want("DELETED web")
}

func TestWatchResumes(t *testing.T) {
	s := start(t, nil)
	s.create(t, "before", "")
	rv := s.listed(t)
	s.create(t, "web", "")
	s.status(t, "before", phase(v1.PodRunning))
	w := s.watch(t, podsPath+"?watch=1&resourceVersion="+rv)
	w.want("ADDED web")
	o := w.want("MODIFIED before")
	w = s.watch(t, podsPath+"?watch=1&resourceVersion="+o.Metadata.ResourceVersion)
	s.create(t, "after", "")
	w.want("ADDED after")
	// 0 is any state, and whatever the client has not seen of it.
	s.watch(t, podsPath+"?watch=1&resourceVersion=0").want("ADDED web", "ADDED before", "ADDED after")
}

func TestWatchExpires(t *testing.T) {
	s := start(t, nil)
	s.create(t, "web", "")
	rv := s.listed(t)
	for range history + 1 {
		if err := s.report(s.pod(t, "web").UID); err != nil {
			t.Fatal(err)
		}
	}
	s.watch(t, podsPath+"?watch=1&resourceVersion="+rv).expired()
	s.watch(t, podsPath+"?watch=1&resourceVersion=1").expired()
	// Of an agent whose clock was ahead.
	s.watch(t, podsPath+"?watch=1&resourceVersion=18446744073709551615").expired()
	s.watch(t, "/api/v1/events?watch=1&resourceVersion=18446744073709551615").expired()
	for _, rv := range []string{"x", "-1", "1e3", "18446744073709551616"} {
		s.call(t, "GET", podsPath+"?watch=1&resourceVersion="+rv, "").status(400, metav1.StatusReasonBadRequest)
	}
	for _, q := range []string{"timeoutSeconds=x", "allowWatchBookmarks=x", "sendInitialEvents=x", "labelSelector=%3D%3D", "fieldSelector=a", "fieldSelector=spec.x%3Dy", "includeObject=x"} {
		s.call(t, "GET", podsPath+"?watch=1&"+q, "").status(400, metav1.StatusReasonBadRequest)
		s.call(t, "GET", "/api/v1/events?watch=1&"+q, "").status(400, metav1.StatusReasonBadRequest)
	}
}

// TestWatchSelected: a pod that begins to match is added for this client, one
// that does not any more is deleted.
func TestWatchSelected(t *testing.T) {
	s := start(t, nil)
	s.create(t, "web", "  labels: {app: a}\n")
	s.create(t, "other", "")
	label := func(name, labels string) {
		t.Helper()
		s.call(t, "PATCH", podsPath+"/"+name, `{"metadata":{"labels":`+labels+`}}`, "Content-Type", string(types.MergePatchType)).code(200)
	}
	rv := s.listed(t)
	live := s.watch(t, podsPath+"?watch=1&labelSelector=app%3Da")
	live.want("ADDED web")
	named := s.watch(t, "/api/v1/pods?watch=1&fieldSelector=metadata.name%3Dother")
	named.want("ADDED other")
	running := s.watch(t, podsPath+"?watch=1&fieldSelector=status.phase%3DRunning&resourceVersion="+rv)

	label("web", `{"app":"b"}`)
	label("other", `{"app":"a"}`)
	label("other", `{"x":"y"}`)
	s.status(t, "web", phase(v1.PodRunning))
	s.status(t, "web", phase(v1.PodSucceeded))
	label("web", `{"app":"a"}`)
	s.call(t, "DELETE", podsPath+"/other?gracePeriodSeconds=0", "").code(200)
	s.finish(t, "other")

	live.want("DELETED web", "ADDED other", "MODIFIED other", "ADDED web", "MODIFIED other", "DELETED other")
	named.want("MODIFIED other", "MODIFIED other", "MODIFIED other", "DELETED other")
	running.want("ADDED web", "DELETED web")
}

func TestWatchBookmarks(t *testing.T) {
	s := start(t, nil)
	s.bookmarkEvery = time.Millisecond
	s.create(t, "web", "")
	rv := s.listed(t)
	if o := s.watch(t, podsPath+"?watch=1&allowWatchBookmarks=true&resourceVersion="+rv).want("BOOKMARK"); o.Metadata.ResourceVersion != rv || o.Kind != "Pod" {
		t.Errorf("bookmark of a %s at %s, want a Pod at %s", o.Kind, o.Metadata.ResourceVersion, rv)
	}
	if o := s.watch(t, "/api/v1/events?watch=1&allowWatchBookmarks=true").want("BOOKMARK"); o.Kind != "Event" {
		t.Errorf("bookmark of a %s, want an Event", o.Kind)
	}
	// Nobody gets one who has not asked.
	w := s.watch(t, podsPath+"?watch=1&resourceVersion="+rv)
	s.status(t, "web", phase(v1.PodRunning))
	w.want("MODIFIED web")

	s.bookmarkEvery = time.Hour
	w = s.watch(t, podsPath+"?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion="+rv)
	w.want("ADDED web")
	if o := w.want("BOOKMARK"); o.Metadata.Annotations[metav1.InitialEventsAnnotationKey] != "true" {
		t.Errorf("the end of the list is not marked: %+v", o.Metadata)
	}
	w = s.watch(t, podsPath+"?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan")
	s.create(t, "new", "")
	w.want("ADDED new")
}

func TestWatchEnds(t *testing.T) {
	s := start(t, nil)
	s.create(t, "web", "")
	w := s.watch(t, podsPath+"?watch=1&timeoutSeconds=1&allowWatchBookmarks=1")
	w.want("ADDED web", "BOOKMARK")
	w.end()
	events := s.watch(t, "/api/v1/events?watch=1&timeoutSeconds=1&allowWatchBookmarks=1")
	events.want("BOOKMARK")
	events.end()

	w, events = s.watch(t, podsPath+"?watch=1"), s.watch(t, "/api/v1/events?watch=1")
	w.want("ADDED web")
	if err := s.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	w.end()
	events.end()
}

// TestWatchFallsBehind: a client that does not read is not waited for; it learns
// of it, and sees no gap.
func TestWatchFallsBehind(t *testing.T) {
	s := start(t, nil)
	uid := s.create(t, "web", "").UID
	w := s.watch(t, podsPath+"?watch=1")
	w.want("ADDED web")
	const changes = 2000
	for i := range changes {
		// More than any buffer between the two holds.
		st := v1.PodStatus{Phase: v1.PodRunning, Reason: strconv.Itoa(i), Message: strings.Repeat("x", 4096)}
		if err := s.store.SetStatus(uid, st); err != nil {
			t.Fatal(err)
		}
	}
	last := -1
	for {
		var x struct{ Object v1.Pod }
		if err := w.dec.Decode(&x); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if x.Object.Status.Reason != strconv.Itoa(last+1) {
			t.Fatalf("change %q after %d", x.Object.Status.Reason, last)
		}
		last++
		w.rev, _ = strconv.ParseUint(x.Object.ResourceVersion, 10, 64)
	}
	if last+1 >= changes-history {
		t.Fatalf("%d changes fitted into the buffers: the test shows nothing", last+1)
	}
	s.watch(t, fmt.Sprintf("%s?watch=1&resourceVersion=%d", podsPath, w.rev)).expired()
}

// TestMatcher goes through what a change of a pod means to a client with a
// selector, by what it knows.
func TestMatcher(t *testing.T) {
	pods := &view{servedKind: podKind, fields: podFields}
	sel, err := pods.selection(map[string][]string{"labelSelector": {"a=b"}}, "default")
	if err != nil {
		t.Fatal(err)
	}
	named, err := pods.selection(map[string][]string{"fieldSelector": {"metadata.name=web"}}, "")
	if err != nil {
		t.Fatal(err)
	}
	yes := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u", Labels: map[string]string{"a": "b"}}}
	no := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x", Namespace: "default", UID: "u"}}
	elsewhere := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "other", UID: "u", Labels: yes.Labels}}
	had, hadNot, unknown := map[types.UID]bool{"u": true}, map[types.UID]bool{"u": false}, map[types.UID]bool{}
	for _, tt := range []struct {
		sel    selection
		known  map[types.UID]bool
		change string
		pod    *v1.Pod
		want   string // empty: nothing is sent
	}{
		{sel, unknown, store.Added, yes, "ADDED"},
		{sel, unknown, store.Added, no, ""},
		{sel, unknown, store.Added, elsewhere, ""},
		{sel, had, store.Modified, yes, "MODIFIED"},
		{sel, had, store.Modified, no, "DELETED"},
		{sel, hadNot, store.Modified, yes, "ADDED"},
		{sel, hadNot, store.Modified, no, ""},
		{sel, unknown, store.Modified, yes, "MODIFIED"},
		// It may have had it before: to be told of an end too many does no harm.
		{sel, unknown, store.Modified, no, "DELETED"},
		{sel, had, store.Deleted, no, "DELETED"},
		{sel, hadNot, store.Deleted, yes, ""},
		{sel, unknown, store.Deleted, yes, "DELETED"},
		{sel, unknown, store.Deleted, no, ""},
		{named, unknown, store.Modified, no, ""},
		{named, unknown, store.Modified, yes, "MODIFIED"},
	} {
		m := &matcher{sel: tt.sel, known: maps.Clone(tt.known)}
		got, send := m.judge(tt.change, tt.pod)
		if !send {
			got = ""
		}
		if string(got) != tt.want {
			t.Errorf("known %v, %s of pod %s/%s: %q, want %q", tt.known, tt.change, tt.pod.Namespace, tt.pod.Name, got, tt.want)
		}
	}
}

func TestEvents(t *testing.T) {
	s := start(t, nil)
	p := s.create(t, "web", "")
	w := s.watch(t, "/api/v1/namespaces/default/events?watch=true&fieldSelector=type%3DWarning")
	s.events.PodEvent(p, "app", v1.EventTypeNormal, "Pulled", "image is there")
	s.events.PodEvent(p, "app", v1.EventTypeWarning, "BackOff", "failed")
	s.events.PodEvent(p, "app", v1.EventTypeWarning, "BackOff", "failed")
	var name string
	for _, want := range []string{"ADDED", "MODIFIED"} {
		x := w.next()
		var e v1.Event
		if err := json.Unmarshal(x.Object, &e); err != nil || x.Type != want || e.Kind != "Event" || e.Reason != "BackOff" {
			t.Fatalf("frame %s %s, want %s", x.Type, x.Object, want)
		}
		name = e.Name
	}
	if got := s.call(t, "GET", "/api/v1/namespaces/default/events/"+name, "").code(200).Body.String(); !strings.Contains(got, `"count":2`) || !strings.Contains(got, `"kind":"Event"`) {
		t.Errorf("event %s", got)
	}
	s.call(t, "GET", "/api/v1/namespaces/default/events/none", "").status(404, metav1.StatusReasonNotFound)
	s.call(t, "GET", "/api/v1/namespaces/other/events/"+name, "").status(404, metav1.StatusReasonNotFound)
	for path, want := range map[string]string{
		"/api/v1/events": "BackOff Pulled",
		"/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dweb,reason%3DPulled": "Pulled",
		"/api/v1/namespaces/default/events?fieldSelector=involvedObject.uid%3D" + string(p.UID):     "BackOff Pulled",
		"/api/v1/namespaces/other/events":    "",
		"/api/v1/events?labelSelector=a%3Db": "",
	} {
		var list v1.EventList
		s.call(t, "GET", path, "").code(200).into(&list)
		var reasons []string
		for _, e := range list.Items {
			reasons = append(reasons, e.Reason)
		}
		slices.Sort(reasons)
		if got := strings.Join(reasons, " "); got != want || list.Kind != "EventList" {
			t.Errorf("%s: %q of a %s, want %q", path, got, list.Kind, want)
		}
	}
	// A client goes on where it was, and is told what came first if it knows nothing.
	again := s.watch(t, "/api/v1/events?watch=1")
	for _, want := range []string{"Pulled", "BackOff"} {
		if x := again.next(); x.Type != "ADDED" || !strings.Contains(string(x.Object), want) {
			t.Errorf("%s %s, want ADDED %s", x.Type, x.Object, want)
		}
	}
	rv := s.listed(t)
	s.events.PodEvent(p, "", v1.EventTypeNormal, "Killing", "bye")
	if x := s.watch(t, "/api/v1/events?watch=1&resourceVersion="+rv).next(); !strings.Contains(string(x.Object), "Killing") {
		t.Errorf("resumed with %s", x.Object)
	}
}
