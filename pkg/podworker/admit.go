package podworker

import (
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/status"
)

// Reasons of a refusal, as kubelet gives them.
const (
	ReasonNodeAffinity = "NodeAffinity"
	ReasonNodePorts    = "NodePorts"
	ReasonAppArmor     = "AppArmor"
	ReasonSysctl       = "SysctlForbidden"
	ReasonGroupsPolicy = "SupplementalGroupsPolicyNotSupported"
	ReasonNodeShutdown = "NodeShutdown"
)

// IsRefusal says that a final status came from the node's refusal and not from
// the pod's own end: a restarted agent, whose labels may be others, asks again.
func IsRefusal(st v1.PodStatus) bool {
	refusals := []string{ReasonNodeAffinity, ReasonNodePorts, ReasonAppArmor, ReasonSysctl, ReasonGroupsPolicy, ReasonNodeShutdown}
	// One that was evicted has run, or was about to.
	underPressure := st.Reason == ReasonEvicted && len(st.ContainerStatuses) == 0
	return st.Phase == v1.PodFailed && (underPressure || isOutOf(st.Reason) || slices.Contains(refusals, st.Reason))
}

// Admission refuses pods whose nodeSelector or node affinity does not match the node,
// pods that want a host port that a running pod has, and those that ask for a
// protection that the node cannot give.
func Admission(nodeLabels func() map[string]string, security NodeSecurity) func(p *v1.Pod, running []*v1.Pod) *status.Refusal {
	return func(p *v1.Pod, running []*v1.Pod) *status.Refusal {
		node := nodeLabels()
		if !labels.SelectorFromSet(p.Spec.NodeSelector).Matches(labels.Set(node)) || !affine(p, node) {
			return &status.Refusal{Reason: ReasonNodeAffinity, Message: "Pod was rejected: Predicate NodeAffinity failed"}
		}
		for _, other := range running {
			if portsClash(p, other) {
				return &status.Refusal{Reason: ReasonNodePorts, Message: "Pod was rejected: Predicate NodePorts failed"}
			}
		}
		return security.refuse(p)
	}
}

// affine says whether the node is one that the pod's affinity requires.
func affine(p *v1.Pod, nodeLabels map[string]string) bool {
	a := p.Spec.Affinity
	return a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil ||
		pod.MatchesNode(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution, p.Spec.NodeName, nodeLabels)
}

func portsClash(a, b *v1.Pod) bool {
	for _, pa := range hostPorts(a) {
		for _, pb := range hostPorts(b) {
			if pa.HostPort == pb.HostPort && pa.Protocol == pb.Protocol && addressesClash(pa.HostIP, pb.HostIP) {
				return true
			}
		}
	}
	return false
}

// addressesClash says that a port cannot be had on both: the unspecified
// address takes every other one.
func addressesClash(a, b string) bool {
	return a == b || everyAddress(a) || everyAddress(b)
}

func everyAddress(s string) bool {
	ip, err := netip.ParseAddr(s)
	return s == "" || err == nil && ip.IsUnspecified()
}

func hostPorts(p *v1.Pod) (ports []v1.ContainerPort) {
	for i := range p.Spec.Containers {
		for _, port := range p.Spec.Containers[i].Ports {
			if port.HostPort > 0 {
				ports = append(ports, port)
			}
		}
	}
	return ports
}
