package pod

import v1 "k8s.io/api/core/v1"

// Priority is how important a pod is: what it says, or what its class does if
// that is one of the system's; 0 else.
func Priority(p *v1.Pod) int32 {
	switch {
	case p.Spec.Priority != nil:
		return *p.Spec.Priority
	case p.Spec.PriorityClassName == "system-node-critical":
		return systemCritical + 1000
	case p.Spec.PriorityClassName == "system-cluster-critical":
		return systemCritical
	default:
		return 0
	}
}
