package podworker

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// RelistPatience is how many intervals a relist may take.
const RelistPatience = 3

// relistLoop is the safety net behind events: now and then it compares what
// the runtime shows with what each worker last saw.
func (m *Manager) relistLoop(ctx context.Context) error {
	tick := time.NewTicker(m.RelistInterval)
	defer tick.Stop()
	for {
		m.beat.Store(m.Clock().UnixNano())
		if err := m.relistOnce(ctx); err != nil && ctx.Err() == nil {
			m.Log.Warn("cannot list what the runtime runs; will try again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-m.relist:
		}
	}
}

func (m *Manager) relistOnce(ctx context.Context) error {
	began := m.Clock()
	// A runtime that hangs must not stop the loop: the watchdog counts its rounds.
	asking, cancel := context.WithTimeout(ctx, RelistPatience*m.RelistInterval)
	pods, err := m.Observer.Pods(asking)
	cancel()
	if err != nil {
		return err
	}
	m.Metrics.Relisted(m.Clock().Sub(began))
	live := map[types.UID]bool{}
	ready, states := 0, map[string]int{}
	for i := range pods {
		live[pods[i].UID] = true
		m.compare(&pods[i])
		if s := pods[i].Sandbox(); s != nil && s.Ready {
			ready++
		}
		for j := range pods[i].Containers {
			states[string(pods[i].Containers[j].State)]++
		}
	}
	m.Metrics.Running(ready, states)
	m.mu.Lock()
	var lost []*worker
	for uid, w := range m.workers {
		if !live[uid] && w.lastSeen() != "" {
			lost = append(lost, w)
		}
	}
	m.mu.Unlock()
	for _, w := range lost {
		w.poke()
	}
	m.sweepFolders(live)
	return nil
}

// compare wakes the worker whose last look differs from p, and adopts orphans.
func (m *Manager) compare(p *runtime.Pod) {
	m.mu.Lock()
	w := m.workers[p.UID]
	m.mu.Unlock()
	switch {
	case w != nil && w.lastSeen() != fingerprint(p):
		w.poke()
	case w != nil:
	default:
		if _, ok := m.Store.ByUID(p.UID); ok {
			m.Wake(p.UID)
			return
		}
		m.endOrphan(p)
	}
}

// endOrphan ends a pod of ours that no source knows, once the source it came
// from has said so itself.
func (m *Manager) endOrphan(p *runtime.Pod) {
	source, adopted := "", false
	if s := p.Sandbox(); s != nil {
		source, adopted = s.Annotations[pod.AnnotationConfigSource], s.Labels[pod.LabelOwner] == ""
	}
	// kubelet's "api" is an API server, which has not been asked.
	if adopted && source == store.SourcePush || !m.Store.Synced(source) {
		return
	}
	grace := orphanGrace(p)
	deadline := metav1.NewTime(m.Clock().Add(pod.Grace(grace)))
	rec := store.Record{Source: source, Pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: p.Name, Namespace: p.Namespace, UID: p.UID,
		DeletionTimestamp: &deadline, DeletionGracePeriodSeconds: &grace,
	}}}
	m.Log.Info("ending a pod that no source knows", "pod", pod.Describe(rec.Pod), "source", source)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.workers[p.UID] == nil && m.ctx.Err() == nil {
		m.start(p.UID, &rec).poke()
	}
}

// orphanGrace reads the grace period that was noted when a container was made.
func orphanGrace(p *runtime.Pod) int64 {
	for i := range p.Containers {
		n, err := strconv.ParseInt(p.Containers[i].Annotations[pod.AnnotationPodTerminationGracePeriod], 10, 64)
		if err == nil && n >= 0 {
			return n
		}
	}
	return v1.DefaultTerminationGracePeriodSeconds
}

// sweepFolders finishes the removal of pods whose last traces are on disk
// only: the agent was killed after the runtime had forgotten them.
func (m *Manager) sweepFolders(live map[types.UID]bool) {
	entries, err := os.ReadDir(m.PodsDir)
	if err != nil {
		return
	}
	for _, e := range entries {
		uid := types.UID(e.Name())
		if live[uid] || !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		m.mu.Lock()
		busy := m.workers[uid] != nil
		m.mu.Unlock()
		if _, known := m.Store.ByUID(uid); known || busy {
			continue
		}
		if err := m.removeTraces(m.ctx, uid); err != nil {
			m.Log.Warn("cannot clean up after a pod that is gone; will try again", "uid", uid, "err", err)
		}
	}
}

// fingerprint is what a relist compares: identities and states.
func fingerprint(p *runtime.Pod) string {
	var b strings.Builder
	for i := range p.Sandboxes {
		fmt.Fprintf(&b, "%s %t;", p.Sandboxes[i].ID, p.Sandboxes[i].Ready)
	}
	for i := range p.Containers {
		fmt.Fprintf(&b, "%s %s;", p.Containers[i].ID, p.Containers[i].State)
	}
	return b.String()
}
