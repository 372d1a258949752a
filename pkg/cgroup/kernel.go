package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// markAttr is on the folders we made. trusted.* needs CAP_SYS_ADMIN and works
// on both cgroup versions; containers cannot forge it.
const markAttr = "trusted.nodeagent.owner"

// linux is the kernel itself.
type linux struct{}

func (linux) Mkdir(dir string) error { return os.Mkdir(dir, 0o755) }

func (linux) Rmdir(dir string) error {
	if err := unix.Rmdir(dir); err != nil {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

func (linux) Write(dir, file, value string) error { return write(dir, setting{file, value}) }

func (linux) Mark(dir, owner string) error {
	return unix.Setxattr(dir, markAttr, []byte(owner), 0)
}

func (linux) Marked(dir string) string {
	var buf [256]byte
	n, err := unix.Getxattr(dir, markAttr, buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// v2Wanted are the controllers that pods and their containers need.
var v2Wanted = []string{"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}

// delegate lets the children of a v2 cgroup use the controllers.
func (m *Manager) delegate(h hierarchy, dir string) error {
	text, err := read(dir, "cgroup.subtree_control")
	if err != nil {
		return fmt.Errorf("handing controllers down: %w", err)
	}
	have := strings.Fields(text)
	var missing []string
	for _, c := range v2Wanted {
		if h.has(c) && !slices.Contains(have, c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	err = m.kernel.Write(dir, "cgroup.subtree_control", strings.Join(missing, " "))
	if errors.Is(err, unix.EBUSY) && m.self != "" && filepath.Join(h.dir, m.self) == dir {
		// cgroup v2 forbids processes beside delegated controllers. In a
		// container our own cgroup looks like the root and holds us: move
		// everybody in it one level down, as docker-in-docker does.
		if err := m.evacuate(dir); err != nil {
			return err
		}
		err = m.kernel.Write(dir, "cgroup.subtree_control", strings.Join(missing, " "))
	}
	if err == nil {
		return nil
	}
	// One controller that cannot be had (a v1 mount holds it, a real-time
	// process sits in the root) must not take the others along.
	for _, c := range missing {
		if err := m.kernel.Write(dir, "cgroup.subtree_control", c); err != nil {
			m.warnOnce("delegate "+c, "a cgroup controller cannot be used for pods; its limits are not enforced", "controller", c[1:], "dir", dir, "err", err)
		}
	}
	return nil
}

// evacuated is where processes of our own cgroup go.
const evacuated = "nodeagent-init"

func (m *Manager) evacuate(dir string) error {
	leaf := filepath.Join(dir, evacuated)
	if err := m.kernel.Mkdir(leaf); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making room for controllers: %w", err)
	}
	text, err := read(dir, "cgroup.procs")
	if err != nil {
		return fmt.Errorf("making room for controllers: %w", err)
	}
	for _, pid := range strings.Fields(text) {
		err := m.kernel.Write(leaf, "cgroup.procs", pid)
		// Gone meanwhile, or a process of another pid namespace ("0") or a
		// kernel thread: whether it matters shows when the write is retried.
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("moving process %s out of %s: %w", pid, dir, err)
		}
	}
	return nil
}
