package podworker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/logs"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/probe"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
	"github.com/nodeagent/nodeagent/pkg/store"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// node is everything outside the manager: a store, a runtime, volumes and
// cgroups that keep state and refuse what the real ones refuse. It outlives
// managers as a host outlives agents.
type node struct {
	t *testing.T

	mu       sync.Mutex
	changed  *sync.Cond
	records  map[types.UID]store.Record
	finished map[types.UID]bool
	pods     map[types.UID]*runtime.Pod
	made     int
	cgroups  map[types.UID]bool
	volumes  map[types.UID]bool
	setUpErr error // what SetUp fails with
	// refreshed are the labels "app" that Refresh was called with.
	refreshed  []string
	refreshErr error
	mounts     map[string][]runtime.Mount // of the newest container of each name
	features   runtime.Features
	events     []string
	noImage    map[string]images.State
	failRun    error
	hanging    bool // RunSandbox waits for the end of its context
	frozen     bool // so does Pods
	failStop   error
	failUpdate error
	stops      int // calls of StopSandbox
	synced     bool
	onEvent    func(runtime.Event)
	relists    int
	starts     int
	// probeExit is what every exec probe ends with; probes counts them.
	probeExit int32
	probes    int
	ignoring  map[string]bool // containers that do not react to TERM
	config    map[string]*v1.ConfigMap
	env       map[string][]runtime.EnvVar // of the newest container of each name
}

func (n *node) ConfigMap(_, name string) (*v1.ConfigMap, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.config[name]; c != nil {
		return c, nil
	}
	return nil, errdefs.Errorf(errdefs.ErrNotFound, "configmap %q not found", name)
}

func (n *node) Secret(string, string) (*v1.Secret, error) { return nil, errdefs.ErrNotFound }
func (n *node) Services(string) []*v1.Service             { return nil }
func (n *node) Follow(types.UID, []logs.Container)        {}

func newNode(t *testing.T) *node {
	n := &node{t: t, records: map[types.UID]store.Record{}, finished: map[types.UID]bool{}, pods: map[types.UID]*runtime.Pod{},
		cgroups: map[types.UID]bool{}, volumes: map[types.UID]bool{}, noImage: map[string]images.State{}, mounts: map[string][]runtime.Mount{}, synced: true, ignoring: map[string]bool{}, env: map[string][]runtime.EnvVar{}}
	n.changed = sync.NewCond(&n.mu)
	return n
}

func testPod(uid string, policy v1.RestartPolicy, containers ...string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-" + uid, Namespace: "default", UID: types.UID(uid)}}
	p.Spec.RestartPolicy = policy
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: c, Image: "img", TerminationMessagePath: "/dev/termination-log"})
	}
	return p
}

func (n *node) want(p *v1.Pod) {
	n.mu.Lock()
	n.records[p.UID] = store.Record{Pod: p, Source: store.SourceFile, Accepted: time.Now()}
	n.mu.Unlock()
}

func (n *node) edit(uid types.UID, fn func(p *v1.Pod)) {
	n.mu.Lock()
	r := n.records[uid]
	r.Pod = r.Pod.DeepCopy()
	fn(r.Pod)
	n.records[uid] = r
	n.mu.Unlock()
}

// until waits for a condition on the node; it has no other clock than the
// test's own deadline.
func (n *node) until(what string, cond func() bool) {
	n.t.Helper()
	stop := time.AfterFunc(20*time.Second, func() { n.mu.Lock(); n.changed.Broadcast(); n.mu.Unlock() })
	defer stop.Stop()
	began := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	for !cond() {
		if time.Since(began) > 20*time.Second {
			n.t.Fatalf("never happened: %s; events %v; records %+v", what, n.events, n.pods)
		}
		n.changed.Wait()
	}
}

func (n *node) Records() []store.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []store.Record
	for _, r := range n.records {
		out = append(out, r)
	}
	return out
}

func (n *node) ByUID(uid types.UID) (store.Record, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r, ok := n.records[uid]
	return r, ok
}

