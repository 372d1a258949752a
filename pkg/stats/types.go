// Package stats reads what the node, its pods and their containers use.
//
// CPU, memory, processes and disk traffic are read from cgroup files (v1 and v2),
// network traffic from the pod's network namespace, and what is on disks from
// the runtime and the folders themselves. Nothing here asks the runtime for one pod:
// a reading of a hundred pods must cost milliseconds.
package stats

import (
	"math"
	"time"

	v1 "k8s.io/api/core/v1"
)

// CPU is the time that the processes of a cgroup, and those that ended in it, had.
// Counters begin with the cgroup.
type CPU struct {
	Usage, User, System time.Duration
	// Of the CPU limit: enforcement periods, those in which it was hit, and how
	// long processes waited for the next one.
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
}

// NoLimit is a limit that is none, where 0 is one.
const NoLimit = math.MaxUint64

// Memory of a cgroup and all below it, in bytes.
type Memory struct {
	Usage uint64
	// WorkingSet is Usage without file pages that have not been used lately:
	// what cannot be taken back at no cost, as kubelet counts it.
	WorkingSet               uint64
	RSS, Cache, MappedFile   uint64
	Swap, Kernel             uint64
	ActiveFile, InactiveFile uint64
	// Peak is the most that Usage was; 0 where the kernel does not tell.
	Peak uint64
	// Limit and Reserved are 0 without one.
	Limit, Reserved uint64
	// SwapLimit is of swap alone; NoLimit without one.
	SwapLimit           uint64
	Faults, MajorFaults uint64
	// LimitHits counts how often Usage met the limit, OOMKills processes killed for it.
	LimitHits, OOMKills uint64
}

// Pressure is the kernel's measure of waiting for a resource (PSI): the share of
// time in percent over the last seconds, and the sum of it.
type Pressure struct {
	Some, Full PressureLine
}

// PressureLine is about some processes, or all of them.
type PressureLine struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}

// IO is the traffic of a cgroup with one block device.
type IO struct {
	Device                               string // "8:0"
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// Cgroup is what the files of one cgroup say.
type Cgroup struct {
	// Path is below each tree's mount point, as /proc/PID/cgroup has it.
	Path string
	Time time.Time
	CPU  CPU
	// Rate is in billionths of a core, over the last Window; both 0 before
	// anything is known.
	Rate   uint64
	Window time.Duration
	Memory Memory

	// What follows is read with Full only.

	// Created is when the cgroup was made.
	Created time.Time
	// Shares, Quota and Period are as in cgroup v1; Quota is 0 without a limit.
	Shares             uint64
	Quota, Period      time.Duration
	Processes, Threads uint64
	ThreadsMax         uint64 // 0: no limit
	IO                 []IO
	CPUPressure        *Pressure // nil where the kernel does not tell
	MemoryPressure     *Pressure
	IOPressure         *Pressure
}

// Interface is the traffic of one network interface.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Container is a container that runs.
type Container struct {
	Cgroup
	ID, Name, Image string
	Attempt         uint32
	StartedAt       time.Time
}

// Pod is a pod that runs.
type Pod struct {
	Cgroup     // the pod's own, with its sandbox and all containers
	Pod        *v1.Pod
	Containers []Container
	// SandboxID is empty when the runtime gives its sandboxes no cgroup.
	SandboxID string
	Sandbox   Cgroup
	// Interfaces are those of the pod's network namespace, without the loopback;
	// none for a pod on the node's network. With Full only.
	Interfaces []Interface
}

// Node is the whole node.
type Node struct {
	Cgroup            // the root cgroup
	Capacity   uint64 // bytes of memory
	SwapTotal  uint64
	Processes  uint64 // threads, each of which takes a PID
	MaxPID     uint64
	Interfaces []Interface // without the loopback and the hosts' ends of veth pairs
	// DefaultInterface is the one of the default route.
	DefaultInterface string
	Booted           time.Time
}

// Available is the memory that is left, as kubelet's eviction counts it: what the
// node has without the working set.
func (n Node) Available() uint64 { return n.Capacity - min(n.Capacity, n.Memory.WorkingSet) }

// Filesystem is the one that a folder is on.
type Filesystem struct {
	Device                         string // as mounted, "/dev/sda1"; empty where mountinfo does not tell
	Time                           time.Time
	Path                           string // on it
	Capacity, Available, Used      uint64 // bytes
	Inodes, InodesFree, InodesUsed uint64
}

// Space is what something takes of a file system.
type Space struct {
	Bytes, Inodes uint64
}

func (s Space) plus(o Space) Space { return Space{s.Bytes + o.Bytes, s.Inodes + o.Inodes} }
