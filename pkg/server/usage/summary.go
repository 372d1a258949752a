package usage

import (
	"context"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	summary "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/stats"
)

// defaultInterface is the one of a pod that kubelet takes for all of its traffic.
const defaultInterface = "eth0"

// Summary is /stats/summary; with little it tells of CPU and memory alone.
func Summary(ctx context.Context, r *stats.Reader, nodeName string, little bool) (*summary.Summary, error) {
	detail := stats.Full
	if little {
		detail = stats.Basic
	}
	node, err := r.Node(detail)
	if err != nil {
		return nil, err
	}
	var disks stats.Snapshot
	if !little {
		// A part that cannot be measured is left out.
		disks, _ = r.SomeDisks(ctx)
	}
	out := &summary.Summary{Node: nodeStats(&node, nodeName), Pods: []summary.PodStats{}}
	if parents := r.Parents(detail); len(parents) > 0 {
		c := containerStats(&parents[0], parents[0].Created)
		c.Name = summary.SystemContainerPods
		out.Node.SystemContainers = []summary.ContainerStats{c}
		// What pods may use is the node's when nothing limits them.
		c.Memory.AvailableBytes = ptr(available(&parents[0], node.Capacity))
	}
	if !little {
		addNodeDisks(&out.Node, &node, disks)
	}
	pods := r.Pods(detail)
	for i := range pods {
		out.Pods = append(out.Pods, podStats(&pods[i], disks, little))
	}
	return out, nil
}

func ptr[T any](v T) *T { return &v }

func available(c *stats.Cgroup, limit uint64) uint64 { return limit - min(limit, c.Memory.WorkingSet) }

func nodeStats(n *stats.Node, name string) summary.NodeStats {
	c := containerStats(&n.Cgroup, n.Booted)
	c.Memory.AvailableBytes = ptr(n.Available())
	c.Swap.SwapAvailableBytes = ptr(n.SwapTotal - min(n.SwapTotal, n.Memory.Swap))
	return summary.NodeStats{NodeName: name, StartTime: c.StartTime, CPU: c.CPU, Memory: c.Memory, Swap: c.Swap, IO: c.IO}
}

func addNodeDisks(out *summary.NodeStats, n *stats.Node, disks stats.Snapshot) {
	at := metav1.NewTime(n.Time)
	out.Rlimit = &summary.RlimitStats{Time: at, MaxPID: ptr(int64(n.MaxPID)), NumOfRunningProcesses: ptr(int64(n.Processes))}
	out.Network = networkStats(n.Interfaces, n.DefaultInterface, n.Time)
	if disks.Node.Capacity > 0 {
		out.Fs = fsStats(disks.Node, stats.Space{Bytes: disks.Node.Used, Inodes: disks.Node.InodesUsed}, disks.At)
	}
	if disks.Image.Images.Capacity > 0 {
		out.Runtime = &summary.RuntimeStats{
			ImageFs:     fsStats(disks.Image.Images, disks.Image.ImageSpace, disks.At),
			ContainerFs: fsStats(disks.Image.Containers, disks.Image.ContainerSpace, disks.At),
		}
	}
}

func containerStats(c *stats.Cgroup, started time.Time) summary.ContainerStats {
	at := metav1.NewTime(c.Time)
	out := summary.ContainerStats{
		StartTime: metav1.NewTime(started),
		CPU:       &summary.CPUStats{Time: at, UsageCoreNanoSeconds: ptr(uint64(c.CPU.Usage)), PSI: psi(c.CPUPressure)},
		Memory: &summary.MemoryStats{
			Time: at, UsageBytes: ptr(c.Memory.Usage), WorkingSetBytes: ptr(c.Memory.WorkingSet), RSSBytes: ptr(c.Memory.RSS),
			PageFaults: ptr(c.Memory.Faults), MajorPageFaults: ptr(c.Memory.MajorFaults), PSI: psi(c.MemoryPressure),
		},
		Swap: &summary.SwapStats{Time: at, SwapUsageBytes: ptr(c.Memory.Swap)},
	}
	if c.Window > 0 {
		out.CPU.UsageNanoCores = ptr(c.Rate)
	}
	if c.Memory.Limit > 0 {
		out.Memory.AvailableBytes = ptr(available(c, c.Memory.Limit))
	}
	if limit := c.Memory.SwapLimit; limit != stats.NoLimit {
		out.Swap.SwapAvailableBytes = ptr(limit - min(limit, c.Memory.Swap))
	}
	if c.IOPressure != nil {
		out.IO = &summary.IOStats{Time: at, PSI: psi(c.IOPressure)}
	}
	return out
}

