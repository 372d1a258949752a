package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

var errNoSpace = &fs.PathError{Op: "write", Path: "pod.json", Err: errors.New("no space left on device")}

// host is what outlives a store: the folder, the clock, the log, a disk that may be full.
type host struct {
	*testing.T
	*Store
	dir     string
	secrets string
	sources []SourceDecl
	now     time.Time
	log     bytes.Buffer

	reconsider func(v1.PodStatus) bool

	mu    sync.Mutex
	full  bool
	woken []types.UID
}

func newHost(t *testing.T) *host {
	h := &host{T: t, dir: filepath.Join(t.TempDir(), "pods"), now: time.Unix(1000, 0),
		sources: []SourceDecl{{SourceFile, "/m"}, {SourceHTTP, "https://x"}, {SourcePush, "socket"}}}
	h.open()
	return h
}

// open starts the store anew on the same folder, as a restarted agent does.
func (h *host) open() {
	h.Helper()
	h.now = h.now.Add(time.Second)
	s, err := Open(Options{
		Dir: h.dir, SecretDir: h.secrets, NodeName: "n1", Sources: h.sources, Decode: manifest.Decode, Equal: manifest.SemanticEqual, Reconsider: h.reconsider,
		Clock: func() time.Time { return h.now }, Log: slog.New(slog.NewTextHandler(&h.log, nil)),
		WriteFile: func(path string, data []byte) error {
			h.mu.Lock()
			full := h.full
			h.mu.Unlock()
			if full {
				return errNoSpace
			}
			return WriteFile(path, data)
		},
	})
	if err != nil {
		h.Fatal(err)
	}
	h.Store = s
	s.Notify(func(uid types.UID) {
		s.ByUID(uid) // a listener may read
		h.mu.Lock()
		h.woken = append(h.woken, uid)
		h.mu.Unlock()
	})
}

func (h *host) fill(full bool) { h.mu.Lock(); h.full = full; h.mu.Unlock() }

func yamlPod(name, image string, extra ...string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n%sspec:\n  containers:\n  - name: c\n    image: %q\n", name, strings.Join(extra, ""), image)
}

func (h *host) decode(origin string, docs ...string) []manifest.Object {
	h.Helper()
	objects, errs := manifest.Decode([]byte(strings.Join(docs, "---\n")), manifest.Options{Origin: origin, NodeName: "n1"})
	if len(errs) > 0 {
		h.Fatal(errs)
	}
	return objects
}

func (h *host) apply(source string, objects ...[]manifest.Object) {
	h.Apply(source, Snapshot{Objects: slices.Concat(objects...)})
}

func keep(origin string) Problem { return Problem{Origin: origin, Err: errors.New("bad"), Keep: true} }

func web() pod.Key { return pod.Key{Namespace: "default", Name: "web"} }

func (h *host) web() Record {
	h.Helper()
	r, ok := h.Get(web())
	if !ok {
		h.Fatal("pod web is not known")
	}
	return r
}

func (h *host) problems(source string) string {
	for _, s := range h.Sources() {
		if s.Name == source {
			return strings.Join(append(s.Problems, s.Error), "\n")
		}
	}
	return ""
}

func (h *host) wantProblem(source, text string) {
	h.Helper()
	if p := h.problems(source); text == "" && strings.TrimSpace(p) != "" || !strings.Contains(p, text) {
		h.Errorf("problems of %s are %q, want %q", source, p, text)
	}
}

