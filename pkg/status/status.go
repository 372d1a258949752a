// Package status computes a pod's status from what is desired and what is
// observed. It is pure, and its result is the only status anybody sees: the
// pod worker writes it to the store, and API, CLI and watches read it there.
package status

import (
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Reasons as kubelet spells them.
const (
	ReasonContainerCreating = "ContainerCreating"
	ReasonPodInitializing   = "PodInitializing"
	ReasonCrashLoopBackOff  = "CrashLoopBackOff"
	ReasonDeadlineExceeded  = "DeadlineExceeded"
	reasonNotReady          = "ContainersNotReady"
	reasonGatesNotReady     = "ReadinessGatesNotReady"
	reasonNotInitialized    = "ContainersNotInitialized"
	reasonCompleted         = "PodCompleted"
	reasonFailed            = "PodFailed"
)

// MessageDeadlineExceeded goes with its reason, in kubelet's words.
const MessageDeadlineExceeded = "Pod was active on the node longer than the specified deadline"

// Input is all that a status rests on.
type Input struct {
	// Pod is the desired pod; its .status is the last one computed, from which
	// transition times and what the runtime no longer knows are carried over.
	Pod      *v1.Pod
	Observed runtime.Pod
	// Waiting says, by container name, why a container is not running.
	Waiting map[string]v1.ContainerStateWaiting
	// Refused is set when the node does not run the pod at all.
	Refused *Refusal
	// Unschedulable says why the pod waits until the node is open to it.
	Unschedulable string
	// Evicted is set when the node ends the pod for its own sake.
	Evicted *Refusal
	// Disrupted says that the eviction is no fault of the pod's.
	Disrupted bool
	// Messages are termination messages by container ID.
	Messages map[string]string
	// Known is what hooks and probes have said of running containers, by ID; one
	// that is not in it has neither.
	Known map[string]lifecycle.Known
	// ResizeError is why containers do not have the resources of their spec.
	ResizeError string
	// ResizePending is why the pod does not get the resources that it asks for; Pod
	// has those that it was given.
	ResizePending *Refusal
	// NodeIPs are the node's addresses, primary first.
	NodeIPs []string
	// RuntimeName prefixes container IDs: "containerd".
	RuntimeName string
	Accepted    time.Time
	Now         time.Time
}

// Refusal is why the node does not run a pod, or runs it no longer:
// "NodeAffinity" and a sentence.
type Refusal struct{ Reason, Message string }

// Compute returns the pod's status.
func Compute(in Input) v1.PodStatus {
	st := v1.PodStatus{
		QOSClass:           cgroup.QOS(in.Pod),
		StartTime:          &metav1.Time{Time: in.Accepted.Truncate(time.Second)},
		ObservedGeneration: in.Pod.Generation,
	}
	if in.Unschedulable != "" {
		// Nobody has looked at it yet, as if a scheduler were still to place it.
		return v1.PodStatus{Phase: v1.PodPending, QOSClass: st.QOSClass, ObservedGeneration: st.ObservedGeneration, Conditions: unscheduled(in)}
	}
	for _, ip := range in.NodeIPs {
		st.HostIPs = append(st.HostIPs, v1.HostIP{IP: ip})
	}
	if len(in.NodeIPs) > 0 {
		st.HostIP = in.NodeIPs[0]
	}
	if in.Refused != nil {
		st.Phase, st.Reason, st.Message = v1.PodFailed, in.Refused.Reason, in.Refused.Message
		st.Conditions = conditions(in, st)
		return st
	}
	if pod.HasOwnResources(in.Pod) {
		own := in.Pod.Spec.Resources
		st.Resources, st.AllocatedResources = &v1.ResourceRequirements{Requests: own.Requests, Limits: own.Limits}, own.Requests
	}
	setIPs(in, &st)
	st.InitContainerStatuses = containers(in, in.Pod.Spec.InitContainers, in.Pod.Status.InitContainerStatuses, ReasonPodInitializing)
	waiting := ReasonContainerCreating
	if len(in.Pod.Spec.InitContainers) > 0 {
		waiting = ReasonPodInitializing
	}
	st.ContainerStatuses = containers(in, in.Pod.Spec.Containers, in.Pod.Status.ContainerStatuses, waiting)
	for i := range st.InitContainerStatuses {
		if c := &st.InitContainerStatuses[i]; !pod.IsSidecar(&in.Pod.Spec.InitContainers[i]) {
			c.Ready = c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
		}
	}
	st.EphemeralContainerStatuses = ephemeral(in)
	limitMessages(&st)
	st.Phase = phase(in, &st)
	switch {
	case pod.IsTerminal(in.Pod.Status.Phase):
		st.Reason, st.Message = in.Pod.Status.Reason, in.Pod.Status.Message
	case expired(in) && (ended(in.Observed) || pod.IsTerminal(st.Phase)):
		st.Phase, st.Reason, st.Message = v1.PodFailed, ReasonDeadlineExceeded, MessageDeadlineExceeded
	case in.Evicted != nil && !pod.IsTerminal(st.Phase):
		st.Phase, st.Reason, st.Message = v1.PodFailed, in.Evicted.Reason, in.Evicted.Message
	}
	st.Conditions = conditions(in, st)
	return st
}

func setIPs(in Input, st *v1.PodStatus) {
	if sandbox := in.Observed.Sandbox(); sandbox == nil || !sandbox.Ready {
		// A finished pod shows the address it had, as kubelet's does.
		if pod.IsTerminal(in.Pod.Status.Phase) || in.Pod.DeletionTimestamp != nil || lifecycle.Final(in.Pod, in.Observed, in.Known) {
			st.PodIP, st.PodIPs = in.Pod.Status.PodIP, in.Pod.Status.PodIPs
		}
		return
	}
	ips := Addresses(in.Pod, &in.Observed, in.NodeIPs)
	for _, ip := range ips {
		st.PodIPs = append(st.PodIPs, v1.PodIP{IP: ip})
	}
	if len(ips) > 0 {
		st.PodIP = ips[0]
	}
}

// Addresses are where a pod can be reached, primary first; none while it has no
// ready sandbox.
func Addresses(p *v1.Pod, observed *runtime.Pod, nodeIPs []string) []string {
	switch sandbox := observed.Sandbox(); {
	case sandbox == nil || !sandbox.Ready:
		return nil
	case p.Spec.HostNetwork:
		return nodeIPs
	default:
		return sandbox.IPs
	}
}

// phase follows the API's definition: Running once every container has run or
// runs, final only when nothing will be started again.
func phase(in Input, st *v1.PodStatus) v1.PodPhase {
	if pod.IsTerminal(in.Pod.Status.Phase) {
		return in.Pod.Status.Phase
	}
	if lifecycle.InitFailed(in.Pod, in.Observed) && allEnded(st.InitContainerStatuses) {
		return v1.PodFailed
	}
	started, ended, failed := 0, 0, 0
	for i := range st.ContainerStatuses {
		c := &st.ContainerStatuses[i]
		switch {
		case c.State.Terminated != nil:
			started++
			ended++
			if c.State.Terminated.ExitCode != 0 {
				failed++
			}
		case c.State.Running != nil, c.LastTerminationState.Terminated != nil:
			started++
		}
	}
	all := len(in.Pod.Spec.Containers)
	for i := range st.InitContainerStatuses {
		// The end of the pod is that of its sidecars.
		if ended == all && st.InitContainerStatuses[i].State.Running != nil {
			return v1.PodRunning
		}
	}
	switch {
	case started < all:
		return v1.PodPending
	case ended < all || !lifecycle.Final(in.Pod, in.Observed, in.Known) && in.Pod.DeletionTimestamp == nil:
		return v1.PodRunning
	case failed > 0:
		return v1.PodFailed
	default:
		return v1.PodSucceeded
	}
}

// expired says that the pod is ended because it was active for too long.
func expired(in Input) bool {
	return in.Pod.DeletionTimestamp == nil && lifecycle.Expired(in.Pod, in.Observed, in.Accepted, in.Now)
}

// ended says that nothing runs.
func ended(o runtime.Pod) bool {
	for i := range o.Containers {
		if s := o.Containers[i].State; s == runtime.StateRunning || s == runtime.StateUnknown {
			return false
		}
	}
	return true
}

func allEnded(cs []v1.ContainerStatus) bool {
	for i := range cs {
		if cs[i].State.Running != nil {
			return false
		}
	}
	return true
}

// conditions keep their transition times while they do not change.
func conditions(in Input, st v1.PodStatus) []v1.PodCondition {
	reason := ""
	switch st.Phase {
	case v1.PodSucceeded:
		reason = reasonCompleted
	case v1.PodFailed:
		reason = reasonFailed
	}
	sandbox := in.Observed.Sandbox()
	inited, initReason, initMsg := initialized(in, &st)
	all, allReason, allMsg := containersReady(in, &st)
	if reason != "" {
		all, allReason, allMsg = false, reason, ""
		if reason == reasonCompleted {
			inited, initReason, initMsg = true, reasonCompleted, ""
		}
	}
	others := foreign(in.Pod)
	ready, readyReason, readyMsg := all, allReason, allMsg
	if opened, msg := open(in, others); all && !opened {
		ready, readyReason, readyMsg = false, reasonGatesNotReady, msg
	}
	list := append(others, []v1.PodCondition{
		{Type: v1.PodReadyToStartContainers, Status: status(sandbox != nil && sandbox.Ready)},
		{Type: v1.PodInitialized, Status: status(inited), Reason: initReason, Message: initMsg},
		{Type: v1.PodReady, Status: status(ready), Reason: readyReason, Message: readyMsg},
		{Type: v1.ContainersReady, Status: status(all), Reason: allReason, Message: allMsg},
		{Type: v1.PodScheduled, Status: v1.ConditionTrue},
	}...)
	if pod.HasResetRule(in.Pod) {
		list = append(list, restarting(in, st.Phase))
	}
	if no := in.ResizePending; no != nil {
		list = append(list, v1.PodCondition{Type: v1.PodResizePending, Status: v1.ConditionTrue, Reason: no.Reason, Message: no.Message})
	}
	if c, resizing := resizing(in); resizing {
		list = append(list, c)
	}
	if c, disrupted := disruption(in); disrupted {
		list = append(list, c)
	}
	return append(others, stamped(in, list[len(others):])...)
}

// unscheduled are the conditions of a pod that waits for the node.
func unscheduled(in Input) []v1.PodCondition {
	c := v1.PodCondition{Type: v1.PodScheduled, Status: v1.ConditionFalse, Reason: v1.PodReasonUnschedulable, Message: in.Unschedulable}
	return append(foreign(in.Pod), stamped(in, []v1.PodCondition{c})...)
}

// stamped are conditions with the generation that they are of and the time
// since which they are so.
func stamped(in Input, list []v1.PodCondition) []v1.PodCondition {
	for i := range list {
		list[i].ObservedGeneration = in.Pod.Generation
		list[i].LastTransitionTime = metav1.Time{Time: in.Now.Truncate(time.Second)}
		for _, old := range in.Pod.Status.Conditions {
			if old.Type == list[i].Type && old.Status == list[i].Status {
				list[i].LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	return list
}

// restarting is the condition of a pod whose containers may all have to begin
// anew when one of them exits.
func restarting(in Input, phase v1.PodPhase) v1.PodCondition {
	c := v1.PodCondition{Type: v1.AllContainersRestarting, Status: v1.ConditionFalse}
	switch {
	case phase == v1.PodSucceeded:
		c.Reason = reasonCompleted
	case phase == v1.PodFailed:
		c.Reason = reasonFailed
	case lifecycle.Resetting(in.Pod, in.Observed):
		c.Status, c.Reason, c.Message = v1.ConditionTrue, "RestartAllContainersStarted", "container exited with restart policy rule"
	}
	return c
}

// resizing is the condition of a pod with a running container that has other
// resources than it should.
func resizing(in Input) (v1.PodCondition, bool) {
	c := v1.PodCondition{Type: v1.PodResizeInProgress, Status: v1.ConditionTrue}
	if in.ResizeError != "" {
		c.Reason, c.Message = v1.PodReasonError, in.ResizeError
	}
	for _, list := range [][]v1.Container{in.Pod.Spec.InitContainers, in.Pod.Spec.Containers} {
		for i := range list {
			cur := in.Observed.Newest(list[i].Name)
			if cur == nil || cur.State != runtime.StateRunning {
				continue
			}
			if changed, _ := lifecycle.Resized(&list[i], in.Known[cur.ID].Applied); changed {
				return c, true
			}
		}
	}
	return c, false
}

// disruption is the condition of a pod that ends for the sake of others; it stays.
func disruption(in Input) (v1.PodCondition, bool) {
	for _, c := range in.Pod.Status.Conditions {
		if c.Type == v1.DisruptionTarget {
			return c, true
		}
	}
	if in.Evicted == nil || !in.Disrupted {
		return v1.PodCondition{}, false
	}
	return v1.PodCondition{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonTerminationByKubelet, Message: in.Evicted.Message}, true
}

// foreign are the pod's conditions that others have set.
func foreign(p *v1.Pod) (out []v1.PodCondition) {
	for _, c := range p.Status.Conditions {
		if !pod.ComputedCondition(c.Type) {
			out = append(out, c)
		}
	}
	return out
}

func status(b bool) v1.ConditionStatus {
	if b {
		return v1.ConditionTrue
	}
	return v1.ConditionFalse
}
