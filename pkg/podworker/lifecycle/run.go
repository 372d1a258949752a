package lifecycle

import (
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Final says that the pod's containers have all had their last run: nothing
// will be started again under its restart policy.
func Final(p *v1.Pod, o runtime.Pod) bool {
	if InitFailed(p, o) {
		return !anyAlive(o)
	}
	for i := range p.Spec.Containers {
		c := o.Newest(p.Spec.Containers[i].Name)
		if c == nil || c.State != runtime.StateExited || Restarts(p, c) {
			return false
		}
	}
	return true
}

// InitFailed says that an init container failed for good.
func InitFailed(p *v1.Pod, o runtime.Pod) bool {
	if p.Spec.RestartPolicy != v1.RestartPolicyNever {
		return false
	}
	for i := range p.Spec.InitContainers {
		if c := o.Newest(p.Spec.InitContainers[i].Name); c != nil && c.State == runtime.StateExited && c.ExitCode != 0 {
			return true
		}
	}
	return false
}

// Restarts says whether the restart policy wants another run after this exit.
func Restarts(p *v1.Pod, c *runtime.Container) bool {
	switch p.Spec.RestartPolicy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return c.ExitCode != 0
	default:
		return true
	}
}

func anyAlive(o runtime.Pod) bool {
	for i := range o.Containers {
		if alive(&o.Containers[i]) {
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

// run brings a wanted pod towards running.
func run(in Input) Plan {
	var plan Plan
	sandbox := in.Observed.Sandbox()
	if sandbox == nil || !sandbox.Ready {
		replaceSandbox(in, &plan)
		return plan
	}
	if killChanged(in, sandbox, &plan) {
		return plan
	}
	if initDone(in, sandbox) {
		for i := range in.Pod.Spec.Containers {
			step(in, sandbox, &in.Pod.Spec.Containers[i], false, &plan)
		}
	} else {
		runInit(in, sandbox, &plan)
	}
	// Last: a network that cannot be taken down must not hold up what runs now.
	for _, old := range in.Observed.Sandboxes[1:] {
		if old.Ready || !in.Stopped[old.ID] {
			plan.add(Action{Kind: StopSandbox, Sandbox: old.ID})
		}
	}
	collect(in, &plan)
	return plan
}

// replaceSandbox ends what is left of a dead sandbox before a new one is made:
// the old one's containers and address must be gone first.
func replaceSandbox(in Input, plan *Plan) {
	attempt := uint32(0)
	for _, s := range in.Observed.Sandboxes {
		if s.Ready || !in.Stopped[s.ID] {
			plan.add(Action{Kind: StopSandbox, Sandbox: s.ID})
		}
		attempt = max(attempt, s.Attempt+1)
	}
	for i := range in.Observed.Containers {
		if c := &in.Observed.Containers[i]; c.State == runtime.StateCreated {
			plan.add(Action{Kind: RemoveContainer, Container: c.Name, ID: c.ID})
		}
	}
	plan.add(Action{Kind: CreateSandbox, Attempt: attempt})
}

// killChanged stops running containers whose image is no longer the desired
// one, and those of sandboxes that are not current. It reports whether a wait
// is needed before anything else.
func killChanged(in Input, sandbox *runtime.Sandbox, plan *Plan) bool {
	wait := false
	for i := range in.Observed.Containers {
		c := &in.Observed.Containers[i]
		if !alive(c) {
			continue
		}
		reason := ""
		spec, _, known := pod.Container(in.Pod, c.Name)
		switch {
		case c.SandboxID != sandbox.ID:
			reason = "its sandbox was replaced"
		case !known:
			reason = "it is no longer part of the pod"
		case imageChanged(spec, c):
			reason = "its image changed, it will be restarted"
		case c.State == runtime.StateUnknown:
			reason = "its state is unknown, it will be restarted"
		default:
			continue
		}
		wait = wait || c.SandboxID != sandbox.ID
		if _, busy := in.Killing[c.ID]; !busy {
			deadline := in.Now.Add(pod.GracePeriod(in.Pod))
			plan.add(Action{Kind: KillContainer, Container: c.Name, ID: c.ID, Deadline: deadline, Reason: reason})
		}
	}
	return wait
}

// imageChanged compares the image as written then and now; containers of
// another agent carry no such note and count as unchanged.
func imageChanged(spec *v1.Container, c *runtime.Container) bool {
	return c.SpecImage != "" && c.SpecImage != spec.Image
}

// initDone says that the app containers may run in this sandbox: every init
// container has succeeded in it, or an app container was already made in it
// (its init containers may have been collected since).
func initDone(in Input, sandbox *runtime.Sandbox) bool {
	for i := range in.Pod.Spec.Containers {
		if c := in.Observed.Newest(in.Pod.Spec.Containers[i].Name); c != nil && c.SandboxID == sandbox.ID {
			return true
		}
	}
	for i := range in.Pod.Spec.InitContainers {
		c := in.Observed.Newest(in.Pod.Spec.InitContainers[i].Name)
		if c == nil || c.SandboxID != sandbox.ID || c.State != runtime.StateExited || c.ExitCode != 0 {
			return false
		}
	}
	return true
}

// runInit takes the first init container that has not succeeded in this
// sandbox one step further.
func runInit(in Input, sandbox *runtime.Sandbox, plan *Plan) {
	for i := range in.Pod.Spec.InitContainers {
		spec := &in.Pod.Spec.InitContainers[i]
		c := in.Observed.Newest(spec.Name)
		if c != nil && c.SandboxID == sandbox.ID && c.State == runtime.StateExited && c.ExitCode == 0 {
			continue
		}
		step(in, sandbox, spec, true, plan)
		return
	}
}

// step takes one container towards running.
func step(in Input, sandbox *runtime.Sandbox, spec *v1.Container, init bool, plan *Plan) {
	c := in.Observed.Newest(spec.Name)
	create := Action{Kind: CreateContainer, Sandbox: sandbox.ID, Container: spec.Name, Init: init}
	switch {
	case c == nil:
	case alive(c):
		return
	case c.State == runtime.StateCreated && c.SandboxID == sandbox.ID && !c.Interrupted && !imageChanged(spec, c):
		// Made, but the agent did not get to start it.
		plan.add(Action{Kind: StartContainer, Container: spec.Name, ID: c.ID, Attempt: c.Attempt, Init: init})
		return
	case c.State == runtime.StateCreated:
		// It never ran: what takes its place is no restart.
		plan.add(Action{Kind: RemoveContainer, Container: spec.Name, ID: c.ID})
		create.Attempt, create.Level = c.Attempt, in.Backoff.level(c)
	default:
		create.Attempt = c.Attempt + 1
		if imageChanged(spec, c) {
			break
		}
		if !init && !Restarts(in.Pod, c) {
			return
		}
		// A container of an older sandbox did not crash: its sandbox did, or
		// the host was rebooted.
		create.Level = in.Backoff.level(c)
		if c.SandboxID == sandbox.ID {
			delay := in.Backoff.Delay(create.Level)
			create.Level++
			if until := c.FinishedAt.Add(delay); until.After(in.Now) {
				plan.backOff(spec.Name, Wait{Delay: delay, Until: until})
				return
			}
		}
	}
	plan.add(create)
}

func (p *Plan) backOff(name string, w Wait) {
	if p.Waiting == nil {
		p.Waiting = map[string]Wait{}
	}
	p.Waiting[name] = w
	p.wake(w.Until)
}
