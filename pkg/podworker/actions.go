package podworker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// A failed call is tried again after failBase, doubling to failMax.
const (
	failBase = time.Second
	failMax  = time.Minute
)

// failure is the back-off of one call that keeps failing.
type failure struct {
	delay time.Duration
	until time.Time
}

// errTooSoon says that an action failed a moment ago and waits for its turn.
var errTooSoon = errors.New("tried a moment ago")

// errAbandoned says that a start was given up because the pod is to end.
var errAbandoned = errors.New("the pod is to end")

// failureKey is what the failures of an action are counted under. Creating and
// starting a container count together.
func failureKey(a lifecycle.Action) string {
	switch a.Kind {
	case lifecycle.CreateSandbox:
		return ""
	case lifecycle.CreateContainer, lifecycle.StartContainer:
		return a.Container
	default:
		return string(a.Kind) + " " + a.Sandbox + a.ID
	}
}

// try does an action, unless it failed a moment ago; retry is when to look
// again, if nothing else happens.
func (s *turn) try(ctx context.Context, p *v1.Pod, observed *runtime.Pod, a lifecycle.Action) (progress bool, retry time.Time, err error) {
	key := failureKey(a)
	if f := s.failures[key]; f != nil && f.until.After(s.m.Clock()) {
		return false, f.until, errTooSoon
	}
	s.m.Log.Debug("action", "pod", pod.Describe(p), "action", a.Kind, "container", a.Container, "id", a.ID, "sandbox", a.Sandbox)
	s.m.Hook("before " + string(a.Kind))
	progress, retry, err = s.act(ctx, p, observed, a)
	s.m.Hook("after " + string(a.Kind))
	switch {
	case err == nil && retry.IsZero():
		delete(s.failures, key)
	case err == nil, ctx.Err() != nil:
	case errors.Is(err, errAbandoned):
		return true, time.Time{}, err
	default:
		return false, s.failed(p, a, err), err
	}
	return progress, retry, err
}

// act does one action. progress asks for another look at once; retry is when to
// look again although nothing failed.
func (s *turn) act(ctx context.Context, p *v1.Pod, observed *runtime.Pod, a lifecycle.Action) (progress bool, retry time.Time, err error) {
	switch a.Kind {
	case lifecycle.CreateSandbox:
		return true, time.Time{}, s.createSandbox(ctx, p, a)
	case lifecycle.StopSandbox:
		err := s.m.Sandboxes.StopSandbox(ctx, a.Sandbox)
		if err == nil {
			s.stopped[a.Sandbox] = true
		}
		return true, time.Time{}, err
	case lifecycle.RemoveSandbox:
		return false, time.Time{}, s.m.Sandboxes.RemoveSandbox(ctx, a.Sandbox)
	case lifecycle.CreateContainer:
		return s.createContainer(ctx, p, observed, a)
	case lifecycle.StartContainer:
		return true, time.Time{}, s.startContainer(ctx, p, a, a.ID)
	case lifecycle.ResizeContainer:
		return true, time.Time{}, s.resize(ctx, p, observed, a)
	case lifecycle.RunPostStart:
		s.postStart(ctx, p, observed, a)
		return false, time.Time{}, nil
	case lifecycle.RunPreStop:
		s.preStop(ctx, p, observed, a)
		return false, time.Time{}, nil
	case lifecycle.KillContainer:
		s.kill(ctx, p, observed, a)
		return false, time.Time{}, nil
	case lifecycle.RemoveContainer:
		if err := s.m.Containers.RemoveContainer(ctx, a.ID); err != nil {
			return false, time.Time{}, err
		}
		s.m.removeContainerFiles(p, observed, a.ID)
		return false, time.Time{}, nil
	case lifecycle.Release:
		return false, time.Time{}, s.releasePod(ctx)
	case lifecycle.Discard:
		return false, time.Time{}, s.discardPod(ctx)
	case lifecycle.Forget:
		return false, time.Time{}, s.forget(ctx)
	default:
		return false, time.Time{}, fmt.Errorf("pod %s: action %q is not known", pod.Describe(p), a.Kind)
	}
}