func (n *node) SetStatus(uid types.UID, st v1.PodStatus) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r, ok := n.records[uid]; ok {
		r.Pod = r.Pod.DeepCopy()
		r.Pod.Status = st
		n.records[uid] = r
	}
	n.changed.Broadcast()
	return nil
}

func (n *node) Finished(uid types.UID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.pods[uid]; p != nil && len(p.Sandboxes)+len(p.Containers) > 0 || n.cgroups[uid] || n.volumes[uid] {
		n.t.Errorf("%s is said to be finished with %+v, cgroup %t, volumes %t", uid, p, n.cgroups[uid], n.volumes[uid])
	}
	delete(n.records, uid)
	n.finished[uid] = true
	n.changed.Broadcast()
	return nil
}

func (n *node) Synced(string) bool { n.mu.Lock(); defer n.mu.Unlock(); return n.synced }

func (n *node) Pods(ctx context.Context) ([]runtime.Pod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.frozen {
		n.mu.Unlock()
		<-ctx.Done()
		n.mu.Lock()
		n.changed.Broadcast()
	}
	var out []runtime.Pod
	for uid := range n.pods {
		out = append(out, n.snapshot(uid))
	}
	return out, ctx.Err()
}

func (n *node) Pod(ctx context.Context, uid types.UID) (runtime.Pod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.snapshot(uid), ctx.Err()
}

func (n *node) snapshot(uid types.UID) runtime.Pod {
	p := n.pods[uid]
	if p == nil {
		return runtime.Pod{UID: uid}
	}
	c := *p
	c.Sandboxes, c.Containers = slices.Clone(p.Sandboxes), slices.Clone(p.Containers)
	return c
}

func (n *node) Watch(ctx context.Context, fn func(runtime.Event)) error {
	n.mu.Lock()
	n.onEvent = fn
	n.mu.Unlock()
	fn(runtime.Event{}) // what happened before is nobody's event
	<-ctx.Done()
	return nil
}

func (n *node) RunSandbox(ctx context.Context, p *v1.Pod, o runtime.SandboxOptions) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if n.failRun != nil {
		return "", n.failRun
	}
	if n.hanging {
		n.events = append(n.events, p.Name+" hangs")
		n.changed.Broadcast()
		n.mu.Unlock()
		<-ctx.Done()
		n.mu.Lock()
		return "", ctx.Err()
	}
	if !n.cgroups[p.UID] || !n.volumes[p.UID] {
		n.t.Errorf("sandbox of %s before its cgroup and volumes", p.UID)
	}
	pod := n.pods[p.UID]
	if pod == nil {
		pod = &runtime.Pod{UID: p.UID, Name: p.Name, Namespace: p.Namespace}
		n.pods[p.UID] = pod
	}
	for _, s := range pod.Sandboxes {
		if s.Attempt == o.Attempt {
			return s.ID, nil
		}
		if s.Ready {
			n.t.Errorf("a second sandbox for %s", p.UID)
		}
	}
	n.made++
	id := "s" + strconv.Itoa(n.made)
	pod.Sandboxes = slices.Insert(pod.Sandboxes, 0, runtime.Sandbox{ID: id, Attempt: o.Attempt, Ready: true, IPs: []string{"10.88.0." + strconv.Itoa(n.made)}})
	return id, nil
}

func (n *node) find(id string) (*runtime.Pod, *runtime.Sandbox, *runtime.Container) {
	for _, p := range n.pods {
		for i := range p.Sandboxes {
			if p.Sandboxes[i].ID == id {
				return p, &p.Sandboxes[i], nil
			}
		}
		for i := range p.Containers {
			if p.Containers[i].ID == id {
				return p, nil, &p.Containers[i]
			}
		}
	}
	return nil, nil, nil
}

func (n *node) StopSandbox(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, s, _ := n.find(id)
	if s == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	n.stops++
	n.changed.Broadcast()
	if n.failStop != nil {
		return n.failStop
	}
	s.Ready = false
	for i := range p.Containers {
		if c := &p.Containers[i]; c.SandboxID == id && c.State == runtime.StateRunning {
			c.State, c.ExitCode, c.FinishedAt = runtime.StateExited, 137, time.Now()
		}
	}
	return nil
}

