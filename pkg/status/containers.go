package status

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	prev := previous(in.Observed, cur)
	switch cur.State {
	case runtime.StateRunning:
		st.State.Running = &v1.ContainerStateRunning{StartedAt: seconds(cur.StartedAt)}
		st.Ready, started = !in.Unready[cur.ID], true
	case runtime.StateExited:
		end := terminated(in, cur)
		if waits && lifecycle.Restarts(in.Pod, cur) {
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
		if c := &st.InitContainerStatuses[i]; !c.Ready {
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

// ready is the Ready condition of a pod whose phase is not final.
func ready(in Input, st *v1.PodStatus) (ok bool, reason, message string) {
	var missing []string
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