// failed records the back-off of a failed action and tells the user; it
// returns when to try again.
func (s *turn) failed(p *v1.Pod, a lifecycle.Action, err error) time.Time {
	f := s.failures[failureKey(a)]
	if f == nil {
		f = &failure{}
		s.failures[failureKey(a)] = f
	}
	f.delay = min(max(failBase, 2*f.delay), failMax)
	f.until = s.m.Clock().Add(f.delay)
	reason, message := "FailedSync", fmt.Sprintf("%s: %v", a.Kind, err)
	wait := v1.ContainerStateWaiting{Message: err.Error()}
	switch a.Kind {
	case lifecycle.CreateSandbox:
		reason, message = failureReason(err), err.Error()
		wait.Reason = status.ReasonContainerCreating
		for i := range p.Spec.Containers {
			s.waiting[p.Spec.Containers[i].Name] = wait
		}
	case lifecycle.CreateContainer:
		reason, message, wait.Reason = "Failed", "Error: "+err.Error(), "CreateContainerError"
		if errors.Is(err, runtime.ErrConfig) {
			wait.Reason = "CreateContainerConfigError"
		}
		s.waiting[a.Container] = wait
	case lifecycle.ResizeContainer:
		reason, message = "ResizeError", "Error: "+err.Error()
	case lifecycle.StartContainer:
		reason, message, wait.Reason = "Failed", "Error: "+err.Error(), "RunContainerError"
		s.waiting[a.Container] = wait
	}
	s.m.Log.Warn("an action on a pod failed; will try again", "pod", pod.Describe(p), "action", a.Kind,
		"container", a.Container, "retryIn", f.delay, "err", err)
	for _, message := range messages(err, message) {
		s.m.Recorder.PodEvent(p, a.Container, v1.EventTypeWarning, reason, message)
	}
	return f.until
}

// backingOff shows a container's crash back-off.
func (s *turn) backingOff(p *v1.Pod, name string, w lifecycle.Wait) {
	if old, ok := s.waiting[name]; ok && old.Reason == status.ReasonCrashLoopBackOff {
		return
	}
	s.waiting[name] = v1.ContainerStateWaiting{
		Reason:  status.ReasonCrashLoopBackOff,
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", w.Delay, name, p.Name, p.Namespace, p.UID),
	}
	s.m.Recorder.PodEvent(p, name, v1.EventTypeWarning, "BackOff",
		fmt.Sprintf("Back-off restarting failed container %s in pod %s_%s(%s)", name, p.Name, p.Namespace, p.UID))
}

// take waits for one of the manager's start slots.
func (s *turn) take(ctx context.Context) error {
	if s.slot {
		return nil
	}
	if err := s.m.starts.Acquire(ctx, 1); err != nil {
		return err
	}
	s.slot = true
	return nil
}

func (s *turn) createContainer(ctx context.Context, p *v1.Pod, observed *runtime.Pod, a lifecycle.Action) (bool, time.Time, error) {
	spec, _, ok := pod.Container(p, a.Container)
	if !ok {
		return true, time.Time{}, nil
	}
	img := s.m.Images.Request(ctx, p, spec, a.Attempt)
	volumeImages := map[string]string{}
	if ref := img.Ref; img.Ready {
		img = s.volumeImages(ctx, p, spec, a.Attempt, volumeImages)
		img.Ref = ref
	}
	if !img.Ready {
		reason := img.Reason
		if reason == images.ReasonPulling {
			// A running pull shows as kubelet shows it; its progress is the message.
			reason = status.ReasonContainerCreating
			if a.Init || len(p.Spec.InitContainers) > 0 {
				reason = status.ReasonPodInitializing
			}
		}
		s.waiting[a.Container] = v1.ContainerStateWaiting{Reason: reason, Message: img.Message}
		return false, img.RetryAt, nil
	}
	if err := s.take(ctx); err != nil {
		return false, time.Time{}, err
	}
	sandbox := observed.Sandbox()
	o, err := s.containerOptions(ctx, p, spec, sandbox, a, img.Ref, volumeImages)
	if err == nil {
		o.Target, err = target(p, observed, a.Container)
	}
	if err != nil {
		return false, time.Time{}, err
	}
	if err := errors.Join(s.m.clearNotes(p.UID, spec.Name, a.Attempt), s.m.noteGiven(p.UID, spec.Name, a.Attempt, &spec.Resources)); err != nil {
		return false, time.Time{}, err
	}
	id, err := s.m.Containers.CreateContainer(ctx, p, spec, o)
	if err != nil {
		return false, time.Time{}, err
	}
	s.m.linkLog(p, spec.Name, id, o)
	s.m.Recorder.PodEvent(p, spec.Name, v1.EventTypeNormal, "Created", "Container created")
	s.m.Hook("between CreateContainer and StartContainer")
	a.Kind = lifecycle.StartContainer
	if err := s.startContainer(ctx, p, a, id); err != nil {
		return true, s.failed(p, a, err), nil
	}
	return true, time.Time{}, nil
}

func (s *turn) startContainer(ctx context.Context, p *v1.Pod, a lifecycle.Action, id string) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	if err := s.m.Containers.StartContainer(ctx, id); err != nil {
		s.m.Metrics.ContainerStarted(a.Init, "RunContainerError")
		return err
	}
	delete(s.failures, failureKey(a))
	delete(s.waiting, a.Container)
	s.m.Metrics.ContainerStarted(a.Init, "")
	s.m.Recorder.PodEvent(p, a.Container, v1.EventTypeNormal, "Started", "Container started")
	return nil
}

