package podworker

import (
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/status"
)

// NodeSecurity is what the node can enforce of a pod's security context.
type NodeSecurity struct {
	// AppArmor says that the kernel has it.
	AppArmor bool
	// GroupsPolicy says whether the runtime knows supplementalGroupsPolicy; one
	// that does not ignores it.
	GroupsPolicy func() bool
}

// refuse says why a pod would run with less protection than it asks for.
func (n NodeSecurity) refuse(p *v1.Pod) *status.Refusal {
	if sc := p.Spec.SecurityContext; sc != nil && sc.SupplementalGroupsPolicy != nil &&
		*sc.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict && !n.GroupsPolicy() {
		return rejected(ReasonGroupsPolicy, "SupplementalGroupsPolicy=Strict is not supported in this node")
	}
	if !n.AppArmor && wantsAppArmor(p) {
		return rejected(ReasonAppArmor, "Cannot enforce AppArmor: AppArmor is not enabled on the host")
	}
	return nil
}

// rejected is a refusal in kubelet's words.
func rejected(reason, message string) *status.Refusal {
	return &status.Refusal{Reason: reason, Message: "Pod was rejected: " + message}
}

func wantsAppArmor(p *v1.Pod) bool {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if a := pod.AppArmor(p, &list[i]); a != nil && a.Type != v1.AppArmorProfileTypeUnconfined {
				return true
			}
		}
	}
	return false
}
