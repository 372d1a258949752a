package pod

import (
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Requests are what the whole pod asks for: its own resources (KEP-2837) where it
// names them, those of its containers else, and its overhead. This is what has to
// fit on the node.
func Requests(p *v1.Pod) v1.ResourceList {
	sum := ContainerRequests(p)
	if p.Spec.Resources != nil {
		replace(sum, p.Spec.Resources.Requests)
	}
	addTo(sum, p.Spec.Overhead)
	return sum
}

// Limits are the limits of the whole pod, in the same way; overhead is added to
// those that there are.
func Limits(p *v1.Pod) v1.ResourceList {
	sum := ContainerLimits(p)
	if p.Spec.Resources != nil {
		replace(sum, p.Spec.Resources.Limits)
	}
	for name, q := range p.Spec.Overhead {
		if v, limited := sum[name]; limited && !v.IsZero() {
			v.Add(q)
			sum[name] = v
		}
	}
	return sum
}

// WithoutOverhead is the pod as it would be without overhead; it shares the rest.
func WithoutOverhead(p *v1.Pod) *v1.Pod {
	bare := *p
	bare.Spec.Overhead = nil
	return &bare
}

// HasOwnResources says that the pod as a whole names resources that such a set may
// hold.
func HasOwnResources(p *v1.Pod) bool {
	if p.Spec.Resources == nil {
		return false
	}
	for _, list := range []v1.ResourceList{p.Spec.Resources.Requests, p.Spec.Resources.Limits} {
		for name := range list {
			if OwnResource(name) {
				return true
			}
		}
	}
	return false
}

// OwnResource says whether a pod as a whole may name a resource.
func OwnResource(name v1.ResourceName) bool {
	return name == v1.ResourceCPU || name == v1.ResourceMemory || IsHugePages(name)
}

// IsHugePages says whether a resource is huge pages of some size.
func IsHugePages(name v1.ResourceName) bool {
	return strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix)
}

// ContainerRequests are what the containers ask for together: those that run at
// once, or the hungriest init container with the sidecars started before it,
// whichever is more (KEP-753).
func ContainerRequests(p *v1.Pod) v1.ResourceList {
	return containerTotal(p, func(c *v1.Container) v1.ResourceList { return c.Resources.Requests })
}

// ContainerLimits are the same of limits.
func ContainerLimits(p *v1.Pod) v1.ResourceList {
	return containerTotal(p, func(c *v1.Container) v1.ResourceList { return c.Resources.Limits })
}

func containerTotal(p *v1.Pod, of func(*v1.Container) v1.ResourceList) v1.ResourceList {
	sum, sidecars, peak := v1.ResourceList{}, v1.ResourceList{}, v1.ResourceList{}
	for i := range p.Spec.Containers {
		addTo(sum, of(&p.Spec.Containers[i]))
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if IsSidecar(c) {
			addTo(sum, of(c))
			addTo(sidecars, of(c))
			raise(peak, sidecars)
			continue
		}
		now := v1.ResourceList{}
		addTo(now, of(c))
		addTo(now, sidecars)
		raise(peak, now)
	}
	raise(sum, peak)
	return sum
}

func replace(to, from v1.ResourceList) {
	for name, q := range from {
		if OwnResource(name) {
			to[name] = q.DeepCopy()
		}
	}
}

func addTo(to, from v1.ResourceList) {
	for name, q := range from {
		v := to[name].DeepCopy()
		v.Add(q)
		to[name] = v
	}
}

func raise(to, from v1.ResourceList) {
	for name, q := range from {
		if have, ok := to[name]; !ok || q.Cmp(have) > 0 {
			to[name] = q.DeepCopy()
		}
	}
}

// Kubernetes' own classes, which are there without anybody making them.
const (
	NodeCriticalClass    = "system-node-critical"
	ClusterCriticalClass = "system-cluster-critical"
)

// systemCritical is where the priorities of Kubernetes' own classes begin.
const systemCritical = 2000000000

// Critical says that a pod's priority is one of the system's own, by its number
// or, where no API server has written that, by its class.
func Critical(p *v1.Pod) bool {
	if p.Spec.Priority == nil {
		return p.Spec.PriorityClassName == NodeCriticalClass || p.Spec.PriorityClassName == ClusterCriticalClass
	}
	return *p.Spec.Priority >= systemCritical
}