func TestSamePodKeepsUID(t *testing.T) {
	long := "  labels: {a: b}\n  annotations: {html: \"<&>\\u2028\"}\n"
	for name, again := range map[string]func(h *host) []manifest.Object{
		"same bytes": func(h *host) []manifest.Object { return h.decode("a.yaml", yamlPod("web", "x")) },
		"moved":      func(h *host) []manifest.Object { return h.decode("b.yaml", yamlPod("web", "x")) },
		"labels":     func(h *host) []manifest.Object { return h.decode("a.yaml", yamlPod("web", "x", long)) },
		"explicit defaults": func(h *host) []manifest.Object {
			return h.decode("a.yaml", yamlPod("web", "x")+"  restartPolicy: Always\n")
		},
		"moved and defaults": func(h *host) []manifest.Object {
			return h.decode("b.yaml", yamlPod("web", "x", long)+"  dnsPolicy: ClusterFirst\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
			before := h.web()
			if err := h.SetStatus(before.Pod.UID, v1.PodStatus{Phase: v1.PodRunning}); err != nil {
				t.Fatal(err)
			}
			revision := h.Revision()
			objects := again(h)
			h.apply(SourceFile, objects)
			after := h.web()
			if after.Pod.UID != before.Pod.UID || after.Pod.DeletionTimestamp != nil || after.Pod.Status.Phase != v1.PodRunning {
				t.Fatalf("the pod was touched: %+v", after.Pod)
			}
			if changed := h.Revision() != revision; changed != (name != "same bytes") {
				t.Errorf("revision changed: %t", changed)
			}
			if after.Origin != objects[0].Origin || after.Pod.Annotations[pod.AnnotationOrigin] != objects[0].Origin ||
				after.Pod.Labels["a"] != objects[0].Pod.Labels["a"] || after.SpecHash != objects[0].SpecHash {
				t.Errorf("not updated in place: %+v", after)
			}
			if after.Pod.Generation != 1 {
				t.Errorf("generation %d", after.Pod.Generation)
			}
			h.open()
			if r := h.web(); r.Pod.UID != before.Pod.UID || r.Origin != after.Origin || !bytes.Equal(r.Canonical, after.Canonical) || !r.Accepted.Equal(before.Accepted) {
				t.Errorf("after a restart: %+v, want %+v", r, after)
			}
		})
	}
}

func TestReplacementWaitsForTheOldPod(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")+"  terminationGracePeriodSeconds: 7\n"))
	old := h.web()
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "y")))
	r := h.web()
	if r.Pod.UID != old.Pod.UID || r.Pod.DeletionTimestamp == nil || *r.Pod.DeletionGracePeriodSeconds != 7 || !r.Pod.DeletionTimestamp.Time.Equal(h.now.Add(7*time.Second)) {
		t.Fatalf("the old pod does not end: %+v", r.Pod.ObjectMeta)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "z"))) // the last one wins
	ends := *r.Pod.DeletionTimestamp
	h.open() // ending is resumed …
	if r := h.web(); r.Pod.DeletionTimestamp == nil || !r.Pod.DeletionTimestamp.Time.Equal(ends.Time) || r.Pod.UID != old.Pod.UID {
		t.Fatalf("after a restart: %+v", r.Pod.ObjectMeta)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "z"))) // … and its successor comes from the source
	if err := h.Finished(old.Pod.UID); err != nil {
		t.Fatal(err)
	}
	r = h.web()
	if r.Pod.Spec.Containers[0].Image != "z" || r.Pod.DeletionTimestamp != nil || r.Pod.UID == old.Pod.UID {
		t.Fatalf("got %+v", r.Pod)
	}
	if _, err := os.Stat(filepath.Join(h.dir, string(old.Pod.UID))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old checkpoint is still there: %v", err)
	}
	if err := h.Finished(old.Pod.UID); err != nil {
		t.Errorf("finished twice: %v", err)
	}
	if err := h.Finished(r.Pod.UID); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("finishing a live pod: %v", err)
	}
}

func TestPendingMayChangeItsMind(t *testing.T) {
	h := newHost(t)
	first := func() []manifest.Object { return h.decode("a.yaml", yamlPod("web", "x")) }
	h.apply(SourceFile, first())
	uid := h.web().Pod.UID
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "y")))
	h.apply(SourceFile, first()) // back to the old one, which is ending already
	if h.web().Pod.DeletionTimestamp == nil {
		t.Fatal("an ending pod came back to life")
	}
	if err := h.Finished(uid); err != nil {
		t.Fatal(err)
	}
	if r := h.web(); r.Pod.DeletionTimestamp != nil || r.Pod.Spec.Containers[0].Image != "x" {
		t.Fatalf("it did not start again: %+v", r.Pod)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "y")))
	h.apply(SourceFile) // what waited is dropped
	if err := h.Finished(h.web().Pod.UID); err != nil {
		t.Fatal(err)
	}
	if n := len(h.Records()); n != 0 {
		t.Fatalf("%d records are left", n)
	}
}