func psi(p *stats.Pressure) *summary.PSIStats {
	if p == nil {
		return nil
	}
	data := func(l stats.PressureLine) summary.PSIData {
		return summary.PSIData{Total: uint64(l.Total), Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &summary.PSIStats{Full: data(p.Full), Some: data(p.Some)}
}

func podStats(p *stats.Pod, disks stats.Snapshot, little bool) summary.PodStats {
	c := containerStats(&p.Cgroup, time.Time{})
	out := summary.PodStats{
		PodRef: summary.PodReference{Name: p.Pod.Name, Namespace: p.Pod.Namespace, UID: string(p.Pod.UID)},
		CPU:    c.CPU, Memory: c.Memory, Swap: c.Swap, IO: c.IO, Containers: []summary.ContainerStats{},
	}
	if p.Pod.Status.StartTime != nil {
		out.StartTime = *p.Pod.Status.StartTime
	}
	disk, measured := disks.Pods[p.Pod.UID]
	for i := range p.Containers {
		k := &p.Containers[i]
		s := containerStats(&k.Cgroup, k.StartedAt)
		s.Name = k.Name
		if used, ok := disk.RootFS[k.Name]; ok {
			s.Rootfs = fsStats(disks.Image.Containers, used, disks.At)
		}
		if used, ok := disk.Logs[k.Name]; ok {
			s.Logs = fsStats(disks.Node, used, disk.At)
		}
		out.Containers = append(out.Containers, s)
	}
	if little {
		return out
	}
	out.Network = networkStats(p.Interfaces, defaultInterface, p.Time)
	out.ProcessStats = &summary.ProcessStats{ProcessCount: ptr(p.Threads)}
	if measured {
		out.EphemeralStorage = fsStats(disks.Node, disk.Ephemeral(), disk.At)
		out.VolumeStats = volumeStats(p, disk, disks)
	}
	return out
}

func volumeStats(p *stats.Pod, disk stats.Disk, disks stats.Snapshot) []summary.VolumeStats {
	var out []summary.VolumeStats
	for name, v := range disk.Volumes {
		fs := disks.Node
		if !v.OnDisk() {
			limit := uint64(v.Limit)
			fs = stats.Filesystem{Capacity: limit, Available: limit - min(limit, uint64(v.Used))}
		}
		out = append(out, summary.VolumeStats{Name: name, FsStats: *fsStats(fs, stats.Space{Bytes: uint64(v.Used), Inodes: uint64(v.Files)}, disk.At)})
	}
	for name, fs := range disk.Claims {
		v := summary.VolumeStats{Name: name, FsStats: *fsStats(fs, stats.Space{Bytes: fs.Used, Inodes: fs.InodesUsed}, disk.At)}
		v.PVCRef = &summary.PVCReference{Name: pod.ClaimOf(p.Pod, name), Namespace: p.Pod.Namespace}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b summary.VolumeStats) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func fsStats(f stats.Filesystem, used stats.Space, at time.Time) *summary.FsStats {
	out := &summary.FsStats{
		Time: metav1.NewTime(at), AvailableBytes: ptr(f.Available), CapacityBytes: ptr(f.Capacity), UsedBytes: ptr(used.Bytes), InodesUsed: ptr(used.Inodes),
	}
	if f.Inodes > 0 { // btrfs has no number of them
		out.Inodes, out.InodesFree = ptr(f.Inodes), ptr(f.InodesFree)
	}
	return out
}

// networkStats are nil without an interface.
func networkStats(list []stats.Interface, main string, at time.Time) *summary.NetworkStats {
	if len(list) == 0 {
		return nil
	}
	out := &summary.NetworkStats{Time: metav1.NewTime(at)}
	for i := range list {
		n := &list[i]
		s := summary.InterfaceStats{Name: n.Name, RxBytes: ptr(n.RxBytes), RxErrors: ptr(n.RxErrors), TxBytes: ptr(n.TxBytes), TxErrors: ptr(n.TxErrors)}
		if n.Name == main {
			out.InterfaceStats = s
		}
		out.Interfaces = append(out.Interfaces, s)
	}
	return out
}
