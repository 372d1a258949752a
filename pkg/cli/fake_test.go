package cli

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/server/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// now is what every test's clock says.
var now = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) metav1.Time { return metav1.Time{Time: now.Add(-d)} }

// fakeAgent keeps pods behind the API's paths and refuses what it should. It
// has a revision and a history, so that watches are real ones.
type fakeAgent struct {
	t        *testing.T
	mu       sync.Mutex
	cond     *sync.Cond
	revision int
	pods     map[string]*v1.Pod
	history  []change
	// compacted is the revision below which watches are answered with 410.
	compacted int
	events    []v1.Event
	own       map[string]any
	// requests are "METHOD PATH?QUERY" of all that came in.
	requests []string
	extra    func(w http.ResponseWriter, r *http.Request) bool
}

type change struct {
	revision int
	kind     string
	pod      *v1.Pod
}

// newFake starts an agent on a socket of its own and returns a CLI for it.
func newFake(t *testing.T) (*fakeAgent, *CLI, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	f := &fakeAgent{t: t, revision: 10, pods: map[string]*v1.Pod{}, own: map[string]any{}}
	f.cond = sync.NewCond(&f.mu)
	// t.TempDir is too long for a socket's 108 bytes on some machines.
	dir, err := os.MkdirTemp("", "na")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: f}}
	s.Start()
	var out, errs bytes.Buffer
	c := New(dir, Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
	c.Now = func() time.Time { return now }
	t.Cleanup(func() {
		c.client.transport.CloseIdleConnections()
		s.CloseClientConnections()
		s.Close()
	})
	return f, c, &out, &errs
}

// put stores a pod as the store would and wakes the watches.
func (f *fakeAgent) put(p *v1.Pod) *v1.Pod {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.putLocked(p)
}

func (f *fakeAgent) putLocked(p *v1.Pod) *v1.Pod {
	p = p.DeepCopy()
	f.revision++
	p.ResourceVersion = strconv.Itoa(f.revision)
	key, kind := p.Namespace+"/"+p.Name, "ADDED"
	if old, ok := f.pods[key]; ok {
		kind, p.UID = "MODIFIED", old.UID
	} else if p.UID == "" {
		p.UID = types.UID(fmt.Sprintf("uid-%d", f.revision))
	}
	f.pods[key] = p
	f.history = append(f.history, change{f.revision, kind, p})
	f.cond.Broadcast()
	return p
}

func (f *fakeAgent) remove(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.revision++
	p := f.pods[key].DeepCopy()
	p.ResourceVersion = strconv.Itoa(f.revision)
	delete(f.pods, key)
	f.history = append(f.history, change{f.revision, "DELETED", p})
	f.cond.Broadcast()
}

func (f *fakeAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.RequestURI())
	f.mu.Unlock()
	if f.extra != nil && f.extra(w, r) {
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, api.Prefix); ok {
		f.mu.Lock()
		o, known := f.own[rest]
		f.mu.Unlock()
		if !known {
			f.fail(w, 404, metav1.StatusReasonNotFound, "no such path", nil)
			return
		}
		f.answer(w, 200, o)
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	ns, kind, name := "", parts[2], ""
	if kind == "namespaces" {
		ns, kind = parts[3], parts[4]
		if len(parts) > 5 {
			name = parts[5]
		}
	}
	switch {
	case kind == "events":
		f.listEvents(w, r)
	case kind != "pods":
		f.fail(w, 404, metav1.StatusReasonNotFound, "the server could not find the requested resource", nil)
	case r.URL.Query().Get("watch") == "true":
		f.watch(w, r, ns)
	case name == "" && r.Method == http.MethodGet:
		f.list(w, r, ns)
	default:
		f.object(w, r, ns, name)
	}
}

func (f *fakeAgent) answer(w http.ResponseWriter, code int, o any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(o); err != nil {
		f.t.Errorf("encode: %v", err)
	}
}

func (f *fakeAgent) fail(w http.ResponseWriter, code int, reason metav1.StatusReason, msg string, d *metav1.StatusDetails) {
	f.answer(w, code, metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: msg, Details: d})
}

func (f *fakeAgent) selects(r *http.Request) func(*v1.Pod) bool {
	ls, err1 := labels.Parse(r.URL.Query().Get("labelSelector"))
	fs, err2 := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err1 != nil || err2 != nil {
		f.t.Errorf("selector: %v %v", err1, err2)
		return func(*v1.Pod) bool { return false }
	}
	return func(p *v1.Pod) bool {
		return ls.Matches(labels.Set(p.Labels)) && fs.Matches(fields.Set{"metadata.name": p.Name, "status.phase": string(p.Status.Phase)})
	}
}