func TestWrittenUIDThatDiffersReplaces(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x", "  uid: mine\n")))
	old := h.web()
	if old.Pod.DeletionTimestamp == nil {
		t.Fatal("not replaced")
	}
	// Another pod with the same UID has to wait for a correction.
	h.apply(SourceHTTP, h.decode("u", yamlPod("other", "x", "  uid: mine\n")))
	if err := h.Finished(old.Pod.UID); err != nil {
		t.Fatal(err)
	}
	if n := len(h.Records()); n != 1 {
		t.Fatalf("%d records with one UID", n)
	}
}

func TestUnreadableOriginKeepsItsPods(t *testing.T) {
	h := newHost(t)
	a := h.decode("a.yaml", yamlPod("web", "x"), yamlPod("w2", "x"))
	h.apply(SourceFile, a, h.decode("b.yaml", yamlPod("b", "x")))
	for range 2 { // the second time after a restart
		h.Apply(SourceFile, Snapshot{Problems: []Problem{keep("a.yaml")}, Objects: h.decode("c.yaml", yamlPod("web", "other"))})
		if r := h.web(); r.Pod.DeletionTimestamp != nil || r.Origin != "a.yaml" {
			t.Fatalf("not kept: %+v", r.Pod)
		}
		if r, _ := h.Get(pod.Key{Namespace: "default", Name: "b"}); r.Pod.DeletionTimestamp == nil {
			t.Fatal("the pod of a file that is gone stays")
		}
		h.wantProblem(SourceFile, "c.yaml:1: pod default/web is already defined by a.yaml")
		h.wantProblem(SourceFile, "a.yaml: bad")
		h.open()
	}
	// The same pod in another file has moved there.
	h.Apply(SourceFile, Snapshot{Problems: []Problem{keep("a.yaml")}, Objects: h.decode("c.yaml", yamlPod("web", "x"))})
	if r := h.web(); r.Pod.DeletionTimestamp != nil || r.Origin != "c.yaml" {
		t.Fatalf("not moved: %+v", r)
	}
	// Part of the file can be read: that part counts.
	h.Apply(SourceFile, Snapshot{Problems: []Problem{keep("a.yaml")}, Objects: h.decode("a.yaml", yamlPod("w2", "new"))})
	if r, _ := h.Get(pod.Key{Namespace: "default", Name: "w2"}); r.Pod.DeletionTimestamp == nil {
		t.Error("the readable part of a file does not count")
	}
}

func TestNothingGoesBeforeItsSourceHasSynced(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
	h.apply(SourceHTTP, h.decode("u", yamlPod("h", "x")))
	h.open()
	h.apply(SourceHTTP)
	h.Fail(SourceFile, errors.New("folder is gone"))
	if h.web().Pod.DeletionTimestamp != nil {
		t.Fatal("ended on the word of another source")
	}
	if h.AllTried() || h.AllSynced() || h.Synced(SourceFile) || !h.Synced(SourceHTTP) || !h.Synced("unknown") {
		t.Error("wrong marks")
	}
	h.wantProblem(SourceFile, "folder is gone")
	h.apply(SourcePush)
	if !h.AllTried() || h.AllSynced() {
		t.Error("a source that failed counts as tried and not as synced")
	}
	h.apply(SourceFile)
	if h.web().Pod.DeletionTimestamp == nil || !h.AllSynced() {
		t.Fatal("the source has spoken")
	}
	h.wantProblem(SourceFile, "")
}

func TestSourceTakenOutEndsItsPods(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
	h.apply(SourceHTTP, h.decode("u", yamlPod("h", "x")))
	h.sources = h.sources[1:]
	h.open()
	if h.web().Pod.DeletionTimestamp == nil {
		t.Error("its pod lives on")
	}
	if r, _ := h.Get(pod.Key{Namespace: "default", Name: "h"}); r.Pod.DeletionTimestamp != nil {
		t.Error("another source's pod ends")
	}
	h.Apply(SourceFile, Snapshot{})
	h.Fail(SourceFile, errors.New("x"))
	if !strings.Contains(h.log.String(), "source taken out of the configuration") {
		t.Error("the log does not say why")
	}
}

