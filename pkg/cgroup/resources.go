package cgroup

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	podpkg "github.com/nodeagent/nodeagent/pkg/pod"
)

const (
	minShares = 2
	maxShares = 262144
	minQuota  = 1000 // microseconds; the kernel refuses less

	oomGuaranteed = -997
	oomBestEffort = 1000
)

// limits is what a pod's cgroup is set to, in cgroup v1's units.
type limits struct {
	shares uint64
	quota  int64            // microseconds per period; 0: no limit
	memory int64            // bytes; 0: no limit
	pids   int64            // 0: no limit
	huge   map[string]int64 // bytes by page size as the kernel spells it: "2MB"
	// min and low are what cgroup v2 keeps from being reclaimed, in bytes; a low
	// of -1 leaves both as they are.
	min, low int64
}

// QOS is the pod's quality of service class, as the API server computes it:
// only cpu and memory count, of init and app containers, and resources of the
// pod as a whole (KEP-2837) replace the containers'.
func QOS(pod *v1.Pod) v1.PodQOSClass {
	if podpkg.HasOwnResources(pod) {
		return requirementsQOS(pod.Spec.Resources)
	}
	var class v1.PodQOSClass
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := requirementsQOS(&list[i].Resources)
			if c == v1.PodQOSBurstable || (class != "" && class != c) {
				return v1.PodQOSBurstable
			}
			class = c
		}
	}
	if class == "" {
		return v1.PodQOSBestEffort
	}
	return class
}

func requirementsQOS(r *v1.ResourceRequirements) v1.PodQOSClass {
	var class v1.PodQOSClass
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		request, limit := r.Requests[name], r.Limits[name]
		c := v1.PodQOSGuaranteed
		switch {
		case request.Cmp(limit) != 0:
			return v1.PodQOSBurstable
		case request.IsZero():
			c = v1.PodQOSBestEffort
		}
		if class != "" && class != c {
			return v1.PodQOSBurstable
		}
		class = c
	}
	return class
}

// OOMScoreAdj is the oom_score_adj of a container's processes: -997 for
// Guaranteed and node-critical pods, 1000 for BestEffort, and for Burstable the
// less the more of the node's memory (bytes) the container asked for, between 3
// and 999. Kubelet's formula, sidecars and pod-level requests included.
func OOMScoreAdj(pod *v1.Pod, c *v1.Container, nodeMemory int64) int64 {
	if pod.Spec.PriorityClassName == podpkg.NodeCriticalClass && podpkg.Critical(pod) {
		return oomGuaranteed
	}
	switch QOS(pod) {
	case v1.PodQOSGuaranteed:
		return oomGuaranteed
	case v1.PodQOSBestEffort:
		return oomBestEffort
	}
	if nodeMemory <= 0 {
		return oomBestEffort - 1
	}
	extra := unassignedMemory(pod)
	adj := 1000 - 1000*(c.Resources.Requests.Memory().Value()+extra)/nodeMemory
	if isSidecar(pod, c) && len(pod.Spec.Containers) > 0 {
		// A sidecar must not be killed before the containers it serves.
		least := pod.Spec.Containers[0].Resources.Requests.Memory().Value()
		for i := range pod.Spec.Containers {
			least = min(least, pod.Spec.Containers[i].Resources.Requests.Memory().Value())
		}
		adj = min(adj, 1000-1000*(least+extra)/nodeMemory)
	}
	return min(max(adj, 1000+oomGuaranteed), oomBestEffort-1)
}

// unassignedMemory is each container's share of what the pod as a whole asked
// for beyond the sum of its containers, in bytes.
func unassignedMemory(pod *v1.Pod) int64 {
	if !podpkg.HasOwnResources(pod) {
		return 0
	}
	whole, ok := pod.Spec.Resources.Requests[v1.ResourceMemory]
	if !ok {
		return 0
	}
	containers := int64(len(pod.Spec.Containers))
	for i := range pod.Spec.InitContainers {
		if podpkg.IsSidecar(&pod.Spec.InitContainers[i]) {
			containers++
		}
	}
	sum := podpkg.ContainerRequests(pod)[v1.ResourceMemory]
	rest := whole.Value() - sum.Value()
	if rest <= 0 || containers == 0 {
		return 0
	}
	return rest / containers
}

func isSidecar(pod *v1.Pod, c *v1.Container) bool {
	if !podpkg.IsSidecar(c) {
		return false
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == c.Name {
			return true
		}
	}
	return false
}

// podLimits is the setting of the pod's cgroup. A cpu quota and a memory limit
// are set only when every container has one: the others would starve
// otherwise.
func (m *Manager) podLimits(pod *v1.Pod) limits {
	want, limit := podpkg.Requests(pod), podpkg.Limits(pod)
	cpuCapped, memoryCapped := true, true
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			cpuCapped = cpuCapped && !list[i].Resources.Limits.Cpu().IsZero()
			memoryCapped = memoryCapped && !list[i].Resources.Limits.Memory().IsZero()
		}
	}
	if own := pod.Spec.Resources; own != nil {
		cpuCapped = cpuCapped || !own.Limits.Cpu().IsZero()
		memoryCapped = memoryCapped || !own.Limits.Memory().IsZero()
	}

	l := limits{shares: minShares, pids: m.pidsLimit, huge: hugeLimits(want)}
	qos := QOS(pod)
	switch {
	case qos == v1.PodQOSBestEffort:
		return l
	case !m.tiered:
	case qos == v1.PodQOSGuaranteed:
		l.min = want.Memory().Value()
	default:
		l.low = want.Memory().Value()
	}
	l.shares = shares(want.Cpu().MilliValue())
	if cpuCapped && !m.noQuota {
		l.quota = m.quota(limit.Cpu().MilliValue())
	}
	if memoryCapped {
		l.memory = limit.Memory().Value()
	}
	return l
}

// hugeLimits maps the kernel's name of a page size to bytes.
func hugeLimits(l v1.ResourceList) map[string]int64 {
	out := map[string]int64{}
	for name, q := range l {
		size, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
		if !ok {
			continue
		}
		bytes, err := resource.ParseQuantity(size)
		if err != nil {
			continue // validation has refused it; the page size does not exist
		}
		out[pageSizeName(bytes.Value())] += q.Value()
	}
	return out
}

// pageSizeName spells a page size as the hugetlb controller does.
func pageSizeName(bytes int64) string {
	switch {
	case bytes >= 1<<30 && bytes%(1<<30) == 0:
		return itoa(bytes>>30) + "GB"
	case bytes >= 1<<20 && bytes%(1<<20) == 0:
		return itoa(bytes>>20) + "MB"
	default:
		return itoa(bytes>>10) + "KB"
	}
}

// shares turns thousandths of a CPU into cpu.shares.
func shares(milli int64) uint64 {
	return uint64(min(max(milli*1024/1000, minShares), maxShares))
}

// quota turns thousandths of a CPU into microseconds per period; 0 is no limit.
func (m *Manager) quota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*m.period/1000, minQuota)
}

// weight maps cpu.shares [2..262144] onto cgroup v2's cpu.weight [1..10000]
// linearly, as kubelet does (KEP-2254).
func weight(shares uint64) uint64 {
	shares = min(max(shares, minShares), maxShares)
	return 1 + (shares-minShares)*9999/(maxShares-minShares)
}

// sharesOfWeight is weight's inverse, exact to within one step.
func sharesOfWeight(w uint64) uint64 {
	return (min(max(w, 1), 10000)-1)*(maxShares-minShares)/9999 + minShares
}
