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
// before the shim.
func (c *Client) CollectShims(ctx context.Context) ([]string, error) {
	if ok, err := c.isContainerd(ctx); err != nil || !ok {
		return nil, err
	}
	idle, err := c.idleShims()
	if err != nil || len(idle) == 0 {
		return nil, err
	}
	nctx, cancel := context.WithTimeout(inNamespace(ctx), callTimeout)
	defer cancel()
	known, err := c.records(nctx, "!=")
	if err != nil {
		return nil, err
	}
	var ended []string
	for _, s := range idle {
		if known[s.id] && !s.astray {
			continue
		}
		if err := s.end(); err != nil {
			return ended, err
		}
		ended = append(ended, s.id)
	}
	return ended, nil
}

// idleShim is a shim without a child.
type idleShim struct {
	pid    int
	id     string
	astray bool // its folder was deleted
	socket os.FileInfo
}

// idleShims lists those of this runtime.
func (c *Client) idleShims() ([]idleShim, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot look for shims: %w", err)
	}
	socket, err := os.Stat(strings.TrimPrefix(c.o.Endpoint, "unix://"))
	if err != nil {
		return nil, fmt.Errorf("cannot look for the shims of %s: %w", c.o.Endpoint, err)
	}
	var idle []idleShim
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		if s, ok := lookAtShim(pid, socket); ok {
			idle = append(idle, s)
		}
	}
	return idle, nil
}

// lookAtShim says whether pid is an idle shim of that socket's runtime. What
// cannot be read has just gone, or is none of ours.
func lookAtShim(pid int, socket os.FileInfo) (s idleShim, ok bool) {
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
	tasks, err := filepath.Glob(filepath.Join(proc, "task/*/children"))
	if err != nil || len(tasks) == 0 {
		return s, false
	}
	for _, t := range tasks {
		if children, err := os.ReadFile(t); err != nil || len(children) > 0 {
			return s, false
		}
	}
	return idleShim{pid: pid, id: value(args, "-id"), astray: strings.HasSuffix(cwd, " (deleted)"), socket: socket}, true
}

// value is the argument behind the flag.
func value(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// end kills the shim unless its number has passed to another process.
func (s idleShim) end() error {
	fd, err := unix.PidfdOpen(s.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot end the abandoned shim %s (pid %d): %w", s.id, s.pid, err)
	}
	defer unix.Close(fd)
	if now, ok := lookAtShim(s.pid, s.socket); !ok || now.id != s.id {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot end the abandoned shim %s (pid %d): %w", s.id, s.pid, err)
	}
	return nil
}
