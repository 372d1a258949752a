package podworker

import (
	"fmt"
	"slices"
	"strings"

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
	// Sysctls are what pods may set besides the safe ones: names, and prefixes
	// that end in a star.
	Sysctls []string
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
	return n.refuseSysctl(p)
}

// refuseSysctl lets the safe ones pass and those that were allowed, each only in
// a namespace that is the pod's own.
func (n NodeSecurity) refuseSysctl(p *v1.Pod) *status.Refusal {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range p.Spec.SecurityContext.Sysctls {
		name := pod.NormalSysctl(s.Name)
		ns := pod.SysctlNamespace(name)
		shared := ns == pod.SysctlIPC && p.Spec.HostIPC || ns == pod.SysctlNet && p.Spec.HostNetwork ||
			ns == pod.SysctlUser && (p.Spec.HostUsers == nil || *p.Spec.HostUsers)
		switch {
		case !slices.Contains(pod.SafeSysctls(), name) && !slices.ContainsFunc(n.Sysctls, func(allowed string) bool { return matches(allowed, name) }):
			return rejected(ReasonSysctl, fmt.Sprintf("forbidden sysctl: %q not allowlisted", name))
		case shared:
			return rejected(ReasonSysctl, fmt.Sprintf("forbidden sysctl: %q not allowed with host %s enabled", name, ns))
		}
	}
	return nil
}

func matches(pattern, name string) bool {
	pattern = pod.NormalSysctl(pattern)
	prefix, open := strings.CutSuffix(pattern, "*")
	return pattern == name || open && strings.HasPrefix(name, prefix)
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
