package eviction

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Reason is that of an eviction, and of a refusal while the node runs short.
const Reason = "Evicted"

// message says why a pod goes, in kubelet's words: what is short, by how much,
// and which of its containers use more than they asked for.
func message(t config.Threshold, seen Observations, c Candidate) string {
	short := resourceOf(t.Signal)
	o := seen[t.Signal]
	want := t.Value.Of(o.Capacity)
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ", short, &want, &o.Available)
	if c.Usage == nil {
		return b.String()
	}
	if short == v1.ResourceMemory && pod.HasOwnResources(c.Pod) {
		if request, ok := c.Pod.Spec.Resources.Requests[short]; ok {
			fmt.Fprintf(&b, "Pod %s was using %s, request is %s, has larger consumption of %s. ", c.Pod.Name, bytes(c.Usage.Memory), &request, short)
		}
	}
	for _, u := range c.Usage.Containers {
		spec, _, ok := pod.Container(c.Pod, u.Name)
		if !ok {
			continue
		}
		var used *resource.Quantity
		switch short {
		case v1.ResourceMemory:
			used = bytes(u.Memory)
		case v1.ResourceEphemeralStorage:
			used = bytes(u.Layer.Bytes + u.Logs.Bytes)
		default:
			continue
		}
		if request := spec.Resources.Requests[short]; used.Cmp(request) > 0 {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", u.Name, used, &request, short)
		}
	}
	return b.String()
}

func bytes(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }

// refusal says in kubelet's words why a node under pressure does not take a pod
// on; empty: it does. Critical pods are taken on always, and a node that is
// short of nothing but memory takes those that say how much they need.
func refusal(p *v1.Pod, conditions []v1.NodeConditionType) string {
	if len(conditions) == 0 || pod.Critical(p) {
		return ""
	}
	if len(conditions) == 1 && conditions[0] == v1.NodeMemoryPressure {
		if cgroup.QOS(p) != v1.PodQOSBestEffort || toleratesMemoryPressure(p) {
			return ""
		}
	}
	return fmt.Sprintf("Pod was rejected: The node had condition: %v. ", conditions)
}

func toleratesMemoryPressure(p *v1.Pod) bool {
	for _, t := range p.Spec.Tolerations {
		effect := t.Effect == "" || t.Effect == v1.TaintEffectNoSchedule
		all := t.Key == "" && t.Operator == v1.TolerationOpExists
		named := t.Key == v1.TaintNodeMemoryPressure && (t.Operator == v1.TolerationOpExists || t.Value == "")
		if effect && (all || named) {
			return true
		}
	}
	return false
}
