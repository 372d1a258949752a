package push

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

func TestPodsOutliveTheAgent(t *testing.T) {
	h := newHost(t)
	h.create("web", "u1")
	h.create("gone", "u2")
	h.must(h.update(h.object("web", "u1", "x:2", "a: b")))
	h.must(h.delete("gone"))
	for range 2 {
		h.restart()
		h.lives("web", "u1", "x:2")
		if p := h.get("web"); p.Labels["a"] != "b" || p.Generation != 2 {
			t.Errorf("after a restart: %+v", p.ObjectMeta)
		}
		h.ends("gone")
	}
	h.must(h.store.Finished("u2"))
	h.restart()
	if p := h.get("gone"); p != nil {
		t.Errorf("a deleted pod is back: %+v", p)
	}
	// The store's folder may be lost: what was accepted is still wanted.
	h.must(os.RemoveAll(h.pods))
	h.restart()
	h.lives("web", "u1", "x:2")
	if got := h.files(); got != "u1.json" {
		t.Errorf("files %q", got)
	}
}

// TestKilledWhileDeleting: the agent dies when the file is gone and the store
// knows nothing yet.
func TestKilledWhileDeleting(t *testing.T) {
	h := newHost(t)
	h.create("web", "u1")
	h.must(os.Remove(h.push.path("u1")))
	h.restart()
	h.ends("web")
	h.must(h.store.Finished("u1"))
	h.restart()
	if p := h.get("web"); p != nil {
		t.Errorf("a deleted pod is back: %+v", p)
	}
}

func TestDamagedFiles(t *testing.T) {
	h := newHost(t)
	h.create("web", "u1")
	h.create("other", "u2")
	good, err := os.ReadFile(h.push.path("u1"))
	h.must(err)
	half := good[:len(good)/2]

	h.must(os.WriteFile(h.push.path("u1"), half, 0o600))
	h.must(os.WriteFile(h.push.path("u3")+store.HalfWritten, half, 0o600))
	h.restart()
	h.lives("web", "u1", "x:1")
	h.lives("other", "u2", "x:1")
	h.wantProblem("")
	if now, err := os.ReadFile(h.push.path("u1")); err != nil || string(now) != string(good) {
		t.Errorf("the file was not written anew from the checkpoint: %s, %v", now, err)
	}
	if got := h.files(); got != "u1.json u2.json" {
		t.Errorf("files %q: what was half written is to go", got)
	}
	h.must(h.update(h.object("web", "u1", "x:2")))

	// Of these nothing is known from elsewhere.
	for name, text := range map[string]string{
		"garbage": "{{{", "empty": "", "half": string(half), "u9": string(good), "list": `{"apiVersion":"v1","kind":"List","items":[` + string(good) + "," + string(good) + "]}",
	} {
		t.Run(name, func(t *testing.T) {
			path := h.push.path(types.UID(name))
			h.must(os.WriteFile(path, []byte(text), 0o600))
			h.restart()
			h.wantProblem(path + ": ")
			h.wantProblem("remove the file and create the object again")
			h.lives("web", "u1", "x:2")
			h.lives("other", "u2", "x:1")
			if now, err := os.ReadFile(path); err != nil || string(now) != text {
				t.Errorf("the file was changed: %s, %v", now, err)
			}
			h.must(os.Remove(path))
			h.create("again", "u4")
			h.wantProblem("")
			h.must(h.delete("again"))
			h.must(h.store.Finished("u4"))
		})
	}
}

