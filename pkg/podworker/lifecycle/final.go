package lifecycle

import (
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Final says that the pod's containers have all had their last run: nothing
// will be started again under its restart policy, or to have other resources.
// Sidecars do not count.
func Final(p *v1.Pod, o runtime.Pod, known map[string]Known) bool {
	if InitFailed(p, o) {
		return !mainAlive(p, o)
	}
	for i := range p.Spec.Containers {
		spec := &p.Spec.Containers[i]
		c := o.Newest(spec.Name)
		if c == nil || c.State != runtime.StateExited || Restarts(p, spec, c) || stale(p, o, c) {
			return false
		}
		if _, again := Resized(spec, known[c.ID].Applied); again {
			return false
		}
	}
	return true
}

// InitFailed says that an init container failed for good.
func InitFailed(p *v1.Pod, o runtime.Pod) bool {
	for i := range p.Spec.InitContainers {
		spec := &p.Spec.InitContainers[i]
		c := o.Newest(spec.Name)
		if c != nil && c.State == runtime.StateExited && c.ExitCode != 0 && !Restarts(p, spec, c) && !stale(p, o, c) {
			return true
		}
	}
	return false
}

// Restarts says whether a container is to run again after this exit: by the
// first of its rules that matches, its own restart policy, or the pod's.
func Restarts(p *v1.Pod, spec *v1.Container, c *runtime.Container) bool {
	if _, matched := matchedRule(spec, c.ExitCode); matched {
		return true // both actions begin it anew
	}
	policy := p.Spec.RestartPolicy
	if spec.RestartPolicy != nil {
		policy = v1.RestartPolicy(*spec.RestartPolicy)
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return c.ExitCode != 0
	default:
		return true
	}
}

// matchedRule is the action of a container's first rule for an exit code.
func matchedRule(spec *v1.Container, code int32) (v1.ContainerRestartRuleAction, bool) {
	for _, r := range spec.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == v1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action, true
		}
	}
	return "", false
}

// resetBy is the latest container of the sandbox whose exit has all of the
// pod's containers begin anew, by one of its rules; nil: there is none.
func resetBy(p *v1.Pod, o runtime.Pod) (source *runtime.Container) {
	sandbox := o.Sandbox()
	if sandbox == nil || !pod.HasResetRule(p) {
		return nil
	}
	for i := range o.Containers {
		c := &o.Containers[i]
		if c.State != runtime.StateExited || c.SandboxID != sandbox.ID || source != nil && !c.FinishedAt.After(source.FinishedAt) {
			continue
		}
		spec, _, ok := pod.Container(p, c.Name)
		if !ok {
			continue
		}
		if action, _ := matchedRule(spec, c.ExitCode); action == v1.ContainerRestartRuleActionRestartAllContainers {
			source = c
		}
	}
	return source
}

// stale says that a container was made before all of the pod was to begin anew.
// The note on what is made after that counts, whatever the clock says.
func stale(p *v1.Pod, o runtime.Pod, c *runtime.Container) bool {
	source := resetBy(p, o)
	return source != nil && c.SandboxID == source.SandboxID && !isEphemeral(p, c.Name) && c.Annotations[pod.AnnotationReset] != source.ID && !c.CreatedAt.After(source.FinishedAt)
}

// Resetting says that all of the pod is to begin anew and has not done so yet.
func Resetting(p *v1.Pod, o runtime.Pod) bool {
	for i := range o.Containers {
		if c := &o.Containers[i]; o.Newest(c.Name) == c && stale(p, o, c) {
			return true
		}
	}
	return false
}

func isEphemeral(p *v1.Pod, name string) bool {
	return slices.ContainsFunc(p.Spec.EphemeralContainers, func(e v1.EphemeralContainer) bool { return e.Name == name })
}

// activeUntil is when the pod has been active for long enough.
func activeUntil(p *v1.Pod, accepted time.Time) (at time.Time, limited bool) {
	if p.Spec.ActiveDeadlineSeconds == nil {
		return time.Time{}, false
	}
	return accepted.Add(pod.Grace(*p.Spec.ActiveDeadlineSeconds)), true
}

// Expired says that the pod was active for longer than its
// activeDeadlineSeconds, and had not come to its own end by then.
func Expired(p *v1.Pod, o runtime.Pod, accepted, now time.Time) bool {
	at, limited := activeUntil(p, accepted)
	return limited && !now.Before(at) && !(Final(p, o, nil) && !lastEnd(p, o).After(at))
}

// lastEnd is when the last container that is no sidecar ended; zero when none has.
func lastEnd(p *v1.Pod, o runtime.Pod) (last time.Time) {
	for i := range o.Containers {
		if c := &o.Containers[i]; sidecar(p, c.Name) < 0 && c.FinishedAt.After(last) {
			last = c.FinishedAt
		}
	}
	return last
}

// sidecar is the place of a sidecar among the init containers; -1: it is none.
func sidecar(p *v1.Pod, name string) int {
	return slices.IndexFunc(p.Spec.InitContainers, func(c v1.Container) bool { return c.Name == name && pod.IsSidecar(&c) })
}

// mainAlive says that a container runs that is no sidecar.
func mainAlive(p *v1.Pod, o runtime.Pod) bool {
	for i := range o.Containers {
		if c := &o.Containers[i]; alive(c) && sidecar(p, c.Name) < 0 {
			return true
		}
	}
	return false
}

// alive counts an unknown state as running: something may be there, and only a
// stop makes sure.
func alive(c *runtime.Container) bool {
	return c.State == runtime.StateRunning || c.State == runtime.StateUnknown
}
