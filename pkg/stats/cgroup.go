package stats

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
)

// Detail says how much is read.
type Detail int

// Basic is CPU time and memory. Full is everything, and takes three times as
// many files.
const (
	cpuOnly Detail = iota
	Basic
	Full
)

// userHZ is the unit of cpuacct.stat; the kernel's ABI fixes it.
const userHZ = 100

// unlimited is where limits of cgroup v1 begin that mean none: it writes the
// largest number of whole pages.
const unlimited = 1 << 62

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

// trees are where the controllers are mounted; "" for one that is not.
type trees struct {
	cpu, cpuacct, memory, blkio, pids string
	v2                                bool
}

func findTrees(c Cgroups) trees {
	var t trees
	for name, dir := range map[string]*string{"cpu": &t.cpu, "cpuacct": &t.cpuacct, "memory": &t.memory, "blkio": &t.blkio, "pids": &t.pids} {
		if tree, ok := c.Tree(name); ok {
			*dir, t.v2 = tree.Dir, t.v2 || tree.V2
		}
	}
	return t
}

// dir is the folder of a cgroup that every tree has.
func (t trees) dir(path string) string { return filepath.Join(t.memory, path) }

// read reads one cgroup; false when it is gone.
func (t trees) read(f *file, path string, detail Detail, now time.Time) (Cgroup, bool) {
	c := Cgroup{Path: path, Time: now}
	read := t.readV1
	if t.v2 {
		read = t.readV2
	}
	ok := read(f, &c, detail)
	c.Memory.WorkingSet = c.Memory.Usage - min(c.Memory.Usage, c.Memory.InactiveFile)
	if ok && detail == Full {
		if st, err := os.Stat(t.dir(path)); err == nil {
			c.Created = st.ModTime()
		}
		if b, found := f.read(t.dir(path), "cgroup.procs"); found {
			c.Processes = uint64(bytes.Count(b, []byte("\n")))
		}
	}
	return c, ok
}

func (t trees) readV1(f *file, c *Cgroup, detail Detail) bool {
	usage, ok := f.number(t.cpuacct+c.Path, "cpuacct.usage")
	c.CPU.Usage = time.Duration(usage)
	if detail == cpuOnly {
		return ok
	}
	dir := t.memory + c.Path
	m := &c.Memory
	if n, found := f.number(dir, "memory.usage_in_bytes"); found {
		m.Usage, ok = n, true
	}
	if !ok {
		return false
	}
	if b, found := f.read(dir, "memory.stat"); found {
		pairs(b, func(key []byte, n uint64) {
			switch string(key) {
			case "total_cache":
				m.Cache = n
			case "total_rss":
				m.RSS = n
			case "total_swap":
				m.Swap = n
			case "total_mapped_file":
				m.MappedFile = n
			case "total_active_file":
				m.ActiveFile = n
			case "total_inactive_file":
				m.InactiveFile = n
			case "total_pgfault":
				m.Faults = n
			case "total_pgmajfault":
				m.MajorFaults = n
			}
		})
	}
	m.Limit = limit(f.number(dir, "memory.limit_in_bytes"))
	m.SwapLimit = NoLimit
	if n := limit(f.number(dir, "memory.memsw.limit_in_bytes")); n > 0 {
		m.SwapLimit = n - min(n, m.Limit)
	}
	if detail == Full {
		t.fullV1(f, c)
	}
	return true
}

func limit(n uint64, ok bool) uint64 {
	if !ok || n >= unlimited {
		return 0
	}
	return n
}

func (t trees) fullV1(f *file, c *Cgroup) {
	if b, ok := f.read(t.cpuacct+c.Path, "cpuacct.stat"); ok {
		pairs(b, func(key []byte, n uint64) {
			switch string(key) {
			case "user":
				c.CPU.User = time.Duration(n) * (time.Second / userHZ)
			case "system":
				c.CPU.System = time.Duration(n) * (time.Second / userHZ)
			}
		})
	}
	dir := t.cpu + c.Path
	if b, ok := f.read(dir, "cpu.stat"); ok {
		pairs(b, func(key []byte, n uint64) {
			switch string(key) {
			case "nr_periods":
				c.CPU.Periods = n
			case "nr_throttled":
				c.CPU.ThrottledPeriods = n
			case "throttled_time":
				c.CPU.Throttled = time.Duration(n)
			}
		})
	}
	c.Shares, _ = f.number(dir, "cpu.shares")
	period, _ := f.number(dir, "cpu.cfs_period_us")
	quota, _ := f.number(dir, "cpu.cfs_quota_us") // -1 is no number
	c.Period, c.Quota = micros(period), micros(quota)

	dir, m := t.memory+c.Path, &c.Memory
	m.Peak, _ = f.number(dir, "memory.max_usage_in_bytes")
	m.LimitHits, _ = f.number(dir, "memory.failcnt")
	m.Kernel, _ = f.number(dir, "memory.kmem.usage_in_bytes")
	m.Reserved = limit(f.number(dir, "memory.soft_limit_in_bytes"))
	if b, ok := f.read(dir, "memory.oom_control"); ok {
		pairs(b, func(key []byte, n uint64) {
			if string(key) == "oom_kill" {
				m.OOMKills = n
			}
		})
	}
	if t.blkio != "" {
		blkioV1(f, t.blkio+c.Path, c)
	}
	if t.pids != "" {
		c.Threads, _ = f.number(t.pids+c.Path, "pids.current")
		c.ThreadsMax, _ = f.number(t.pids+c.Path, "pids.max") // "max" is none
	}
}

