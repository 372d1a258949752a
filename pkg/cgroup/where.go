package cgroup

import (
	"slices"

	v1 "k8s.io/api/core/v1"
)

// Tree is where a controller is mounted.
type Tree struct {
	Dir string // absolute
	V2  bool
}

// Tree finds the tree of a controller; false when it is not mounted. On cgroup v2
// cpuacct is a part of cpu, and blkio is io.
func (m *Manager) Tree(controller string) (Tree, bool) {
	i := slices.IndexFunc(m.trees, func(h hierarchy) bool { return !h.passive && (h.v2 || h.has(controller)) })
	if i < 0 {
		return Tree{}, false
	}
	return Tree{Dir: m.trees[i].dir, V2: m.trees[i].v2}, true
}

// Path is the pod's cgroup below each tree, absolute, as /proc/PID/cgroup has it.
func (m *Manager) Path(pod *v1.Pod) string {
	return m.names.fsPath(m.names.chain(class(QOS(pod)), podName(pod.UID)))
}

// Parents are the cgroups above those of pods: of all pods, and of the QoS
// classes that have one.
func (m *Manager) Parents() []string {
	return []string{
		m.names.fsPath(m.names.chain()),
		m.names.fsPath(m.names.chain(class(v1.PodQOSBurstable))),
		m.names.fsPath(m.names.chain(class(v1.PodQOSBestEffort))),
	}
}

// Shares is cpu.weight of cgroup v2 in the unit of cgroup v1's cpu.shares.
func Shares(weight uint64) uint64 { return sharesOfWeight(weight) }
