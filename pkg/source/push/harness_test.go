package push

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

const node = "n1"

// host is a node with the real store, whose agent can be started anew.
type host struct {
	*testing.T
	objects, pods string // folders
	now           time.Time
	store         *store.Store
	push          *Source
}

func newHost(t *testing.T) *host {
	dir := t.TempDir()
	h := &host{T: t, objects: filepath.Join(dir, "objects"), pods: filepath.Join(dir, "pods"), now: time.Unix(1000, 0)}
	h.restart()
	return h
}

// restart is the death of an agent and the start of the next one on the same
// folders, in its order.
func (h *host) restart() {
	h.Helper()
	h.now = h.now.Add(time.Second)
	var err error
	h.store, err = store.Open(store.Options{
		Dir: h.pods, NodeName: node, Decode: manifest.Decode, Equal: manifest.SemanticEqual, Log: slog.New(slog.DiscardHandler),
		Sources: []store.SourceDecl{{Name: store.SourceFile, Target: "/m"}, {Name: store.SourcePush, Target: "socket"}},
		Clock:   func() time.Time { return h.now },
	})
	h.must(err)
	h.push, err = New(Options{Dir: h.objects, NodeName: node, Store: h.store, Decode: manifest.Decode, Log: slog.New(slog.DiscardHandler)})
	h.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h.must(h.push.Run(ctx, h.store)) // it hands over what it has, and ends
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// object is a pod as a client sends it; the server gives it a UID.
func (h *host) object(name, uid, image string, labels ...string) manifest.Object {
	h.Helper()
	doc := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: %s\n  labels: {%s}\nspec:\n  containers:\n  - name: c\n    image: %s\n",
		name, strings.Join(labels, ","), image)
	o, errs := manifest.Decode([]byte(doc), manifest.Options{Origin: store.SourcePush, NodeName: node, UID: types.UID(uid)})
	if len(errs) > 0 {
		h.Fatal(errs)
	}
	return o[0]
}

func (h *host) create(name, uid string) *v1.Pod {
	h.Helper()
	p, err := h.push.Create(h.Context(), h.object(name, uid, "x:1"))
	h.must(err)
	return p
}

func (h *host) update(o manifest.Object) error {
	_, err := h.push.Update(h.Context(), pod.KeyOf(o.Pod), o, "")
	return err
}

func (h *host) delete(name string) error {
	_, err := h.push.Delete(h.Context(), key(name), nil, "", "")
	return err
}

// file is a snapshot of the file source: one pod, or none.
func (h *host) file(name string) {
	h.Helper()
	var snap store.Snapshot
	if name != "" {
		o := h.object(name, "", "from/file:1")
		o.Origin = "a.yaml"
		snap.Objects = append(snap.Objects, o)
	}
	h.store.Apply(store.SourceFile, snap)
}

// get is the pod of a name, or nil.
func (h *host) get(name string) *v1.Pod {
	rec, ok := h.store.Get(key(name))
	if !ok {
		return nil
	}
	return rec.Pod
}

// lives checks that a pod is there, is not to end, and runs that image.
func (h *host) lives(name, uid, image string) {
	h.Helper()
	p := h.get(name)
	if p == nil || p.DeletionTimestamp != nil || (uid != "" && string(p.UID) != uid) || p.Spec.Containers[0].Image != image {
		h.Fatalf("pod %s: %+v; want UID %q, image %s, alive", name, p, uid, image)
	}
}

// ends checks that a pod is to end.
func (h *host) ends(name string) {
	h.Helper()
	if p := h.get(name); p == nil || p.DeletionTimestamp == nil {
		h.Fatalf("pod %s is not to end: %+v", name, p)
	}
}

func (h *host) files() string {
	h.Helper()
	list, err := os.ReadDir(h.objects)
	h.must(err)
	var names []string
	for _, f := range list {
		names = append(names, f.Name())
	}
	return strings.Join(names, " ")
}

// problems is what `get sources` says of this source.
func (h *host) problems() string {
	return strings.Join(h.store.Sources()[1].Problems, "\n")
}

func (h *host) wantProblem(want string) {
	h.Helper()
	if got := h.problems(); (want == "") != (got == "") || !strings.Contains(got, want) {
		h.Fatalf("problems %q, want %q", got, want)
	}
}

func key(name string) pod.Key { return pod.Key{Namespace: pod.DefaultNamespace, Name: name} }

// disk puts a small file system over an empty folder, for this test alone: the
// thread gets a mount namespace, and ends with the test.
func (h *host) disk(dir string) {
	h.Helper()
	if os.Getuid() != 0 {
		h.Skip("a mount needs root")
	}
	runtime.LockOSThread()
	h.must(unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS))
	h.must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	h.must(os.MkdirAll(dir, 0o700))
	h.must(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=700"))
	h.Cleanup(func() { h.must(unix.Unmount(dir, unix.MNT_DETACH)) })
}

func (h *host) readOnly(dir string, on bool) {
	h.Helper()
	var flags uintptr = unix.MS_REMOUNT
	if on {
		flags |= unix.MS_RDONLY
	}
	h.must(unix.Mount("", dir, "", flags, ""))
}

// fill leaves no byte of a disk, or frees what it took.
func (h *host) fill(dir string, on bool) {
	h.Helper()
	path := filepath.Join(dir, "ballast")
	if !on {
		h.must(os.Remove(path))
		return
	}
	f, err := os.Create(path)
	h.must(err)
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		h.Fatal(err)
	}
}