func TestPrecedence(t *testing.T) {
	h := newHost(t)
	h.apply(SourceHTTP, h.decode("u", yamlPod("web", "x")))
	uid := h.web().Pod.UID
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
	if r := h.web(); r.Source != SourceFile || r.Pod.UID != uid || r.Pod.DeletionTimestamp != nil {
		t.Fatalf("the same pod was not taken over in place: %+v", r)
	}
	h.wantProblem(SourceHTTP, "pod default/web is already defined by file a.yaml")
	h.apply(SourceHTTP, h.decode("u", yamlPod("web", "y")))
	if h.web().Pod.DeletionTimestamp != nil {
		t.Fatal("the loser replaced the winner's pod")
	}
	h.apply(SourceFile)
	h.wantProblem(SourceHTTP, "")
	if err := h.Finished(uid); err != nil {
		t.Fatal(err)
	}
	if r := h.web(); r.Source != SourceHTTP || r.Pod.Spec.Containers[0].Image != "y" {
		t.Fatalf("the loser did not take over: %+v", r)
	}
	h.apply(SourceHTTP, h.decode("u", yamlPod("web", "y"), yamlPod("web", "z")))
	h.wantProblem(SourceHTTP, "u:10: pod default/web is already defined by u:1: ")
}

func TestFullDisk(t *testing.T) {
	h := newHost(t)
	h.fill(true)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
	if len(h.Records()) != 0 {
		t.Fatal("visible before it was written down")
	}
	h.wantProblem(SourceFile, "cannot checkpoint pod default/web; will try again: write pod.json: no space left on device")
	h.Retry()
	h.wantProblem(SourceFile, "no space left")
	h.fill(false)
	h.Retry()
	h.wantProblem(SourceFile, "")
	r := h.web()

	h.fill(true)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "y")))
	if h.web().Pod.DeletionTimestamp != nil {
		t.Fatal("ends before that was written down")
	}
	if err := h.SetStatus(r.Pod.UID, v1.PodStatus{Phase: v1.PodSucceeded}); err == nil {
		t.Error("a terminal status was taken though it could not be kept")
	}
	if h.web().Pod.Status.Phase != v1.PodPending {
		t.Error("a terminal status is visible though it could not be kept")
	}
	if err := h.SetStatus(r.Pod.UID, v1.PodStatus{Phase: v1.PodRunning}); err != nil {
		t.Errorf("other statuses need no disk: %v", err)
	}
	if _, err := h.Delete(web(), nil, ""); !errors.Is(err, errdefs.ErrTransient) {
		t.Errorf("delete: %v", err)
	}
	h.fill(false)
	h.Retry()
	if h.web().Pod.DeletionTimestamp == nil {
		t.Error("not retried")
	}
}

