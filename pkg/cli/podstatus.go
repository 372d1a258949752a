package cli

import (
	"fmt"
	"regexp"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// podSummary is what one line of `get pods` says of a pod. The rules are
// kubectl's, so that scripts that read its output read ours.
type podSummary struct {
	status       string
	ready, total int
	restarts     int32
	lastRestart  time.Time
}

func summarize(p *v1.Pod) podSummary {
	s := podSummary{status: string(p.Status.Phase), total: len(p.Spec.Containers)}
	if p.Status.Reason != "" {
		s.status = p.Status.Reason
	}
	if c := condition(p, v1.PodScheduled); c != nil && c.Reason == v1.PodReasonSchedulingGated {
		s.status = v1.PodReasonSchedulingGated
	}
	sidecars := map[string]bool{}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; isSidecar(c) {
			sidecars[c.Name] = true
			s.total++
		}
	}
	initializing := s.initContainers(p, sidecars)
	if c := condition(p, v1.PodInitialized); !initializing || c != nil && c.Status == v1.ConditionTrue {
		s.appContainers(p, sidecars)
	}
	if p.DeletionTimestamp != nil {
		switch {
		case p.Status.Reason == "NodeLost":
			s.status = string(v1.PodUnknown)
		case !pod.IsTerminal(p.Status.Phase):
			s.status = "Terminating"
		}
	}
	return s
}

func isSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// initContainers says whether the pod is still at its init containers, and
// which of them it is at.
func (s *podSummary) initContainers(p *v1.Pod, sidecars map[string]bool) bool {
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		s.count(c)
		switch t, w := c.State.Terminated, c.State.Waiting; {
		case t != nil && t.ExitCode == 0:
			continue
		case sidecars[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
			continue
		case t != nil:
			s.status = "Init:" + terminatedReason(t)
		case pulling(w) != "":
			s.status = "Init:" + pulling(w)
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			s.status = "Init:" + w.Reason
		default:
			s.status = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
		return true
	}
	return false
}

// appContainers looks at the main containers. Once these run, restarts of
// plain init containers are history and only the sidecars' still count.
func (s *podSummary) appContainers(p *v1.Pod, sidecars map[string]bool) {
	s.restarts, s.lastRestart = 0, time.Time{}
	for i := range p.Status.InitContainerStatuses {
		if c := &p.Status.InitContainerStatuses[i]; sidecars[c.Name] {
			s.count(c)
		}
	}
	running := false
	// Backwards: the status of the first container wins.
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &p.Status.ContainerStatuses[i]
		s.count(c)
		switch {
		case pulling(c.State.Waiting) != "":
			s.status = pulling(c.State.Waiting)
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			s.status = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s.status = terminatedReason(c.State.Terminated)
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	if s.status == "Completed" && running {
		s.status = "NotReady"
		if c := condition(p, v1.PodReady); c != nil && c.Status == v1.ConditionTrue {
			s.status = "Running"
		}
	}
}

func (s *podSummary) count(c *v1.ContainerStatus) {
	s.restarts += c.RestartCount
	if t := c.LastTerminationState.Terminated; t != nil && s.lastRestart.Before(t.FinishedAt.Time) {
		s.lastRestart = t.FinishedAt.Time
	}
}

// pulling is "Pulling", or "Pulling:42%" once the size is known, while a
// container waits for its image. The agent says so in the message: the reason is
// kubelet's, which other clients know, and that has no word for it.
func pulling(w *v1.ContainerStateWaiting) string {
	if w == nil || w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
		return ""
	}
	m := pullMessage().FindStringSubmatch(w.Message)
	switch {
	case m == nil:
		return ""
	case m[1] == "":
		return "Pulling"
	}
	return "Pulling:" + m[1]
}

// pullMessage matches what pkg/images says of a pull that runs.
func pullMessage() *regexp.Regexp {
	return regexp.MustCompile(`^Pulling image "[^"]*"(?:$|: (?:(\d+%) \()?)`)
}

func terminatedReason(t *v1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	default:
		return fmt.Sprintf("ExitCode:%d", t.ExitCode)
	}
}

func condition(p *v1.Pod, t v1.PodConditionType) *v1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func (s podSummary) restartsText(now time.Time) string {
	if s.restarts == 0 || s.lastRestart.IsZero() {
		return fmt.Sprint(s.restarts)
	}
	return fmt.Sprintf("%d (%s ago)", s.restarts, duration.HumanDuration(now.Sub(s.lastRestart)))
}

func age(now, t time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t))
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func readinessGates(p *v1.Pod) string {
	if len(p.Spec.ReadinessGates) == 0 {
		return "<none>"
	}
	ok := 0
	for _, g := range p.Spec.ReadinessGates {
		if c := condition(p, g.ConditionType); c != nil && c.Status == v1.ConditionTrue {
			ok++
		}
	}
	return fmt.Sprintf("%d/%d", ok, len(p.Spec.ReadinessGates))
}

func podIP(p *v1.Pod) string {
	if len(p.Status.PodIPs) > 0 {
		return orNone(p.Status.PodIPs[0].IP)
	}
	return orNone(p.Status.PodIP)
}

// podType is what a Pod without kind, as in a list, is.
func podType() metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"} }
