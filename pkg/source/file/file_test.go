package file

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// report is one call of the sink.
type report struct {
	snap store.Snapshot
	err  error
}

// sink remembers what it was told. check, when set, judges every snapshot.
type sink struct {
	mu      sync.Mutex
	changed *sync.Cond
	reports []report
	check   func(store.Snapshot) error
	broken  error
	inside  bool
}

func newSink() *sink {
	s := &sink{}
	s.changed = sync.NewCond(&s.mu)
	return s
}

func (s *sink) add(name string, r report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != store.SourceFile {
		s.broken = fmt.Errorf("source %q", name)
	}
	if s.check != nil && r.err == nil && s.broken == nil {
		s.broken = s.check(r.snap)
	}
	s.reports = append(s.reports, r)
	s.changed.Broadcast()
}

func (s *sink) Apply(name string, snap store.Snapshot) { s.add(name, report{snap: snap}) }
func (s *sink) Fail(name string, err error)            { s.add(name, report{err: err}) }

// bench is a folder, and a source that follows a path.
type bench struct {
	*testing.T
	dir  string
	sink *sink
	log  *strings.Builder
	stop func()
}

// newBench makes the folder; run starts the source.
func newBench(t *testing.T) *bench {
	b := &bench{T: t, dir: filepath.Join(t.TempDir(), "manifests"), sink: newSink(), log: &strings.Builder{}}
	b.must(os.Mkdir(b.dir, 0o755))
	return b
}

func (b *bench) run(change ...func(*Options)) {
	b.Helper()
	o := Options{Path: b.dir, Poll: time.Hour, NodeName: "n1", Decode: manifest.Decode, Log: slog.New(slog.NewTextHandler(b.log, nil))}
	for _, c := range change {
		c(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(o).Run(ctx, b.sink) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.Errorf("Run: %v", err)
		}
		b.sink.mu.Lock()
		defer b.sink.mu.Unlock()
		if b.sink.broken != nil {
			b.Error(b.sink.broken)
		}
	})
	b.Cleanup(b.stop)
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// wait waits until the last report is as it should be.
func (b *bench) wait(what string, ok func(report) bool) report {
	b.Helper()
	s := b.sink
	late := time.AfterFunc(20*time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.broken = fmt.Errorf("timed out")
		s.changed.Broadcast()
	})
	defer late.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if n := len(s.reports); n > 0 && ok(s.reports[n-1]) {
			return s.reports[n-1]
		}
		if s.broken != nil {
			last := report{}
			if n := len(s.reports); n > 0 {
				last = s.reports[n-1]
			}
			b.Fatalf("%s: %v; the last of %d reports is %s", what, s.broken, len(s.reports), last)
		}
		s.changed.Wait()
	}
}

func (r report) String() string {
	if r.err != nil {
		return "failure: " + r.err.Error()
	}
	var parts []string
	for _, o := range r.snap.Objects {
		parts = append(parts, filepath.Base(o.Origin)+":"+o.Pod.Name+"="+o.Pod.Spec.Containers[0].Image)
	}
	return strings.Join(parts, " ") + " | " + r.problems()
}

func (r report) problems() string {
	var parts []string
	for _, p := range r.snap.Problems {
		parts = append(parts, fmt.Sprintf("%s: %s: %v (keep %v)", filepath.Base(p.Origin), p.Object, p.Err, p.Keep))
	}
	return strings.Join(parts, "\n")
}

// objects is "file:pod=image …" of a report.
func objects(r report) string {
	if r.err != nil {
		return r.String()
	}
	o, _, _ := strings.Cut(r.String(), " | ")
	return o
}

func (b *bench) waitFor(want string) report {
	b.Helper()
	return b.wait("want "+want, func(r report) bool { return objects(r) == want })
}

func manifestOf(name, image string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\nspec:\n  containers:\n  - name: c\n    image: %s\n", name, image)
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// put replaces a file by rename, as careful programs do.
func (b *bench) put(name, content string) {
	b.Helper()
	tmp := filepath.Join(filepath.Dir(b.dir), "tmp-"+filepath.Base(name))
	b.must(os.WriteFile(tmp, []byte(content), 0o644))
	b.must(os.Rename(tmp, b.path(name)))
}

// write rewrites a file in place.
func (b *bench) write(name, content string) {
	b.Helper()
	b.must(os.WriteFile(b.path(name), []byte(content), 0o644))
}

func TestFolder(t *testing.T) {
	b := newBench(t)
	b.put("b.yaml", manifestOf("b1", "i:1")+"---\n"+manifestOf("b2", "i:1"))
	b.run()
	b.waitFor("b.yaml:b1=i:1 b.yaml:b2=i:1")
	b.put("a.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i:2"}]}}]}`)
	b.waitFor("a.json:a=i:2 b.yaml:b1=i:1 b.yaml:b2=i:1")
	b.write("b.yaml", manifestOf("b2", "i:3"))
	b.waitFor("a.json:a=i:2 b.yaml:b2=i:3")
	b.must(os.Remove(b.path("a.json")))
	b.waitFor("b.yaml:b2=i:3")
	b.must(os.Rename(b.path("b.yaml"), b.path("c.yaml")))
	b.waitFor("c.yaml:b2=i:3")
	b.must(os.Remove(b.path("c.yaml")))
	b.waitFor("")
}