func TestUnwritableFolder(t *testing.T) {
	h := newHost(t)
	// A file where the folder should be stops root, too.
	obj := h.decode("a.yaml", yamlPod("web", "x"))
	blocker := filepath.Join(h.dir, string(obj[0].Pod.UID))
	if err := os.WriteFile(blocker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.apply(SourceFile, obj)
	h.wantProblem(SourceFile, "cannot checkpoint pod default/web")
	if err := os.Remove(blocker); err != nil {
		t.Fatal(err)
	}
	h.apply(SourceFile, obj) // the next snapshot tries again
	h.wantProblem(SourceFile, "")
	st, err := os.Stat(filepath.Join(blocker, "pod.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if st, err := os.Stat(blocker); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st, err)
	}
}

func TestBrokenCheckpointsAreSetAside(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x"), yamlPod("ok", "x")))
	path := filepath.Join(h.dir, string(h.web().Pod.UID), "pod.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, good[:len(good)/2], []byte("{}"), []byte("\x00\x00"),
		bytes.Replace(good, []byte(`"version":1`), []byte(`"version":9`), 1),
		bytes.Replace(good, []byte(`"uid":"`), []byte(`"uid":"0`), 1),
		bytes.Replace(good, []byte(`"image"`), []byte(`"imago"`), 1)} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		h.log.Reset()
		h.open()
		if _, ok := h.Get(web()); ok || len(h.Records()) != 1 {
			t.Fatalf("%q was used", bad)
		}
		if _, err := os.Stat(path + ".broken"); err != nil || !strings.Contains(h.log.String(), "set aside") {
			t.Errorf("not set aside: %v, log %s", err, h.log.String())
		}
	}
}

func TestTerminalStatus(t *testing.T) {
	h := newHost(t)
	objects := func() []manifest.Object { return h.decode("a.yaml", yamlPod("web", "x")) }
	h.apply(SourceFile, objects())
	uid := h.web().Pod.UID
	set := func(phase v1.PodPhase, msg string) uint64 {
		t.Helper()
		if err := h.SetStatus(uid, v1.PodStatus{Phase: phase, Message: msg}); err != nil {
			t.Fatal(err)
		}
		return h.Revision()
	}
	r1 := set(v1.PodRunning, "")
	if set(v1.PodRunning, "") != r1 {
		t.Error("the same status is a change")
	}
	set(v1.PodFailed, "a")
	r2 := set(v1.PodFailed, "b")
	for _, back := range []v1.PodPhase{v1.PodRunning, v1.PodPending, v1.PodSucceeded} {
		if set(back, "") != r2 {
			t.Errorf("went from Failed to %s", back)
		}
	}
	h.open()
	h.apply(SourceFile, objects())
	if r := h.web(); r.Pod.Status.Phase != v1.PodFailed || r.Pod.Status.Message != "b" || r.Pod.DeletionTimestamp != nil {
		t.Fatalf("after a restart: %+v", r.Pod)
	}
	h.apply(SourceFile)
	if r := h.web(); *r.Pod.DeletionGracePeriodSeconds != 0 {
		t.Error("a pod that runs nothing has a grace period")
	}
	h.open()
	if r := h.web(); r.Pod.Status.Phase != v1.PodFailed || r.Pod.DeletionTimestamp == nil {
		t.Fatalf("after a second restart: %+v", r.Pod)
	}
	if err := h.SetStatus("nobody", v1.PodStatus{Phase: v1.PodFailed}); err != nil {
		t.Error(err)
	}
}

// TestRestartedAgentKnowsNoStatus: a pod of which only the checkpoint is known
// may run; to call it Pending would be a guess, and a wrong one nearly always.
func TestRestartedAgentKnowsNoStatus(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
	if err := h.SetStatus(h.web().Pod.UID, v1.PodStatus{Phase: v1.PodRunning}); err != nil {
		t.Fatal(err)
	}
	h.open()
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
	if st := h.web().Pod.Status; st.Phase != v1.PodUnknown || st.Message == "" {
		t.Errorf("after a restart: %+v", st)
	}
}

// TestRefusalIsReconsidered: what the node refused is asked anew by the next
// agent; what ended by itself stays ended.
func TestRefusalIsReconsidered(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("/m/a", yamlPod("a", "x")), h.decode("/m/b", yamlPod("b", "x")))
	for _, r := range h.Records() {
		st := v1.PodStatus{Phase: v1.PodFailed}
		if r.Pod.Name == "a" {
			st.Reason = "Refused"
		}
		if err := h.SetStatus(r.Pod.UID, st); err != nil {
			t.Fatal(err)
		}
	}
	h.reconsider = func(st v1.PodStatus) bool { return st.Reason == "Refused" }
	h.open()
	for name, want := range map[string]v1.PodPhase{"a": v1.PodPending, "b": v1.PodFailed} {
		if r, ok := h.Get(pod.Key{Namespace: "default", Name: name}); !ok || r.Pod.Status.Phase != want {
			t.Errorf("%s: %s, want %s", name, r.Pod.Status.Phase, want)
		}
	}
}

func TestPushUpdatesInPlace(t *testing.T) {
	h := newHost(t)
	h.apply(SourcePush, h.decode("api", yamlPod("web", "x", "  uid: u1\n")))
	h.apply(SourcePush, h.decode("api", yamlPod("web", "y", "  uid: u1\n")))
	r := h.web()
	if r.Pod.DeletionTimestamp != nil || r.Pod.Spec.Containers[0].Image != "y" || r.Pod.Generation != 2 {
		t.Fatalf("got %+v", r.Pod)
	}
	h.open()
	if r := h.web(); r.Pod.Generation != 2 || r.Pod.Spec.Containers[0].Image != "y" {
		t.Fatalf("after a restart: %+v", r.Pod)
	}
}

