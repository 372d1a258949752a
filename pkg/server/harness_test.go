package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/journal"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/metrics"
	nodeapi "github.com/nodeagent/nodeagent/pkg/node"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/server/api"
	"github.com/nodeagent/nodeagent/pkg/source/push"
	"github.com/nodeagent/nodeagent/pkg/stats"
	"github.com/nodeagent/nodeagent/pkg/store"
)

const (
	nodeName = "node-1"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// node fakes the rest of the agent.
type node struct {
	mu        sync.Mutex
	info      api.Info
	sources   []api.Source
	reloads   int
	failWith  error
	observed  map[types.UID]runtime.Pod
	streaming string // URL of the streaming server
	asked     []string
}

func (n *node) set(edit func(*node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	edit(n)
}

func (n *node) Info() api.Info {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.info
}

func (n *node) Sources() []api.Source {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.sources)
}

func (n *node) Containers(context.Context) ([]api.Container, error) {
	return []api.Container{{ID: "c1", Name: "app", Pod: "web"}}, n.failure()
}

func (n *node) Volumes(context.Context) ([]api.Volume, error) { return nil, n.failure() }

func (n *node) Config() any { return map[string]string{"kind": "NodeAgentConfiguration"} }

func (n *node) Reload(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reloads++
	return n.failWith
}

func (n *node) failure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failWith
}

func (n *node) Images(context.Context) ([]api.Image, []api.PullProgress, error) {
	return []api.Image{{ID: "sha256:1", Size: 7}}, []api.PullProgress{{Image: "slow", Total: 9}}, n.failure()
}

func (n *node) Pull(_ context.Context, image string, progress func(api.PullProgress)) error {
	switch image {
	case "refused":
		return fmt.Errorf("no such image: %w", errdefs.ErrNotFound)
	case "there":
		return nil
	case "broken":
		progress(api.PullProgress{Image: image, Done: 1, Total: 4})
		return errors.New("registry hung up")
	}
	progress(api.PullProgress{Image: image, Done: 1, Total: 2})
	progress(api.PullProgress{Image: image, Done: 2, Total: 2, Complete: true, ID: "sha256:1"})
	return nil
}

func (n *node) Pod(_ context.Context, uid types.UID) (runtime.Pod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.observed[uid], n.failWith
}

func (n *node) session(path string, q url.Values) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, path+"?"+q.Encode())
	return n.streaming + path, n.failWith
}

func (n *node) ExecURL(_ context.Context, id string, cmd []string, o runtime.StreamOptions) (string, error) {
	return n.session("/exec/"+id, url.Values{"cmd": cmd, "o": {fmt.Sprint(o)}})
}

func (n *node) AttachURL(_ context.Context, id string, o runtime.StreamOptions) (string, error) {
	return n.session("/attach/"+id, url.Values{"o": {fmt.Sprint(o)}})
}

func (n *node) PortForwardURL(_ context.Context, id string, ports []int32) (string, error) {
	return n.session("/portforward/"+id, url.Values{"ports": {fmt.Sprint(ports)}})
}

// fixture is a server on a real store and push source, with fakes for what
// needs a runtime.
type fixture struct {
	*Server
	store  *store.Store
	node   *node
	events *events.Recorder
	self   *nodeapi.Keeper
	logs   string

	rivals atomic.Int32 // updates that somebody else comes before
	news   atomic.Int32
}

// history is how many changes the store remembers here.
const history = 32

