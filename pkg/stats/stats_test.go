package stats_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed/usage"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/stats"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestPods reads the same pod from files as cgroup v1 and as v2 have them.
func TestPods(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			r := usage.New(t, version).Reader()
			pods := r.Pods(stats.Full)
			if len(pods) != 1 || len(pods[0].Containers) != 1 {
				t.Fatalf("%d pods, want the one that runs, with the one container that is known: %+v", len(pods), pods)
			}
			p, c := pods[0], pods[0].Containers[0]
			equal(t, "pod cgroup", p.Path, "/kubepods/burstable/podu1")
			equal(t, "pod cpu", p.CPU.Usage, 3*time.Second)
			equal(t, "pod working set", p.Memory.WorkingSet, 200000)
			equal(t, "pod limit", p.Memory.Limit, 0)
			equal(t, "pod swap limit", p.Memory.SwapLimit, stats.NoLimit)
			equal(t, "sandbox", p.SandboxID, usage.SandboxID)
			equal(t, "sandbox memory", p.Sandbox.Memory.Usage, 40000)
			if want := []stats.Interface{{Name: "eth0", RxBytes: 700, RxPackets: 7, RxDropped: 1, TxBytes: 800, TxPackets: 8, TxErrors: 2}}; !slices.Equal(p.Interfaces, want) {
				t.Errorf("interfaces %+v, want %+v", p.Interfaces, want)
			}
			equal(t, "container", c.ID+c.Name+c.Image, usage.WebID+"webnginx:1")
			equal(t, "attempt", c.Attempt, 3)
			equal(t, "cgroup", c.Path, "/kubepods/burstable/podu1/"+usage.WebID)
			equal(t, "cpu", c.CPU, stats.CPU{
				Usage: 2 * time.Second, User: 1500 * time.Millisecond, System: 500 * time.Millisecond,
				Periods: 10, ThrottledPeriods: 4, Throttled: 250 * time.Millisecond,
			})
			equal(t, "rate since it began", c.Rate, 200_000_000)
			equal(t, "memory", c.Memory, stats.Memory{
				Usage: 200000, WorkingSet: 150000, RSS: 40960, Cache: 20480, MappedFile: 4096, Swap: 12288, Kernel: 8192,
				ActiveFile: 512, InactiveFile: 50000, Peak: 204096, Limit: 1048576, Faults: 900, MajorFaults: 9, LimitHits: 6, OOMKills: 2,
			})
			equal(t, "quota", c.Quota, 50*time.Millisecond)
			equal(t, "period", c.Period, 100*time.Millisecond)
			equal(t, "processes", c.Processes, 2)
			equal(t, "threads", c.Threads, 5)
			equal(t, "threads max", c.ThreadsMax, 64)
			if want := []stats.IO{{Device: "8:0", ReadBytes: 4096, WriteBytes: 8192, Reads: 1, Writes: 2}}; !slices.Equal(c.IO, want) {
				t.Errorf("io %+v, want %+v", c.IO, want)
			}
			if c.Created.IsZero() {
				t.Error("nobody knows when the cgroup was made")
			}
			if version == "v2" {
				equal(t, "pressure", *c.CPUPressure, stats.Pressure{Some: stats.PressureLine{1.5, 0.25, 0.1, time.Second}})
				equal(t, "shares", c.Shares, 500) // as KEP-2254 turns a weight of 20 back
			} else {
				equal(t, "shares", c.Shares, 512)
			}
			if basic := r.Pods(stats.Basic)[0].Containers[0]; basic.Memory.WorkingSet != 150000 || basic.Threads != 0 {
				t.Errorf("with Basic detail: %+v", basic)
			}
			equal(t, "parents", len(r.Parents(stats.Basic)), 2) // no pod is best effort
		})
	}
}