// blkioV1 reads "8:0 Read 4096" lines.
func blkioV1(f *file, dir string, c *Cgroup) {
	for i, name := range []string{"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"} {
		b, ok := f.read(dir, name)
		if !ok {
			continue
		}
		for line := range bytes.Lines(b) {
			fields := bytes.Fields(line)
			if len(fields) != 3 {
				continue // the total
			}
			n, _ := number(fields[2])
			d := c.device(fields[0])
			switch string(fields[1]) {
			case "Read":
				*[]*uint64{&d.ReadBytes, &d.Reads}[i] = n
			case "Write":
				*[]*uint64{&d.WriteBytes, &d.Writes}[i] = n
			}
		}
	}
}

func (c *Cgroup) device(number []byte) *IO {
	for i := range c.IO {
		if c.IO[i].Device == string(number) {
			return &c.IO[i]
		}
	}
	c.IO = append(c.IO, IO{Device: string(number)})
	return &c.IO[len(c.IO)-1]
}

func (t trees) readV2(f *file, c *Cgroup, detail Detail) bool {
	dir := t.memory + c.Path
	b, ok := f.read(dir, "cpu.stat")
	if !ok {
		return false
	}
	pairs(b, func(key []byte, n uint64) {
		switch string(key) {
		case "usage_usec":
			c.CPU.Usage = micros(n)
		case "user_usec":
			c.CPU.User = micros(n)
		case "system_usec":
			c.CPU.System = micros(n)
		case "nr_periods":
			c.CPU.Periods = n
		case "nr_throttled":
			c.CPU.ThrottledPeriods = n
		case "throttled_usec":
			c.CPU.Throttled = micros(n)
		}
	})
	if detail == cpuOnly {
		return true
	}
	m := &c.Memory
	if b, ok := f.read(dir, "memory.stat"); ok {
		pairs(b, func(key []byte, n uint64) {
			switch string(key) {
			case "file":
				m.Cache = n
			case "anon":
				m.RSS = n
			case "file_mapped":
				m.MappedFile = n
			case "kernel":
				m.Kernel = n
			case "active_file":
				m.ActiveFile = n
			case "inactive_file":
				m.InactiveFile = n
			case "pgfault":
				m.Faults = n
			case "pgmajfault":
				m.MajorFaults = n
			}
		})
	}
	if m.Usage, ok = f.number(dir, "memory.current"); !ok {
		m.Usage = m.RSS + m.Cache // the root, of which cgroup v1 says the same
	}
	m.Swap, _ = f.number(dir, "memory.swap.current")
	m.Limit, _ = f.number(dir, "memory.max")
	m.SwapLimit = NoLimit
	if n, ok := f.number(dir, "memory.swap.max"); ok {
		m.SwapLimit = n
	}
	if detail == Full {
		t.fullV2(f, c)
	}
	return true
}

func (t trees) fullV2(f *file, c *Cgroup) {
	dir := t.memory + c.Path
	if weight, ok := f.number(dir, "cpu.weight"); ok {
		c.Shares = cgroup.Shares(weight)
	}
	if b, ok := f.read(dir, "cpu.max"); ok {
		quota, period, _ := bytes.Cut(bytes.TrimSpace(b), []byte(" "))
		q, _ := number(quota) // "max" is none
		p, _ := number(period)
		c.Quota, c.Period = micros(q), micros(p)
	}
	m := &c.Memory
	m.Peak, _ = f.number(dir, "memory.peak")
	m.Reserved, _ = f.number(dir, "memory.low")
	if b, ok := f.read(dir, "memory.events"); ok {
		pairs(b, func(key []byte, n uint64) {
			switch string(key) {
			case "max":
				m.LimitHits = n
			case "oom_kill":
				m.OOMKills = n
			}
		})
	}
	c.Threads, _ = f.number(dir, "pids.current")
	c.ThreadsMax, _ = f.number(dir, "pids.max")
	c.CPUPressure = f.pressure(dir, "cpu.pressure")
	c.MemoryPressure = f.pressure(dir, "memory.pressure")
	c.IOPressure = f.pressure(dir, "io.pressure")
	b, ok := f.read(dir, "io.stat")
	if !ok {
		return
	}
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		d := c.device(fields[0])
		for _, field := range fields[1:] {
			key, value, _ := bytes.Cut(field, []byte("="))
			n, _ := number(value)
			switch string(key) {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
	}
}