func TestUpdate(t *testing.T) {
	h := newHost(t)
	p := h.create("web", "u1")
	first := p.ResourceVersion
	again := h.object("web", "u1", "x:1")
	if same, err := h.push.Update(h.Context(), key("web"), again, first); err != nil || same.ResourceVersion != first {
		t.Errorf("the same again: %+v, %v", same, err)
	}
	next := h.object("web", "u1", "x:2")
	p, err := h.push.Update(h.Context(), key("web"), next, first)
	if err != nil || p.Spec.Containers[0].Image != "x:2" || p.UID != "u1" || p.ResourceVersion == first || p.Generation != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	for name, tt := range map[string]struct {
		o    manifest.Object
		rv   string
		want error
	}{
		"an old version": {next, first, errdefs.ErrConflict},
		"another pod":    {h.object("web", "u2", "x:2"), "", errdefs.ErrConflict},
		"no such pod":    {h.object("none", "u1", "x:2"), "", errdefs.ErrNotFound},
	} {
		if _, err := h.push.Update(h.Context(), pod.KeyOf(tt.o.Pod), tt.o, tt.rv); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	h.must(h.delete("web"))
	if err := h.update(h.object("web", "u1", "x:3")); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("of a pod that ends: %v", err)
	}
}

func TestDelete(t *testing.T) {
	h := newHost(t)
	h.create("web", "u1")
	if _, err := h.push.Delete(h.Context(), key("web"), nil, "u2", ""); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("another UID: %v", err)
	}
	if _, err := h.push.Delete(h.Context(), key("web"), nil, "", "1"); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("an old version: %v", err)
	}
	if err := h.delete("none"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no such pod: %v", err)
	}
	h.lives("web", "u1", "x:1")
	h.restart()
	h.lives("web", "u1", "x:1")

	seven, two := int64(7), int64(2)
	p, err := h.push.Delete(h.Context(), key("web"), &seven, "u1", h.get("web").ResourceVersion)
	if err != nil || p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 7 {
		t.Fatalf("%+v, %v", p, err)
	}
	if p, err = h.push.Delete(h.Context(), key("web"), &two, "", ""); err != nil || *p.DeletionGracePeriodSeconds != 2 {
		t.Errorf("a shorter end: %+v, %v", p, err)
	}
	if _, err := h.push.Create(h.Context(), h.object("web", "u3", "x")); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("the name is taken until the pod has ended: %v", err)
	}
	h.must(h.store.Finished("u1"))
	h.create("web", "u3")
	if _, err := h.push.Create(h.Context(), h.object("two", "u3", "x")); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("a UID that is taken: %v", err)
	}
}

// TestNameOfAFolder: the folder comes first; what the API accepted waits, also
// across restarts, and is there again when the folder gives the name back.
func TestNameOfAFolder(t *testing.T) {
	h := newHost(t)
	h.file("static")
	if _, err := h.push.Create(h.Context(), h.object("static", "u0", "x")); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("create: %v", err)
	}
	if err := h.update(h.object("static", string(h.get("static").UID), "x")); !errors.Is(err, errdefs.ErrConflict) || !strings.Contains(err.Error(), "a.yaml") {
		t.Errorf("update: %v", err)
	}
	if err := h.delete("static"); !errors.Is(err, errdefs.ErrConflict) || !strings.Contains(err.Error(), "a.yaml") {
		t.Errorf("delete: %v", err)
	}
	h.file("")
	h.must(h.store.Finished(h.get("static").UID))

	h.create("web", "u1")
	h.file("web")
	h.ends("web")
	h.wantProblem("api: pod default/web is already defined by file a.yaml")
	h.restart() // while the API's pod still ends
	h.file("web")
	h.must(h.store.Finished("u1"))
	h.lives("web", "", "from/file:1")
	h.wantProblem("pod default/web is already defined by file a.yaml")
	h.restart() // while it waits
	h.file("web")
	h.wantProblem("pod default/web is already defined by file a.yaml")

	h.file("")
	if _, err := h.push.Create(h.Context(), h.object("web", "u2", "x")); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("a second pod of the name that one waits for: %v", err)
	}
	h.must(h.store.Finished(h.get("web").UID))
	h.lives("web", "u1", "x:1")
	h.wantProblem("")
}

