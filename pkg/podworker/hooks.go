package podworker

import (
	"context"
	"encoding/json"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/probe"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
)

// hookID names a container's hook: noteHooked is the one after its start,
// noteStopped the one before its end.
type hookID struct {
	container string
	note      note
}

// hook is one that was begun. It goes on while its container runs.
type hook struct {
	cancel context.CancelFunc
	done   chan struct{}
	good   bool // to be read once done
}

// wait waits for the hook's end, but no longer than limit.
func (h *hook) wait(ctx context.Context, limit time.Duration) {
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-ctx.Done():
	case <-h.done:
	case <-late.C:
	}
}

func (h *hook) ended() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// hooksOf is what the hooks of a running container have come to.
func (w *worker) hooksOf(p *v1.Pod, spec *v1.Container, c *runtime.Container) lifecycle.Known {
	w.mu.Lock()
	post, pre := w.hooks[hookID{c.ID, noteHooked}], w.hooks[hookID{c.ID, noteStopped}]
	w.mu.Unlock()
	known := lifecycle.Known{Stopping: pre != nil, Hooked: spec.Lifecycle == nil || spec.Lifecycle.PostStart == nil}
	switch {
	case known.Hooked:
	case post == nil:
		// A container that kubelet made has had its hook.
		known.Hooked = w.notesOf(p.UID, c)[noteHooked] || c.Labels[pod.LabelOwner] == "" && c.Labels[pod.LabelPodUID] != ""
	case post.ended() && post.good:
		known.Hooked = true
	case post.ended():
		known.Failed = lifecycle.FailedPostStart
	}
	return known
}

// postStart runs the hook of a container that was just started, once.
func (s *turn) postStart(ctx context.Context, p *v1.Pod, observed *runtime.Pod, a lifecycle.Action) {
	spec, _, ok := pod.Container(p, a.Container)
	if !ok || spec.Lifecycle == nil || spec.Lifecycle.PostStart == nil {
		return
	}
	s.beginHook(ctx, p, observed, a, spec, noteHooked, spec.Lifecycle.PostStart)
}

// preStop runs the hook of a container that is to end, once; nil: it has none,
// or no time for it.
func (s *turn) preStop(ctx context.Context, p *v1.Pod, observed *runtime.Pod, a lifecycle.Action) *hook {
	spec, _, ok := pod.Container(p, a.Container)
	if !ok {
		spec = noted(observed.Newest(a.Container))
	}
	if spec == nil || spec.Lifecycle == nil || spec.Lifecycle.PreStop == nil || !a.Deadline.After(s.m.Clock()) {
		return nil
	}
	return s.beginHook(ctx, p, observed, a, spec, noteStopped, spec.Lifecycle.PreStop)
}

// noted is what was noted on a container of a pod that no source knows any more,
// as far as its end needs it.
func noted(c *runtime.Container) *v1.Container {
	if c == nil || c.Annotations[pod.AnnotationPreStop] == "" {
		return nil
	}
	spec := &v1.Container{Name: c.Name, Lifecycle: &v1.Lifecycle{}}
	if json.Unmarshal([]byte(c.Annotations[pod.AnnotationPreStop]), &spec.Lifecycle.PreStop) != nil {
		return nil
	}
	_ = json.Unmarshal([]byte(c.Annotations[pod.AnnotationContainerPorts]), &spec.Ports) // it may have none
	return spec
}

// beginHook begins a hook, unless it was begun already; nil: an earlier agent
// has seen its end.
func (s *turn) beginHook(ctx context.Context, p *v1.Pod, observed *runtime.Pod, a lifecycle.Action,
	spec *v1.Container, n note, handler *v1.LifecycleHandler) *hook {
	id := hookID{a.ID, n}
	c := observed.Newest(a.Container)
	if c == nil || c.ID != a.ID || c.State != runtime.StateRunning {
		return nil
	}
	s.mu.Lock()
	h := s.hooks[id]
	s.mu.Unlock()
	if h != nil {
		return h
	}
	if s.notesOf(p.UID, c)[n] {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	h = &hook{cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	s.hooks[id] = h
	s.mu.Unlock()
	target := probe.Container{Spec: spec, ID: a.ID}
	if ips := status.Addresses(p, observed, s.m.NodeIPs); len(ips) > 0 {
		target.Host = ips[0]
	}
	w := s.worker
	s.kills.Go(func() {
		defer w.poke()
		defer close(h.done)
		defer cancel()
		err := w.m.Probes.Hook(ctx, p, target, handler)
		if ctx.Err() != nil {
			return // its container is gone, or the agent ends
		}
		if err != nil {
			w.hookFailed(p, spec.Name, n, err)
			return
		}
		h.good = true
		w.m.Hook("before a hook is noted down as " + string(n))
		if err := w.m.setNote(p.UID, c, n, true); err != nil {
			w.m.Log.Warn("cannot note down that a hook has ended; the next agent may run it again", "pod", pod.Describe(p), "err", err)
		}
	})
	return h
}

// hookFailed tells the user. What the hook said may hold secrets: it is in the
// log only.
func (w *worker) hookFailed(p *v1.Pod, container string, n note, err error) {
	reason, message := "FailedPostStartHook", "PostStartHook failed"
	if n == noteStopped {
		reason, message = "FailedPreStopHook", "PreStopHook failed"
	}
	w.m.Log.Warn("a hook failed", "pod", pod.Describe(p), "container", container, "reason", reason, "err", err)
	w.m.Recorder.PodEvent(p, container, v1.EventTypeWarning, reason, message)
}