// kill stops a container in the background, so that a shorter grace period can
// still overtake a longer one. Its hook has a part of that time.
func (s *turn) kill(ctx context.Context, p *v1.Pod, observed *runtime.Pod, a lifecycle.Action) {
	s.mu.Lock()
	_, again := s.killing[a.ID]
	s.killing[a.ID] = a.Deadline
	s.mu.Unlock()
	if !again {
		s.m.Recorder.PodEvent(p, a.Container, v1.EventTypeNormal, "Killing", cmp.Or(a.Message, "Stopping container "+a.Container))
	}
	hook := s.preStop(ctx, p, observed, a)
	w := s.worker
	s.kills.Go(func() {
		least := time.Duration(0)
		if hook != nil {
			least = lifecycle.MinGrace
			hook.wait(ctx, a.Deadline.Sub(w.m.Clock()))
		}
		w.m.Hook("between preStop hook and StopContainer")
		err := w.m.Containers.StopContainer(ctx, a.ID, max(least, a.Deadline.Sub(w.m.Clock())))
		if err != nil && ctx.Err() == nil {
			w.m.Log.Warn("cannot stop a container; will try again", "pod", pod.Describe(p), "container", a.Container, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(runtimeRetry):
			}
		}
		w.mu.Lock()
		if w.killing[a.ID].Equal(a.Deadline) {
			delete(w.killing, a.ID)
		}
		w.mu.Unlock()
		w.poke()
	})
}

// releasePod gives back what a pod with nothing running holds.
func (s *turn) releasePod(ctx context.Context) error {
	if err := s.m.Volumes.TearDown(ctx, s.uid); err != nil {
		return err
	}
	if err := s.m.Cgroups.Remove(ctx, s.uid); err != nil {
		return err
	}
	s.mounted = nil
	s.released.Store(true)
	s.m.freed()
	return nil
}

func (s *turn) forget(ctx context.Context) error {
	if err := s.m.removeTraces(ctx, s.uid); err != nil {
		return err
	}
	s.m.Images.Forget(s.uid)
	if s.orphan != nil {
		return nil
	}
	return s.m.Store.Finished(s.uid)
}

// discardPod removes the files of a finished pod; its checkpoint stays.
func (s *turn) discardPod(ctx context.Context) error {
	if err := s.m.removeTraces(ctx, s.uid); err != nil {
		return err
	}
	s.discarded.Store(true)
	return nil
}

// containerOptions resolves everything that the container's config needs.
func (s *turn) containerOptions(ctx context.Context, p *v1.Pod, spec *v1.Container, sandbox *runtime.Sandbox,
	a lifecycle.Action, image string, volumeImages map[string]string) (runtime.ContainerOptions, error) {
	if err := s.prepare(ctx, p); err != nil {
		return runtime.ContainerOptions{}, err
	}
	o := runtime.ContainerOptions{
		SandboxID: a.Sandbox, Sandbox: s.sandboxOptions(p, sandbox.Attempt), Attempt: a.Attempt, Init: a.Init,
		ImageRef: image, LogPath: logPath(spec.Name, a.Attempt),
		OOMScore:    s.m.oomScore(p, spec),
		Annotations: map[string]string{pod.AnnotationBackoffLevel: strconv.Itoa(a.Level)},
	}
	if a.Reset != "" {
		o.Annotations[pod.AnnotationReset] = a.Reset
	}
	env := environment{objects: s.m.Objects, pod: p, podIPs: sandbox.IPs, hostIPs: s.m.NodeIPs, allocatable: s.m.Allocatable()}
	if p.Spec.HostNetwork {
		env.podIPs = s.m.NodeIPs
	}
	var err error
	if o.Env, err = env.environ(spec); err != nil {
		return runtime.ContainerOptions{}, err
	}
	lookup := env.lookup
	for _, c := range spec.Command {
		o.Command = append(o.Command, pod.Expand(c, lookup))
	}
	for _, c := range spec.Args {
		o.Args = append(o.Args, pod.Expand(c, lookup))
	}
	how, err := s.mountOptions(ctx, spec, lookup, volumeImages, o.Sandbox.Handler)
	if err != nil {
		return runtime.ContainerOptions{}, configError(err)
	}
	if o.Mounts, err = s.mounts(ctx, p, spec, sandbox, a.Attempt, how); err != nil {
		return runtime.ContainerOptions{}, configError(err)
	}
	o.Groups = volumes.Groups(s.mounted)
	o.Devices, err = volumes.Devices(p, spec, s.mounted)
	return o, configError(err)
}
