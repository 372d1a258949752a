package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

func dialFake(t *testing.T, f *fakeRuntime, change func(*Options)) *Client {
	t.Helper()
	o := Options{Endpoint: "unix://" + f.path, Owner: "me", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&o)
	}
	c, err := Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func onePod(uid string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p-" + uid, Namespace: "ns", UID: types.UID(uid)},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "main", Image: "app"}}},
	}
}

func ctrOptions(box string, attempt uint32) ContainerOptions {
	return ContainerOptions{SandboxID: box, Attempt: attempt, ImageRef: "app:1"}
}

// startPod runs a pod with one container.
func startPod(t *testing.T, c *Client, p *v1.Pod) (box, ctr string) {
	t.Helper()
	box, err := c.RunSandbox(t.Context(), p, SandboxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctr, err = c.CreateContainer(t.Context(), p, &p.Spec.Containers[0], ctrOptions(box, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StartContainer(t.Context(), ctr); err != nil {
		t.Fatal(err)
	}
	return box, ctr
}

func mustPod(t *testing.T, c *Client, uid types.UID) *Pod {
	t.Helper()
	p, err := c.Pod(t.Context(), uid)
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

func mustPods(t *testing.T, c *Client) []Pod {
	t.Helper()
	p, err := c.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConnect(t *testing.T) {
	for _, tc := range []struct {
		o    Options
		want error
	}{
		{Options{Endpoint: "unix://" + filepath.Join(t.TempDir(), "none.sock"), Owner: "me"}, errdefs.ErrUnavailable},
		{Options{Endpoint: "tcp://127.0.0.1:1", Owner: "me"}, errdefs.ErrInvalid},
		{Options{Endpoint: "relative.sock", Owner: "me"}, errdefs.ErrInvalid},
		{Options{Endpoint: "/run/x.sock"}, errdefs.ErrInvalid},
	} {
		if c, err := Connect(t.Context(), tc.o); !errors.Is(err, tc.want) || c != nil {
			t.Errorf("Connect(%+v) = %v, %v; want %v", tc.o, c, err, tc.want)
		}
	}
	// A gRPC server without CRI.
	path := filepath.Join(t.TempDir(), "empty.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	if _, err := Connect(t.Context(), Options{Endpoint: path, Owner: "me"}); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "CRI v1") {
		t.Errorf("a server without CRI: %v", err)
	}
}

func TestInfo(t *testing.T) {
	f := newFake(t, nil)
	var mu sync.Mutex
	seen := map[string]int{}
	c := dialFake(t, f, func(o *Options) {
		o.Observe = func(op string, _ time.Duration, err error) {
			mu.Lock()
			defer mu.Unlock()
			seen[fmt.Sprint(op, " ", err == nil)]++
		}
	})
	i, err := c.Info(t.Context())
	want := Info{Name: "fakeruntime", Version: "1.2.3", APIVersion: "v1", Endpoint: "unix://" + f.path, Ready: true,
		Reason: "NetworkPluginNotReady: no network", Handlers: []string{"kata", "runc"}, CgroupDriver: "systemd", Events: "cri", Features: Features{ImageVolumes: true}}
	if err != nil || fmt.Sprint(i) != fmt.Sprint(want) {
		t.Errorf("Info = %+v, %v\nwant   %+v", i, err, want)
	}
	if img, err := c.SandboxImage(t.Context()); img != "pause:9" || err != nil {
		t.Errorf("SandboxImage = %q, %v", img, err)
	}
	if _, err := c.ImportImages(t.Context(), strings.NewReader("")); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "fakeruntime") {
		t.Errorf("ImportImages on another runtime: %v", err)
	}
	if err := c.PinImage(t.Context(), "app:1"); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("PinImage on another runtime: %v", err)
	}
	if _, _, err := c.PullProgress(t.Context(), "app:1"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("PullProgress on another runtime: %v", err)
	}
	if err := c.StartContainer(t.Context(), "none"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("StartContainer of nothing: %v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if seen["version true"] != 1 || seen["status true"] != 2 || seen["start_container false"] != 1 {
		t.Errorf("observed calls: %v", seen)
	}
}

// TestRelistCost counts the calls behind Pods.
func TestRelistCost(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	var ctrs []string
	for i := range 20 {
		_, id := startPod(t, c, onePod(fmt.Sprintf("%02d", i)))
		ctrs = append(ctrs, id)
	}
	expect := func(what string, boxes, ctrs int) {
		t.Helper()
		b, s := f.count("boxStatus"), f.count("ctrStatus")
		if pods := mustPods(t, c); len(pods) != 20 || !slices.IsSortedFunc(pods, func(a, b Pod) int { return strings.Compare(string(a.UID), string(b.UID)) }) {
			t.Fatalf("%s: %d pods", what, len(pods))
		}
		if b, s = f.count("boxStatus")-b, f.count("ctrStatus")-s; b != boxes || s != ctrs {
			t.Errorf("%s: %d sandbox and %d container details, want %d and %d", what, b, s, boxes, ctrs)
		}
	}
	expect("first list", 20, 20)
	expect("nothing changed", 0, 0)
	f.end(ctrs[3], 1, "Error", 0)
	expect("one exit", 0, 1)
	expect("nothing changed since", 0, 0)
	// What others removed leaves the cache too.
	f.mu.Lock()
	f.removeCtr(ctrs[3])
	f.mu.Unlock()
	expect("one removed", 0, 0)
	c.index.mu.Lock()
	defer c.index.mu.Unlock()
	if n := len(c.index.m); n != 39 || c.index.m[ctrs[3]] != nil {
		t.Errorf("the cache has %d entries for 39 objects", n)
	}
}

func TestObservedPod(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	p := onePod("u1")
	box, first := startPod(t, c, p)
	f.end(first, 3, "Error", 0)
	second, err := c.CreateContainer(t.Context(), p, &p.Spec.Containers[0], ctrOptions(box, 1))
	if err != nil {
		t.Fatal(err)
	}
	got := mustPod(t, c, "u1")
	if got.Name != "p-u1" || got.Namespace != "ns" || got.Sandbox().ID != box || !got.Sandbox().Ready || len(got.Sandbox().IPs) != 1 {
		t.Errorf("pod %+v", got)
	}
	if len(got.Containers) != 2 || got.Newest("main").ID != second || got.Newest("main").State != StateCreated || !got.Newest("main").StartedAt.IsZero() {
		t.Errorf("containers %+v", got.Containers)
	}
	old := got.Containers[1]
	if old.ID != first || old.State != StateExited || old.ExitCode != 3 || old.FinishedAt.IsZero() || old.SpecImage != "app" || old.ImageID != "sha256:1" || old.ImageRef != "repo@sha256:1" {
		t.Errorf("first container %+v", old)
	}
	if none := mustPod(t, c, "nobody"); none.UID != "nobody" || none.Sandbox() != nil || none.Newest("main") != nil {
		t.Errorf("a pod that is not there: %+v", none)
	}
	// Host network: no address, and still one detail only.
	hp := onePod("u2")
	hp.Spec.HostNetwork = true
	startPod(t, c, hp)
	before := f.count("boxStatus")
	for range 2 {
		if got := mustPod(t, c, "u2"); len(got.Sandbox().IPs) != 0 {
			t.Errorf("host network pod has %v", got.Sandbox().IPs)
		}
	}
	if n := f.count("boxStatus") - before; n != 1 {
		t.Errorf("%d details of a host network sandbox", n)
	}
}

func TestOwnership(t *testing.T) {
	f := newFake(t, nil)
	startPod(t, dialFake(t, f, nil), onePod("mine"))
	startPod(t, dialFake(t, f, func(o *Options) { o.Owner = "other" }), onePod("theirs"))
	_, kubelets := startPod(t, dialFake(t, f, nil), onePod("kubelets"))
	f.mu.Lock()
	for _, b := range f.boxes {
		if b.cfg.Metadata.Uid == "kubelets" {
			delete(b.cfg.Labels, pod.LabelOwner)
		}
	}
	delete(f.ctrs[kubelets].st.Labels, pod.LabelOwner)
	f.mu.Unlock()
	uids := func(c *Client) (out []types.UID) {
		for _, p := range mustPods(t, c) {
			out = append(out, p.UID)
		}
		return out
	}
	if got := uids(dialFake(t, f, nil)); !slices.Equal(got, []types.UID{"mine"}) {
		t.Errorf("ours: %v", got)
	}
	adopt := dialFake(t, f, func(o *Options) { o.AdoptKubelet = true })
	if got := uids(adopt); !slices.Equal(got, []types.UID{"kubelets", "mine"}) {
		t.Errorf("ours with kubelet's: %v", got)
	}
	if p := mustPod(t, adopt, "theirs"); p.Sandboxes != nil {
		t.Errorf("another agent's pod: %+v", p)
	}
	// A name that another agent holds is left alone.
	if _, err := adopt.RunSandbox(t.Context(), onePod("theirs"), SandboxOptions{}); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("RunSandbox over another agent's: %v", err)
	}
	if len(f.boxes) != 3 {
		t.Errorf("sandboxes %v", f.boxes)
	}
}

// TestCreateAgain repeats creates whose answer was lost, as after kill -9.
func TestCreateAgain(t *testing.T) {
	f := newFake(t, func(f *fakeRuntime) { f.loseReply = "run" })
	c := dialFake(t, f, nil)
	p := onePod("u1")
	main := &p.Spec.Containers[0]
	if _, err := c.RunSandbox(t.Context(), p, SandboxOptions{}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Fatalf("lost answer: %v", err)
	}
	box, err := c.RunSandbox(t.Context(), p, SandboxOptions{})
	if err != nil || len(f.boxes) != 1 || f.boxes[box] == nil {
		t.Fatalf("again: %q %v, sandboxes %v", box, err, f.boxes)
	}
	f.loseReply = "create"
	if _, err := c.CreateContainer(t.Context(), p, main, ctrOptions(box, 0)); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Fatalf("lost answer: %v", err)
	}
	ctr, err := c.CreateContainer(t.Context(), p, main, ctrOptions(box, 0))
	if err != nil || len(f.ctrs) != 1 || f.ctrs[ctr] == nil {
		t.Fatalf("again: %q %v, containers %v", ctr, err, f.ctrs)
	}
	// Made for an older image and never started: made anew.
	newer := main.DeepCopy()
	newer.Image = "app-2"
	anew, err := c.CreateContainer(t.Context(), p, newer, ctrOptions(box, 0))
	if err != nil || anew == ctr || len(f.ctrs) != 1 {
		t.Fatalf("newer image: %q %v, containers %v", anew, err, f.ctrs)
	}
	f.loseReply = "start"
	if err := c.StartContainer(t.Context(), anew); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Fatalf("lost answer: %v", err)
	}
	if err := c.StartContainer(t.Context(), anew); err != nil {
		t.Fatalf("start again: %v", err)
	}
	f.end(anew, 0, "Completed", 0)
	if err := c.StartContainer(t.Context(), anew); err != nil {
		t.Fatalf("start of what has run: %v", err)
	}
	// A dead sandbox with containers stays and its name with it.
	if err := c.StopSandbox(t.Context(), box); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RunSandbox(t.Context(), p, SandboxOptions{}); !errors.Is(err, errdefs.ErrExists) || f.boxes[box] == nil {
		t.Fatalf("over a dead sandbox with containers: %v", err)
	}
	second, err := c.RunSandbox(t.Context(), p, SandboxOptions{Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	// The container's name is taken by one that ran in the old sandbox.
	over := ctrOptions(second, 0)
	over.Sandbox.Attempt = 1
	if _, err := c.CreateContainer(t.Context(), p, newer, over); !errors.Is(err, errdefs.ErrExists) || f.ctrs[anew] == nil {
		t.Fatalf("over a container that ran: %v", err)
	}
	// Without containers a dead one makes way.
	if err := c.RemoveContainer(t.Context(), anew); err != nil {
		t.Fatal(err)
	}
	if third, err := c.RunSandbox(t.Context(), p, SandboxOptions{}); err != nil || third == box || f.boxes[box] != nil {
		t.Fatalf("over a dead sandbox without containers: %q %v", third, err)
	}
}

// TestReservedName waits for a runtime that still rolls an earlier try back.
func TestReservedName(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	p := onePod("u1")
	f.reserved["p-u1_ns_u1_0"] = "half-made"
	tries := 0
	f.onReserved = func() {
		if tries++; tries == 3 {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.reserved, "p-u1_ns_u1_0")
		}
	}
	if id, err := c.RunSandbox(t.Context(), p, SandboxOptions{}); err != nil || f.boxes[id] == nil {
		t.Fatalf("%q %v", id, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.reserved["p-u1_ns_u1_1"] = "for ever"
	f.onReserved = cancel
	if _, err := c.RunSandbox(ctx, p, SandboxOptions{Attempt: 1}); !errors.Is(err, context.Canceled) {
		t.Fatalf("reserved for ever: %v", err)
	}
}

func TestStartError(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	p := onePod("u1")
	box, err := c.RunSandbox(t.Context(), p, SandboxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o := ctrOptions(box, 0)
	o.Command = []string{"/no/such"}
	id, err := c.CreateContainer(t.Context(), p, &p.Spec.Containers[0], o)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.StartContainer(t.Context(), id); err == nil {
			t.Fatal("start of what cannot start succeeds")
		}
	}
	if m := mustPod(t, c, "u1").Containers[0]; m.State != StateExited || m.Reason != "StartError" || m.ExitCode != 128 {
		t.Errorf("%+v", m)
	}
}

func TestGone(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	ctx := t.Context()
	if err := errors.Join(c.StopSandbox(ctx, "x"), c.RemoveSandbox(ctx, "x"), c.StopContainer(ctx, "x", 1500*time.Millisecond),
		c.RemoveContainer(ctx, "x"), c.RemoveImage(ctx, "x")); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
	if f.count("stop 2") != 1 {
		t.Errorf("a grace of 1.5 s is not two seconds: %v", f.calls)
	}
	if _, err := c.ImageStatus(ctx, "x"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("ImageStatus: %v", err)
	}
	if _, err := c.PullImage(ctx, "x", nil); err == nil {
		t.Error("pull without credentials succeeds")
	}
	if ref, err := c.PullImage(ctx, "x", &Auth{Username: "u", Password: "p", ServerAddress: "reg"}); ref != "x@sha256:1" || err != nil {
		t.Errorf("PullImage = %q, %v", ref, err)
	}
	f.stop()
	if _, err := c.Pods(ctx); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Pods of a runtime that is away: %v", err)
	}
}

func TestImageUser(t *testing.T) {
	user := func(uid int64) *cri.Int64Value { return &cri.Int64Value{Value: uid} }
	f := newFake(t, func(f *fakeRuntime) {
		f.images["root"] = &cri.Image{Id: "1", Uid: user(0)}
		f.images["named"] = &cri.Image{Id: "2", Username: "www"}
		f.images["number"] = &cri.Image{Id: "3", Uid: user(33)}
		f.images["wraps"] = &cri.Image{Id: "4", Uid: user(1 << 32)}
	})
	c := dialFake(t, f, nil)
	yes, group := true, int64(7)
	for _, tc := range []struct {
		image    string
		sc       *v1.SecurityContext
		uid      int64 // -1: none
		username string
		err      error
	}{
		{"root", nil, -1, "", nil},
		{"root", &v1.SecurityContext{RunAsNonRoot: &yes}, -1, "", ErrConfig},
		{"named", &v1.SecurityContext{RunAsNonRoot: &yes}, -1, "", ErrConfig},
		{"wraps", &v1.SecurityContext{RunAsNonRoot: &yes}, -1, "", ErrConfig},
		{"number", &v1.SecurityContext{RunAsNonRoot: &yes}, -1, "", nil},
		{"root", &v1.SecurityContext{RunAsNonRoot: &yes, RunAsUser: new(int64)}, 0, "", ErrConfig},
		{"root", &v1.SecurityContext{RunAsNonRoot: &yes, RunAsUser: &group}, 7, "", nil},
		{"root", &v1.SecurityContext{RunAsGroup: &group}, 0, "", nil},
		{"named", &v1.SecurityContext{RunAsGroup: &group}, -1, "www", nil},
		{"number", &v1.SecurityContext{RunAsGroup: &group}, 33, "", nil},
		{"none", &v1.SecurityContext{RunAsGroup: &group}, -1, "", errdefs.ErrNotFound},
	} {
		p := onePod("u")
		main := &p.Spec.Containers[0]
		main.SecurityContext = tc.sc
		s, err := c.spec.containerSecurity(p, main, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = c.applyImageUser(t.Context(), p, main, tc.image, s)
		if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
			t.Errorf("%s %+v: error %v, want %v", tc.image, tc.sc, err, tc.err)
			continue
		}
		uid := int64(-1)
		if s.RunAsUser != nil {
			uid = s.RunAsUser.Value
		}
		if err == nil && (uid != tc.uid || s.RunAsUsername != tc.username) {
			t.Errorf("%s %+v: user %d %q, want %d %q", tc.image, tc.sc, uid, s.RunAsUsername, tc.uid, tc.username)
		}
	}
}

func TestTranslate(t *testing.T) {
	all := []error{errdefs.ErrNotFound, errdefs.ErrExists, errdefs.ErrInvalid, errdefs.ErrConflict, errdefs.ErrTransient, errdefs.ErrUnavailable,
		context.Canceled, context.DeadlineExceeded}
	for _, tc := range []struct {
		err  error
		want []error
	}{
		{status.Error(codes.NotFound, "x"), []error{errdefs.ErrNotFound}},
		{status.Error(codes.AlreadyExists, "x"), []error{errdefs.ErrExists}},
		{status.Error(codes.Unknown, `name "a" is reserved for "b"`), []error{errdefs.ErrExists}},
		{status.Error(codes.FailedPrecondition, `name "a" is reserved for "b"`), []error{errdefs.ErrExists}},
		{status.Error(codes.FailedPrecondition, "x"), []error{errdefs.ErrConflict}},
		{status.Error(codes.Unavailable, "x"), []error{errdefs.ErrUnavailable}},
		{status.Error(codes.DeadlineExceeded, "x"), []error{errdefs.ErrTransient, context.DeadlineExceeded}},
		{status.Error(codes.Unknown, "stop: context deadline exceeded"), []error{errdefs.ErrTransient, context.DeadlineExceeded}},
		{status.Error(codes.Canceled, "x"), []error{errdefs.ErrTransient, context.Canceled}},
		{status.Error(codes.ResourceExhausted, "x"), []error{errdefs.ErrTransient}},
		{status.Error(codes.Unknown, "write /x: no space left on device"), []error{errdefs.ErrTransient}},
		{status.Error(codes.InvalidArgument, "x"), []error{errdefs.ErrInvalid}},
		{status.Error(codes.Unimplemented, "x"), []error{errdefs.ErrInvalid}},
		{status.Error(codes.Unknown, "exec: no such file"), nil},
		{context.Canceled, []error{errdefs.ErrTransient, context.Canceled}},
		{errors.New("plain"), nil},
	} {
		got := translate("op thing", tc.err)
		for _, kind := range all {
			if errors.Is(got, kind) != slices.Contains(tc.want, kind) {
				t.Errorf("%v: errors.Is(%v) = %v", tc.err, kind, errors.Is(got, kind))
			}
		}
		if !strings.HasPrefix(got.Error(), "op thing: ") {
			t.Errorf("%v", got)
		}
	}
	if translate("op", nil) != nil {
		t.Error("no error is an error")
	}
}
