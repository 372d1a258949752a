package podworker

import (
	"errors"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

func cpu(limit string) v1.ResourceRequirements {
	l := v1.ResourceList{v1.ResourceCPU: resource.MustParse(limit)}
	return v1.ResourceRequirements{Requests: l, Limits: l}
}

func (n *node) resize(uid, limit string) {
	p := testPod(uid, v1.RestartPolicyAlways)
	n.edit(p.UID, func(p *v1.Pod) {
		p.Spec.Containers = append([]v1.Container{}, p.Spec.Containers...)
		p.Spec.Containers[0].Resources = cpu(limit)
	})
}

// TestResize: a running container is given other resources, also by the next
// agent, and is restarted for them only when its policy says so.
func TestResize(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	for uid, policy := range map[string]v1.ResourceResizeRestartPolicy{"a": v1.NotRequired, "b": v1.RestartContainer} {
		p := testPod(uid, v1.RestartPolicyOnFailure, "one")
		p.Spec.Containers[0].Resources = cpu("1")
		p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceCPU, RestartPolicy: policy}}
		n.want(p)
	}
	first := n.agent(dir, nil)
	n.until("both run", func() bool { return n.ready("a")() && n.ready("b")() })
	id := n.ids("a")[0]
	n.mu.Lock()
	n.failUpdate = errors.New("no room")
	n.mu.Unlock()
	n.resize("a", "2")
	n.resize("b", "2")
	first.Wake("a")
	first.Wake("b")
	n.until("one cannot be resized", func() bool {
		for _, c := range n.records["a"].Pod.Status.Conditions {
			if c.Type == v1.PodResizeInProgress {
				return c.Reason == "Error" && c.Message == "no room"
			}
		}
		return false
	})
	n.until("the other one is restarted", n.said("web-b/one Killing: Container one resize requires restart"))
	n.until("and has it", func() bool {
		c := n.records["b"].Pod.Status.ContainerStatuses
		return len(c) == 1 && c[0].RestartCount == 1 && c[0].Resources != nil && c[0].Resources.Limits.Cpu().String() == "2"
	})
	if c := n.status("a").ContainerStatuses[0]; c.Resources.Limits.Cpu().String() != "1" || c.AllocatedResources.Cpu().String() != "2" {
		t.Errorf("%+v", c)
	}
	first.stop()
	n.mu.Lock()
	n.failUpdate = nil
	n.mu.Unlock()
	n.agent(dir, nil)
	n.until("the next agent resizes it", func() bool {
		c := n.records["a"].Pod.Status.ContainerStatuses
		return len(c) == 1 && c[0].Resources != nil && c[0].Resources.Limits.Cpu().String() == "2" && len(n.records["a"].Pod.Status.Conditions) == 5
	})
	if now := n.ids("a"); len(now) != 1 || now[0] != id {
		t.Errorf("containers %v, was %s", now, id)
	}
}

// TestResizeWaitsForRoom: what a pod asks for is set aside when there is room, in
// the order of priority, and a restarted agent knows what it has until then.
func TestResizeWaitsForRoom(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	set := func(o *Options) {
		o.Allocatable = func() v1.ResourceList { return amounts("cpu", "4", "pods", "110") }
	}
	for i, uid := range []string{"a", "b", "c"} {
		p := testPod(uid, v1.RestartPolicyAlways, "one")
		p.Spec.Containers[0].Resources = cpu("1")
		p.Spec.Priority = new(int32(i))
		n.want(p)
	}
	first := n.agent(dir, set)
	n.until("all run", func() bool { return n.ready("a")() && n.ready("b")() && n.ready("c")() })
	pending := func(uid types.UID, reason, message string) func() bool {
		return func() bool {
			for _, c := range n.records[uid].Pod.Status.Conditions {
				if c.Type == v1.PodResizePending {
					return c.Reason == reason && c.Message == message
				}
			}
			return reason == ""
		}
	}
	has := func(uid types.UID, want string) func() bool {
		return func() bool {
			c := n.records[uid].Pod.Status.ContainerStatuses
			return len(c) == 1 && c[0].Resources != nil && c[0].Resources.Limits.Cpu().String() == want && c[0].AllocatedResources.Cpu().String() == want
		}
	}
	n.resize("a", "9")
	first.Wake("a")
	n.until("a wants more than there is", pending("a", v1.PodReasonInfeasible, "Node didn't have enough capacity: cpu, requested: 9000, capacity: 4000"))
	for _, uid := range []types.UID{"a", "b"} {
		n.resize(string(uid), "3")
		first.Wake(uid)
		n.until("it waits", pending(uid, v1.PodReasonDeferred, "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000"))
	}
	first.stop()
	second := n.agent(dir, set)
	n.until("a still waits", pending("a", v1.PodReasonDeferred, "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000"))
	n.until("with what it had", has("a", "1"))
	n.edit("c", deletion(0))
	second.Wake("c")
	n.until("the other one has it", has("b", "3"))
	n.until("and waits no more", pending("b", "", ""))
	n.until("and a waits on", pending("a", v1.PodReasonDeferred, "Node didn't have enough resource: cpu, requested: 3000, used: 3000, capacity: 4000"))
	n.resize("b", "1")
	second.Wake("b")
	n.until("who asks for less makes room", has("a", "3"))
}
