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
		if known[s.id] && !s.astray || s.busy() {
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

// busy says whether the shim has a child, or may have one.
func (s shim) busy() bool {
	tasks := filepath.Join("/proc", strconv.Itoa(s.pid), "task")
	threads, err := os.ReadDir(tasks)
	if err != nil || len(threads) == 0 {
		return true
	}
	for _, t := range threads {
		if children, err := os.ReadFile(filepath.Join(tasks, t.Name(), "children")); err != nil || len(children) > 0 {
			return true
		}
	}
	return false
}

// value is the argument behind the flag.
func value(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// end kills the shim unless its number has passed to another process.
func (s shim) end() error {
	fd, err := unix.PidfdOpen(s.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot end the abandoned shim %s (pid %d): %w", s.id, s.pid, err)
	}
	defer unix.Close(fd)
	if now, ok := lookAtShim(s.pid, s.socket); !ok || now.id != s.id || now.busy() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot end the abandoned shim %s (pid %d): %w", s.id, s.pid, err)
	}
	return nil
}
