// Package embedded supervises a private containerd: for a host that has no
// runtime, or one whose runtime should be left alone. All that is its own lies
// in one folder. It and its containers outlive the agent; the next agent finds
// it by its command line and takes over.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

const (
	configPrefix = "config-"
	configSuffix = ".toml"

	// maxSocketPath is sun_path's size without the final zero, unix(7). The
	// longest path is containerd's second socket's.
	maxSocketPath = 107
	ttrpcSuffix   = ".ttrpc"

	startTimeout  = 60 * time.Second // a large metadata database takes a while to open
	stopGrace     = 10 * time.Second
	killTimeout   = 10 * time.Second
	checkInterval = 10 * time.Second // between looks at one that runs
	checkTimeout  = 10 * time.Second
	hangAfter     = 6 // looks without an answer before it counts as hung
	answerRetry   = 20 * time.Millisecond
	retryMin      = 500 * time.Millisecond
	retryMax      = 30 * time.Second
)

// Options of the runtime. Paths are absolute.
type Options struct {
	StateDir     string // all of containerd's files; on a disk, or images fill the memory
	CNIConfDir   string
	CNIBinDir    string
	Program      string // path or name; "" finds containerd
	CgroupDriver string // "systemd", "cgroupfs" or "" for the host's
	SandboxImage string
	// RegistryConfigDir has a folder with a hosts.toml per registry.
	RegistryConfigDir string
	Log               *slog.Logger
}

// Root is where images and snapshots are.
func (o Options) Root() string { return filepath.Join(o.StateDir, "root") }

// State is what containerd keeps for as long as the host is up.
func (o Options) State() string { return filepath.Join(o.StateDir, "state") }

// Opt is where containerd would install add-ons.
func (o Options) Opt() string { return filepath.Join(o.StateDir, "opt") }

// Socket is the path containerd listens at.
func (o Options) Socket() string { return filepath.Join(o.StateDir, "containerd.sock") }

func (o Options) logFile() string  { return filepath.Join(o.StateDir, "containerd.log") }
func (o Options) bootFile() string { return filepath.Join(o.StateDir, "boot-id") }

// Supervisor starts, watches and stops one containerd. Its methods are called
// one at a time.
type Supervisor struct {
	o    Options
	conn *grpc.ClientConn
	proc *process // nil until Ensure
}

// New checks the options; it starts nothing.
func New(o Options) (*Supervisor, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.StateDir = filepath.Clean(o.StateDir)
	if n := len(o.Socket()) + len(ttrpcSuffix); n > maxSocketPath {
		return nil, fmt.Errorf("embedded runtime: the socket's path %s has %d bytes of the %d that the kernel takes; use a shorter --state-dir: %w",
			o.Socket()+ttrpcSuffix, n, maxSocketPath, errdefs.ErrInvalid)
	}
	conn, err := grpc.NewClient("unix://"+o.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithIdleTimeout(0))
	if err != nil {
		return nil, fmt.Errorf("embedded runtime: %w", err)
	}
	return &Supervisor{o: o, conn: conn}, nil
}

// Endpoint is what CRI clients dial.
func (s *Supervisor) Endpoint() string { return "unix://" + s.o.Socket() }

// Ensure returns when the runtime answers. One that runs is left alone, unless
// it was started with another configuration or by another version: then it is
// restarted, which its containers do not notice.
func (s *Supervisor) Ensure(ctx context.Context) error {
	if err := os.MkdirAll(s.o.StateDir, 0o711); err != nil {
		return fmt.Errorf("embedded runtime: %w", err)
	}
	p, err := findProgram(ctx, s.o.Program)
	if err != nil {
		return err
	}
	config, content, err := s.settings(p).render()
	if err != nil {
		return err
	}
	if s.proc == nil {
		if s.proc, err = s.find(); err != nil {
			return err
		}
	}
	if s.proc != nil && s.proc.config != config {
		s.o.Log.Info("restarting the embedded runtime: its configuration or version changed", "pid", s.proc.pid, "version", p.version)
		if err := s.proc.end(ctx, stopGrace); err != nil {
			return err
		}
		s.dropProcess()
	}
	if s.proc == nil {
		if err := s.prepare(config, content); err != nil {
			return err
		}
		if s.proc, err = s.start(p, config); err != nil {
			return err
		}
		s.o.Log.Info("embedded runtime started", "pid", s.proc.pid, "version", p.version, "log", s.o.logFile())
	}
	return s.waitAnswer(ctx)
}

