// Package eviction keeps the node from running out of memory, disk and process
// ids: it watches what is left, first removes what nobody needs, and then ends
// pods one by one, in kubelet's order. It also ends pods that exceed their own
// limits on disk.
//
// What to do is decided by pure functions of thresholds, observations and pods;
// Manager looks, and does it.
package eviction

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Node says what is left on the node. It only reads.
type Node interface {
	// Observe leaves out what cannot be seen.
	Observe(ctx context.Context) Observations
	// ImageFS says whether images and what containers write are on a file system
	// of their own.
	ImageFS(ctx context.Context) bool
}

// Need says what of pods has to be measured.
type Need struct {
	// Memory is memory and processes, Volumes what is in folders, Layers what
	// containers have written to their own file systems.
	Memory, Volumes, Layers bool
}

// Pods are those of the node.
type Pods interface {
	// Active are those that run or are about to, without those on their way out.
	Active() []*v1.Pod
	// Usage measures pods, and what the agent keeps for them always; one that
	// cannot be measured is left out.
	Usage(ctx context.Context, pods []*v1.Pod, need Need) map[types.UID]*Usage
	// Evict has a pod end and fail; doing it again is free.
	Evict(uid types.UID, e Eviction)
	// Ending are the pods that were evicted and have not ended, also by the agent
	// before.
	Ending() []types.UID
	// Ended says that nothing of an evicted pod takes anything any more.
	Ended(uid types.UID) bool
}

// Eviction is how a pod is ended for the node's sake.
type Eviction struct {
	Message string
	// Grace is what its containers get to end.
	Grace time.Duration
	// Disrupted says that the node was short, and not that the pod took too much.
	Disrupted bool
}

// graceAtOnce is what the containers of a pod get that has to go at once.
const graceAtOnce = time.Second

const (
	// DefaultEvery is how often the node is looked at when nothing wakes the manager.
	DefaultEvery = 5 * time.Second
	// cleanupPatience is how long an evicted pod may take to end before another
	// one is looked for, cleanupPoll how often it is asked about.
	cleanupPatience = 30 * time.Second
	cleanupPoll     = 100 * time.Millisecond
)

// Options are the manager's parts and settings; all are required.
type Options struct {
	Thresholds []config.Threshold
	Transition time.Duration
	// MaxGrace bounds the grace period of a pod that a soft threshold evicts;
	// below 0 it has its own.
	MaxGrace time.Duration
	Every    time.Duration

	Node Node
	Pods Pods
	// ReclaimDead removes what ended containers have left, ReclaimImages the images
	// that nobody uses.
	ReclaimDead, ReclaimImages func(ctx context.Context) error

	// Event records an event about the node.
	Event func(eventType, reason, message string)
	// Evicted counts an eviction by what was short.
	Evicted func(signal string)
	// Changed is told the conditions of the node, at first and whenever they change.
	Changed func([]v1.NodeConditionType)
	// Alarms are set where the kernel tells of memory growing; they are closed by Run.
	Alarms map[config.Signal]*Alarm
	// StateFile survives restarts of the agent.
	StateFile string

	Clock func() time.Time
	// After is time.After.
	After func(time.Duration) <-chan time.Time
	Log   *slog.Logger
}

// Manager watches one node.
type Manager struct {
	Options
	kick       chan struct{}
	state      pressure        // of Run, as is
	reclaiming v1.ResourceName // what the user was told of
	looked     bool
	conditions atomic.Pointer[[]v1.NodeConditionType]
}

// New makes a manager that knows what the one before it had come to.
func New(o Options) *Manager {
	m := &Manager{Options: o, kick: make(chan struct{}, 1), state: readState(o)}
	m.conditions.Store(&[]v1.NodeConditionType{})
	return m
}

// Kick has the node looked at now.
func (m *Manager) Kick() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// Refuse says why the node, as it is, does not take a pod on; empty: it does.
func (m *Manager) Refuse(p *v1.Pod) string { return refusal(p, *m.conditions.Load()) }

// Run looks and acts until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	defer func() {
		for _, a := range m.Alarms {
			a.Close()
		}
	}()
	for _, uid := range m.Pods.Ending() {
		m.await(ctx, uid) // it may be enough
	}
	for ctx.Err() == nil {
		if evicted := m.Round(ctx); evicted != "" {
			m.await(ctx, evicted)
			continue // it may not have been enough
		}
		wait := m.Every
		if at := m.state.wake(m.Thresholds); !at.IsZero() {
			wait = min(wait, max(0, at.Sub(m.Clock())))
		}
		select {
		case <-ctx.Done():
		case <-m.kick:
		case <-m.After(wait):
		}
	}
	return nil
}

// await waits until an evicted pod has ended, so that it is seen what that gave.
func (m *Manager) await(ctx context.Context, uid types.UID) {
	deadline := m.Clock().Add(cleanupPatience)
	for !m.Pods.Ended(uid) && m.Clock().Before(deadline) {
		select {
		case <-ctx.Done():
			return
		case <-m.After(cleanupPoll):
		}
	}
}

