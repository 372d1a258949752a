package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// containers computes one status per container of the spec, in its order.
func containers(in Input, specs []v1.Container, old []v1.ContainerStatus, waiting string) []v1.ContainerStatus {
	if len(specs) == 0 {
		return nil
	}
	out := make([]v1.ContainerStatus, 0, len(specs))
	for i := range specs {
		out = append(out, container(in, &specs[i], find(old, specs[i].Name), waiting))
	}
	return out
}

// resources are what a running container was given, and what the node has set
// aside for it.
func resources(st *v1.ContainerStatus, spec *v1.Container, applied *v1.ResourceRequirements) {
	if applied == nil {
		applied = &spec.Resources
	}
	st.Resources = &v1.ResourceRequirements{Limits: applied.Limits, Requests: applied.Requests}
	st.AllocatedResources = spec.Resources.Requests
}

// volumeMounts are what a running container has mounted, and how.
func volumeMounts(spec *v1.Container) (out []v1.VolumeMountStatus) {
	for _, m := range spec.VolumeMounts {
		s := v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			// IfPossible is settled by what the runtime can, which is not told here.
			if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == v1.RecursiveReadOnlyEnabled {
				mode = v1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		out = append(out, s)
	}
	return out
}

// maxMessages is what the termination messages of a pod may take together.
const maxMessages = 12 << 10

// limitMessages gives each container of the pod the same share of that.
func limitMessages(st *v1.PodStatus) {
	share := maxMessages / max(1, len(st.InitContainerStatuses)+len(st.ContainerStatuses)+len(st.EphemeralContainerStatuses))
	for _, list := range [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses} {
		for i := range list {
			for _, t := range []*v1.ContainerStateTerminated{list[i].State.Terminated, list[i].LastTerminationState.Terminated} {
				if t != nil && len(t.Message) > share {
					t.Message = strings.ToValidUTF8(t.Message[:share], "")
				}
			}
		}
	}
}

// ephemeral are the statuses of the containers for debugging, which are never
// ready: nothing waits for them.
func ephemeral(in Input) (out []v1.ContainerStatus) {
	for i := range in.Pod.Spec.EphemeralContainers {
		spec := (*v1.Container)(&in.Pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		st := container(in, spec, find(in.Pod.Status.EphemeralContainerStatuses, spec.Name), ReasonContainerCreating)
		st.Ready, st.Started = false, nil
		out = append(out, st)
	}
	return out
}

func find(list []v1.ContainerStatus, name string) *v1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

func container(in Input, spec *v1.Container, old *v1.ContainerStatus, waiting string) v1.ContainerStatus {
	cur := in.Observed.Newest(spec.Name)
	if cur == nil && old != nil && old.ContainerID != "" && (old.State.Terminated != nil || in.Pod.DeletionTimestamp != nil) {
		// Somebody removed a container that had run; what it came to is still true.
		return *old
	}
	started := false
	st := v1.ContainerStatus{Name: spec.Name, Image: spec.Image, Started: &started}
	wait, waits := in.Waiting[spec.Name]
	if !waits {
		wait = v1.ContainerStateWaiting{Reason: waiting}
	}
	if cur == nil {
		st.State.Waiting = &wait
		return st
	}
	st.RestartCount = int32(cur.Attempt)
	st.ImageID = cur.ImageRef
	st.ContainerID = containerID(in, cur)
	if cur.SpecImage != "" {
		st.Image = cur.SpecImage
	}
	if cur.User != nil {
		st.User = &v1.ContainerUser{Linux: cur.User}
	}
	prev := previous(in.Observed, cur)
	switch cur.State {
	case runtime.StateRunning:
		known := lifecycle.Known{Hooked: true, Started: true, Ready: true}
		if k, ok := in.Known[cur.ID]; ok {
			known = k
		}
		if !known.Hooked {
			// It runs once its hook has ended, too.
			st.State.Waiting = &v1.ContainerStateWaiting{Reason: waiting}
			break
		}
		st.State.Running = &v1.ContainerStateRunning{StartedAt: seconds(cur.StartedAt)}
		st.Ready, started = known.Ready, known.Started
		resources(&st, spec, known.Applied)
		st.VolumeMounts = volumeMounts(spec)
	case runtime.StateExited:
		end := terminated(in, cur)
		if waits && (pod.IsSidecar(spec) || lifecycle.Restarts(in.Pod, spec, cur)) {
			// It will run again: what it waits for is its state, the exit its last one.
			st.State.Waiting = &wait
			prev, st.LastTerminationState.Terminated = nil, end
		} else {
			st.State.Terminated = end
		}
	default:
		st.State.Waiting = &wait
	}
	if prev != nil && st.LastTerminationState.Terminated == nil {
		st.LastTerminationState.Terminated = terminated(in, prev)
	}
	return st
}

// previous is the newest dead container of the same name before cur.
func previous(o runtime.Pod, cur *runtime.Container) *runtime.Container {
	for i := range o.Containers {
		c := &o.Containers[i]
		if c.Name == cur.Name && c.Attempt < cur.Attempt && c.State == runtime.StateExited {
			return c
		}
	}
	return nil
}

func terminated(in Input, c *runtime.Container) *v1.ContainerStateTerminated {
	t := &v1.ContainerStateTerminated{
		ExitCode:    c.ExitCode,
		Reason:      c.Reason,
		Message:     in.Messages[c.ID],
		StartedAt:   seconds(c.StartedAt),
		FinishedAt:  seconds(c.FinishedAt),
		ContainerID: containerID(in, c),
	}
	if t.Message == "" {
		t.Message = c.Message
	}
	if t.Reason == "" {
		t.Reason = "Completed"
		if c.ExitCode != 0 {
			t.Reason = "Error"
		}
	}
	return t
}

func containerID(in Input, c *runtime.Container) string {
	return in.RuntimeName + "://" + c.ID
}

func seconds(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.Time{Time: t.Truncate(time.Second)}
}

// initialized is the Initialized condition.
func initialized(in Input, st *v1.PodStatus) (ok bool, reason, message string) {
	var missing []string
	for i := range st.InitContainerStatuses {
		c := &st.InitContainerStatuses[i]
		done := c.Ready
		if pod.IsSidecar(&in.Pod.Spec.InitContainers[i]) {
			done = c.Started != nil && *c.Started
		}
		if !done {
			missing = append(missing, c.Name)
		}
	}
	if len(missing) == 0 && (in.Refused == nil || len(in.Pod.Spec.InitContainers) == 0) {
		return true, "", ""
	}
	// Init containers that were collected or run again in a new sandbox do not
	// take back what they achieved while the app containers run.
	for i := range st.ContainerStatuses {
		if st.ContainerStatuses[i].State.Running != nil {
			return true, "", ""
		}
	}
	return false, reasonNotInitialized, fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(missing, " "))
}

// open says whether the conditions that the pod's readiness gates name are True.
func open(in Input, conditions []v1.PodCondition) (ok bool, message string) {
	var closed []string
	for _, g := range in.Pod.Spec.ReadinessGates {
		i := slices.IndexFunc(conditions, func(c v1.PodCondition) bool { return c.Type == g.ConditionType })
		switch {
		case i < 0:
			closed = append(closed, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		case conditions[i].Status != v1.ConditionTrue:
			closed = append(closed, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, conditions[i].Status))
		}
	}
	return len(closed) == 0, strings.Join(closed, ", ")
}

// containersReady is the ContainersReady condition of a pod whose phase is not final.
func containersReady(in Input, st *v1.PodStatus) (ok bool, reason, message string) {
	var missing []string
	for i := range st.InitContainerStatuses {
		if c := &st.InitContainerStatuses[i]; !c.Ready && pod.IsSidecar(&in.Pod.Spec.InitContainers[i]) {
			missing = append(missing, c.Name)
		}
	}
	for i := range st.ContainerStatuses {
		if c := &st.ContainerStatuses[i]; !c.Ready {
			missing = append(missing, c.Name)
		}
	}
	if in.Refused != nil || len(missing) > 0 {
		return false, reasonNotReady, fmt.Sprintf("containers with unready status: [%s]", strings.Join(missing, " "))
	}
	return true, "", ""
}
