package stats

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// Cgroups tells where cgroups are.
type Cgroups interface {
	Tree(controller string) (cgroup.Tree, bool)
	Path(pod *v1.Pod) string
	Parents() []string
}

// Runtime tells whose a cgroup is, without being asked over its socket, and what
// is on disks.
type Runtime interface {
	Known(id string) (runtime.Known, bool)
	ImageFilesystems(ctx context.Context) (images, containers []runtime.Filesystem, err error)
	Layers(ctx context.Context) (map[string]runtime.Layer, error)
}

// Volumes are those of a pod.
type Volumes interface {
	// Usage measures those that take space of the node's own.
	Usage(ctx context.Context, uid types.UID) (map[string]volumes.Volume, error)
	// Of lists all, without measuring.
	Of(uid types.UID) ([]volumes.Volume, error)
}

// Options of a Reader; all but Log are required.
type Options struct {
	Cgroups Cgroups
	Runtime Runtime
	Volumes Volumes
	// OwnFiles is what the files that the agent gives to a pod take, in bytes.
	OwnFiles func(uid types.UID) (int64, error)
	// Pods are all that the agent knows; it does not change them.
	Pods func() []*v1.Pod
	// Proc and Sys are where proc and sysfs are mounted.
	Proc, Sys string
	// SandboxImage is what sandboxes are made from.
	SandboxImage string
	// StateDir is on the file system that pods fill; PodLogDir has their logs.
	StateDir, PodLogDir string
	Clock               func() time.Time
	Log                 *slog.Logger
}

// Reader reads usage. Its methods may be called from any goroutine.
type Reader struct {
	o     Options
	trees trees

	mu      sync.Mutex
	samples map[string]samples // by cgroup path

	disks   disks
	devices sync.Map // number → name
}

// New looks at which cgroups are mounted; it starts nothing.
func New(o Options) *Reader {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Reader{o: o, trees: findTrees(o.Cgroups), samples: map[string]samples{}, disks: disks{wanted: make(chan struct{}, 1), rest: diskEvery}}
}

// SandboxImage is what sandboxes are made from.
func (r *Reader) SandboxImage() string { return r.o.SandboxImage }

// Node reads the node as a whole.
func (r *Reader) Node(detail Detail) (Node, error) {
	f := &file{}
	var n Node
	var ok bool
	if n.Cgroup, ok = r.trees.read(f, "/", detail, r.o.Clock()); !ok {
		return n, fmt.Errorf("cannot read the root cgroup in %s: is the memory controller mounted?", r.trees.dir("/"))
	}
	var err error
	if n.Capacity, n.SwapTotal, err = r.meminfo(f, &n.Memory); err != nil {
		return n, err
	}
	n.Booted = r.booted(f)
	r.rate(&n.Cgroup, n.Booted)
	if b, ok := f.read(r.o.Proc, "loadavg"); ok {
		// "0.00 0.01 0.05 1/123 4567": running and all threads.
		if fields := bytes.Fields(b); len(fields) > 3 {
			_, all, _ := bytes.Cut(fields[3], []byte("/"))
			n.Processes, _ = number(all)
		}
	}
	n.MaxPID = r.maxPID(f)
	if detail == Full {
		n.DefaultInterface = r.defaultInterface(f)
		// A veth's other end is a pod's interface already.
		n.Interfaces = f.interfaces(filepath.Join(r.o.Proc, "self"), func(name string) bool { return name == "lo" || strings.HasPrefix(name, "veth") })
		if n.CPUPressure == nil {
			n.CPUPressure, n.MemoryPressure, n.IOPressure = f.pressure(r.o.Proc, "pressure/cpu"), f.pressure(r.o.Proc, "pressure/memory"), f.pressure(r.o.Proc, "pressure/io")
		}
	}
	return n, nil
}

// booted is when the node was started.
func (r *Reader) booted(f *file) (at time.Time) {
	if b, ok := f.read(r.o.Proc, "stat"); ok {
		pairs(b, func(key []byte, n uint64) {
			if string(key) == "btime" {
				at = time.Unix(int64(n), 0)
			}
		})
	}
	return at
}

// defaultInterface is where packets go that have no better way; "" without one.
func (r *Reader) defaultInterface(f *file) string {
	b, _ := f.read(r.o.Proc, "self/net/route")
	for line := range bytes.Lines(b) {
		if fields := bytes.Fields(line); len(fields) > 1 && string(fields[1]) == "00000000" {
			return string(fields[0])
		}
	}
	return ""
}

// maxPID is the lower of the kernel's two limits on threads.
func (r *Reader) maxPID(f *file) uint64 {
	pids, _ := f.number(r.o.Proc, "sys/kernel/pid_max")
	if threads, ok := f.number(r.o.Proc, "sys/kernel/threads-max"); ok && threads < pids {
		return threads
	}
	return pids
}

