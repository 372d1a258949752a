package usage

import (
	"io"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/pkg/stats"
)

// row is one cgroup of /metrics/cadvisor, and what else is known of it.
type row struct {
	labels     string
	c          *stats.Cgroup
	created    time.Time
	interfaces []stats.Interface
	files      []files
	device     func(number string) string
}

// files is what is used of a file system.
type files struct {
	fs   stats.Filesystem
	used uint64
}

// family is one metric of every row. Its value may be several samples: what is
// added to the labels of the row begins with a comma.
type family struct {
	name, kind, help string
	each             func(r *row, add func(labels string, value float64))
}

// one is a family with one sample in each row.
func one(name, kind, help string, value func(c *stats.Cgroup) float64) family {
	return family{name, kind, help, func(r *row, add func(string, float64)) { add("", value(r.c)) }}
}

// limited is a counter of the CPU limit, for rows that have one.
func limited(name, help string, value func(c *stats.Cgroup) float64) family {
	return family{name, counter, help, func(r *row, add func(string, float64)) {
		if r.c.Quota > 0 {
			add("", value(r.c))
		}
	}}
}

// pressure is a family that only some kernels have.
func pressure(name, help string, of func(c *stats.Cgroup) *stats.Pressure, line func(p *stats.Pressure) stats.PressureLine) family {
	return family{name, counter, help, func(r *row, add func(string, float64)) {
		if p := of(r.c); p != nil {
			add("", line(p).Total.Seconds())
		}
	}}
}

func device(name, kind, help string, value func(f *files) uint64) family {
	return family{name, kind, help, func(r *row, add func(string, float64)) {
		for i := range r.files {
			add(`,device="`+escape.Replace(r.files[i].fs.Device)+`"`, float64(value(&r.files[i])))
		}
	}}
}

func traffic(name, help string, value func(i *stats.IO) uint64) family {
	return family{name, counter, help, func(r *row, add func(string, float64)) {
		for i := range r.c.IO {
			add(`,device="`+escape.Replace(r.device(r.c.IO[i].Device))+`"`, float64(value(&r.c.IO[i])))
		}
	}}
}

func network(name, help string, value func(i *stats.Interface) uint64) family {
	return family{name, counter, help, func(r *row, add func(string, float64)) {
		for i := range r.interfaces {
			add(`,interface="`+escape.Replace(r.interfaces[i].Name)+`"`, float64(value(&r.interfaces[i])))
		}
	}}
}

// families are cAdvisor's that kubelet shows, in the order of their names' parts.
func families() []family {
	list := []family{
		{"container_last_seen", gauge, "When the container was seen last, in seconds since 1970.", func(r *row, add func(string, float64)) {
			add("", float64(r.c.Time.Unix()))
		}},
		{"container_start_time_seconds", gauge, "When the container started, in seconds since 1970.", func(r *row, add func(string, float64)) {
			if !r.created.IsZero() {
				add("", float64(r.created.Unix()))
			}
		}},
		one("container_oom_events_total", counter, "Processes that were killed for want of memory.", func(c *stats.Cgroup) float64 { return float64(c.Memory.OOMKills) }),
		one("container_processes", gauge, "Processes.", func(c *stats.Cgroup) float64 { return float64(c.Processes) }),
		one("container_threads", gauge, "Threads.", func(c *stats.Cgroup) float64 { return float64(c.Threads) }),
		one("container_threads_max", gauge, "How many threads there may be; 0 is any number.", func(c *stats.Cgroup) float64 { return float64(c.ThreadsMax) }),
	}
	for _, part := range [][]family{specFamilies(), cpuFamilies(), memoryFamilies(), diskFamilies(), networkFamilies()} {
		list = append(list, part...)
	}
	return list
}

func specFamilies() []family {
	return []family{
		one("container_spec_cpu_period", gauge, "Period of the CPU limit in microseconds.", func(c *stats.Cgroup) float64 { return float64(c.Period.Microseconds()) }),
		limitedGauge("container_spec_cpu_quota", "CPU limit in microseconds of each period.", func(c *stats.Cgroup) float64 { return float64(c.Quota.Microseconds()) }),
		one("container_spec_cpu_shares", gauge, "Share of the CPU.", func(c *stats.Cgroup) float64 { return float64(c.Shares) }),
		one("container_spec_memory_limit_bytes", gauge, "Memory limit; 0 is none.", func(c *stats.Cgroup) float64 { return float64(c.Memory.Limit) }),
		one("container_spec_memory_reservation_limit_bytes", gauge, "Memory that is reclaimed last; 0 is none.", func(c *stats.Cgroup) float64 { return float64(c.Memory.Reserved) }),
		one("container_spec_memory_swap_limit_bytes", gauge, "Swap limit; 0 is none, or no swap.", func(c *stats.Cgroup) float64 {
			if c.Memory.SwapLimit == stats.NoLimit {
				return 0
			}
			return float64(c.Memory.SwapLimit)
		}),
	}
}

