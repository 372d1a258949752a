package agent

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/eviction"
	nodeapi "github.com/nodeagent/nodeagent/pkg/node"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker"
	"github.com/nodeagent/nodeagent/pkg/stats"
	"github.com/nodeagent/nodeagent/pkg/status"
)

const (
	// stallFile is where the kernel tells of processes that wait for memory.
	stallFile = "/proc/pressure/memory"
	// unawareEvery is how often the node is looked at where no kernel tells when
	// memory is running out.
	unawareEvery = time.Second
	// reclaimPatience is for the workers to remove what nobody needs.
	reclaimPatience = 15 * time.Second
)

// newEviction is made before pods run: its first look decides who may.
func (a *agent) newEviction(n *node, cgroups *cgroup.Manager) *eviction.Manager {
	o := eviction.Options{
		Thresholds: a.cfg.Thresholds(), Transition: a.cfg.EvictionPressureTransitionPeriod.Duration,
		MaxGrace: time.Duration(a.cfg.EvictionMaxPodGracePeriod) * time.Second, Every: eviction.DefaultEvery,
		Node: &watchedNode{stats: n.stats, stateDir: a.cfg.StateDir}, Pods: evictable{a, n},
		ReclaimDead: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, reclaimPatience)
			defer cancel()
			return n.workers.ReclaimDead(ctx)
		},
		ReclaimImages: n.collector.RemoveUnused,
		Event:         a.nodeEvent, Evicted: a.metrics.Evicted, Changed: a.pressed,
		StateFile: a.statePath(pressureFile), Clock: time.Now, After: time.After, Log: a.log,
	}
	var m *eviction.Manager
	tree, ok := cgroups.Tree("memory")
	if ok && !tree.V2 {
		o.Alarms = map[config.Signal]*eviction.Alarm{
			config.MemoryAvailable:            eviction.NewAlarm(tree.Dir, func() { m.Kick() }),
			config.AllocatableMemoryAvailable: eviction.NewAlarm(filepath.Join(tree.Dir, cgroups.Parents()[0]), func() { m.Kick() }),
		}
	} else if _, err := os.Stat(stallFile); err != nil {
		o.Every = unawareEvery
	}
	m = eviction.New(o)
	return m
}

// watchStalls has the node looked at when processes begin to wait for memory.
func (a *agent) watchStalls(ctx context.Context, m *eviction.Manager) error {
	if err := eviction.WatchStalls(ctx, stallFile, m.Kick); err != nil {
		a.log.Debug("the kernel does not tell when memory runs out", "err", err)
	}
	return nil
}

// recallPressure shows what the agent before knew, until somebody has looked.
func (a *agent) recallPressure() {
	p := eviction.Remembered(a.statePath(pressureFile), a.cfg.EvictionPressureTransitionPeriod.Duration, time.Now())
	a.pressure.Store(&p)
}

// pressed shows what the node runs short of, in kubelet's words.
func (a *agent) pressed(now []v1.NodeConditionType) {
	old := a.pressure.Swap(&now)
	for _, reason := range nodeapi.Changes(*old, now) {
		a.log.Warn("the node's condition has changed", "now", reason)
		a.nodeEvent(v1.EventTypeNormal, reason, "Node "+a.cfg.NodeName+" status is now: "+reason)
	}
	a.see(a.seen.Load())
}

// admission judges new pods: by what the node runs short of, then by the rest.
func (n *node) admission(rest func(*v1.Pod, []*v1.Pod) *status.Refusal) func(*v1.Pod, []*v1.Pod) *status.Refusal {
	return func(p *v1.Pod, running []*v1.Pod) *status.Refusal {
		if why := n.eviction.Refuse(p); why != "" {
			return &status.Refusal{Reason: podworker.ReasonEvicted, Message: why}
		}
		return rest(p, running)
	}
}

// watchedNode is the node as eviction looks at it.
type watchedNode struct {
	stats    *stats.Reader
	stateDir string
}

func (w *watchedNode) Observe(ctx context.Context) eviction.Observations {
	seen := eviction.Observations{}
	if n, err := w.stats.Node(stats.Basic); err == nil {
		seen[config.MemoryAvailable] = observation(n.Available(), n.Capacity, resource.BinarySI)
		if n.MaxPID > 0 {
			seen[config.PIDAvailable] = observation(n.MaxPID-min(n.MaxPID, n.Processes), n.MaxPID, resource.DecimalSI)
		}
	}
	if parents := w.stats.Parents(stats.Basic); len(parents) > 0 && parents[0].Memory.Limit > 0 {
		m := parents[0].Memory
		seen[config.AllocatableMemoryAvailable] = observation(m.Limit-min(m.Limit, m.WorkingSet), m.Limit, resource.BinarySI)
	}
	disk := func(f stats.Filesystem, space, inodes config.Signal) {
		seen[space] = observation(f.Available, f.Capacity, resource.BinarySI)
		if f.Inodes > 0 { // some file systems have as many as there is room for
			seen[inodes] = observation(f.InodesFree, f.Inodes, resource.DecimalSI)
		}
	}
	if f, err := w.stats.NodeFS(); err == nil {
		disk(f, config.NodeFSAvailable, config.NodeFSInodesFree)
	}
	if f, err := w.stats.ImageFS(ctx); err == nil {
		disk(f.Images, config.ImageFSAvailable, config.ImageFSInodesFree)
		disk(f.Containers, config.ContainerFSAvailable, config.ContainerFSInodesFree)
	}
	return seen
}