// TestBadDisk: on a disk that takes nothing a request fails and changes nothing.
func TestBadDisk(t *testing.T) {
	for _, tt := range []struct {
		name string
		bad  func(h *host, dir string, on bool)
		// deletes: a full disk still lets go of files.
		deletes bool
	}{
		{"full", (*host).fill, true},
		{"read-only", (*host).readOnly, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			h.disk(h.objects)
			h.create("web", "u1")
			h.create("other", "u2")
			tt.bad(h, h.objects, true)
			if _, err := h.push.Create(h.Context(), h.object("new", "u3", "x:1")); !errors.Is(err, errdefs.ErrTransient) || h.get("new") != nil {
				t.Errorf("create: %v, pod %+v", err, h.get("new"))
			}
			if err := h.update(h.object("web", "u1", "x:2")); !errors.Is(err, errdefs.ErrTransient) {
				t.Errorf("update: %v", err)
			}
			if err := h.delete("other"); (err == nil) != tt.deletes || err != nil && !errors.Is(err, errdefs.ErrTransient) {
				t.Errorf("delete: %v", err)
			}
			check := func() {
				t.Helper()
				h.lives("web", "u1", "x:1")
				if tt.deletes {
					h.ends("other")
				} else {
					h.lives("other", "u2", "x:1")
				}
			}
			check()
			h.restart()
			check()
			tt.bad(h, h.objects, false)
			h.restart()
			check()
			h.must(h.update(h.object("web", "u1", "x:2")))
			h.create("new", "u3")
			h.restart()
			h.lives("web", "u1", "x:2")
			h.lives("new", "u3", "x:1")
		})
	}
}

// TestStoreOnAFullDisk: the file of a pod is undone when the store cannot take
// it, and a deletion that it cannot note down is done later.
func TestStoreOnAFullDisk(t *testing.T) {
	h := newHost(t)
	h.disk(h.pods)
	h.create("web", "u1")
	h.create("other", "u2")
	h.fill(h.pods, true)
	_, err := h.push.Create(h.Context(), h.object("new", "u3", "x:1"))
	if !errors.Is(err, errdefs.ErrTransient) || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("create: %v", err)
	}
	if err := h.update(h.object("web", "u1", "x:2")); !errors.Is(err, errdefs.ErrTransient) {
		t.Errorf("update: %v", err)
	}
	if err := h.delete("other"); !errors.Is(err, errdefs.ErrTransient) {
		t.Errorf("delete: %v", err)
	}
	h.lives("web", "u1", "x:1")
	h.fill(h.pods, false)
	h.store.Retry()
	h.ends("other")
	for range 2 {
		h.lives("web", "u1", "x:1")
		if p := h.get("new"); p != nil {
			t.Errorf("a pod that was refused is there: %+v", p)
		}
		h.restart()
	}
	if got := h.files(); got != "u1.json" {
		t.Errorf("files %q", got)
	}

	// A pod that the store cannot take now keeps its name.
	h.must(os.RemoveAll(filepath.Join(h.pods, "u1")))
	h.fill(h.pods, true)
	h.restart()
	if p := h.get("web"); p != nil {
		t.Fatalf("the store had room: %+v", p)
	}
	if _, err := h.push.Create(h.Context(), h.object("web", "u4", "x:1")); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("a second pod of that name: %v", err)
	}
	h.fill(h.pods, false)
	h.store.Retry()
	h.lives("web", "u1", "x:1")
}

func TestFolder(t *testing.T) {
	h := newHost(t)
	h.create("web", "u1")
	for path, want := range map[string]fs.FileMode{h.objects: 0o700, h.push.path("u1"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o: a pod's environment may hold secrets", path, st, err, want)
		}
	}
	blocker := filepath.Join(t.TempDir(), "file")
	h.must(os.WriteFile(blocker, nil, 0o600))
	if _, err := New(Options{Dir: filepath.Join(blocker, "objects"), Store: h.store}); err == nil || !strings.Contains(err.Error(), blocker) {
		t.Errorf("a folder that cannot be made: %v", err)
	}
}

func TestOneNameManyClients(t *testing.T) {
	h := newHost(t)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		o := h.object("web", fmt.Sprintf("u%d", i), "x:1")
		wg.Go(func() { _, errs[i] = h.push.Create(context.Background(), o) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, errdefs.ErrExists) {
			t.Error(err)
		}
	}
	if won != 1 || strings.Count(h.files(), suffix) != 1 {
		t.Errorf("%d clients were told that they made the pod; files %s", won, h.files())
	}
}