// meminfo reads the sizes, and the swap in use, which the root of cgroup v2 does
// not tell.
func (r *Reader) meminfo(f *file, m *Memory) (capacity, swap uint64, err error) {
	b, ok := f.read(r.o.Proc, "meminfo")
	if !ok {
		return 0, 0, fmt.Errorf("cannot read %s/meminfo: is proc mounted?", r.o.Proc)
	}
	var free uint64
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, _ := number(fields[1])
		switch string(fields[0]) {
		case "MemTotal:":
			capacity = n << 10
		case "SwapTotal:":
			swap = n << 10
		case "SwapFree:":
			free = n << 10
		}
	}
	if capacity == 0 {
		return 0, 0, fmt.Errorf("%s/meminfo does not tell how much memory there is", r.o.Proc)
	}
	if r.trees.v2 {
		m.Swap = swap - min(swap, free)
	}
	return capacity, swap, nil
}

// Parents reads the cgroups above those of pods.
func (r *Reader) Parents(detail Detail) []Cgroup {
	f := &file{}
	var out []Cgroup
	for _, path := range r.o.Cgroups.Parents() {
		if c, ok := r.trees.read(f, path, detail, r.o.Clock()); ok {
			out = append(out, c)
		}
	}
	return out
}

// readers is how many goroutines read pods: nearly all of it is time in the kernel,
// and a scrape is waited for.
const readers = 2

// Pods reads every pod that has a cgroup.
func (r *Reader) Pods(detail Detail) []Pod {
	// What has ended has no cgroup any more, or is about to lose it.
	pods := slices.DeleteFunc(slices.Clone(r.o.Pods()), func(p *v1.Pod) bool { return pod.IsTerminal(p.Status.Phase) })
	read, there := make([]Pod, len(pods)), make([]bool, len(pods))
	var all sync.WaitGroup
	for first := range readers {
		all.Go(func() {
			f := &file{}
			for i := first; i < len(pods); i += readers {
				read[i], there[i] = r.read(f, pods[i], detail)
			}
		})
	}
	all.Wait()
	out := read[:0]
	for i := range read {
		if there[i] {
			out = append(out, read[i])
		}
	}
	return out
}

// Pod reads one pod; false when it has no cgroup.
func (r *Reader) Pod(p *v1.Pod, detail Detail) (Pod, bool) { return r.read(&file{}, p, detail) }

func (r *Reader) read(f *file, p *v1.Pod, detail Detail) (Pod, bool) {
	path := r.o.Cgroups.Path(p)
	now := r.o.Clock()
	u := Pod{Pod: p}
	var ok bool
	if u.Cgroup, ok = r.trees.read(f, path, detail, now); !ok {
		return u, false
	}
	r.rate(&u.Cgroup, time.Time{})
	entries, err := os.ReadDir(r.trees.dir(path))
	if err != nil {
		return u, false
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		id, ok := containerID(e.Name())
		if !ok {
			continue
		}
		known, ok := r.o.Runtime.Known(id)
		if !ok || known.UID != p.UID || !known.Sandbox && known.Container == nil {
			continue // not looked at yet
		}
		c, ok := r.trees.read(f, path+"/"+e.Name(), detail, now)
		if !ok {
			continue
		}
		if known.Sandbox {
			u.SandboxID, u.Sandbox = id, c
			continue
		}
		k := known.Container
		image := k.SpecImage
		if image == "" {
			image = k.ImageRef
		}
		r.rate(&c, k.StartedAt)
		u.Containers = append(u.Containers, Container{
			Cgroup: c, ID: id, Name: k.Name, Image: image, Attempt: k.Attempt, StartedAt: k.StartedAt,
		})
	}
	if detail == Full && !p.Spec.HostNetwork {
		u.Interfaces = r.podInterfaces(f, &u)
	}
	return u, true
}

// containerID reads the id from the name that a runtime gives a container's
// cgroup: the id alone, cri-containerd-ID.scope, crio-ID.scope, …
func containerID(name string) (string, bool) {
	if strings.Contains(name, "conmon") {
		return "", false // CRI-O's watcher of the container
	}
	name = strings.TrimSuffix(name, ".scope")
	name = name[strings.LastIndexByte(name, '-')+1:]
	return name, len(name) >= 12
}

// podInterfaces looks into the pod's network namespace through a process that is
// in it: the sandbox's, or any container's with a runtime that needs none.
func (r *Reader) podInterfaces(f *file, u *Pod) []Interface {
	path := u.Sandbox.Path
	if path == "" && len(u.Containers) > 0 {
		path = u.Containers[0].Path
	}
	if path == "" {
		return nil
	}
	b, ok := f.read(r.trees.dir(path), "cgroup.procs")
	if !ok {
		return nil
	}
	pid, _, _ := bytes.Cut(b, []byte("\n"))
	if n, ok := number(pid); !ok || n == 0 {
		return nil
	}
	return f.interfaces(filepath.Join(r.o.Proc, string(pid)), func(name string) bool { return name == "lo" })
}
