package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CollectShims ends the shims that containerd has given up, and returns their
// ids. When a sandbox's start is cut short by its caller's death, or its end by
// containerd's, the shim can stay and wait for ever for a call that nobody will
// make.
//
// Such a shim is one of this runtime's socket without a child, whose container
// has no record any more or whose folder was deleted. One that carries a
// container, or is about to, is never that: the record and the folder are there
// before the shim. A runc that waits to be let go is no child: with the record
// gone nobody will.
func (c *Client) CollectShims(ctx context.Context) ([]string, error) {
	if ok, err := c.isContainerd(ctx); err != nil || !ok {
		return nil, err
	}
	shims, err := c.shims()
	if err != nil || len(shims) == 0 {
		return nil, err
	}
	nctx, cancel := context.WithTimeout(inNamespace(ctx), callTimeout)
	defer cancel()
	known, err := c.records(nctx, "!=")
	if err != nil {
		return nil, err
	}
	var ended []string
	for _, s := range shims {
		if known[s.id] && !s.astray {
			continue
		}
		if inits, busy := s.children(); busy || known[s.id] && len(inits) > 0 {
			continue
		}
		if err := s.end(); err != nil {
			return ended, err
		}
		ended = append(ended, s.id)
	}
	return ended, nil
}

// shim is a shim process of this runtime.
type shim struct {
	pid    int
	id     string
	astray bool // its folder was deleted
	socket os.FileInfo
}

func (c *Client) shims() ([]shim, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot look for shims: %w", err)
	}
	socket, err := os.Stat(strings.TrimPrefix(c.o.Endpoint, "unix://"))
	if err != nil {
		return nil, fmt.Errorf("cannot look for the shims of %s: %w", c.o.Endpoint, err)
	}
	var shims []shim
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if s, ok := lookAtShim(pid, socket); ok {
			shims = append(shims, s)
		}
	}
	return shims, nil
}

// lookAtShim says whether pid is a shim of that socket's runtime. What cannot be
// read has just gone, or is none of ours.
func lookAtShim(pid int, socket os.FileInfo) (s shim, ok bool) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	b, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return s, false
	}
	args := strings.Split(string(b), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") || value(args, "-namespace") != criNamespace {
		return s, false
	}
	if its, err := os.Stat(value(args, "-address")); err != nil || !os.SameFile(its, socket) {
		return s, false
	}
	cwd, err := os.Readlink(filepath.Join(proc, "cwd"))
	if err != nil {
		return s, false
	}
	return shim{pid: pid, id: value(args, "-id"), astray: strings.HasSuffix(cwd, " (deleted)"), socket: socket}, true
}

// children says whether the shim has a child, or may have one, and lists those
// that are runc and wait for the start of their container.
func (s shim) children() (inits []int, busy bool) {
	tasks := filepath.Join("/proc", strconv.Itoa(s.pid), "task")
	threads, err := os.ReadDir(tasks)
	if err != nil || len(threads) == 0 {
		return nil, true
	}
	for _, t := range threads {
		list, err := os.ReadFile(filepath.Join(tasks, t.Name(), "children"))
		if err != nil {
			return nil, true
		}
		for _, child := range strings.Fields(string(list)) {
			pid, err := strconv.Atoi(child)
			if err != nil || !isInit(pid) {
				return nil, true
			}
			inits = append(inits, pid)
		}
	}
	return inits, false
}

func isInit(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	args := strings.Split(string(b), "\x00")
	return err == nil && len(args) > 1 && filepath.Base(args[0]) == "runc" && args[1] == "init"
}

// value is the argument behind the flag.
func value(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// end kills the shim, and a runc that waits below it, unless their numbers have
// passed to other processes.
func (s shim) end() error {
	err := kill(s.pid, func() bool {
		now, ok := lookAtShim(s.pid, s.socket)
		if !ok || now.id != s.id {
			return false
		}
		inits, busy := s.children()
		for _, pid := range inits {
			err := kill(pid, func() bool { return isInit(pid) })
			busy = busy || err != nil
		}
		return !busy
	})
	if err != nil {
		return fmt.Errorf("cannot end the abandoned shim %s (pid %d): %w", s.id, s.pid, err)
	}
	return nil
}

// kill ends a process that still is the one meant.
func kill(pid int, still func() bool) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !still() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
