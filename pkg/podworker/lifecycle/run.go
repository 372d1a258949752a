package lifecycle

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// run brings a wanted pod towards running.
func run(in Input) Plan {
	var plan Plan
	sandbox := in.Observed.Sandbox()
	if sandbox == nil || !sandbox.Ready {
		replaceSandbox(in, &plan)
		return plan
	}
	if killUnwanted(in, sandbox, &plan) {
		return plan
	}
	for i := range in.Pod.Spec.EphemeralContainers {
		stepEphemeral(in, sandbox, &in.Pod.Spec.EphemeralContainers[i], &plan)
	}
	if initialise(in, sandbox, &plan) {
		for i := range in.Pod.Spec.Containers {
			spec := &in.Pod.Spec.Containers[i]
			step(in, sandbox, spec, false, &plan)
			if hookRuns(in, spec, current(in, sandbox, spec.Name)) {
				break // those behind it wait until it has started in full
			}
		}
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

// killUnwanted stops the running containers that are not what is wanted, or do
// not do what they should. It reports whether a wait is needed before anything
// else.
func killUnwanted(in Input, sandbox *runtime.Sandbox, plan *Plan) bool {
	wait := false
	for i := range in.Observed.Containers {
		c := &in.Observed.Containers[i]
		if !alive(c) {
			continue
		}
		grace, message := pod.GracePeriod(in.Pod), ""
		spec, init, known := pod.Container(in.Pod, c.Name)
		failed := in.Known[c.ID].Failed
		switch {
		case c.SandboxID != sandbox.ID:
			message = fmt.Sprintf("Stopping container %s: its sandbox was replaced", c.Name)
			wait = true
		case !known:
			message = fmt.Sprintf("Stopping container %s: it is no longer part of the pod", c.Name)
		case stale(in.Pod, in.Observed, c):
			wait = true
		case imageChanged(spec, c):
			message = described(init, c.Name) + " definition changed, will be restarted"
		case c.State == runtime.StateUnknown:
			message = described(init, c.Name) + ` is in "unknown" state, try killing it before restart`
		case failed == FailedPostStart:
			message = "FailedPostStartHook"
		case failed != "":
			message = described(init, c.Name) + " failed " + string(failed)
			if !init && restartsAfterKill(in.Pod, spec) {
				message += ", will be restarted"
			}
			grace = probeGrace(spec, failed, grace)
		case restartsToResize(in, spec, c):
			message = described(init, c.Name) + " resize requires restart"
		default:
			if changed, _ := Resized(spec, in.Known[c.ID].Applied); changed {
				plan.add(Action{Kind: ResizeContainer, Container: c.Name, ID: c.ID})
			}
			continue
		}
		if _, busy := in.Killing[c.ID]; !busy {
			plan.add(Action{Kind: KillContainer, Container: c.Name, ID: c.ID, Deadline: in.Now.Add(grace), Message: message})
		}
	}
	return wait
}

func described(init bool, name string) string {
	if init {
		return "Init container " + name
	}
	return "Container " + name
}

// restartsAfterKill leaves rules aside: nobody knows the exit code yet.
func restartsAfterKill(p *v1.Pod, spec *v1.Container) bool {
	if spec.RestartPolicy != nil {
		return *spec.RestartPolicy != v1.ContainerRestartPolicyNever
	}
	return p.Spec.RestartPolicy != v1.RestartPolicyNever
}

// probeGrace is the grace period that goes with a probe, else the pod's.
func probeGrace(spec *v1.Container, failed Failure, pods time.Duration) time.Duration {
	probe := spec.LivenessProbe
	if failed == FailedStartup {
		probe = spec.StartupProbe
	}
	if probe == nil || probe.TerminationGracePeriodSeconds == nil {
		return pods
	}
	return pod.Grace(*probe.TerminationGracePeriodSeconds)
}

// imageChanged compares the image as written then and now; containers of
// another agent carry no such note and count as unchanged.
func imageChanged(spec *v1.Container, c *runtime.Container) bool {
	return c.SpecImage != "" && c.SpecImage != spec.Image
}

// Resized says that a container was given other resources than its spec has now,
// and that it has to be restarted to have these.
func Resized(spec *v1.Container, applied *v1.ResourceRequirements) (changed, restart bool) {
	if applied == nil {
		return false, false
	}
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		if same(spec.Resources.Requests, applied.Requests, name) && same(spec.Resources.Limits, applied.Limits, name) {
			continue
		}
		changed = true
		for _, r := range spec.ResizePolicy {
			restart = restart || r.ResourceName == name && r.RestartPolicy == v1.RestartContainer
		}
	}
	return changed, restart
}

func same(a, b v1.ResourceList, name v1.ResourceName) bool {
	x, y := a[name], b[name]
	return x.Cmp(y) == 0
}

func restartsToResize(in Input, spec *v1.Container, c *runtime.Container) bool {
	_, restart := Resized(spec, in.Known[c.ID].Applied)
	return restart
}

// current is the newest container of a name, if it is of this sandbox and not
// from before all of the pod was to begin anew.
func current(in Input, sandbox *runtime.Sandbox, name string) *runtime.Container {
	c := in.Observed.Newest(name)
	if c == nil || c.SandboxID != sandbox.ID || stale(in.Pod, in.Observed, c) {
		return nil
	}
	return c
}

// hookRuns says that a container runs whose postStart hook has not ended.
func hookRuns(in Input, spec *v1.Container, c *runtime.Container) bool {
	return hasPostStart(spec) && c != nil && alive(c) && !in.Known[c.ID].Hooked && in.Known[c.ID].Failed == ""
}

func hasPostStart(spec *v1.Container) bool {
	return spec.Lifecycle != nil && spec.Lifecycle.PostStart != nil
}

// hasStarted says that a container runs and has started in full: those behind a
// sidecar wait for that.
func hasStarted(in Input, spec *v1.Container, c *runtime.Container) bool {
	known := Known{}
	if c != nil {
		known = in.Known[c.ID]
	}
	return c != nil && c.State == runtime.StateRunning &&
		(!hasPostStart(spec) || known.Hooked) && (spec.StartupProbe == nil || known.Started)
}

// initialise takes the init containers one step further and keeps the sidecars
// among them running. It says whether the app containers may run: every init
// container has succeeded in this sandbox, or one behind it was already made
// there (its own may have been collected since).
func initialise(in Input, sandbox *runtime.Sandbox, plan *Plan) bool {
	reached := initReached(in, sandbox)
	for i := range in.Pod.Spec.InitContainers {
		spec := &in.Pod.Spec.InitContainers[i]
		c := current(in, sandbox, spec.Name)
		switch {
		case pod.IsSidecar(spec):
			step(in, sandbox, spec, true, plan)
			if i >= reached && !hasStarted(in, spec, c) {
				return false
			}
		case i < reached, c != nil && c.State == runtime.StateExited && c.ExitCode == 0:
		default:
			step(in, sandbox, spec, true, plan)
			return false
		}
	}
	return true
}

// initReached is the last init container that was made in this sandbox; beyond
// all of them when an app container was.
func initReached(in Input, sandbox *runtime.Sandbox) int {
	inits := in.Pod.Spec.InitContainers
	for i := range in.Pod.Spec.Containers {
		if current(in, sandbox, in.Pod.Spec.Containers[i].Name) != nil {
			return len(inits)
		}
	}
	for i := len(inits) - 1; i > 0; i-- {
		if current(in, sandbox, inits[i].Name) != nil {
			return i
		}
	}
	return 0
}

// step takes one container towards running.
func step(in Input, sandbox *runtime.Sandbox, spec *v1.Container, init bool, plan *Plan) {
	c := in.Observed.Newest(spec.Name)
	create := Action{Kind: CreateContainer, Sandbox: sandbox.ID, Container: spec.Name, Init: init, Barrier: hasPostStart(spec)}
	if source := resetBy(in.Pod, in.Observed); source != nil {
		create.Reset = source.ID
	}
	switch {
	case c == nil:
	case alive(c):
		if hookRuns(in, spec, c) {
			plan.add(Action{Kind: RunPostStart, Container: spec.Name, ID: c.ID})
		}
		return
	case c.State == runtime.StateCreated && c.SandboxID == sandbox.ID && !c.Interrupted && !imageChanged(spec, c) && !stale(in.Pod, in.Observed, c):
		// Made, but the agent did not get to start it.
		plan.add(Action{Kind: StartContainer, Container: spec.Name, ID: c.ID, Attempt: c.Attempt, Init: init, Barrier: create.Barrier})
		return
	case c.State == runtime.StateCreated:
		// It never ran: what takes its place is no restart.
		plan.add(Action{Kind: RemoveContainer, Container: spec.Name, ID: c.ID})
		create.Attempt, create.Level = c.Attempt, in.Backoff.level(c)
	default:
		create.Attempt = c.Attempt + 1
		if imageChanged(spec, c) || restartsToResize(in, spec, c) {
			break
		}
		reset := stale(in.Pod, in.Observed, c)
		if !init && !reset && !Restarts(in.Pod, spec, c) {
			return
		}
		// A container of an older sandbox did not crash: its sandbox did, or
		// the host was rebooted.
		create.Level = in.Backoff.level(c)
		if c.SandboxID == sandbox.ID && (!reset || c.ID == create.Reset) {
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

// stepEphemeral starts a container for debugging, once: it is never restarted.
func stepEphemeral(in Input, sandbox *runtime.Sandbox, e *v1.EphemeralContainer, plan *Plan) {
	c := in.Observed.Newest(e.Name)
	if c == nil || c.State == runtime.StateCreated {
		step(in, sandbox, (*v1.Container)(&e.EphemeralContainerCommon), false, plan)
	}
}

func (p *Plan) backOff(name string, w Wait) {
	if p.Waiting == nil {
		p.Waiting = map[string]Wait{}
	}
	p.Waiting[name] = w
	p.wake(w.Until)
}