func (f *fakeAgent) list(w http.ResponseWriter, r *http.Request, ns string) {
	match := f.selects(r)
	f.mu.Lock()
	l := v1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(f.revision)}, Items: []v1.Pod{}}
	for _, p := range f.pods {
		if (ns == "" || p.Namespace == ns) && match(p) {
			l.Items = append(l.Items, *p)
		}
	}
	f.mu.Unlock()
	slices.SortFunc(l.Items, func(a, b v1.Pod) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	f.answer(w, 200, l)
}

func (f *fakeAgent) listEvents(w http.ResponseWriter, r *http.Request) {
	s, err := fields.ParseSelector(r.URL.Query().Get("fieldSelector"))
	if err != nil {
		f.t.Errorf("selector: %v", err)
	}
	l := v1.EventList{Items: []v1.Event{}}
	for _, e := range f.events {
		if s.Matches(fields.Set{"involvedObject.name": e.InvolvedObject.Name, "involvedObject.namespace": e.InvolvedObject.Namespace, "involvedObject.uid": string(e.InvolvedObject.UID)}) {
			l.Items = append(l.Items, e)
		}
	}
	f.answer(w, 200, l)
}

func (f *fakeAgent) watch(w http.ResponseWriter, r *http.Request, ns string) {
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		f.fail(w, 400, metav1.StatusReasonBadRequest, "resourceVersion", nil)
		return
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-r.Context().Done():
			f.mu.Lock()
			defer f.mu.Unlock()
			f.cond.Broadcast()
		case <-stop:
		}
	}()
	match := f.selects(r)
	enc := json.NewEncoder(w)
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	for {
		if from < f.compacted {
			s := metav1.Status{Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired, Message: "too old"}
			_ = enc.Encode(map[string]any{"type": "ERROR", "object": s})
			return
		}
		for _, c := range f.history {
			if c.revision > from && (ns == "" || c.pod.Namespace == ns) && match(c.pod) {
				_ = enc.Encode(map[string]any{"type": c.kind, "object": c.pod})
				from = c.revision
			}
		}
		w.(http.Flusher).Flush()
		if r.Context().Err() != nil {
			return
		}
		f.cond.Wait()
	}
}

func (f *fakeAgent) object(w http.ResponseWriter, r *http.Request, ns, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var body v1.Pod
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			f.fail(w, 400, metav1.StatusReasonBadRequest, err.Error(), nil)
			return
		}
		if body.Namespace == "" {
			body.Namespace = ns
		}
	}
	old := f.pods[ns+"/"+name]
	switch {
	case r.Method == http.MethodPost && f.pods[ns+"/"+body.Name] != nil:
		f.fail(w, 409, metav1.StatusReasonAlreadyExists, fmt.Sprintf("pods %q already exists", body.Name), nil)
	case r.Method == http.MethodPost:
		f.answer(w, 201, f.putLocked(&body))
	case old == nil:
		f.fail(w, 404, metav1.StatusReasonNotFound, fmt.Sprintf("pods %q not found", name), &metav1.StatusDetails{Name: name, Kind: "pods"})
	case r.Method == http.MethodGet:
		f.answer(w, 200, old)
	case r.Method == http.MethodPut:
		f.replace(w, old, &body)
	case r.Method == http.MethodDelete:
		p := old.DeepCopy()
		p.DeletionTimestamp = &metav1.Time{Time: now}
		f.answer(w, 200, f.putLocked(p))
	default:
		f.fail(w, 405, metav1.StatusReasonMethodNotAllowed, r.Method, nil)
	}
}

// replace takes over labels and image, as the API server's rules for pods do.
func (f *fakeAgent) replace(w http.ResponseWriter, old, body *v1.Pod) {
	switch {
	case len(body.Spec.Containers) != len(old.Spec.Containers):
		f.fail(w, 422, metav1.StatusReasonInvalid, "Pod is invalid", &metav1.StatusDetails{Name: old.Name, Kind: "Pod",
			Causes: []metav1.StatusCause{{Field: "spec.containers", Message: "Forbidden: pod updates may not add or remove containers"}}})
	case fmt.Sprint(body.Labels) == fmt.Sprint(old.Labels) && body.Spec.Containers[0].Image == old.Spec.Containers[0].Image:
		f.answer(w, 200, old)
	default:
		f.answer(w, 200, f.putLocked(body))
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (rewrite with -update):\n--- got\n%s--- want\n%s", file, got, want)
	}
}
