package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// bridgeNet is a pod network for the node's containerd.
const bridgeNet = `{"cniVersion":"0.4.0","name":"test","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}`

const box = "docker.io/library/busybox:latest"

// eachContainerd runs f on a node of either containerd.
func eachContainerd(t *testing.T, f func(t *testing.T, n *testbed.Node, version string)) {
	for _, v := range []string{testbed.Containerd16, testbed.Containerd24} {
		t.Run(v, func(t *testing.T) {
			n := testbed.NewNode(t, testbed.WithContainerd(v), testbed.WithoutImages())
			if err := os.WriteFile(n.Path("cni/net.d/10-test.conflist"), []byte(bridgeNet), 0o644); err != nil {
				t.Fatal(err)
			}
			f(t, n, v)
		})
	}
}

func connect(t *testing.T, n *testbed.Node) *runtime.Client {
	t.Helper()
	c, err := runtime.Connect(t.Context(), runtime.Options{Endpoint: "unix://" + n.RuntimeSocket(), Owner: "test",
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// collector keeps the events of a running Watch.
type collector struct {
	mu     sync.Mutex
	events []runtime.Event
	more   chan struct{}
}

func watch(t *testing.T, c *runtime.Client) *collector {
	t.Helper()
	w := &collector{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- c.Watch(ctx, func(e runtime.Event) {
			w.mu.Lock()
			w.events = append(w.events, e)
			w.mu.Unlock()
			select {
			case w.more <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return w
}

// mark is how many events there were.
func (w *collector) mark() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.events)
}

// wait blocks until an event after mark is for uid ("" is a gap).
func (w *collector) wait(t *testing.T, mark int, uid types.UID) {
	t.Helper()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for {
		w.mu.Lock()
		got := slices.ContainsFunc(w.events[mark:], func(e runtime.Event) bool { return e.UID == uid })
		w.mu.Unlock()
		if got {
			return
		}
		select {
		case <-w.more:
		case <-limit.C:
			t.Fatalf("no event for %q; got %v", uid, w.events[mark:])
		}
	}
}

func importImages(t *testing.T, c *runtime.Client) []string {
	t.Helper()
	f, err := os.Open(testbed.Images(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := c.ImportImages(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func testPod(command ...string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "0d7f8f6e-1", Labels: map[string]string{"app": "web"}},
		Spec: v1.PodSpec{
			RestartPolicy: v1.RestartPolicyNever,
			Containers:    []v1.Container{{Name: "main", Image: "busybox", Command: command}},
		},
	}
}

// runner makes the pieces of one pod.
type runner struct {
	t   *testing.T
	n   *testbed.Node
	c   *runtime.Client
	pod *v1.Pod
	box runtime.SandboxOptions
}

func newRunner(t *testing.T, n *testbed.Node, c *runtime.Client, p *v1.Pod) *runner {
	n.Eventually(20*time.Second, "the network is ready", func() error {
		i, err := c.Info(t.Context())
		if err == nil && !(i.Ready && i.NetworkReady) {
			err = errors.New(i.Reason)
		}
		return err
	})
	return &runner{t, n, c, p, runtime.SandboxOptions{
		LogDir: n.Path("logs/pods/" + p.Namespace + "_" + p.Name + "_" + string(p.UID)), Hostname: "web",
		CgroupParent: "/" + n.Name + "/pod" + string(p.UID),
		DNS:          runtime.DNS{Servers: []string{"192.0.2.53"}, Searches: []string{"example.org"}},
	}}
}

func (r *runner) sandbox() string {
	r.t.Helper()
	id, err := r.c.RunSandbox(r.t.Context(), r.pod, r.box)
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *runner) create(sandbox string, attempt uint32) string {
	r.t.Helper()
	c := &r.pod.Spec.Containers[0]
	id, err := r.c.CreateContainer(r.t.Context(), r.pod, c, runtime.ContainerOptions{
		SandboxID: sandbox, Sandbox: r.box, Attempt: attempt, ImageRef: box,
		LogPath: fmt.Sprintf("main/%d.log", attempt), Command: c.Command,
		Env: []runtime.EnvVar{{Name: "GREETING", Value: "hello"}},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

func (r *runner) start(id string) {
	r.t.Helper()
	if err := r.c.StartContainer(r.t.Context(), id); err != nil {
		r.t.Fatal(err)
	}
}

func (r *runner) observe() runtime.Pod {
	r.t.Helper()
	p, err := r.c.Pod(r.t.Context(), r.pod.UID)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// TestLifecycle runs a pod through its whole life, doing everything twice.
func TestLifecycle(t *testing.T) {
	eachContainerd(t, func(t *testing.T, n *testbed.Node, _ string) {
		c := connect(t, n)
		w := watch(t, c)
		importImages(t, c)
		r := newRunner(t, n, c, testPod("sh", "-c", `echo $GREETING; trap "exit 7" TERM; while :; do sleep 0.05; done`))
		w.wait(t, 0, "")

		info, err := c.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.Name != "containerd" || info.Events != "containerd" || info.APIVersion != "v1" ||
			!slices.Contains(info.Handlers, "runc") || !slices.Contains(info.Handlers, testbed.OtherHandler) || info.CgroupDriver != "cgroupfs" {
			t.Errorf("Info = %+v", info)
		}

		box1 := r.sandbox()
		if again := r.sandbox(); again != box1 {
			t.Fatalf("RunSandbox again: %s, want %s", again, box1)
		}
		id := r.create(box1, 0)
		if again := r.create(box1, 0); again != id {
			t.Fatalf("CreateContainer again: %s, want %s", again, id)
		}
		r.start(id)
		r.start(id)
		p := r.observe()
		if len(p.Sandboxes) != 1 || len(p.Sandboxes[0].IPs) != 1 || !strings.HasPrefix(p.Sandboxes[0].IPs[0], "10.88.") || p.Namespace != "default" {
			t.Fatalf("pod %+v", p)
		}
		m := p.Newest("main")
		if m.State != runtime.StateRunning || m.StartedAt.IsZero() || m.SpecImage != "busybox" || m.ImageID == "" || m.ImageRef == "" || m.SandboxID != box1 {
			t.Fatalf("container %+v", m)
		}
		out, _, code, err := c.ExecSync(t.Context(), id, []string{"sh", "-c", "hostname; grep nameserver /etc/resolv.conf; exit 3"}, 10*time.Second)
		if err != nil || code != 3 || string(out) != "web\nnameserver 192.0.2.53\n" {
			t.Fatalf("exec: %q %d %v", out, code, err)
		}
		if _, _, _, err := c.ExecSync(t.Context(), id, []string{"sleep", "60"}, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("exec that takes too long: %v", err)
		}
		if u, err := c.ExecURL(t.Context(), id, []string{"sh"}, runtime.StreamOptions{Stdin: true, Stdout: true, TTY: true}); err != nil || !strings.HasPrefix(u, "http") {
			t.Fatalf("exec URL %q: %v", u, err)
		}

		mark := w.mark()
		if err := c.StopContainer(t.Context(), id, 20*time.Second); err != nil {
			t.Fatal(err)
		}
		w.wait(t, mark, r.pod.UID)
		p = r.observe()
		if m := p.Newest("main"); m.State != runtime.StateExited || m.ExitCode != 7 || m.FinishedAt.IsZero() {
			t.Fatalf("stopped container %+v", m)
		}
		if b, err := os.ReadFile(r.box.LogDir + "/main/0.log"); err != nil || !strings.Contains(string(b), "stdout F hello") {
			t.Fatalf("log %q: %v", b, err)
		}
		r.tearDown(box1, id)
	})
}

// tearDown ends the pod, everything twice.
func (r *runner) tearDown(box, id string) {
	r.t.Helper()
	ctx := r.t.Context()
	for range 2 {
		err := errors.Join(r.c.StopContainer(ctx, id, 0), r.c.RemoveContainer(ctx, id),
			r.c.StopSandbox(ctx, box), r.c.RemoveSandbox(ctx, box))
		if err != nil {
			r.t.Fatal(err)
		}
	}
	if p := r.observe(); p.UID != r.pod.UID || p.Sandboxes != nil || p.Containers != nil {
		r.t.Fatalf("after removal: %+v", p)
	}
	if pods, err := r.c.Pods(ctx); err != nil || len(pods) != 0 {
		r.t.Fatalf("after removal: %v %v", pods, err)
	}
}

// TestExitIsSeen kills processes behind the runtime's back: the event comes,
// and what is read after it shows the end.
func TestExitIsSeen(t *testing.T) {
	eachContainerd(t, func(t *testing.T, n *testbed.Node, _ string) {
		c := connect(t, n)
		w := watch(t, c)
		importImages(t, c)
		r := newRunner(t, n, c, testPod("sleep", "100000"))
		box := r.sandbox()
		w.wait(t, 0, "")
		for attempt := range uint32(5) {
			id := r.create(box, attempt)
			r.start(id)
			if m := r.observe(); m.Newest("main").State != runtime.StateRunning {
				t.Fatalf("attempt %d: %+v", attempt, m)
			}
			mark := w.mark()
			begin := time.Now()
			if err := n.Signal(n.ContainerPID(id), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			// The event that comes may be the last of the attempt before.
			m, event := runtime.Container{ID: id, State: runtime.StateRunning}, time.Duration(0)
			for m.ID == id && m.State == runtime.StateRunning {
				w.wait(t, mark, r.pod.UID)
				event, mark = time.Since(begin), w.mark()
				p := r.observe()
				m = *p.Newest("main")
			}
			if m.ID != id || m.State != runtime.StateExited || m.ExitCode != 137 {
				t.Fatalf("attempt %d: %+v", attempt, m)
			}
			t.Logf("attempt %d: event after %v, exit read after %v", attempt, event, time.Since(begin))
		}
		// The agent's runtime restarts: same containers, a gap is reported.
		mark := w.mark()
		n.KillContainerd()
		if _, err := c.Pods(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("Pods without containerd: %v", err)
		}
		n.StartContainerd()
		w.wait(t, mark, "")
		n.Eventually(20*time.Second, "the client is back", func() error { _, err := c.Pods(t.Context()); return err })
		pods, err := c.Pods(t.Context())
		if err != nil || len(pods) != 1 || pods[0].Sandbox().ID != box || len(pods[0].Containers) != 5 {
			t.Fatalf("after a restart of containerd: %+v %v", pods, err)
		}
		// A sandbox's own process dies.
		mark = w.mark()
		if err := n.Signal(pausePID(t, n), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.wait(t, mark, r.pod.UID)
		if p := r.observe(); p.Sandbox().Ready {
			t.Fatalf("sandbox without a process: %+v", p.Sandbox())
		}
		// The dead sandbox holds containers: the name stays taken.
		if _, err := c.RunSandbox(t.Context(), r.pod, r.box); !errors.Is(err, errdefs.ErrExists) {
			t.Fatalf("RunSandbox over a dead one with containers: %v", err)
		}
		r.box.Attempt = 1
		if next := r.sandbox(); next == box {
			t.Fatal("the next attempt is the old sandbox")
		}
	})
}

// pausePID finds the process of the only sandbox.
func pausePID(t *testing.T, n *testbed.Node) int {
	t.Helper()
	all := n.Processes()
	i := slices.IndexFunc(all, func(p testbed.Process) bool { return slices.Equal(p.Args, []string{"/pause"}) })
	if i < 0 {
		t.Fatalf("no pause process in %v", all)
	}
	return all[i].PID
}

// TestImages imports, pins and removes.
func TestImages(t *testing.T) {
	eachContainerd(t, func(t *testing.T, n *testbed.Node, version string) {
		c := connect(t, n)
		ctx := t.Context()
		names := importImages(t, c)
		if again := importImages(t, c); !slices.Equal(names, again) || !slices.Contains(names, box) || len(names) != 4 {
			t.Fatalf("imported %v, then %v", names, again)
		}
		for what, r := range map[string]io.Reader{
			"garbage": strings.NewReader(strings.Repeat("no archive", 1000)), "nothing": bytes.NewReader(nil),
		} {
			if _, err := c.ImportImages(ctx, r); !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("import of %s: %v", what, err)
			}
		}
		if _, err := c.ImportImages(ctx, io.MultiReader(strings.NewReader("x"), brokenReader{})); !errors.Is(err, errdefs.ErrTransient) {
			t.Errorf("import from a broken pipe: %v", err)
		}
		if _, err := c.ImageStatus(ctx, "docker.io/library/none:1"); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("status of no image: %v", err)
		}
		if err := c.PinImage(ctx, "docker.io/library/none:1"); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("pin of no image: %v", err)
		}
		for range 2 {
			if err := c.PinImage(ctx, "busybox"); err != nil {
				t.Fatal(err)
			}
		}
		pinned := func() (out []string) {
			imgs, err := c.Images(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range imgs {
				if i.Pinned {
					out = append(out, i.RepoTags...)
				}
			}
			return out
		}
		if got := pinned(); !slices.Contains(got, box) || slices.Contains(got, "docker.io/library/alpine:latest") {
			t.Errorf("pinned: %v", got)
		}
		for range 2 {
			if err := c.RemoveImage(ctx, "busybox"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.ImageStatus(ctx, box); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("removed image: %v", err)
		}
		img, err := c.SandboxImage(ctx)
		if err != nil || version == testbed.Containerd16 && img != testbed.PauseImage {
			t.Errorf("sandbox image %q, %v", img, err)
		}
	})
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("pipe broke") }

// slowRegistry holds back the second half of every large blob.
type slowRegistry struct {
	http.Handler
	release chan struct{}
}

func (s slowRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
		s.Handler.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	s.Handler.ServeHTTP(rec, r)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	b := rec.Body.Bytes()
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	w.WriteHeader(rec.Code)
	if len(b) > 100_000 {
		_, _ = w.Write(b[:len(b)/2])
		w.(http.Flusher).Flush()
		select {
		case <-s.release:
		case <-r.Context().Done():
			return
		}
		b = b[len(b)/2:]
	}
	_, _ = w.Write(b)
}

// TestPullProgress stops a pull half-way and reads how far it is.
func TestPullProgress(t *testing.T) {
	img, err := random.Image(8<<20, 2)
	if err != nil {
		t.Fatal(err)
	}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if err := testbed.Push(h, "example.org/team/app:v1", img); err != nil {
		t.Fatal(err)
	}
	eachContainerd(t, func(t *testing.T, n *testbed.Node, _ string) {
		slow := slowRegistry{h, make(chan struct{})}
		ref := n.ServeRegistry(slow) + "/team/app:v1"
		c := connect(t, n)
		if _, _, err := c.PullProgress(t.Context(), ref); !errors.Is(err, errdefs.ErrNotFound) {
			t.Fatalf("progress before the pull: %v", err)
		}
		pulled := make(chan error, 1)
		go func() {
			_, err := c.PullImage(t.Context(), ref, nil)
			pulled <- err
		}()
		n.Eventually(20*time.Second, "the pull stands half-way", func() error {
			done, total, err := c.PullProgress(t.Context(), ref)
			if err == nil && (total < 16<<20 || done < total/3 || done > total*2/3) {
				err = fmt.Errorf("%d of %d bytes", done, total)
			}
			return err
		})
		close(slow.release)
		if err := <-pulled; err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.PullProgress(t.Context(), ref); !errors.Is(err, errdefs.ErrNotFound) {
			t.Fatalf("progress after the pull: %v", err)
		}
		if i, err := c.ImageStatus(t.Context(), ref); err != nil || len(i.RepoDigests) != 1 {
			t.Fatalf("pulled image %+v: %v", i, err)
		}
	})
}
