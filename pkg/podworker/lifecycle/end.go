package lifecycle

import (
	"time"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// minGrace is what a container gets to end after its deadline has passed while
// nobody was there to stop it, and when its pod is evicted.
const minGrace = time.Second

// terminate ends a pod that is being deleted and then removes all its traces.
func terminate(in Input) Plan {
	deadline := in.Pod.DeletionTimestamp.Time
	if pod.GracePeriod(in.Pod) > 0 && deadline.Before(in.Now.Add(minGrace)) {
		deadline = in.Now.Add(minGrace)
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
	deadline := in.Now.Add(pod.GracePeriod(in.Pod))
	if in.Hurry {
		deadline = in.Now.Add(minGrace)
	}
	if stopAll(in, deadline, &plan) {
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

// stopAll stops containers, then sandboxes; it reports whether there is still
// something to wait for.
func stopAll(in Input, deadline time.Time, plan *Plan) bool {
	waiting := false
	for i := range in.Observed.Containers {
		c := &in.Observed.Containers[i]
		switch {
		case alive(c):
			waiting = true
			// A shorter deadline replaces a longer one that is under way.
			if by, busy := in.Killing[c.ID]; !busy || deadline.Before(by.Add(-minGrace)) {
				plan.add(Action{Kind: KillContainer, Container: c.Name, ID: c.ID, Deadline: deadline, Reason: "the pod is ending"})
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
	holds := map[string]bool{}
	for i := range in.Observed.Containers { // newest first
		c := &in.Observed.Containers[i]
		if c.State == runtime.StateExited {
			kept[c.Name]++
			if newest := in.Observed.Newest(c.Name); c != newest && kept[c.Name] > in.KeepDead+btoi(newest.State == runtime.StateExited) {
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