func TestDelete(t *testing.T) {
	h := newHost(t)
	h.apply(SourcePush, h.decode("api", yamlPod("web", "x", "  uid: u1\n")))
	ten, five := int64(10), int64(5)
	if _, err := h.Delete(pod.Key{Namespace: "default", Name: "no"}, nil, ""); !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
	if _, err := h.Delete(web(), nil, "u2"); !errors.Is(err, errdefs.ErrConflict) {
		t.Error(err)
	}
	got, err := h.Delete(web(), &ten, "u1")
	if err != nil || *got.Pod.DeletionGracePeriodSeconds != 10 || h.Sources()[2].Objects != 0 {
		t.Fatalf("%+v %v", got.Pod, err)
	}
	got, err = h.Delete(web(), nil, "")
	if err != nil || *got.Pod.DeletionGracePeriodSeconds != 10 {
		t.Fatalf("a second delete without a wish changed the end: %+v %v", got.Pod, err)
	}
	got, err = h.Delete(web(), &five, "")
	if err != nil || *got.Pod.DeletionGracePeriodSeconds != 5 {
		t.Fatalf("a shorter grace period is not taken: %+v %v", got.Pod, err)
	}
	if err := h.Finished("u1"); err != nil || len(h.Records()) != 0 {
		t.Fatal(err)
	}
	h.apply(SourcePush, h.decode("api", yamlPod("web", "x", "  uid: u3\n")))
	endless := int64(math.MaxInt64)
	if got, err = h.Delete(web(), &endless, ""); err != nil || got.Pod.DeletionTimestamp.Time.Before(h.now.Add(time.Hour)) {
		t.Fatalf("a grace period that overflows ends the pod at %v, %v", got.Pod.DeletionTimestamp, err)
	}
}

func TestHandedOutPod(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x", "  annotations: {mine: yes-it-is}\n")))
	r := h.web()
	for k, want := range map[string]string{"mine": "yes-it-is", pod.AnnotationConfigSource: "file", pod.AnnotationConfigHash: r.SpecHash,
		pod.AnnotationOrigin: "a.yaml", pod.AnnotationConfigSeen: h.now.UTC().Format(time.RFC3339Nano)} {
		if got := r.Pod.Annotations[k]; got != want {
			t.Errorf("annotation %s is %q, want %q", k, got, want)
		}
	}
	if r.Pod.ResourceVersion != fmt.Sprint(h.Revision()) || !r.Pod.CreationTimestamp.Time.Equal(h.now) || r.Pod.Status.Phase != v1.PodPending {
		t.Errorf("got %+v", r.Pod)
	}
	if !maps.Equal(h.KnownUIDs(SourceFile), pod.UIDSet{r.Pod.UID: {}}) || len(h.KnownUIDs(SourcePush)) != 0 {
		t.Error("known UIDs")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.woken, []types.UID{r.Pod.UID}) {
		t.Errorf("woken: %v", h.woken)
	}
}

func TestWatch(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("a", "x")))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	since := h.Revision()
	later, err := h.Watch(ctx, since)
	if err != nil {
		t.Fatal(err)
	}
	all, err := h.Watch(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("a", "x"), yamlPod("web", "x")))
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("a", "x")))
	if err := h.Finished(h.web().Pod.UID); err != nil {
		t.Fatal(err)
	}
	expect := func(ch <-chan Change, want ...string) {
		t.Helper()
		last := uint64(0)
		for _, w := range want {
			c, ok := <-ch
			if !ok {
				t.Fatal("cut off")
			}
			if got := c.Type + " " + c.Record.Pod.Name; got != w || c.Revision <= last || c.Record.Pod.ResourceVersion != fmt.Sprint(c.Revision) {
				t.Errorf("got %s at %d (%s), want %s", got, c.Revision, c.Record.Pod.ResourceVersion, w)
			}
			last = c.Revision
		}
	}
	expect(later, "ADDED web", "MODIFIED web", "DELETED web")
	expect(all, "ADDED a", "ADDED web", "MODIFIED web", "DELETED web")
	cancel()
	for range all {
	}
	if _, err := h.Watch(t.Context(), 5); !errors.Is(err, errdefs.ErrExpired) {
		t.Error(err)
	}
	h.open() // a restarted agent does not know what was before, and says so
	if _, err := h.Watch(t.Context(), since); !errors.Is(err, errdefs.ErrExpired) {
		t.Error(err)
	}
}

