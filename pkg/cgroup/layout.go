package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hierarchy is one mounted cgroup tree: one or more v1 controllers, a named v1
// tree without controllers, or the v2 tree.
type hierarchy struct {
	dir         string // mount point, absolute
	controllers []string
	v2          bool
	// passive trees get no folders from us, but runc may put some there: the
	// v2 tree of a hybrid host.
	passive bool
}

func (h hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// v1Controllers are the trees in which kubelet and runc make a pod's folders.
// Anything else below the cgroup folder is not ours to touch.
var v1Controllers = []string{
	"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio",
	"pids", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc", "systemd",
}

// detect finds the trees below fs by what is there: a v2 root has
// cgroup.controllers, a v1 tree is a folder named after its controllers.
func detect(fs string) ([]hierarchy, error) {
	if c, err := os.ReadFile(filepath.Join(fs, "cgroup.controllers")); err == nil {
		return []hierarchy{{dir: fs, controllers: strings.Fields(string(c)), v2: true}}, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("reading the cgroup v2 controllers: %w", err)
	}
	entries, err := os.ReadDir(fs)
	if err != nil {
		return nil, fmt.Errorf("looking for cgroup controllers: %w", err)
	}
	var out []hierarchy
	for _, e := range entries {
		// cpu and cpuacct are links to cpu,cpuacct on most hosts: the folder is
		// enough.
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(fs, e.Name())
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
			continue
		}
		if e.Name() == "unified" {
			out = append(out, hierarchy{dir: dir, v2: true, passive: true})
			continue
		}
		list := strings.Split(e.Name(), ",")
		if slices.ContainsFunc(list, func(c string) bool { return !slices.Contains(v1Controllers, c) }) {
			continue
		}
		out = append(out, hierarchy{dir: dir, controllers: list})
	}
	if !slices.ContainsFunc(out, func(h hierarchy) bool { return !h.passive }) {
		return nil, fmt.Errorf("no cgroup controller is mounted below %s; mount cgroup2 there or start the init system with cgroups", fs)
	}
	return out, nil
}

// setting is one file of a cgroup and what goes into it.
type setting struct{ file, value string }

// settings spells limits for one tree. Unset limits are written too, so that a
// folder that an earlier pod of the same UID left behind is right again.
func (h hierarchy) settings(l limits, pageSizes []string, period int64) []setting {
	var out []setting
	if h.has("cpu") {
		out = append(out, h.cpu(l, period)...)
	}
	if h.has("memory") {
		file, none := "memory.limit_in_bytes", "-1"
		if h.v2 {
			file, none = "memory.max", "max"
		}
		out = append(out, setting{file, orNone(l.memory, none)})
		if h.v2 && l.low >= 0 {
			out = append(out, setting{"memory.min", itoa(l.min)}, setting{"memory.low", itoa(l.low)})
		}
	}
	if h.has("pids") {
		out = append(out, setting{"pids.max", orNone(l.pids, "max")})
	}
	if h.has("hugetlb") {
		suffix := ".limit_in_bytes"
		if h.v2 {
			suffix = ".max"
		}
		for _, size := range pageSizes {
			out = append(out, setting{"hugetlb." + size + suffix, itoa(l.huge[size])})
		}
	}
	return out
}

// cpu begins with the share. The quota is in a period of microseconds.
func (h hierarchy) cpu(l limits, period int64) []setting {
	if h.v2 {
		return []setting{
			{"cpu.weight", itoa(int64(weight(l.shares)))},
			{"cpu.max", orNone(l.quota, "max") + " " + itoa(period)},
		}
	}
	return []setting{
		{"cpu.shares", itoa(int64(l.shares))},
		{"cpu.cfs_period_us", itoa(period)},
		{"cpu.cfs_quota_us", orNone(l.quota, "-1")},
	}
}

func orNone(n int64, none string) string {
	if n <= 0 {
		return none
	}
	return itoa(n)
}

// write sets one file of a cgroup. The file exists or the controller does not
// work there; it is never created, which also keeps a folder on a plain file
// system from looking like a cgroup.
func write(dir string, s setting) error {
	f, err := os.OpenFile(filepath.Join(dir, s.file), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.value)
	return errors.Join(err, f.Close())
}

func read(dir, file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(b)), err
}
