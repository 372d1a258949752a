package file

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch is one inotify instance. fsnotify is not used here because it cannot
// tell a file that was closed from one that is still being written.
//
// It belongs to the goroutine of Run. The kernel queues an event before the
// call that caused it lets go of the folder, so that what happened to a folder
// before a read of it is in the queue after that read: drain relies on it.
type watch struct {
	fd   int
	file *os.File // the same descriptor, for waits with a deadline
	buf  []byte
	log  *slog.Logger

	dirs       map[int32]*dir // by watch descriptor
	generation int
	full       bool // the kernel's limit on watches was reached, and reported
}

// dir is one folder that is watched.
type dir struct {
	all        bool                // every name matters but the scratch files
	names      map[string]struct{} // else these
	generation int
}

const (
	linkMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	selfMask = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	dirMask  = linkMask | selfMask | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB | unix.IN_ONLYDIR
)

func newWatch(log *slog.Logger) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	return &watch{
		fd: fd, file: os.NewFile(uintptr(fd), "inotify"), buf: make([]byte, 64<<10), log: log, dirs: map[int32]*dir{},
	}, nil
}

func (w *watch) close() { w.file.Close() }

// stopWith makes the end of ctx end a wait. The function that it returns undoes
// that and leaves no goroutine behind.
func (w *watch) stopWith(ctx context.Context) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = w.file.SetReadDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}

// begin and end enclose the calls of add that say what is to be watched from
// now on.
func (w *watch) begin() { w.generation++ }

func (w *watch) end() {
	for wd, d := range w.dirs {
		if d.generation != w.generation {
			// It fails for a folder that is gone, whose watch is gone as well.
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
			delete(w.dirs, wd)
		}
	}
}

// add watches a folder: for one name in it, or for all when name is empty. A
// folder that is not there is nothing to watch; whoever adds it looks again
// after it.
func (w *watch) add(path, name string) {
	wd, err := unix.InotifyAddWatch(w.fd, path, dirMask)
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		if !w.full {
			w.full = true
			w.log.Warn("too few file watches: some changes of manifests are seen by polling only; raise fs.inotify.max_user_watches",
				"path", path, "err", err)
		}
		return
	default:
		if !errors.Is(err, fs.ErrNotExist) {
			w.log.Debug("folder is not watched", "path", path, "err", err)
		}
		return
	}
	d := w.dirs[int32(wd)]
	if d == nil || d.generation != w.generation {
		d = &dir{generation: w.generation, names: map[string]struct{}{}}
		w.dirs[int32(wd)] = d
	}
	if name == "" {
		d.all = true
	} else {
		d.names[name] = struct{}{}
	}
}

// wait returns true when something relevant happened, false after d or when ctx
// has ended.
func (w *watch) wait(ctx context.Context, d time.Duration) (bool, error) {
	if err := w.file.SetReadDeadline(time.Now().Add(d)); err != nil {
		return false, err
	}
	// After the deadline was set: else that of stopWith could be overwritten.
	for ctx.Err() == nil {
		n, err := w.file.Read(w.buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if w.relevant(w.buf[:n]) {
			return true, nil
		}
	}
	return false, nil
}

// drain takes what is queued and says whether something relevant was in it.
func (w *watch) drain() bool {
	happened := false
	for {
		n, err := unix.Read(w.fd, w.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return happened
		}
		if w.relevant(w.buf[:n]) {
			happened = true
		}
	}
}

func (w *watch) relevant(events []byte) bool {
	happened := false
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		if end > len(events) {
			return true // never seen; looking is always right
		}
		name, _, _ := bytes.Cut(events[unix.SizeofInotifyEvent:end], []byte{0})
		if w.matters(wd, mask, string(name)) {
			happened = true
		}
		events = events[end:]
	}
	return happened
}

func (w *watch) matters(wd int32, mask uint32, name string) bool {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		return true
	}
	d := w.dirs[wd]
	if d == nil {
		return false // of a folder that is not watched any more
	}
	switch {
	case mask&unix.IN_IGNORED != 0:
		delete(w.dirs, wd)
		return true
	case mask&(selfMask|unix.IN_UNMOUNT) != 0:
		return true
	case name == "": // the folder's own attributes
		return d.all
	}
	if _, ok := d.names[name]; ok {
		return true
	}
	if !d.all || isScratch(name) {
		return false
	}
	// Of dotfiles only those matter that a symlink may lead through.
	return !leftAlone(name) || mask&linkMask != 0
}
