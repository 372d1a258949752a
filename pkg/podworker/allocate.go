package podworker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// allocation is what the node has set aside for the containers of a pod, by name.
// It is what the pod asked for when it was admitted, and follows a resize once
// there is room for that. An agent that begins anew finds it in what the containers
// were last given.
type allocation map[string]v1.ResourceRequirements

// allocationOf is what a pod's containers have, or else ask for.
func (w *worker) allocationOf(p *v1.Pod, observed *runtime.Pod) *allocation {
	a := allocation{}
	eachContainer(p, func(spec *v1.Container) {
		a[spec.Name] = spec.Resources
		if c := observed.Newest(spec.Name); c != nil {
			a[spec.Name] = *w.applied(p.UID, c, spec)
		}
	})
	return &a
}

func eachContainer(p *v1.Pod, do func(*v1.Container)) {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			do(&list[i])
		}
	}
}

// allocated is the pod with the resources that are set aside for it; the pod itself
// when that is what it asks for.
func (w *worker) allocated(p *v1.Pod) *v1.Pod {
	a := w.allocation.Load()
	if a == nil || !a.differs(p) {
		return p
	}
	own := *p
	for _, list := range []*[]v1.Container{&own.Spec.InitContainers, &own.Spec.Containers} {
		*list = slices.Clone(*list)
		for i := range *list {
			if r, ok := (*a)[(*list)[i].Name]; ok {
				(*list)[i].Resources = r
			}
		}
	}
	return &own
}

// differs says that the pod asks for other CPU or memory.
func (a allocation) differs(p *v1.Pod) (yes bool) {
	eachContainer(p, func(spec *v1.Container) {
		if r, ok := a[spec.Name]; ok {
			changed, _ := lifecycle.Resized(spec, &r)
			yes = yes || changed
		}
	})
	return yes
}

// allocate is the pod as it can be now: with what it asks for when there is room.
func (w *worker) allocate(rec store.Record, observed *runtime.Pod) *v1.Pod {
	if w.orphan != nil || pod.IsTerminal(rec.Pod.Status.Phase) || rec.Pod.DeletionTimestamp != nil {
		return w.allocated(rec.Pod)
	}
	if w.allocation.Load() == nil {
		w.allocation.Store(w.allocationOf(rec.Pod, observed))
	}
	if !w.allocation.Load().differs(rec.Pod) {
		w.pending.Store(nil)
		return rec.Pod
	}
	w.pending.CompareAndSwap(nil, &status.Refusal{})
	w.m.grantResizes()
	return w.allocated(rec.Pod)
}

// resizing is a pod that asks for other resources than it has.
type resizing struct {
	*worker
	rec store.Record
}

// grows says that it asks for more.
func (r resizing) grows() bool {
	have, want := pod.Requests(r.allocated(r.rec.Pod)), pod.Requests(r.rec.Pod)
	return want.Cpu().Cmp(*have.Cpu()) > 0 || want.Memory().Cmp(*have.Memory()) > 0
}

// before is kubelet's order: who asks for no more, by priority, Guaranteed pods, who
// has waited longest.
func (r resizing) before(o resizing) int {
	rank := func(yes bool) int { return map[bool]int{false: 1}[yes] }
	return cmp.Or(
		cmp.Compare(rank(!r.grows()), rank(!o.grows())),
		cmp.Compare(priority(o.rec.Pod), priority(r.rec.Pod)),
		cmp.Compare(rank(cgroup.QOS(r.rec.Pod) == v1.PodQOSGuaranteed), rank(cgroup.QOS(o.rec.Pod) == v1.PodQOSGuaranteed)),
		pendingSince(r.rec.Pod).Compare(pendingSince(o.rec.Pod)),
		cmp.Compare(r.rec.Pod.UID, o.rec.Pod.UID),
	)
}

// grantResizes sets aside what pods ask for that are to be resized, as far as there
// is room, and says of the others why they wait.
func (m *Manager) grantResizes() {
	m.admission.Lock()
	defer m.admission.Unlock()
	var all []resizing
	m.mu.Lock()
	for uid, w := range m.workers {
		rec, ok := m.Store.ByUID(uid)
		if ok && w.pending.Load() != nil && w.allocation.Load().differs(rec.Pod) {
			all = append(all, resizing{w, rec})
		}
	}
	m.mu.Unlock()
	slices.SortFunc(all, resizing.before)
	for _, r := range all {
		others := pick(m.neighbours(r.rec), func(n neighbour) bool { return n.queued })
		if no := resizable(r.rec.Pod, others, m.Allocatable()); no != nil {
			m.postpone(r, no)
			continue
		}
		a := maps.Clone(*r.allocation.Load())
		eachContainer(r.rec.Pod, func(spec *v1.Container) { a[spec.Name] = spec.Resources })
		r.allocation.Store(&a)
		r.pending.Store(nil)
		m.Recorder.PodEvent(r.rec.Pod, "", v1.EventTypeNormal, "ResizeStarted", "Pod resize started")
		r.poke()
	}
}

// resizable says why a pod cannot have what it asks for beside others: not now, or
// on this node never.
func resizable(p *v1.Pod, others []*v1.Pod, allocatable v1.ResourceList) *status.Refusal {
	for _, s := range shortages(p, nil, allocatable) {
		return &status.Refusal{Reason: v1.PodReasonInfeasible, Message: fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", s.name, s.requested, s.capacity)}
	}
	for _, s := range shortages(p, others, allocatable) {
		if s.name != v1.ResourcePods { // it is one of them
			return &status.Refusal{Reason: v1.PodReasonDeferred, Message: s.message()}
		}
	}
	return nil
}

// postpone tells why a resize has to wait, once for each reason.
func (m *Manager) postpone(r resizing, no *status.Refusal) {
	old := r.pending.Swap(no)
	if *old == *no {
		return
	}
	if old.Reason != no.Reason {
		m.Recorder.PodEvent(r.rec.Pod, "", v1.EventTypeWarning, "Resize"+no.Reason, "Pod resize "+no.Reason+": "+no.Message)
	}
	r.poke()
}

// freed has the pods look again that wait for a part of the node.
func (m *Manager) freed() {
	m.mu.Lock()
	pending := false
	for _, w := range m.workers {
		pending = pending || w.pending.Load() != nil
		if !w.admitted.Load() {
			w.poke()
		}
	}
	m.mu.Unlock()
	if pending {
		m.grantResizes()
	}
}

// pendingResize is why the pod does not get what it asks for; nil: it does.
func (w *worker) pendingResize(p *v1.Pod) *status.Refusal {
	if a, no := w.allocation.Load(), w.pending.Load(); a != nil && no != nil && no.Reason != "" && a.differs(p) {
		return no
	}
	return nil
}

// pendingSince is when a pod's resize began to wait; far away when it has only come.
func pendingSince(p *v1.Pod) time.Time {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodResizePending {
			return c.LastTransitionTime.Time
		}
	}
	return time.Unix(1<<40, 0)
}

func priority(p *v1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}
