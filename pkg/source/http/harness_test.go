package http

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// secret is in what every source of these tests sends, and nowhere else.
const secret = "hunter2"

// site is a web server with the answer that a test gives it.
type site struct {
	*httptest.Server
	mu       sync.Mutex
	answer   http.HandlerFunc
	requests []*http.Request
}

func newSite(t *testing.T, start func(http.Handler) *httptest.Server) *site {
	s := &site{}
	s.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r)
		answer := s.answer
		s.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) set(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// last is the latest request.
func (s *site) last() *http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[len(s.requests)-1]
}

// page answers with a body.
func page(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
}

func pod(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: c, image: i}]}\n", name)
}

func pods(names ...string) string {
	var all []string
	for _, n := range names {
		all = append(all, pod(n))
	}
	return strings.Join(all, "---\n")
}

// rig is a source, which polls when it is told to, and a real store.
type rig struct {
	*testing.T
	source  *Source
	store   *store.Store
	decodes int

	log   bytes.Buffer // to be read after stop
	shown []string     // everything that anybody was shown
	waits []time.Duration
	idle  chan time.Duration
	ticks chan time.Time
	now   time.Time
}

// run starts a source whose first poll is over when run returns. dir is the
// store's.
func run(t *testing.T, dir, url string, change ...func(*Options)) *rig {
	r := &rig{T: t, idle: make(chan time.Duration, 1), ticks: make(chan time.Time), now: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
	log := slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	r.store, err = store.Open(store.Options{
		Dir: dir, NodeName: "n1", Sources: []store.SourceDecl{{Name: store.SourceHTTP, Target: Shown(url)}},
		Decode: manifest.Decode, Equal: manifest.SemanticEqual, Clock: func() time.Time { return r.now }, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		URL: url, Header: map[string][]string{"Authorization": {"Bearer " + secret}, "X-Token": {secret}}, Interval: time.Minute, NodeName: "n1",
		Decode: func(b []byte, o manifest.Options) ([]manifest.Object, []*manifest.Error) {
			r.decodes++
			return manifest.Decode(b, o)
		},
	}
	for _, c := range change {
		c(&o)
	}
	r.source = New(o)
	r.source.after = func(d time.Duration) (<-chan time.Time, func() bool) {
		r.idle <- d
		return r.ticks, func() bool { return true }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.source.Run(ctx, r.store) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if s := r.log.String() + strings.Join(r.shown, "\n"); strings.Contains(s, secret) {
			t.Errorf("a secret is shown:\n%s", s)
		}
	})
	r.settle()
	return r
}

// settle waits until a poll is over.
func (r *rig) settle() {
	r.waits = append(r.waits, <-r.idle)
	b, err := json.Marshal(r.store.Sources())
	if err != nil {
		r.Fatal(err)
	}
	r.shown = append(r.shown, string(b))
}

func (r *rig) poll() {
	r.now = r.now.Add(time.Minute)
	r.ticks <- r.now
	r.settle()
}

func (r *rig) state() store.SourceState { return r.store.Sources()[0] }

// wanted are the pods that are not to end.
func (r *rig) wanted() string {
	var names []string
	for _, rec := range r.store.Records() {
		if rec.Pod.DeletionTimestamp == nil {
			names = append(names, rec.Pod.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// want checks what the store has of the source after a poll.
func (r *rig) want(what, pods string, problem ...string) {
	r.Helper()
	st := r.state()
	text := st.Error + strings.Join(st.Problems, "\n")
	if got := r.wanted(); got != pods || (text == "") != (len(problem) == 0) {
		r.Errorf("%s: pods %q with %q, want %q with %q", what, got, text, pods, problem)
	}
	for _, p := range problem {
		if !strings.Contains(text, p) {
			r.Errorf("%s: %q does not say %q", what, text, p)
		}
	}
}
