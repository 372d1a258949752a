package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a containerd that runs, started by us or by an agent before us.
type process struct {
	pid    int
	config string // the file it was started with
	fd     *os.File
	// child is nil for one that an agent before us started: init reaps it then.
	child *exec.Cmd
}

// openProcess takes hold of a process, so that its number cannot come to mean
// another one.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

func (p *process) signal(sig syscall.Signal) error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := conn.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return serr
}

// wait returns nil when the process has ended, and the context's error when
// that comes first.
func (p *process) wait(ctx context.Context) error {
	if err := p.fd.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	err = conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil && err != nil {
		return ctx.Err()
	}
	return err
}

// alive says whether the process has not ended yet.
func (p *process) alive() bool {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return p.wait(ctx) != nil
}

// release gives up the hold and reaps a child that has ended.
func (p *process) release() string {
	_ = p.fd.Close()
	if p.child == nil {
		return "ended"
	}
	if err := p.child.Wait(); err != nil {
		return err.Error()
	}
	return "exit status 0"
}

// end asks the process to end, and makes it after grace.
func (p *process) end(ctx context.Context, grace time.Duration) error {
	if err := p.signal(syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("cannot end process %d: %w", p.pid, err)
	}
	gctx, cancel := context.WithTimeout(ctx, grace)
	err := p.wait(gctx)
	cancel()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return p.kill(ctx)
}

func (p *process) kill(ctx context.Context) error {
	if err := p.signal(syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("cannot kill process %d: %w", p.pid, err)
	}
	kctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := p.wait(kctx); err != nil {
		return fmt.Errorf("process %d does not end on SIGKILL, it waits for a disk or the kernel: %w", p.pid, err)
	}
	return nil
}

// start runs containerd in a session of its own, so that it outlives us and no
// terminal's Ctrl-C reaches it.
func (s *Supervisor) start(p program, config string) (*process, error) {
	log, err := os.OpenFile(s.o.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("embedded runtime: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(p.path, "--config", config)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = environment(p.searchPath())
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("embedded runtime: cannot start %s: %w", p.path, err)
	}
	proc, err := openProcess(cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	proc.child, proc.config = cmd, config
	return proc, nil
}

// environment is ours with another PATH and without what systemd meant for the
// agent alone: containerd would report READY=1 in its place.
func environment(path string) []string {
	env := []string{"PATH=" + path}
	for _, kv := range os.Environ() {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "PATH", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES",
			"GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GODEBUG", "GOTRACEBACK":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// find returns the containerd that runs from our state folder, or nil. It goes
// by the command line and not by a file with a number: nothing can then lie
// between a start and its record.
func (s *Supervisor) find() (*process, error) {
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		config := s.configOf(pid)
		if config == "" || !sameRoot(pid) {
			continue
		}
		p, err := openProcess(pid)
		if err != nil {
			continue // ended meanwhile
		}
		if s.configOf(pid) != config || !p.alive() {
			_ = p.fd.Close()
			continue
		}
		p.config = config
		return p, nil
	}
	return nil, nil
}

// configOf is the configuration of ours that a process runs with, or "".
func (s *Supervisor) configOf(pid int) string {
	args := commandLine(pid)
	if len(args) != 3 || args[1] != "--config" || filepath.Dir(args[2]) != s.o.StateDir {
		return ""
	}
	if base := filepath.Base(args[2]); !strings.HasPrefix(base, configPrefix) || !strings.HasSuffix(base, configSuffix) {
		return ""
	}
	return args[2]
}

// shims returns the processes that keep our containerd's containers.
func (s *Supervisor) shims() ([]int, error) {
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	var out []int
	for _, pid := range pids {
		args := commandLine(pid)
		if len(args) == 0 || !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") || !sameRoot(pid) {
			continue
		}
		for i := 1; i < len(args)-1; i++ {
			if args[i] == "-address" && args[i+1] == s.o.Socket() {
				out = append(out, pid)
				break
			}
		}
	}
	return out, nil
}

// children are the processes that a shim started or adopted.
func children(pid int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var out []int
	for _, file := range tasks {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

func processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("embedded runtime: cannot look for its processes: %w", err)
	}
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, pid)
		}
	}
	return out, nil
}

func commandLine(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(string(bytes.TrimSuffix(b, []byte{0})), "\x00")
}

// sameRoot keeps apart what runs in containers of this host: their paths read
// the same as ours and are others.
func sameRoot(pid int) bool {
	ours, err := os.Stat("/")
	if err != nil {
		return false
	}
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/root/", pid))
	return err == nil && os.SameFile(ours, theirs)
}