func (n *node) RemoveSandbox(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, s, _ := n.find(id)
	if s == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	p.Containers = slices.DeleteFunc(p.Containers, func(c runtime.Container) bool { return c.SandboxID == id })
	p.Sandboxes = slices.DeleteFunc(p.Sandboxes, func(s runtime.Sandbox) bool { return s.ID == id })
	return nil
}

func (n *node) CreateContainer(ctx context.Context, p *v1.Pod, c *v1.Container, o runtime.ContainerOptions) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return "", err
	}
	pod, s, _ := n.find(o.SandboxID)
	if s == nil || !s.Ready {
		return "", fmt.Errorf("no sandbox %s", o.SandboxID)
	}
	for _, old := range pod.Containers {
		if old.Name == c.Name && old.Attempt == o.Attempt {
			return old.ID, nil
		}
		if old.Name == c.Name && old.State == runtime.StateRunning {
			n.t.Errorf("container %s is doubled", c.Name)
		}
	}
	n.made++
	n.mounts[c.Name], n.env[c.Name] = o.Mounts, o.Env
	id := "c" + strconv.Itoa(n.made)
	pod.Containers = slices.Insert(pod.Containers, 0, runtime.Container{ID: id, Name: c.Name, SandboxID: s.ID, Attempt: o.Attempt,
		State: runtime.StateCreated, CreatedAt: time.Now(), SpecImage: c.Image, Init: o.Init, Annotations: o.Annotations})
	return id, nil
}

func (n *node) StartContainer(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	_, _, c := n.find(id)
	if c == nil || c.State != runtime.StateCreated {
		return fmt.Errorf("container %s cannot be started", id)
	}
	c.State, c.StartedAt = runtime.StateRunning, time.Now()
	n.changed.Broadcast()
	return nil
}

func (n *node) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	n.mu.Lock()
	stop := context.AfterFunc(ctx, func() { n.mu.Lock(); n.changed.Broadcast(); n.mu.Unlock() })
	defer stop()
	for _, _, c := n.find(id); n.ignoring[id] && grace > 0 && c != nil && c.State == runtime.StateRunning && ctx.Err() == nil; _, _, c = n.find(id) {
		n.changed.Wait()
	}
	n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	n.exit(id, 143)
	return nil
}

func (n *node) RemoveContainer(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, _, c := n.find(id); c != nil && ctx.Err() == nil {
		p.Containers = slices.DeleteFunc(p.Containers, func(c runtime.Container) bool { return c.ID == id })
	}
	return ctx.Err()
}

func (n *node) UpdateContainer(ctx context.Context, id string, p *v1.Pod, c *v1.Container, _ int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, id+" has "+c.Resources.Limits.Cpu().String())
	n.changed.Broadcast()
	return errors.Join(ctx.Err(), n.failUpdate)
}

// lose ends the sandbox of a pod as a killed pause process would.
func (n *node) lose(uid types.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pods[uid].Sandboxes[0].Ready = false
}

// said says that an event holds a text.
func (n *node) said(text string) func() bool {
	return func() bool {
		return slices.ContainsFunc(n.events, func(e string) bool { return strings.Contains(e, text) })
	}
}

// exit ends a container as its process would, and says so.
func (n *node) exit(id string, code int32) {
	n.mu.Lock()
	p, _, c := n.find(id)
	if c == nil || c.State != runtime.StateRunning {
		n.mu.Unlock()
		return
	}
	c.State, c.ExitCode, c.FinishedAt = runtime.StateExited, code, time.Now()
	fn, uid := n.onEvent, p.UID
	n.changed.Broadcast()
	n.mu.Unlock()
	if fn != nil {
		fn(runtime.Event{UID: uid})
	}
}

func (n *node) Request(_ context.Context, p *v1.Pod, c *v1.Container, _ uint32) images.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	if st, ok := n.noImage[c.Image]; ok {
		return st
	}
	return images.State{Ready: true, Ref: c.Image}
}

func (n *node) Forget(types.UID) {}

func (n *node) SetUp(ctx context.Context, p *v1.Pod) (map[string]volumes.Mounted, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.setUpErr != nil {
		return nil, n.setUpErr
	}
	n.volumes[p.UID] = true
	return nil, ctx.Err()
}