func observation(available, capacity uint64, format resource.Format) eviction.Observation {
	return eviction.Observation{Available: *resource.NewQuantity(int64(available), format), Capacity: *resource.NewQuantity(int64(capacity), format)}
}

func (w *watchedNode) ImageFS(ctx context.Context) bool {
	f, err := w.stats.ImageFS(ctx)
	if err != nil {
		return false
	}
	var images, node unix.Stat_t
	return unix.Stat(f.Containers.Path, &images) == nil && unix.Stat(w.stateDir, &node) == nil && images.Dev != node.Dev
}

// evictable are the node's pods as eviction sees them.
type evictable struct {
	a *agent
	n *node
}

// Active have their priority written out.
func (e evictable) Active() []*v1.Pod { return e.a.prioritised(e.n.workers.Active()) }

// prioritised writes priorities out, as an API server would have done.
func (a *agent) prioritised(pods []*v1.Pod) []*v1.Pod {
	for i, p := range pods {
		if priority, err := (objects{a.store}).Priority(p); err == nil {
			known := *p
			known.Spec.Priority = &priority
			pods[i] = &known
		}
	}
	return pods
}

func (e evictable) Ending() []types.UID      { return e.n.workers.Ending() }
func (e evictable) Ended(uid types.UID) bool { return e.n.workers.Ended(uid) }
func (e evictable) Evict(uid types.UID, how eviction.Eviction) {
	e.n.workers.Evict(uid, podworker.Eviction{Reason: eviction.Reason, Message: how.Message, Grace: how.Grace, Disrupted: how.Disrupted})
}

func (e evictable) Usage(ctx context.Context, pods []*v1.Pod, need eviction.Need) map[types.UID]*eviction.Usage {
	out := map[types.UID]*eviction.Usage{}
	var disks map[types.UID]stats.Disk
	if need.Layers {
		var err error
		if disks, err = e.n.stats.Disks(ctx, pods); err != nil {
			if ctx.Err() == nil {
				e.a.log.Warn("cannot measure what pods have on disks; will try again", "err", err)
			}
			return out
		}
	}
	for _, p := range pods {
		u, err := e.usage(ctx, p, need, disks[p.UID])
		if err != nil {
			if ctx.Err() == nil {
				e.a.log.Warn("cannot measure a pod; will try again", "pod", pod.Describe(p), "err", err)
			}
			continue
		}
		out[p.UID] = u
	}
	return out
}

func (e evictable) usage(ctx context.Context, p *v1.Pod, need eviction.Need, d stats.Disk) (*eviction.Usage, error) {
	u, err := &eviction.Usage{Volumes: map[string]eviction.Space{}}, error(nil)
	if !need.Layers {
		var own int64
		if own, err = e.n.workers.OwnFiles(p.UID); err != nil {
			return nil, err
		}
		d.Own.Bytes = uint64(own)
		if need.Volumes {
			if d.Volumes, err = e.a.volumes.Usage(ctx, p.UID); err != nil {
				return nil, err
			}
		}
	}
	u.Own = space(d.Own)
	for name, v := range d.Volumes {
		if v.OnDisk() {
			u.Volumes[name] = eviction.Space{Bytes: v.Used, Inodes: v.Files}
		}
	}
	memory := map[string]int64{}
	if need.Memory {
		if s, ok := e.n.stats.Pod(p, stats.Full); ok {
			u.Memory, u.Processes = int64(s.Memory.WorkingSet), int64(s.Threads)
			for _, c := range s.Containers {
				memory[c.Name] = int64(c.Memory.WorkingSet)
			}
		}
	}
	for _, list := range [][]v1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			name := list[i].Name
			u.Containers = append(u.Containers, eviction.ContainerUsage{Name: name, Memory: memory[name], Layer: space(d.RootFS[name]), Logs: space(d.Logs[name])})
		}
	}
	return u, nil
}

func space(s stats.Space) eviction.Space {
	return eviction.Space{Bytes: int64(s.Bytes), Inodes: int64(s.Inodes)}
}
