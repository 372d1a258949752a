package podworker

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// What is said of a pod that makes room, in kubelet's words.
const (
	reasonPreempting  = "Preempting"
	messagePreempting = "Preempted in order to admit critical pod"
)

// critical says that room is made for a pod: it is static, or its priority is one
// of the system's own.
func critical(p *v1.Pod, static bool) bool { return static || pod.Critical(p) }

// preemptable says that a pod ends for another one, which is critical.
func preemptable(n neighbour, by *v1.Pod) bool {
	return !critical(n.pod, n.static) || priority(by) > priority(n.pod)
}

// victims are the pods that end so that a critical one fits: as few Guaranteed ones
// as possible, then as few Burstable ones, and of those who ask for no more than is
// short the ones that come nearest to it. None: it would not fit anyway.
func victims(by *v1.Pod, all []neighbour, short []shortage) (out []*v1.Pod) {
	lack := map[v1.ResourceName]int64{}
	for _, s := range short {
		lack[s.name] = s.requested - (s.capacity - s.used)
	}
	byClass := map[v1.PodQOSClass][]*v1.Pod{}
	for _, n := range all {
		if preemptable(n, by) {
			class := cgroup.QOS(n.pod)
			byClass[class] = append(byClass[class], n.pod)
		}
	}
	best, burstable, guaranteed := byClass[v1.PodQOSBestEffort], byClass[v1.PodQOSBurstable], byClass[v1.PodQOSGuaranteed]
	if len(less(lack, best, burstable, guaranteed)) > 0 {
		return nil
	}
	g := nearest(guaranteed, less(lack, best, burstable))
	b := nearest(burstable, less(lack, best, g))
	return slices.Concat(nearest(best, less(lack, b, g)), b, g)
}

// less is what is still short when those pods have ended.
func less(lack map[v1.ResourceName]int64, lists ...[]*v1.Pod) map[v1.ResourceName]int64 {
	out := map[v1.ResourceName]int64{}
	for name, n := range lack {
		for _, list := range lists {
			for _, p := range list {
				n -= asks(p, name)
			}
		}
		if n > 0 {
			out[name] = n
		}
	}
	return out
}

// nearest takes pods until nothing is short, each time the one that leaves the
// least, and of several the one that asks for least memory and CPU. Together they
// have enough.
func nearest(pods []*v1.Pod, lack map[v1.ResourceName]int64) (out []*v1.Pod) {
	pods = slices.Clone(pods)
	for len(lack) > 0 && len(pods) > 0 {
		best := 0
		for i, p := range pods {
			if d, least := distance(p, lack), distance(pods[best], lack); d < least || d == least && smaller(p, pods[best]) {
				best = i
			}
		}
		out, lack = append(out, pods[best]), less(lack, pods[best:best+1])
		pods = slices.Delete(pods, best, best+1)
	}
	return out
}

// distance weighs every resource alike: the part of what is short that would be
// left.
func distance(p *v1.Pod, lack map[v1.ResourceName]int64) (d float64) {
	for name, n := range lack {
		if left := float64(n - asks(p, name)); left > 0 {
			d += left / float64(n) * left / float64(n)
		}
	}
	return d
}

func smaller(a, b *v1.Pod) bool {
	for _, name := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceCPU} {
		if x, y := asks(a, name), asks(b, name); x != y {
			return x < y
		}
	}
	return false
}

// asks is what a pod has of a resource.
func asks(p *v1.Pod, name v1.ResourceName) int64 {
	if name == v1.ResourcePods {
		return 1
	}
	return amount(name, pod.Requests(p)[name])
}