// folder is a temporary one, in memory where the machine has that: the store
// syncs what it writes, and a fuzzer would wait for the disk alone.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "na")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newFixture(t testing.TB, edit func(*Options)) *fixture {
	t.Helper()
	dir := folder(t)
	clock := func() time.Time { return epoch }
	counter := journal.NewCounter(epoch)
	quiet := slog.New(slog.DiscardHandler)
	st, err := store.Open(store.Options{
		Dir: filepath.Join(dir, "pods"), NodeName: nodeName, Decode: manifest.Decode, Equal: manifest.SemanticEqual, Log: quiet,
		Sources:   []store.SourceDecl{{Name: store.SourceFile, Target: "/etc/manifests"}, {Name: store.SourcePush, Target: "socket"}},
		Revisions: counter, History: history, Clock: clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := push.New(push.Options{Dir: filepath.Join(dir, "objects"), NodeName: nodeName, Store: st, Decode: manifest.Decode, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{store: st, logs: filepath.Join(dir, "logs"), node: &node{
		info:     api.Info{NodeName: nodeName, Runtime: api.Runtime{Ready: true}, Network: api.Network{Ready: true}},
		sources:  []api.Source{{Name: "file", Target: "/etc/manifests", Tried: true, Synced: true}},
		observed: map[types.UID]runtime.Pod{},
	}}
	f.self = nodeapi.NewKeeper(counter, clock)
	f.self.Keep(nodeapi.Wishes{}, func([]byte) error { return nil }, func(_, _ *v1.Node) {})
	f.self.Set(nodeapi.Facts{Name: nodeName, Labels: map[string]string{"node-role.kubernetes.io/edge": ""}, Addresses: []string{"192.0.2.7"}, Capacity: nodeapi.Capacity(nodeapi.Host{CPUs: 2, Memory: 1 << 30}, nodeapi.Reservation{MaxPods: 110}), Created: epoch}.Object())
	f.events = events.New(events.Options{NodeName: nodeName, Revisions: counter, Clock: clock})
	o := Options{
		Log: quiet, Metrics: metrics.New(metrics.Build{}), NodeName: nodeName, Version: "v0.1",
		PodLogDir: f.logs, Pods: st, Push: contested{accepted, f}, Amend: st, Resources: st, PushResources: accepted, Events: f.events, Streams: f.node, Node: f.node, NodeObject: f.self, Images: f.node,
		Stats: func() (*stats.Reader, error) {
			return nil, fmt.Errorf("no runtime: %w", errdefs.ErrUnavailable)
		}, CPUs: 2,
	}
	if edit != nil {
		edit(&o)
	}
	if f.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	return f
}

// contested is a push source that others are faster at, as long as the fixture
// has rivals.
type contested struct {
	Push
	f *fixture
}

func (c contested) Update(ctx context.Context, key pod.Key, o manifest.Object, resourceVersion string) (*v1.Pod, error) {
	if c.f.rivals.Load() > 0 {
		c.f.rivals.Add(-1)
		if err := c.f.report(o.Pod.UID); err != nil {
			return nil, err
		}
	}
	return c.Push.Update(ctx, key, o, resourceVersion)
}

// report makes a new status of a pod.
func (f *fixture) report(uid types.UID) error {
	return f.store.SetStatus(uid, v1.PodStatus{Phase: v1.PodRunning, Message: strconv.Itoa(int(f.news.Add(1)))})
}

// status makes a new status of a pod visible, as its worker does.
func (f *fixture) status(t testing.TB, name string, st v1.PodStatus) {
	t.Helper()
	if err := f.store.SetStatus(f.pod(t, name).UID, st); err != nil {
		t.Fatal(err)
	}
}

// pod is a pod as the store has it.
func (f *fixture) pod(t testing.TB, name string) *v1.Pod {
	t.Helper()
	rec, ok := f.store.Get(key(name))
	if !ok {
		t.Fatalf("no pod %s", name)
	}
	return rec.Pod
}

// finish is the end of a pod that was deleted, as its worker tells it.
func (f *fixture) finish(t testing.TB, name string) {
	t.Helper()
	if err := f.store.Finished(f.pod(t, name).UID); err != nil {
		t.Fatal(err)
	}
}

// asRoot is what the kernel says of a connection made by root.
func asRoot(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), peerKey{}, peer{uid: 0, known: true}))
}

type answer struct {
	*httptest.ResponseRecorder
	t testing.TB
}