// Look observes the node and updates its conditions.
func (m *Manager) Look(ctx context.Context) Observations {
	now, seen := m.Clock(), m.Node.Observe(ctx)
	old := m.state
	m.state = m.state.next(m.Thresholds, seen, now)
	conditions := m.state.conditions(m.Transition, now)
	// What was remembered may have ended before the first look.
	was := *m.conditions.Load()
	changed := !m.looked || !slices.Equal(conditions, was)
	m.looked = true
	if changed {
		m.conditions.Store(&conditions)
		m.Changed(conditions)
	}
	for signal, a := range m.Alarms {
		if room, ok := headroom(signal, m.Thresholds, seen); ok {
			if err := a.Set(room); err != nil {
				m.Log.Debug("cannot set a mark for the kernel to tell of; the next look is in time", "signal", signal, "err", err)
			}
		}
	}
	if !slices.Equal(conditions, was) || !m.state.sameShortage(old) {
		m.writeState()
	}
	return seen
}

// Round looks once and does what has to be done; it returns the pod that it
// evicted because the node is short, if it did.
func (m *Manager) Round(ctx context.Context) types.UID {
	seen := m.Look(ctx)
	d := disks{imageFS: m.Node.ImageFS(ctx)}
	if m.evictOversized(ctx, d) {
		return "" // what that gives is seen in the next round
	}
	starved, ok := m.state.starved(m.Thresholds)
	if !ok {
		m.reclaiming = ""
		return ""
	}
	short := resourceOf(starved.Signal)
	m.Log.Warn("the node runs short", "resource", short, "signal", starved.Signal)
	if m.reclaiming != short {
		m.reclaiming = short
		m.Event(v1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", short))
	}
	if m.reclaim(ctx, starved.Signal, d) {
		m.Log.Info("enough could be reclaimed without evicting a pod", "resource", short)
		return ""
	}
	return m.evictOne(ctx, starved, seen, d)
}

// evictOversized ends every pod that exceeds a limit of its own.
func (m *Manager) evictOversized(ctx context.Context, d disks) (evicted bool) {
	needs := map[Need][]*v1.Pod{}
	for _, p := range m.Pods.Active() {
		n := limits(p)
		needs[n] = append(needs[n], p)
	}
	for need, pods := range needs {
		usage := m.Pods.Usage(ctx, pods, need)
		for _, p := range pods {
			u := usage[p.UID]
			if u == nil || pod.Critical(p) {
				continue
			}
			if signal, message := exceeded(Candidate{p, u}, d); signal != "" {
				m.evict(p, signal, Eviction{Message: message, Grace: graceAtOnce})
				evicted = true
			}
		}
	}
	return evicted
}

// reclaim removes what nobody needs, where that helps, and says whether it was
// enough.
func (m *Manager) reclaim(ctx context.Context, signal config.Signal, d disks) bool {
	if r := resourceOf(signal); r != v1.ResourceEphemeralStorage && r != resourceInodes {
		return false
	}
	if err := m.ReclaimDead(ctx); err != nil {
		m.Log.Warn("cannot remove what ended containers have left", "err", err)
	}
	if signal != config.NodeFSAvailable && signal != config.NodeFSInodesFree || !d.imageFS {
		if err := m.ReclaimImages(ctx); err != nil {
			m.Log.Warn("cannot remove images that nobody uses", "err", err)
		}
	}
	return enough(m.Thresholds, m.Node.Observe(ctx))
}

// evictOne ends the pod that has to go first.
func (m *Manager) evictOne(ctx context.Context, t config.Threshold, seen Observations, d disks) types.UID {
	pods := slices.DeleteFunc(m.Pods.Active(), pod.Critical)
	disk := resourceOf(t.Signal) == v1.ResourceEphemeralStorage || resourceOf(t.Signal) == resourceInodes
	usage := m.Pods.Usage(ctx, pods, Need{Memory: !disk, Volumes: disk, Layers: disk})
	candidates := make([]Candidate, len(pods))
	for i, p := range pods {
		candidates[i] = Candidate{p, usage[p.UID]}
	}
	if len(candidates) == 0 || ctx.Err() != nil {
		m.Log.Warn("the node runs short, and there is no pod that may be evicted", "signal", t.Signal)
		return ""
	}
	c := rank(t.Signal, candidates, d)[0]
	m.evict(c.Pod, string(t.Signal), Eviction{Message: message(t, seen, c), Grace: m.grace(t, c.Pod), Disrupted: true})
	return c.Pod.UID
}

// grace is what a pod gets to end: next to nothing when a hard threshold evicts it.
func (m *Manager) grace(t config.Threshold, p *v1.Pod) time.Duration {
	switch own := pod.GracePeriod(p); {
	case t.Grace == 0:
		return graceAtOnce
	case m.MaxGrace < 0:
		return own
	default:
		return min(m.MaxGrace, own)
	}
}

func (m *Manager) evict(p *v1.Pod, signal string, e Eviction) {
	m.Log.Warn("evicting a pod", "pod", pod.Describe(p), "signal", signal, "message", e.Message)
	m.Pods.Evict(p.UID, e)
	m.Evicted(signal)
}