// prepare writes the configuration and removes older ones and, after a reboot,
// the state: what it tells of is gone.
func (s *Supervisor) prepare(config string, content []byte) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("embedded runtime: %w", err)
	}
	if was, err := os.ReadFile(s.o.bootFile()); err != nil || string(was) != string(boot) {
		if err := os.RemoveAll(s.o.State()); err != nil {
			return fmt.Errorf("embedded runtime: cannot remove the state of the last boot: %w", err)
		}
		if err := os.WriteFile(s.o.bootFile(), boot, 0o600); err != nil {
			return fmt.Errorf("embedded runtime: %w", err)
		}
	}
	old, _ := filepath.Glob(filepath.Join(s.o.StateDir, configPrefix+"*"+configSuffix))
	for _, file := range old {
		if file != config {
			_ = os.Remove(file)
		}
	}
	// Nobody else writes here and containerd reads it once, so that a torn write
	// shows as an error of the start and is mended by the next.
	if err := os.WriteFile(config, content, 0o600); err != nil {
		return fmt.Errorf("embedded runtime: %w", err)
	}
	s.rotateLog()
	return nil
}

// waitAnswer returns when CRI answers, or with the reason that it does not.
func (s *Supervisor) waitAnswer(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout,
		fmt.Errorf("embedded runtime: no answer at %s after %s; its log is %s: %w", s.o.Socket(), startTimeout, s.o.logFile(), errdefs.ErrUnavailable))
	defer cancel()
	for {
		err := s.check(ctx)
		if err == nil {
			return nil
		}
		wctx, stop := context.WithTimeout(ctx, answerRetry)
		ended := s.proc.wait(wctx) == nil
		stop()
		if ended {
			how := s.dropProcess()
			return fmt.Errorf("embedded runtime: containerd ended at once (%s), its log %s ends with: %s: %w", how, s.o.logFile(), s.lastWords(), errdefs.ErrUnavailable)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// A connection that failed waits longer and longer by itself.
		s.conn.ResetConnectBackoff()
	}
}

// check asks the runtime for its version, which touches no disk.
func (s *Supervisor) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	_, err := cri.NewRuntimeServiceClient(s.conn).Version(ctx, &cri.VersionRequest{})
	return err
}

// Run keeps the runtime up after Ensure: it is started again when it ends and
// killed when it hangs. It returns nil when ctx ends, and leaves the runtime
// running.
func (s *Supervisor) Run(ctx context.Context) error {
	pause := retryMin
	for ctx.Err() == nil {
		began := time.Now()
		if s.proc != nil {
			s.watch(ctx)
		}
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > retryMax {
			pause = retryMin
		}
		if err := s.Ensure(ctx); err == nil || ctx.Err() != nil {
			continue
		} else {
			s.o.Log.Error("the embedded runtime does not start; its containers keep running; will try again", "err", err, "after", pause)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMax)
	}
	return nil
}

// watch returns when the runtime has ended or ctx has.
func (s *Supervisor) watch(ctx context.Context) {
	for missed := 0; ; {
		wctx, stop := context.WithTimeout(ctx, checkInterval)
		err := s.proc.wait(wctx)
		stop()
		switch {
		case err == nil:
			pid := s.proc.pid
			s.o.Log.Error("the embedded runtime ended; starting it again; its containers are not affected",
				"pid", pid, "how", s.dropProcess(), "lastWords", s.lastWords())
			return
		case ctx.Err() != nil:
			return
		}
		s.rotateLog()
		if s.check(ctx) == nil {
			missed = 0
			continue
		}
		if missed++; missed < hangAfter || ctx.Err() != nil {
			continue
		}
		s.o.Log.Error("the embedded runtime hangs; killing it; its containers are not affected", "pid", s.proc.pid)
		if err := s.proc.kill(ctx); err != nil {
			s.o.Log.Error("cannot kill the embedded runtime", "err", err)
		}
		missed = 0
	}
}

func (s *Supervisor) dropProcess() string {
	how := s.proc.release()
	s.proc = nil
	return how
}

// Stop ends the runtime, then whatever of its containers is left, and unmounts
// all below its folder, which the caller may then remove. One that does not run
// is fine.
func (s *Supervisor) Stop(ctx context.Context) error {
	defer s.conn.Close()
	var err error
	if s.proc == nil {
		if s.proc, err = s.find(); err != nil {
			return err
		}
	}
	if s.proc != nil {
		if err := s.proc.end(ctx, stopGrace); err != nil {
			return err
		}
		s.dropProcess()
	}
	return errors.Join(s.endShims(ctx), s.unmountAll())
}

// endShims kills containers that nobody can end in order any more, their shims
// last: those reap.
func (s *Supervisor) endShims(ctx context.Context) error {
	shims, err := s.shims()
	if err != nil {
		return err
	}
	var errs []error
	for _, shim := range shims {
		for _, pid := range children(shim) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		p, err := openProcess(shim)
		if errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err == nil {
			err = p.kill(ctx)
			_ = p.fd.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Supervisor) unmountAll() error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.o.StateDir))
	if err != nil {
		return fmt.Errorf("embedded runtime: cannot read the mounts: %w", err)
	}
	var errs []error
	// Later mounts may lie on earlier ones.
	for i := len(mounts) - 1; i >= 0; i-- {
		path := mounts[i].Mountpoint
		if path == s.o.StateDir {
			continue // a disk of the user's
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}