// limitedGauge is limited for a gauge.
func limitedGauge(name, help string, value func(c *stats.Cgroup) float64) family {
	f := limited(name, help, value)
	f.kind = gauge
	return f
}

func cpuFamilies() []family {
	some := func(p *stats.Pressure) stats.PressureLine { return p.Some }
	full := func(p *stats.Pressure) stats.PressureLine { return p.Full }
	cpu := func(c *stats.Cgroup) *stats.Pressure { return c.CPUPressure }
	memory := func(c *stats.Cgroup) *stats.Pressure { return c.MemoryPressure }
	io := func(c *stats.Cgroup) *stats.Pressure { return c.IOPressure }
	return []family{
		{"container_cpu_usage_seconds_total", counter, "CPU time.", func(r *row, add func(string, float64)) {
			add(`,cpu="total"`, r.c.CPU.Usage.Seconds())
		}},
		one("container_cpu_user_seconds_total", counter, "CPU time outside the kernel.", func(c *stats.Cgroup) float64 { return c.CPU.User.Seconds() }),
		one("container_cpu_system_seconds_total", counter, "CPU time in the kernel.", func(c *stats.Cgroup) float64 { return c.CPU.System.Seconds() }),
		limited("container_cpu_cfs_periods_total", "Periods of the CPU limit.", func(c *stats.Cgroup) float64 { return float64(c.CPU.Periods) }),
		limited("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU limit was met.", func(c *stats.Cgroup) float64 { return float64(c.CPU.ThrottledPeriods) }),
		limited("container_cpu_cfs_throttled_seconds_total", "Time that was waited for the CPU limit.", func(c *stats.Cgroup) float64 { return c.CPU.Throttled.Seconds() }),
		pressure("container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU.", cpu, full),
		pressure("container_pressure_cpu_waiting_seconds_total", "Time in which some task waited for a CPU.", cpu, some),
		pressure("container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory.", memory, full),
		pressure("container_pressure_memory_waiting_seconds_total", "Time in which some task waited for memory.", memory, some),
		pressure("container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for a device.", io, full),
		pressure("container_pressure_io_waiting_seconds_total", "Time in which some task waited for a device.", io, some),
	}
}

func memoryFamilies() []family {
	bytes := func(name, help string, value func(m *stats.Memory) uint64) family {
		return one(name, gauge, help, func(c *stats.Cgroup) float64 { return float64(value(&c.Memory)) })
	}
	return []family{
		bytes("container_memory_usage_bytes", "Memory in use, caches included.", func(m *stats.Memory) uint64 { return m.Usage }),
		bytes("container_memory_working_set_bytes", "Memory in use without file pages that were not used lately.", func(m *stats.Memory) uint64 { return m.WorkingSet }),
		bytes("container_memory_rss", "Anonymous memory.", func(m *stats.Memory) uint64 { return m.RSS }),
		bytes("container_memory_cache", "Page cache.", func(m *stats.Memory) uint64 { return m.Cache }),
		bytes("container_memory_mapped_file", "Files that are mapped.", func(m *stats.Memory) uint64 { return m.MappedFile }),
		bytes("container_memory_kernel_usage", "Memory of the kernel.", func(m *stats.Memory) uint64 { return m.Kernel }),
		bytes("container_memory_swap", "Swap in use.", func(m *stats.Memory) uint64 { return m.Swap }),
		bytes("container_memory_max_usage_bytes", "The most memory that was in use.", func(m *stats.Memory) uint64 { return m.Peak }),
		bytes("container_memory_total_active_file_bytes", "File pages that were used lately.", func(m *stats.Memory) uint64 { return m.ActiveFile }),
		bytes("container_memory_total_inactive_file_bytes", "File pages that were not used lately.", func(m *stats.Memory) uint64 { return m.InactiveFile }),
		one("container_memory_failcnt", counter, "How often the memory limit was met.", func(c *stats.Cgroup) float64 { return float64(c.Memory.LimitHits) }),
		{"container_memory_failures_total", counter, "Page faults.", func(r *row, add func(string, float64)) {
			for _, scope := range []string{"container", "hierarchy"} {
				add(`,failure_type="pgfault",scope="`+scope+`"`, float64(r.c.Memory.Faults))
				add(`,failure_type="pgmajfault",scope="`+scope+`"`, float64(r.c.Memory.MajorFaults))
			}
		}},
	}
}

