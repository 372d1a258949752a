package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// CollectShims ends the shims that containerd has given up, and returns their
// ids. When the start of a sandbox is cut short by its caller's death,
// containerd removes the shim's folder and can still miss the shim itself,
// which then waits for ever for a call that nobody can make.
//
// Such a shim is one of this runtime's socket, in the folder of a bundle that
// was deleted, and without a child; a shim that carries a container is never
// all of that.
func (c *Client) CollectShims() ([]string, error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot look for shims: %w", err)
	}
	socket, err := os.Stat(strings.TrimPrefix(c.o.Endpoint, "unix://"))
	if err != nil {
		return nil, fmt.Errorf("cannot look for the shims of %s: %w", c.o.Endpoint, err)
	}
	var ended []string
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		id, ok := abandonedShim(pid, socket)
		if !ok {
			continue
		}
		if err := endShim(pid, id, socket); err != nil {
			return ended, err
		}
		ended = append(ended, id)
	}
	return ended, nil
}

// abandonedShim says whether pid is a given-up shim of that socket's runtime.
// What cannot be read has just gone, or is none of ours.
func abandonedShim(pid int, socket os.FileInfo) (id string, ok bool) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	b, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return "", false
	}
	args := strings.Split(string(b), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") || value(args, "-namespace") != criNamespace {
		return "", false
	}
	if its, err := os.Stat(value(args, "-address")); err != nil || !os.SameFile(its, socket) {
		return "", false
	}
	if cwd, err := os.Readlink(filepath.Join(proc, "cwd")); err != nil || !strings.HasSuffix(cwd, " (deleted)") {
		return "", false
	}
	tasks, err := filepath.Glob(filepath.Join(proc, "task/*/children"))
	if err != nil || len(tasks) == 0 {
		return "", false
	}
	for _, t := range tasks {
		if children, err := os.ReadFile(t); err != nil || len(children) > 0 {
			return "", false
		}
	}
	return value(args, "-id"), true
}

// value is the argument behind the flag.
func value(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// endShim kills the process unless its number has passed to another one.
func endShim(pid int, id string, socket os.FileInfo) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot end the abandoned shim %s (pid %d): %w", id, pid, err)
	}
	defer unix.Close(fd)
	if now, ok := abandonedShim(pid, socket); !ok || now != id {
		return fmt.Errorf("%w: the shim %s (pid %d) is another process now", errdefs.ErrTransient, id, pid)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot end the abandoned shim %s (pid %d): %w", id, pid, err)
	}
	return nil
}