func TestNode(t *testing.T) {
	for version, workingSet := range map[string]uint64{"v1": 2500000000, "v2": 40960 + 20480 - 10480} {
		t.Run(version, func(t *testing.T) {
			w := usage.New(t, version)
			r, dir := w.Reader(), w.Dir
			n, err := r.Node(stats.Full)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "cpu", n.CPU.Usage, 9*time.Second)
			equal(t, "working set", n.Memory.WorkingSet, workingSet)
			equal(t, "capacity", n.Capacity, 4096000<<10)
			equal(t, "available", n.Available(), 4096000<<10-workingSet)
			equal(t, "swap", n.SwapTotal, 1024000<<10)
			equal(t, "processes", n.Processes, 345)
			equal(t, "most processes", n.MaxPID, 95000)
			if len(n.Interfaces) != 1 || n.Interfaces[0].RxBytes != 5000 {
				t.Errorf("interfaces %+v", n.Interfaces)
			}
			equal(t, "pressure", n.CPUPressure.Some.Avg10, 1.5)
			if version == "v2" {
				equal(t, "swap in use", n.Memory.Swap, 24000<<10)
			}
			if err := os.Remove(filepath.Join(dir, "proc/meminfo")); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Node(stats.Basic); err == nil {
				t.Error("a node without meminfo is no error")
			}
		})
	}
}

// TestRate takes the CPU time of the last sample that is old enough.
func TestRate(t *testing.T) {
	w := usage.New(t, "v2")
	r, dir, now := w.Reader(), w.Dir, &w.Now
	set := func(usec string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "cgroup/kubepods/burstable/podu1", usage.WebID, "cpu.stat"), []byte("usage_usec "+usec+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rate := func() uint64 { return r.Pods(stats.Basic)[0].Containers[0].Rate }
	r.Sample() // 2 s of CPU time
	*now = now.Add(10 * time.Second)
	set("7000000")
	equal(t, "half a core for ten seconds", rate(), 500_000_000)
	r.Sample()
	*now = now.Add(time.Second)
	set("8000000")
	equal(t, "the last sample is too young", rate(), uint64(6_000_000_000/11))
	*now = now.Add(9 * time.Second)
	set("27000000")
	equal(t, "two cores", rate(), 2_000_000_000)
	set("1") // another container in its place
	equal(t, "a counter that went back", rate(), 0)
}

func TestDisks(t *testing.T) {
	w := usage.New(t, "v2")
	r, dir := w.Reader(), w.Dir
	w.Layers = map[string]runtime.Layer{usage.WebID: {Bytes: 300, Inodes: 3}, "other": {Bytes: 7}}
	w.Volumes = map[string]volumes.Volume{"disk": {Used: 5000, Files: 5}, "memory": {Used: 9, Files: 9, Medium: "Memory"}, "host": {Used: -1}}
	folder := filepath.Join(dir, "logs/shop_web_u1/web")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"0.log", "1.log"} {
		if err := os.WriteFile(filepath.Join(folder, name), make([]byte, 100<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disks, err := r.Disks(t.Context(), []*v1.Pod{usage.Pod()})
	if err != nil {
		t.Fatal(err)
	}
	d := disks["u1"]
	equal(t, "layer", d.RootFS["web"], stats.Space{300, 3})
	if logs := d.Logs["web"]; logs.Inodes != 2 || logs.Bytes < 200<<10 || logs.Bytes > 300<<10 {
		t.Errorf("logs %+v", logs)
	}
	equal(t, "container", d.Container("web"), stats.Space{300 + d.Logs["web"].Bytes, 5})
	equal(t, "all", d.Ephemeral(), stats.Space{300 + d.Logs["web"].Bytes + 5000 + 4096, 3 + 2 + 5})

	image, err := r.ImageFS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	node, err := r.NodeFS()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "images", image.ImageSpace, stats.Space{1000, 10})
	equal(t, "capacity", image.Images.Capacity, node.Capacity)
	if node.Capacity == 0 || node.Available > node.Capacity || node.Used+node.Available > node.Capacity {
		t.Errorf("file system %+v", node)
	}
}
