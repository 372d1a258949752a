// Package lifecycle decides what to do next for one pod. It is pure: desired
// and observed state and the time come in, a plan goes out, and the pod worker
// carries the plan out. Nothing here remembers anything: what must survive a
// restart of the agent is read back from the runtime (attempts, back-off
// levels, exit codes) or from the desired pod (the deletion deadline).
package lifecycle

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Input is all that a decision rests on.
type Input struct {
	// Pod is the desired pod; a deletionTimestamp means that it is to end by then.
	Pod *v1.Pod
	// Observed is what the runtime shows now.
	Observed runtime.Pod
	// Stopped holds the sandboxes that were stopped in full: a sandbox that is
	// merely not ready may still hold an address.
	Stopped map[string]bool
	// Killing holds the containers that are being stopped, and by when.
	Killing map[string]time.Time
	// Known is what hooks and probes have said of running containers, by ID.
	Known map[string]Known
	// Accepted is when the pod began: its activeDeadlineSeconds count from there.
	Accepted time.Time
	// End is true when the pod is to be wound down although it is still
	// wanted: it was refused, or its status is already final.
	End bool
	// EndBy is when the containers of an evicted pod have to have ended; zero: it
	// has its own grace period.
	EndBy time.Time
	// Discard is true when of a finished pod nothing but its status is to stay.
	Discard bool

	Backoff Backoff
	// KeepDead is how many dead containers stay per name besides the newest.
	KeepDead int
	Now      time.Time
}

// Known is what is known of a running container that the runtime does not know.
type Known struct {
	// Hooked: its postStart hook has ended well.
	Hooked bool
	// Started: its startup probe was good, Ready: its readiness probe is.
	Started, Ready bool
	// Stopping: its preStop hook has begun.
	Stopping bool
	// Applied is what resources it was last given; nil: those of its spec.
	Applied *v1.ResourceRequirements
	// Failed is why it has to be ended; empty when it has not.
	Failed Failure
}

// Failure is why a running container has to be ended.
type Failure string

// The failures.
const (
	FailedStartup   Failure = "startup probe"
	FailedLiveness  Failure = "liveness probe"
	FailedPostStart Failure = "postStart hook"
)

// Kind is what an action does.
type Kind string

// The actions, each idempotent.
const (
	// CreateSandbox makes the sandbox of Attempt, after the pod's folders,
	// cgroup and volumes are there.
	CreateSandbox Kind = "CreateSandbox"
	// StopSandbox ends everything in the sandbox and gives its addresses back.
	StopSandbox Kind = "StopSandbox"
	// RemoveSandbox forgets a stopped sandbox and all its containers.
	RemoveSandbox Kind = "RemoveSandbox"
	// CreateContainer makes the container of Attempt in Sandbox, once its image is there.
	CreateContainer Kind = "CreateContainer"
	// StartContainer starts the created container ID.
	StartContainer Kind = "StartContainer"
	// RunPostStart runs the postStart hook of container ID, in the background.
	RunPostStart Kind = "RunPostStart"
	// RunPreStop runs the preStop hook of container ID ahead of its turn to be
	// killed, in the background.
	RunPreStop Kind = "RunPreStop"
	// ResizeContainer gives the running container ID the resources of its spec.
	ResizeContainer Kind = "ResizeContainer"
	// KillContainer stops container ID by Deadline, after its preStop hook, in the
	// background.
	KillContainer Kind = "KillContainer"
	// RemoveContainer forgets the dead container ID and its log.
	RemoveContainer Kind = "RemoveContainer"
	// Release takes down volumes and cgroup of a pod with nothing running.
	Release Kind = "Release"
	// Discard removes the logs and files of a finished pod that stays on the books.
	Discard Kind = "Discard"
	// Forget removes the last traces of a deleted pod.
	Forget Kind = "Forget"
)

// Action is one step. Which fields are set depends on Kind.
type Action struct {
	Kind      Kind
	Sandbox   string
	Container string // the container's name in the spec
	ID        string
	Attempt   uint32
	Init      bool
	Level     int // back-off level that the new container starts with
	// Reset is the container whose exit had all of the pod restarted.
	Reset    string
	Deadline time.Time
	// Message is for the event of a killed container; empty: there is nothing to
	// say beyond that.
	Message string
	// Barrier: once this is done the plan has to be made anew, as those behind it
	// wait for what it begins.
	Barrier bool
}

// Plan is what to do now and when to look again at the latest.
type Plan struct {
	Actions []Action
	// WakeAt is zero when only an event can change the plan.
	WakeAt time.Time
	// Waiting holds the containers that wait for their crash back-off.
	Waiting map[string]Wait
	// Ended is true when the pod has nothing running and nothing to start:
	// its phase is final, or it is being deleted.
	Ended bool
}

// Wait is one container's crash back-off.
type Wait struct {
	Delay time.Duration
	Until time.Time
}

// wake moves the next look forward to t.
func (p *Plan) wake(t time.Time) {
	if p.WakeAt.IsZero() || t.Before(p.WakeAt) {
		p.WakeAt = t
	}
}

func (p *Plan) add(a ...Action) { p.Actions = append(p.Actions, a...) }

// Next decides. The order of what it returns is the order to act in; the
// worker looks again after each batch.
func Next(in Input) Plan {
	if in.Pod.DeletionTimestamp != nil {
		return terminate(in)
	}
	if in.End || Final(in.Pod, in.Observed, in.Known) || Expired(in.Pod, in.Observed, in.Accepted, in.Now) {
		return windDown(in)
	}
	plan := run(in)
	if at, limited := activeUntil(in.Pod, in.Accepted); limited {
		plan.wake(at)
	}
	return plan
}
