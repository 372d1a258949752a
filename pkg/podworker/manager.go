// Package podworker runs pods: one worker per pod UID, the only thing that
// acts on that pod. Events only wake a worker; it always reads the desired
// record and the runtime's current state, asks lifecycle.Next what to do, does
// it, and writes the status that results.
package podworker

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/probe"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Options are the manager's parts and settings; all parts are required.
type Options struct {
	Store      Store
	Observer   Observer
	Sandboxes  Sandboxes
	Containers Containers
	Images     Images
	Volumes    Volumes
	Cgroups    Cgroups
	Network    Network
	Logs       Logs
	Recorder   Recorder
	Metrics    Metrics
	Probes     *probe.Prober
	Objects    Objects
	// Allocatable is what the node has for pods.
	Allocatable func() v1.ResourceList
	// Features are what the runtime can.
	Features func(ctx context.Context) (runtime.Features, error)
	Classes  Classes

	// Admit says why the node does not run a new pod beside those that it
	// already runs; nil: it does.
	Admit func(p *v1.Pod, running []*v1.Pod) *status.Refusal
	// Unschedulable says why a new pod has to wait until the node is open to it;
	// empty: it is. Who has changed that wakes the workers.
	Unschedulable func(p *v1.Pod, source string) string

	// ShuttingDown says that the host is about to go down.
	ShuttingDown func() bool

	Hostname    string
	NodeIPs     []string
	NodeMemory  int64 // bytes
	RuntimeName string
	// DNS is what becomes of a pod's resolv.conf.
	DNS func(p *v1.Pod) runtime.DNS
	// ClusterDomain ends the full names of pods that have a subdomain.
	ClusterDomain string

	HostsFile       string // the host's /etc/hosts
	PodsDir         string // <state-dir>/pods
	PodLogDir       string
	ContainerLogDir string

	Backoff  lifecycle.Backoff
	KeepDead int
	// MaxStarts bounds the pods that are in the middle of sandbox and
	// container creation: runtimes get slower, not faster, beyond a few.
	MaxStarts      int
	RelistInterval time.Duration

	Clock func() time.Time
	Log   *slog.Logger
	// Hook is called at every point where a crash must do no harm; tests kill
	// the process there.
	Hook func(point string)
}

// Manager owns the workers.
type Manager struct {
	Options
	starts *semaphore.Weighted

	mu      sync.Mutex
	workers map[types.UID]*worker
	ctx     context.Context // set by Run
	wg      sync.WaitGroup
	relist  chan struct{}
	// admission makes judging a pod and counting it among the running one step.
	admission sync.Mutex
	beat      atomic.Int64 // when the last relist began, in ns since 1970
	users     sync.Mutex   // held while a range of user ids is chosen
}

// New builds a manager; nothing runs until Run.
func New(o Options) *Manager {
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
	if o.ShuttingDown == nil {
		o.ShuttingDown = func() bool { return false }
	}
	return &Manager{
		Options: o,
		starts:  semaphore.NewWeighted(int64(max(1, o.MaxStarts))),
		workers: map[types.UID]*worker{},
		relist:  make(chan struct{}, 1),
	}
}

// Run works until ctx ends. Pods go on running afterwards.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	m.mu.Lock()
	m.ctx = ctx
	m.mu.Unlock()
	defer m.wg.Wait()
	if err := m.admitRunning(ctx); err != nil {
		return nil // ctx has ended
	}
	for _, r := range m.Store.Records() {
		m.Wake(r.Pod.UID)
	}
	g.Go(func() error { return m.Observer.Watch(ctx, m.observed) })
	g.Go(func() error { return m.relistLoop(ctx) })
	return g.Wait()
}

// admitRunning admits what already runs, before anything new is judged beside
// it. It waits for the runtime.
func (m *Manager) admitRunning(ctx context.Context) error {
	for {
		pods, err := m.Observer.Pods(ctx)
		if err == nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			for i := range pods {
				if _, ok := m.Store.ByUID(pods[i].UID); ok && len(pods[i].Sandboxes) > 0 && m.workers[pods[i].UID] == nil {
					m.start(pods[i].UID, nil).admitted.Store(true)
				}
			}
			return nil
		}
		m.Log.Warn("cannot list what the runtime runs; will try again", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(runtimeRetry):
		}
	}
}

// Wake has the worker of uid look again, and starts it when there is none.
func (m *Manager) Wake(uid types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx == nil || m.ctx.Err() != nil {
		return
	}
	w := m.workers[uid]
	if w == nil {
		if _, ok := m.Store.ByUID(uid); !ok {
			return
		}
		w = m.start(uid, nil)
	}
	w.poke()
}

// Discard removes the containers, logs and files of a finished pod; its status
// stays. Of a pod that has not finished it discards nothing until it has.
func (m *Manager) Discard(uid types.UID) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w != nil && !w.discard.Swap(true) {
		w.poke()
	}
}

// LastRelist is when the relist loop last came round; before Run it is now.
func (m *Manager) LastRelist() time.Time {
	if ns := m.beat.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return m.Clock()
}

// WakeAll has every worker look again and try at once what failed: the runtime
// is back, or the network is.
func (m *Manager) WakeAll() {
	m.mu.Lock()
	for _, w := range m.workers {
		w.afresh.Store(true)
	}
	m.mu.Unlock()
	for _, r := range m.Store.Records() {
		m.Wake(r.Pod.UID)
	}
}

// ObjectChanged has the workers of the pods that name an object look again, and
// try at once what failed.
func (m *Manager) ObjectChanged(kind string, key pod.Key) {
	for _, r := range m.Store.Records() {
		if !pod.Names(r.Pod, kind, key) {
			continue
		}
		m.mu.Lock()
		if w := m.workers[r.Pod.UID]; w != nil {
			w.afresh.Store(true)
		}
		m.mu.Unlock()
		m.Wake(r.Pod.UID)
	}
}

// start makes and runs a worker; m.mu is held.
func (m *Manager) start(uid types.UID, orphan *store.Record) *worker {
	w := newWorker(m, uid, orphan)
	m.workers[uid] = w
	ctx := m.ctx
	m.wg.Go(func() {
		w.run(ctx)
		m.Logs.Follow(uid, nil)
		m.mu.Lock()
		delete(m.workers, uid)
		m.mu.Unlock()
		m.freed()
		// A wake-up that came while the worker was on its way out is not lost.
		if _, ok := m.Store.ByUID(uid); ok && ctx.Err() == nil {
			m.Wake(uid)
		}
	})
	return w
}

// observed is called for every runtime event.
func (m *Manager) observed(e runtime.Event) {
	if e.UID == "" {
		select {
		case m.relist <- struct{}{}:
		default:
		}
		return
	}
	m.Wake(e.UID)
}

// wakeQueued has the pods look again that waited for another one to be judged.
func (m *Manager) wakeQueued() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.workers {
		if w.queued.Load() {
			w.poke()
		}
	}
}