// TestRandomSnapshots compares a store that lived through a thousand snapshots,
// restarts, full disks and finished pods with a fresh one that was only told
// the end.
func TestRandomSnapshots(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	h := newHost(t)
	names, images := []string{"a", "b", "c", "web"}, []string{"x", "y", "z"}
	random := func(source string) []manifest.Object {
		var out []manifest.Object
		for _, n := range names {
			if rnd.IntN(2) == 0 {
				continue
			}
			extra := ""
			if source == SourcePush {
				extra = "  uid: push-" + n + "\n"
			}
			out = append(out, h.decode(fmt.Sprintf("%s-%d.yaml", source, rnd.IntN(3)), yamlPod(n, images[rnd.IntN(3)], extra))...)
		}
		return out
	}
	finish := func(h *host) {
		for _, r := range h.Records() {
			if r.Pod.DeletionTimestamp != nil {
				if err := h.Finished(r.Pod.UID); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	last := map[string][]manifest.Object{}
	for range 1000 {
		source := h.sources[rnd.IntN(3)].Name
		h.fill(rnd.IntN(8) == 0)
		last[source] = random(source)
		h.apply(source, last[source])
		if rnd.IntN(3) == 0 {
			h.fill(false)
			finish(h)
		}
		if rnd.IntN(20) == 0 {
			h.open()
		}
		seen := map[types.UID]bool{}
		for _, r := range h.Records() {
			if seen[r.Pod.UID] {
				t.Fatalf("seed %d: UID %s twice", seed, r.Pod.UID)
			}
			seen[r.Pod.UID] = true
		}
	}
	h.fill(false)
	fresh := newHost(t)
	state := func(h *host) map[string]string {
		for _, d := range h.sources {
			h.apply(d.Name, last[d.Name])
		}
		for range 3 {
			finish(h)
		}
		out := map[string]string{}
		for _, r := range h.Records() {
			out[pod.KeyOf(r.Pod).String()] = fmt.Sprintf("%s %s %s", r.Source, r.Origin, r.Canonical)
		}
		return out
	}
	got, want := state(h), state(fresh)
	if !maps.Equal(got, want) {
		t.Errorf("seed %d:\n got %v\nwant %v", seed, got, want)
	}
	h.open()
	if again := state(h); !maps.Equal(again, want) {
		t.Errorf("seed %d: after a restart\n got %v\nwant %v", seed, again, want)
	}
}

func TestConcurrentUse(t *testing.T) {
	h := newHost(t)
	var wg sync.WaitGroup
	for i, d := range h.sources {
		docs := [][]manifest.Object{nil, h.decode("o", yamlPod("a", "x"), yamlPod(fmt.Sprint("p", i), "x")), h.decode("o", yamlPod("a", "y"))}
		wg.Go(func() {
			for n := range 60 {
				h.apply(d.Name, docs[n%3])
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for n := range 200 {
				for _, r := range h.Records() {
					phase := v1.PodRunning
					if n%5 == 0 {
						phase = v1.PodFailed
					}
					if err := h.SetStatus(r.Pod.UID, v1.PodStatus{Phase: phase, Message: fmt.Sprint(n)}); err != nil {
						t.Error(err)
					}
					if r.Pod.DeletionTimestamp != nil {
						if err := h.Finished(r.Pod.UID); err != nil && !errors.Is(err, errdefs.ErrConflict) {
							t.Error(err)
						}
					}
				}
				h.Sources()
				h.Retry()
			}
		})
	}
	wg.Wait()
}

// TestProblemText: origin and object are named once.
func TestProblemText(t *testing.T) {
	for _, c := range []struct {
		p    Problem
		want string
	}{
		{Problem{Origin: "/m/a.yaml", Err: errors.New("is empty")}, "/m/a.yaml: is empty"},
		{Problem{Origin: "/m", Err: errors.New("/m does not exist")}, "/m does not exist"},
		{Problem{Origin: "a.yaml", Object: "Pod default/web", Err: errors.New("no")}, "a.yaml: Pod default/web: no"},
		{Problem{Origin: "a.yaml", Object: "Pod default/web", Err: &manifest.Error{Origin: "a.yaml", Line: 3, Object: "Pod default/web", Msg: "no"}},
			"a.yaml:3: Pod default/web: no"},
	} {
		if got := c.p.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
