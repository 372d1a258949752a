package podworker

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/status"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// outOf begins the reasons of pods that ask for more than there is: OutOfcpu, ….
const outOf = "OutOf"

// neighbour is another pod that has, or is about to have, a part of the node.
type neighbour struct {
	pod    *v1.Pod // with the resources that it has been given
	static bool
	// leaving: it is about to end. queued: it comes first, and was not judged yet.
	leaving, queued bool
}

// shortage is what the node has too little of, in kubelet's units: thousandths of
// a CPU, bytes, pods.
type shortage struct {
	name                      v1.ResourceName
	requested, used, capacity int64
}

// refusal is in kubelet's words.
func (s shortage) refusal() *status.Refusal { return rejected(outOf+string(s.name), s.message()) }

func (s shortage) message() string {
	return fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, s.requested, s.used, s.capacity)
}

// shortages are what the node lacks to run a pod beside others, in kubelet's order.
// A node that is not known lacks nothing.
func shortages(p *v1.Pod, others []*v1.Pod, allocatable v1.ResourceList) (out []shortage) {
	if allocatable == nil {
		return nil
	}
	if most, ok := allocatable[v1.ResourcePods]; ok && int64(len(others)) >= most.Value() {
		out = append(out, shortage{v1.ResourcePods, 1, int64(len(others)), most.Value()})
	}
	requests, used := pod.Requests(p), map[v1.ResourceName]int64{}
	for _, o := range others {
		for name, q := range pod.Requests(o) {
			used[name] += amount(name, q)
		}
	}
	order := []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage}
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		if !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	for _, name := range order {
		want, capacity := amount(name, requests[name]), amount(name, allocatable[name])
		if want > 0 && want > capacity-used[name] {
			out = append(out, shortage{name, want, used[name], capacity})
		}
	}
	return out
}

// neighbours are the pods that a new one is judged beside; m.admission is held.
func (m *Manager) neighbours(rec store.Record) (out []neighbour) {
	records := m.Store.Records()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range records {
		w := m.workers[r.Pod.UID]
		switch ends := r.Pod.DeletionTimestamp != nil || pod.IsTerminal(r.Pod.Status.Phase); {
		case r.Pod.UID == rec.Pod.UID:
		case w != nil && w.admitted.Load():
			if leaving := w.evicted.Load() != nil && !w.released.Load() || r.Pod.DeletionTimestamp != nil; leaving || !ends {
				out = append(out, neighbour{pod: w.allocated(r.Pod), static: static(r), leaving: leaving})
			}
		case !ends && comesFirst(r, rec) && (w == nil || w.refused == nil && w.unschedulable == ""):
			out = append(out, neighbour{pod: r.Pod, static: static(r), queued: true})
		}
	}
	return out
}

// comesFirst keeps pods that ran before the host was restarted from being refused
// because another one is quicker now: they come before new ones, and all in the
// order in which they first came.
func comesFirst(a, b store.Record) bool {
	ran, other := a.Pod.Status.Phase == v1.PodUnknown, b.Pod.Status.Phase == v1.PodUnknown
	switch {
	case ran != other:
		return ran
	case !a.Accepted.Equal(b.Accepted):
		return a.Accepted.Before(b.Accepted)
	}
	return a.Pod.UID < b.Pod.UID
}

// static says that a pod does not come from an API.
func static(r store.Record) bool { return r.Source != store.SourcePush }

// pick are the pods of the neighbours that are not left out.
func pick(all []neighbour, leaveOut func(neighbour) bool) (out []*v1.Pod) {
	for _, n := range all {
		if !leaveOut(n) {
			out = append(out, n.pod)
		}
	}
	return out
}

// verdict is what becomes of a new pod.
type verdict struct {
	refused *status.Refusal
	// queued: it waits until those that come first were judged.
	queued bool
	// waits for other pods to end, and why; preempted are ended for it.
	waits     string
	preempted []*v1.Pod
}

// place says whether the node runs a new pod beside its neighbours.
func (m *Manager) place(rec store.Record, all []neighbour) verdict {
	p, conflict := m.scheduled(rec.Pod)
	if conflict != nil {
		return verdict{refused: conflict}
	}
	rec.Pod = p
	queued := func(n neighbour) bool { return n.queued }
	going := func(n neighbour) bool { return n.queued || n.leaving }
	running, staying := pick(all, queued), pick(all, going)
	allocatable := m.Allocatable()
	other := m.Admit(rec.Pod, running)
	short := shortages(rec.Pod, pick(all, func(neighbour) bool { return false }), allocatable)
	switch lacks := shortages(rec.Pod, staying, allocatable); {
	case other != nil && (len(lacks) == 0 || critical(rec.Pod, static(rec))) && m.Admit(rec.Pod, staying) != nil:
		return verdict{refused: other}
	case len(lacks) > 0 && critical(rec.Pod, static(rec)):
		if v := victims(rec.Pod, slices.DeleteFunc(slices.Clone(all), going), lacks); len(v) > 0 {
			return verdict{preempted: v, waits: lacks[0].message()}
		}
		return verdict{refused: lacks[0].refusal()}
	case len(lacks) > 0:
		return verdict{refused: lacks[0].refusal()}
	case other != nil:
		return verdict{waits: other.Message}
	case len(short) == 0:
		return verdict{}
	}
	if short := shortages(rec.Pod, running, allocatable); len(short) > 0 {
		return verdict{waits: short[0].refusal().Message}
	}
	return verdict{queued: true}
}

// isOutOf says that a pod was refused for want of something.
func isOutOf(reason string) bool { return strings.HasPrefix(reason, outOf) }

// amount is in kubelet's unit of a resource.
func amount(name v1.ResourceName, q resource.Quantity) int64 {
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}