func diskFamilies() []family {
	return []family{
		device("container_fs_usage_bytes", gauge, "Bytes in use of the file system.", func(f *files) uint64 { return f.used }),
		device("container_fs_limit_bytes", gauge, "Size of the file system.", func(f *files) uint64 { return f.fs.Capacity }),
		device("container_fs_inodes_total", gauge, "Inodes of the file system.", func(f *files) uint64 { return f.fs.Inodes }),
		device("container_fs_inodes_free", gauge, "Free inodes of the file system.", func(f *files) uint64 { return f.fs.InodesFree }),
		traffic("container_fs_reads_bytes_total", "Bytes read.", func(i *stats.IO) uint64 { return i.ReadBytes }),
		traffic("container_fs_writes_bytes_total", "Bytes written.", func(i *stats.IO) uint64 { return i.WriteBytes }),
		traffic("container_fs_reads_total", "Reads.", func(i *stats.IO) uint64 { return i.Reads }),
		traffic("container_fs_writes_total", "Writes.", func(i *stats.IO) uint64 { return i.Writes }),
		{"container_blkio_device_usage_total", counter, "Bytes read and written.", func(r *row, add func(string, float64)) {
			for i := range r.c.IO {
				d := &r.c.IO[i]
				major, minor, _ := strings.Cut(d.Device, ":")
				on := `,device="` + escape.Replace(r.device(d.Device)) + `",major="` + major + `",minor="` + minor + `",operation="`
				add(on+`Read"`, float64(d.ReadBytes))
				add(on+`Write"`, float64(d.WriteBytes))
			}
		}},
	}
}

func networkFamilies() []family {
	return []family{
		network("container_network_receive_bytes_total", "Bytes received.", func(i *stats.Interface) uint64 { return i.RxBytes }),
		network("container_network_receive_packets_total", "Packets received.", func(i *stats.Interface) uint64 { return i.RxPackets }),
		network("container_network_receive_packets_dropped_total", "Packets dropped that were received.", func(i *stats.Interface) uint64 { return i.RxDropped }),
		network("container_network_receive_errors_total", "Errors in receiving.", func(i *stats.Interface) uint64 { return i.RxErrors }),
		network("container_network_transmit_bytes_total", "Bytes sent.", func(i *stats.Interface) uint64 { return i.TxBytes }),
		network("container_network_transmit_packets_total", "Packets sent.", func(i *stats.Interface) uint64 { return i.TxPackets }),
		network("container_network_transmit_packets_dropped_total", "Packets dropped that were to be sent.", func(i *stats.Interface) uint64 { return i.TxDropped }),
		network("container_network_transmit_errors_total", "Errors in sending.", func(i *stats.Interface) uint64 { return i.TxErrors }),
	}
}

// CAdvisor writes /metrics/cadvisor.
func CAdvisor(w io.Writer, r *stats.Reader, m Machine) error {
	node, err := r.Node(stats.Full)
	t := newText(w, node.Time)
	failed := 0.0
	if err != nil {
		failed = 1
	}
	rows := cadvisorRows(r, &node, err == nil)
	for _, f := range families() {
		begun := false
		for i := range rows {
			f.each(&rows[i], func(more string, value float64) {
				if !begun {
					begun = true
					t.family(f.name, f.kind, f.help)
				}
				t.sample(f.name, rows[i].labels+more, value, time.Time{})
			})
		}
	}
	t.family("container_scrape_error", gauge, "1 when something could not be read.")
	t.sample("container_scrape_error", "", failed, time.Time{})
	m.write(t, &node)
	return t.flush()
}

// cadvisorRows are the root, the parents of pods, and each pod with its sandbox
// and containers.
func cadvisorRows(r *stats.Reader, node *stats.Node, whole bool) []row {
	disks := r.LastDisks()
	var rows []row
	add := func(c *stats.Cgroup, created time.Time, container, image, name, namespace, pod string) *row {
		rows = append(rows, row{c: c, created: created, device: r.DeviceName, labels: labels(
			"container", container, "id", c.Path, "image", image, "name", name, "namespace", namespace, "pod", pod)})
		return &rows[len(rows)-1]
	}
	if whole {
		root := add(&node.Cgroup, node.Created, "", "", "", "", "")
		root.interfaces = node.Interfaces
		for _, fs := range disks.Filesystems() {
			root.files = append(root.files, files{fs, fs.Used})
		}
	}
	parents := r.Parents(stats.Full)
	for i := range parents {
		add(&parents[i], parents[i].Created, "", "", "", "", "")
	}
	pods := r.Pods(stats.Full)
	for i := range pods {
		p := &pods[i]
		ns, name := p.Pod.Namespace, p.Pod.Name
		carrier := add(&p.Cgroup, p.Created, "", "", "", ns, name)
		if p.SandboxID != "" {
			carrier = add(&p.Sandbox, p.Sandbox.Created, "POD", r.SandboxImage(), p.SandboxID, ns, name)
		}
		carrier.interfaces = p.Interfaces
		for j := range p.Containers {
			c := &p.Containers[j]
			cr := add(&c.Cgroup, c.StartedAt, c.Name, c.Image, c.ID, ns, name)
			if used, ok := disks.Pods[p.Pod.UID].RootFS[c.Name]; ok {
				cr.files = []files{{disks.Image.Containers, used.Bytes}}
			}
		}
	}
	return rows
}
