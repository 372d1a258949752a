package eviction

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// stall is what the kernel is asked to tell of: processes that waited for memory
// for 150 ms within two seconds. A shorter window, or one that is no multiple of
// two seconds, needs CAP_SYS_RESOURCE.
const stall = "some 150000 2000000\x00"

// WatchStalls calls kick whenever processes wait for memory, as the kernel's
// pressure file (/proc/pressure/memory) tells, until ctx ends. The error says why
// it cannot: kernels are built, or started, without (psi=1 turns it on).
func WatchStalls(ctx context.Context, file string, kick func()) error {
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(stall); err != nil {
		return fmt.Errorf("asking %s to tell of stalls: %w", file, err)
	}
	// Go's own poller does not know the kind of event that this is.
	end, err := eventFile()
	if err != nil {
		return err
	}
	defer end.Close()
	defer context.AfterFunc(ctx, func() { _, _ = end.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}) })()
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}, {Fd: int32(end.Fd()), Events: unix.POLLIN}}
	for {
		switch _, err := unix.Poll(fds, -1); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("waiting for stalls: %w", err)
		case fds[1].Revents != 0:
			return nil
		case fds[0].Revents&unix.POLLERR != 0:
			return fmt.Errorf("%s tells of stalls no more", file)
		case fds[0].Revents&unix.POLLPRI != 0:
			kick()
		}
	}
}

// Alarm is told by the kernel when the memory of a cgroup grows beyond a mark:
// cgroup v1 only.
type Alarm struct {
	dir     string
	kick    func()
	set     *os.File // of the mark that is set
	reading sync.WaitGroup
}

// NewAlarm is an alarm without a mark; dir is the cgroup's in the memory tree.
func NewAlarm(dir string, kick func()) *Alarm { return &Alarm{dir: dir, kick: kick} }

// Set moves the mark to so many bytes above what is used now. The one before is
// no more.
func (a *Alarm) Set(headroom int64) error {
	b, err := os.ReadFile(filepath.Join(a.dir, "memory.usage_in_bytes"))
	if err != nil {
		return err
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return fmt.Errorf("%s/memory.usage_in_bytes: %w", a.dir, err)
	}
	usage, err := os.Open(filepath.Join(a.dir, "memory.usage_in_bytes"))
	if err != nil {
		return err
	}
	defer usage.Close()
	event, err := eventFile()
	if err != nil {
		return err
	}
	conn, err := event.SyscallConn()
	if err != nil {
		return errors.Join(err, event.Close())
	}
	var line string
	// Fd would take the file from Go's poller, and Close would not end Read.
	if err := conn.Control(func(fd uintptr) { line = fmt.Sprintf("%d %d %d", fd, usage.Fd(), used+headroom) }); err != nil {
		return errors.Join(err, event.Close())
	}
	if err := os.WriteFile(filepath.Join(a.dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		return errors.Join(err, event.Close())
	}
	a.Close()
	a.set = event
	a.reading.Go(func() {
		for buf := make([]byte, 8); ; {
			// It ends when the file is closed.
			if _, err := event.Read(buf); err != nil {
				return
			}
			a.kick()
		}
	})
	return nil
}

// Close takes the mark away.
func (a *Alarm) Close() {
	if a.set != nil {
		_ = a.set.Close() // the kernel forgets the mark with it
		a.set = nil
	}
	a.reading.Wait()
}

func eventFile() (*os.File, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "eventfd"), nil
}

// headroom is how much more memory may be used until the next threshold of a
// signal, in bytes; false when there is none that is not met already.
func headroom(signal config.Signal, thresholds []config.Threshold, seen Observations) (least int64, ok bool) {
	o, observed := seen[signal]
	for _, t := range thresholds {
		if t.Signal != signal || !observed || short(t, seen, false) {
			continue
		}
		want := t.Value.Of(o.Capacity)
		if room := o.Available.Value() - want.Value(); !ok || room < least {
			least, ok = room, true
		}
	}
	return least, ok
}
