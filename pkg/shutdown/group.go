package shutdown

import (
	"slices"
	"sort"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// group are the pods that are ended together, and how long they have.
type group struct {
	period time.Duration
	pods   []*v1.Pod
}

// groups are the pods by priority, in the order in which they are ended. A pod
// belongs to the highest period that is not above it, and to the lowest when all
// are. Its priority is written out.
func groups(periods []config.ShutdownPeriod, pods []*v1.Pod) []group {
	periods = slices.Clone(periods)
	sort.SliceStable(periods, func(i, j int) bool { return periods[i].Priority < periods[j].Priority })
	out := make([]group, len(periods))
	for i, p := range periods {
		out[i].period = time.Duration(p.ShutdownGracePeriodSeconds) * time.Second
	}
	for _, p := range pods {
		above := sort.Search(len(periods), func(i int) bool { return periods[i].Priority > priority(p) })
		g := &out[max(0, above-1)]
		g.pods = append(g.pods, p)
	}
	return out
}

func priority(p *v1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// grace is what a pod of the group has to end.
func (g group) grace(p *v1.Pod) time.Duration { return min(g.period, pod.GracePeriod(p)) }

// total is what the shutdown has to wait for at most.
func total(periods []config.ShutdownPeriod) (sum time.Duration) {
	for _, p := range periods {
		sum += time.Duration(p.ShutdownGracePeriodSeconds) * time.Second
	}
	return sum
}