// call makes one request of root's on the socket, without a connection.
func (f *fixture) call(t testing.TB, method, path, body string, header ...string) answer {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return f.serve(t, kindLocal, asRoot(r))
}

// serve makes a request of a listener's. An answer that is broken off ends
// where it does.
func (f *fixture) serve(t testing.TB, kind string, r *http.Request) (a answer) {
	t.Helper()
	a = answer{httptest.NewRecorder(), t}
	defer func() {
		if v := recover(); v != nil && v != http.ErrAbortHandler {
			panic(v)
		}
	}()
	f.Handler(kind).ServeHTTP(a, r)
	return a
}

func (a answer) code(want int) answer {
	a.t.Helper()
	if a.Code != want {
		a.t.Fatalf("code %d, want %d: %s", a.Code, want, a.Body)
	}
	return a
}

func (a answer) into(v any) {
	a.t.Helper()
	if err := json.Unmarshal(a.Body.Bytes(), v); err != nil {
		a.t.Fatalf("%v: %s", err, a.Body)
	}
}

func (a answer) pod() *v1.Pod {
	a.t.Helper()
	var p v1.Pod
	a.into(&p)
	if p.Kind != "Pod" || p.APIVersion != "v1" {
		a.t.Fatalf("not a Pod: %s", a.Body)
	}
	return &p
}

// status checks that the answer is a failure of that code and reason.
func (a answer) status(code int, reason metav1.StatusReason) metav1.Status {
	a.t.Helper()
	a.code(code)
	var s metav1.Status
	a.into(&s)
	if s.Kind != "Status" || s.APIVersion != "v1" || s.Status != metav1.StatusFailure || int(s.Code) != code || s.Reason != reason {
		a.t.Fatalf("status %+v, want code %d, reason %s", s, code, reason)
	}
	return s
}

const podsPath = "/api/v1/namespaces/default/pods"

// podYAML is a small pod; more is appended to its metadata.
func podYAML(name, more string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + name + "\n" + more + "spec:\n  containers:\n  - name: app\n    image: example.org/app:1\n"
}

func (f *fixture) create(t testing.TB, name, more string) *v1.Pod {
	t.Helper()
	return f.call(t, "POST", podsPath, podYAML(name, more), "Content-Type", mediaYAML).code(201).pod()
}

// fromFile makes a pod the only one of the file source.
func (f *fixture) fromFile(t testing.TB, name string) {
	t.Helper()
	objects, errs := manifest.Decode([]byte(podYAML(name, "")), manifest.Options{NodeName: nodeName, Origin: "/etc/manifests/" + name + ".yaml"})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	f.store.Apply(store.SourceFile, store.Snapshot{Objects: objects})
}

func key(name string) pod.Key { return pod.Key{Namespace: "default", Name: name} }

// started is a server that listens.
type started struct {
	*fixture
	socket string
	client *http.Client
	stop   func() error
}

// start runs a server on a socket in a short temporary folder.
func start(t testing.TB, edit func(*Options)) *started {
	t.Helper()
	dir, err := os.MkdirTemp("", "na")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &started{socket: filepath.Join(dir, SocketName)}
	s.fixture = newFixture(t, func(o *Options) {
		o.Socket = s.socket
		if edit != nil {
			edit(o)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	s.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-s.Listening():
	case err := <-done:
		done <- nil
		t.Fatalf("Run: %v", err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
	}}
	s.client = &http.Client{Transport: tr}
	t.Cleanup(tr.CloseIdleConnections)
	return s
}

// deadline is far beyond what anything here takes.
func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// get starts a request whose answer is streamed.
func (s *started) get(t testing.TB, path string, header ...string) *http.Response {
	t.Helper()
	ctx := deadline(t)
	req, err := http.NewRequestWithContext(ctx, "GET", "http://agent"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func body(t testing.TB, resp *http.Response) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := io.Copy(&b, resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
