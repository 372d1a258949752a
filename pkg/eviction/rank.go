package eviction

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Space is what something takes of a file system.
type Space struct{ Bytes, Inodes int64 }

func (s Space) plus(o Space) Space { return Space{s.Bytes + o.Bytes, s.Inodes + o.Inodes} }

// Usage is what a pod uses.
type Usage struct {
	Memory    int64 // its working set, in bytes
	Processes int64
	// Containers are those that run, and of the others what is left on disks.
	Containers []ContainerUsage
	// Volumes are those of the pod that are measured, by name.
	Volumes map[string]Space
	// Own is what the agent keeps for the pod: its hosts file and termination
	// messages, which a container can write to.
	Own Space
}

// ContainerUsage is what a container uses.
type ContainerUsage struct {
	Name   string
	Memory int64 // its working set, in bytes
	// Layer is what it has written to its own file system, Logs what it has said.
	Layer, Logs Space
}

// Candidate is a pod that may be evicted; Usage is nil when nothing is known.
type Candidate struct {
	Pod   *v1.Pod
	Usage *Usage
}

// disks says which file systems there are.
type disks struct {
	// imageFS: images and what containers write are on another file system than
	// the rest.
	imageFS bool
}

// rank orders pods by who has to go first when a signal's resource is short, as
// kubelet does: those that use more than they asked for, the less important
// ones first, and of those the one that exceeds its request by most. Of pods
// alike the younger goes first.
func rank(signal config.Signal, pods []Candidate, d disks) []Candidate {
	type ranked struct {
		Candidate
		exceeds  bool
		priority int32
		over     int64
	}
	list := make([]ranked, len(pods))
	for i, c := range pods {
		r := ranked{Candidate: c, priority: pod.Priority(c.Pod)}
		if c.Usage != nil {
			r.over = excess(signal, c, d)
			r.exceeds = r.over > 0 && signal != config.PIDAvailable // nothing is asked for there
		}
		list[i] = r
	}
	slices.SortStableFunc(list, func(a, b ranked) int {
		return cmp.Or(
			first(a.Usage == nil, b.Usage == nil),
			first(a.exceeds, b.exceeds),
			cmp.Compare(a.priority, b.priority),
			cmp.Compare(b.over, a.over),
			b.Pod.CreationTimestamp.Compare(a.Pod.CreationTimestamp.Time),
		)
	})
	out := make([]Candidate, len(list))
	for i := range list {
		out[i] = list[i].Candidate
	}
	return out
}

// first puts what is true before what is not.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// excess is how much of a signal's resource a pod uses beyond its request.
func excess(signal config.Signal, c Candidate, d disks) int64 {
	requests := pod.Requests(c.Pod)
	switch resourceOf(signal) {
	case v1.ResourceMemory:
		return c.Usage.Memory - requests.Memory().Value()
	case resourcePIDs:
		return c.Usage.Processes
	case resourceInodes:
		return diskUsage(signal, c, d).Inodes
	default:
		return diskUsage(signal, c, d).Bytes - requests.StorageEphemeral().Value()
	}
}

// diskUsage is what a pod takes of the file system that a signal is about.
func diskUsage(signal config.Signal, c Candidate, d disks) (sum Space) {
	node := signal == config.NodeFSAvailable || signal == config.NodeFSInodesFree
	for _, u := range c.Usage.Containers {
		if !d.imageFS || !node {
			sum = sum.plus(u.Layer)
		}
		if !d.imageFS || node {
			sum = sum.plus(u.Logs)
		}
	}
	if d.imageFS && !node {
		return sum
	}
	return sum.plus(c.Usage.Own).plus(localVolumes(c))
}

// localVolumes is what a pod's own volumes take of the node's disk.
func localVolumes(c Candidate) (sum Space) {
	for i := range c.Pod.Spec.Volumes {
		v := &c.Pod.Spec.Volumes[i]
		if v.ConfigMap != nil || v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault {
			sum = sum.plus(c.Usage.Volumes[v.Name])
		}
	}
	return sum
}
