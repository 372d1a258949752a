package lifecycle

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// MinGrace is what a container gets to end after its deadline has passed, be it
// with its hook or because nobody was there to stop it.
const MinGrace = 2 * time.Second

// terminate ends a pod that is being deleted and then removes all its traces.
func terminate(in Input) Plan {
	deadline := in.Pod.DeletionTimestamp.Time
	if pod.GracePeriod(in.Pod) > 0 && deadline.Before(in.Now.Add(MinGrace)) {
		deadline = in.Now.Add(MinGrace)
	}
	var plan Plan
	if stopAll(in, deadline, &plan) {
		return plan
	}
	plan.Ended = true
	plan.add(Action{Kind: Release})
	removeAll(in, &plan)
	plan.add(Action{Kind: Forget})
	return plan
}

// removeAll removes everything that the runtime has of a pod that has ended.
func removeAll(in Input, plan *Plan) {
	for i := range in.Observed.Sandboxes {
		plan.add(Action{Kind: RemoveSandbox, Sandbox: in.Observed.Sandboxes[i].ID})
	}
	for i := range in.Observed.Containers {
		c := &in.Observed.Containers[i]
		if !hasSandbox(in.Observed, c.SandboxID) {
			plan.add(Action{Kind: RemoveContainer, Container: c.Name, ID: c.ID})
		}
	}
}

// windDown ends a pod that stays on the books: its containers and logs are
// kept for their readers until they are discarded, everything else is given
// back.
func windDown(in Input) Plan {
	var plan Plan
	if stopAll(in, windDownBy(in), &plan) {
		return plan
	}
	plan.Ended = true
	plan.add(Action{Kind: Release})
	if in.Discard {
		removeAll(in, &plan)
		plan.add(Action{Kind: Discard})
		return plan
	}
	collect(in, &plan)
	return plan
}

// windDownBy is by when a pod that stays on the books has to have ended: the
// sidecars have the grace period from when the others have ended.
func windDownBy(in Input) time.Time {
	began := in.Now
	at, limited := activeUntil(in.Pod, in.Accepted)
	switch last := lastEnd(in.Pod, in.Observed); {
	case !in.EndBy.IsZero():
		return in.EndBy
	case limited && Expired(in.Pod, in.Observed, in.Accepted, in.Now):
		began = at
	case !last.IsZero() && !mainAlive(in.Pod, in.Observed):
		began = last
	}
	deadline := began.Add(pod.GracePeriod(in.Pod))
	if earliest := in.Now.Add(MinGrace); deadline.Before(earliest) {
		return earliest
	}
	return deadline
}

// stopAll stops containers, then sandboxes; it reports whether there is still
// something to wait for. Sidecars are stopped last, in reverse order, unless
// the deadline has come.
func stopAll(in Input, deadline time.Time, plan *Plan) bool {
	waiting := false
	for i := range in.Observed.Containers {
		c := &in.Observed.Containers[i]
		switch {
		case alive(c):
			waiting = true
			if !itsTurn(in, c) && in.Now.Add(MinGrace).Before(deadline) {
				// The hook is run with those of the others, as kubelet does.
				if spec, _, _ := pod.Container(in.Pod, c.Name); hasPreStop(spec) && !in.Known[c.ID].Stopping {
					plan.add(Action{Kind: RunPreStop, Container: c.Name, ID: c.ID, Deadline: deadline})
				}
				plan.wake(deadline.Add(-MinGrace))
				continue
			}
			// A shorter deadline replaces a longer one that is under way.
			if by, busy := in.Killing[c.ID]; !busy || deadline.Before(by.Add(-MinGrace)) {
				plan.add(Action{Kind: KillContainer, Container: c.Name, ID: c.ID, Deadline: deadline})
			}
		case c.State == runtime.StateCreated:
			plan.add(Action{Kind: RemoveContainer, Container: c.Name, ID: c.ID})
		}
	}
	if waiting {
		return true
	}
	for _, s := range in.Observed.Sandboxes {
		if s.Ready || !in.Stopped[s.ID] {
			plan.add(Action{Kind: StopSandbox, Sandbox: s.ID})
			waiting = true
		}
	}
	return waiting
}

// itsTurn says that those have ended that a container waits for in the end: a
// sidecar for all that are none, and for the sidecars behind it.
func itsTurn(in Input, c *runtime.Container) bool {
	place := sidecar(in.Pod, c.Name)
	if place < 0 {
		return true
	}
	for i := range in.Observed.Containers {
		if o := &in.Observed.Containers[i]; alive(o) && (sidecar(in.Pod, o.Name) < 0 || sidecar(in.Pod, o.Name) > place) {
			return false
		}
	}
	return true
}

func hasPreStop(spec *v1.Container) bool {
	return spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil
}

func hasSandbox(o runtime.Pod, id string) bool {
	for i := range o.Sandboxes {
		if o.Sandboxes[i].ID == id {
			return true
		}
	}
	return false
}

// collect removes what is no longer needed for status, logs or `logs
// --previous`: dead containers beyond KeepDead per name, and stopped sandboxes
// that hold no container any more.
func collect(in Input, plan *Plan) {
	kept := map[string]int{}
	reset := ""
	if c := resetBy(in.Pod, in.Observed); c != nil {
		reset = c.ID // it says what has to begin anew
	}
	holds := map[string]bool{}
	for i := range in.Observed.Containers { // newest first
		c := &in.Observed.Containers[i]
		if c.State == runtime.StateExited {
			kept[c.Name]++
			if newest := in.Observed.Newest(c.Name); c != newest && c.ID != reset && kept[c.Name] > in.KeepDead+btoi(newest.State == runtime.StateExited) {
				plan.add(Action{Kind: RemoveContainer, Container: c.Name, ID: c.ID})
				continue
			}
		}
		holds[c.SandboxID] = true
	}
	for i, s := range in.Observed.Sandboxes {
		if i > 0 && !s.Ready && in.Stopped[s.ID] && !holds[s.ID] {
			plan.add(Action{Kind: RemoveSandbox, Sandbox: s.ID})
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
