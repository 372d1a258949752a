package pod

import (
	"fmt"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Summary is one line about a pod: READY, STATUS and RESTARTS as kubectl has
// them, so that scripts that read its output read ours.
type Summary struct {
	Ready, Total int
	Status       string
	Restarts     int32
	// LastRestart is when a container that was started again had ended; zero
	// when that is not known.
	LastRestart time.Time
}

// Summarise follows kubectl's rules: the first init container that is not done
// decides while the pod initialises, after that the first container that has
// something to say.
func Summarise(p *v1.Pod) Summary {
	s := Summary{Status: string(p.Status.Phase), Total: len(p.Spec.Containers)}
	if p.Status.Reason != "" {
		s.Status = p.Status.Reason
	}
	if c := condition(p, v1.PodScheduled); c != nil && c.Reason == v1.PodReasonSchedulingGated {
		s.Status = v1.PodReasonSchedulingGated
	}
	sidecars := map[string]bool{}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			sidecars[c.Name] = true
			s.Total++
		}
	}
	initialising, side := s.initContainers(p, sidecars)
	if !initialising || conditionTrue(p, v1.PodInitialized) {
		// Restarts of init containers are history by now, but for those of
		// sidecars, which run beside the others.
		s.Restarts, s.LastRestart = side.Restarts, side.LastRestart
		s.containers(p)
	}
	switch {
	case p.DeletionTimestamp == nil:
	case p.Status.Reason == "NodeLost":
		s.Status = string(v1.PodUnknown)
	case !IsTerminal(p.Status.Phase):
		s.Status = "Terminating"
	}
	return s
}

// initContainers says whether one of them is still to be done, and counts the
// restarts of the sidecars by themselves.
func (s *Summary) initContainers(p *v1.Pod, sidecars map[string]bool) (initialising bool, side Summary) {
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		s.countRestarts(c)
		if sidecars[c.Name] {
			side.countRestarts(c)
		}
		switch ended, waiting := c.State.Terminated, c.State.Waiting; {
		case ended != nil && ended.ExitCode == 0:
			continue
		case sidecars[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.Ready++
			}
			continue
		case ended != nil:
			s.Status = "Init:" + endReason(ended)
		case waiting != nil && waiting.Reason != "" && waiting.Reason != "PodInitializing":
			s.Status = "Init:" + waiting.Reason
		default:
			s.Status = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
		return true, side
	}
	return false, side
}

func (s *Summary) containers(p *v1.Pod) {
	running, failed := false, ""
	// Backwards: the word of the first container stays.
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &p.Status.ContainerStatuses[i]
		s.countRestarts(c)
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			s.Status = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s.Status = endReason(c.State.Terminated)
			if c.State.Terminated.ExitCode != 0 {
				failed = s.Status
			}
		case c.Ready && c.State.Running != nil:
			running = true
			s.Ready++
		}
	}
	switch {
	case s.Status != "Completed":
	case running && conditionTrue(p, v1.PodReady):
		s.Status = "Running"
	case failed != "":
		s.Status = failed
	case running:
		s.Status = "NotReady"
	}
}

func (s *Summary) countRestarts(c *v1.ContainerStatus) {
	s.Restarts += c.RestartCount
	if t := c.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(s.LastRestart) {
		s.LastRestart = t.FinishedAt.Time
	}
}

func endReason(t *v1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

// RestartsText is "3 (2m ago)", or "3" when nobody knows since when.
func (s Summary) RestartsText(now time.Time) string {
	n := strconv.Itoa(int(s.Restarts))
	if s.Restarts == 0 || s.LastRestart.IsZero() {
		return n
	}
	return fmt.Sprintf("%s (%s ago)", n, duration.HumanDuration(now.Sub(s.LastRestart)))
}

// ReadinessGates is how many of the pod's gates are open, of how many.
func ReadinessGates(p *v1.Pod) string {
	if len(p.Spec.ReadinessGates) == 0 {
		return "<none>"
	}
	open := 0
	for _, g := range p.Spec.ReadinessGates {
		if conditionTrue(p, g.ConditionType) {
			open++
		}
	}
	return fmt.Sprintf("%d/%d", open, len(p.Spec.ReadinessGates))
}

func condition(p *v1.Pod, t v1.PodConditionType) *v1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func conditionTrue(p *v1.Pod, t v1.PodConditionType) bool {
	c := condition(p, t)
	return c != nil && c.Status == v1.ConditionTrue
}
