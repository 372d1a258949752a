package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ownerFile names the process that made a node folder: "pid starttime".
const ownerFile = "testbed.owner"

// sweepOnce clears what killed test runs left, once per test process.
var sweepOnce = sync.OnceFunc(sweep)

// Dir makes a folder for what a test runs, on a real disk. Should the test
// process be killed, the next one removes it.
func Dir() (string, error) {
	sweepOnce()
	dir, err := os.MkdirTemp(parent, "na-")
	if err != nil {
		return "", err
	}
	// The root of a pod with users of its own has to get through to its files.
	if err := os.Chmod(dir, 0o711); err != nil {
		return "", err
	}
	return dir, writeOwner(dir)
}

func writeOwner(dir string) error {
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, ownerFile), fmt.Appendf(nil, "%d %s", os.Getpid(), start), 0o644)
}

// startTime is field 22 of /proc/PID/stat, which with the PID names a process
// for as long as the machine runs.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return "", fmt.Errorf("process %d: short stat line", pid)
	}
	return f[19], nil
}

// sweep removes the folders and cgroups of nodes whose test process is dead.
// Their processes and mounts went with the holder. Only folders that carry our
// owner file are touched.
func sweep() {
	owners, _ := filepath.Glob(filepath.Join(parent, "na-*", ownerFile))
	for _, f := range owners {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		pid, start, _ := strings.Cut(string(b), " ")
		n, err := strconv.Atoi(pid)
		if err != nil {
			continue
		}
		if now, err := startTime(n); err == nil && now == start {
			continue
		}
		dir := filepath.Dir(f)
		_ = removeCgroups("na-" + strings.ToLower(filepath.Base(dir)[3:]))
		_ = os.RemoveAll(dir)
	}
}

// cgroupDirs lists the folders of that name at the top of every hierarchy.
func cgroupDirs(name string) []string {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + name, "/sys/fs/cgroup/" + name} {
		m, _ := filepath.Glob(pattern)
		dirs = append(dirs, m...)
	}
	return dirs
}

// removeCgroups removes the node's cgroups, deepest first. A cgroup is busy for
// a moment after its last process died, so it tries again for a while.
func removeCgroups(name string) error {
	var last error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if last = removeCgroupsOnce(name); last == nil {
			return nil
		}
	}
	return last
}

func removeCgroupsOnce(name string) error {
	var all []string
	for _, top := range cgroupDirs(name) {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
	}
	sort.Sort(sort.Reverse(sort.StringSlice(all)))
	var errs []error
	for _, d := range all {
		if err := syscall.Rmdir(d); err != nil && !errors.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("%s: %w", d, err))
		}
	}
	return errors.Join(errs...)
}

// Leftovers lists what of a node is still on the machine: processes that name
// its folder, mounts below it, cgroups of its name, and the folder itself.
func Leftovers(name, dir string) []string {
	var found []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range procs {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir+"/") {
			found = append(found, fmt.Sprintf("process %s: %q", filepath.Base(filepath.Dir(f)), b))
		}
	}
	if b, err := os.ReadFile("/proc/self/mounts"); err == nil {
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, dir+"/") {
				found = append(found, "mount "+strings.TrimSpace(line))
			}
		}
	}
	for _, d := range cgroupDirs(name) {
		found = append(found, "cgroup "+d)
	}
	if _, err := os.Stat(dir); err == nil {
		found = append(found, "folder "+dir)
	}
	return found
}

// Mounts lists the mount points inside the node that contain s.
func (n *Node) Mounts(s string) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", n.holder().init))
	if err != nil {
		n.t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && strings.Contains(f[1], s) {
			points = append(points, f[1])
		}
	}
	return points
}

// PodCgroups lists the cgroup folders below the node's root whose base name
// starts with "pod", in one hierarchy (every hierarchy has the same).
func (n *Node) PodCgroups() []string {
	var pods []string
	for _, top := range cgroupDirs(n.Name) {
		if len(pods) > 0 {
			break
		}
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "pod") {
				pods = append(pods, path)
			}
			return nil
		})
	}
	return pods
}

// Addresses lists the pod addresses that host-local has reserved, over all
// networks.
func (n *Node) Addresses() []string {
	var ips []string
	m, _ := filepath.Glob(n.Path("cni-state/networks/*/*"))
	for _, f := range m {
		if b := filepath.Base(f); b != "lock" && !strings.HasPrefix(b, "last_reserved_ip") {
			ips = append(ips, b)
		}
	}
	return ips
}