func (n *node) TearDown(ctx context.Context, uid types.UID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() == nil {
		delete(n.volumes, uid)
	}
	return ctx.Err()
}

func (n *node) Parent(p *v1.Pod) string { return "/kubepods/pod" + string(p.UID) }

func (n *node) Ensure(ctx context.Context, p *v1.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cgroups[p.UID] = true
	return ctx.Err()
}

func (n *node) Remove(ctx context.Context, uid types.UID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ctx.Err() == nil {
		delete(n.cgroups, uid)
	}
	return ctx.Err()
}

func (n *node) Creating() func() { return func() {} }

func (n *node) PodEvent(p *v1.Pod, container, eventType, reason, message string) {
	n.mu.Lock()
	n.events = append(n.events, p.Name+"/"+container+" "+reason+": "+message)
	n.changed.Broadcast()
	n.mu.Unlock()
}

func (n *node) ContainerStarted(bool, string) {}
func (n *node) SandboxStarted(error)          {}
func (n *node) PodStarted(time.Duration) {
	n.mu.Lock()
	n.starts++
	n.changed.Broadcast()
	n.mu.Unlock()
}
func (n *node) ExitHandled(time.Duration)       {}
func (n *node) PodWorker(string, time.Duration) {}
func (n *node) Relisted(time.Duration) {
	n.mu.Lock()
	n.relists++
	n.changed.Broadcast()
	n.mu.Unlock()
}

func (n *node) Running(int, map[string]int) {}

func (n *node) Probed(*v1.Pod, string, string, bool, time.Duration) {}
func (n *node) ProbesEnded(*v1.Pod, string)                         {}

// ExecSync answers probes and hooks with the exit code that the test has set;
// the command hang never ends.
func (n *node) ExecSync(ctx context.Context, id string, cmd []string, _ time.Duration) ([]byte, []byte, int32, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.probes++
	n.events = append(n.events, id+" runs "+cmd[0])
	n.changed.Broadcast()
	if cmd[0] == "hang" {
		n.mu.Unlock()
		<-ctx.Done()
		n.mu.Lock()
	}
	return nil, nil, n.probeExit, ctx.Err()
}

// agent is one life of a manager on the node.
type agent struct {
	*Manager
	kill context.CancelFunc
	done chan struct{}
}

func (n *node) agent(dir string, set func(*Options)) *agent {
	o := Options{
		Features: func(context.Context) (runtime.Features, error) { return n.features, nil },
		Store:    n, Observer: n, Sandboxes: n, Containers: n, Images: n, Volumes: n, Cgroups: n, Network: n, Logs: n, Recorder: n, Metrics: n,
		Probes:  probe.New(probe.Options{Runtime: n, Recorder: n, Metrics: n, Clock: time.Now, After: time.After, Log: slog.New(slog.DiscardHandler)}),
		Objects: n, Allocatable: func() v1.ResourceList { return nil },
		Admit:         func(*v1.Pod, []*v1.Pod) *status.Refusal { return nil },
		Unschedulable: func(*v1.Pod, string) string { return "" },
		Hostname:      "node", NodeIPs: []string{"192.0.2.1"}, NodeMemory: 1 << 30, RuntimeName: "containerd", DNS: func(*v1.Pod) runtime.DNS { return runtime.DNS{} }, ClusterDomain: "cluster.local",
		PodsDir: dir + "/pods", PodLogDir: dir + "/logs", ContainerLogDir: dir + "/links",
		Backoff: lifecycle.Backoff{Base: time.Millisecond, Max: 4 * time.Millisecond, Reset: time.Hour}, KeepDead: 1, MaxStarts: 2,
		RelistInterval: 50 * time.Millisecond, Clock: time.Now, Log: slog.New(slog.DiscardHandler),
	}
	if set != nil {
		set(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &agent{Manager: New(o), kill: cancel, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		if err := a.Run(ctx); err != nil {
			n.t.Errorf("Run: %v", err)
		}
	}()
	n.t.Cleanup(a.stop)
	return a
}

func (a *agent) stop() {
	a.kill()
	<-a.done
}
