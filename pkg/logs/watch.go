package logs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// watch tells keepers of the next write to their logs, once: a log that is
// written to all the time costs nothing more. It is inotify without fsnotify,
// which knows no such watch. A nil watch watches nothing.
type watch struct {
	f *os.File

	mu      sync.Mutex
	fd      int // of f, whose Fd would make reading block; -1: closed
	keepers map[int32]*keeper
	of      map[*keeper]int32
}

func newWatch() (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w: raise fs.inotify.max_user_instances", err)
	}
	return &watch{f: os.NewFile(uintptr(fd), "inotify"), fd: fd, keepers: map[int32]*keeper{}, of: map[*keeper]int32{}}, nil
}

// once wakes a keeper at the next write to its log; at once when its size is not
// the given one any more.
func (w *watch) once(k *keeper, size int64) error {
	if w == nil {
		return unix.ENOSYS
	}
	dir, err := OpenDir(k.o.Root, k.c.PodFolder, k.c.Name)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Through the descriptor: the folder may be swapped for a link at any time.
	fd, err := unix.Openat(int(dir.f.Fd()), k.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return openError(filepath.Join(dir.name, k.name), err)
	}
	defer unix.Close(fd)
	w.mu.Lock()
	wd, err := unix.InotifyAddWatch(w.fd, "/proc/self/fd/"+strconv.Itoa(fd), unix.IN_MODIFY|unix.IN_ONESHOT)
	if err == nil {
		w.keepers[int32(wd)], w.of[k] = k, int32(wd)
	}
	w.mu.Unlock()
	if err != nil {
		return fmt.Errorf("inotify: %w: raise fs.inotify.max_user_watches", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != size {
		k.poke()
	}
	return nil
}

// forget ends the watch of a keeper.
func (w *watch) forget(k *keeper) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if wd, ok := w.of[k]; ok {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // it may have ended by itself
		delete(w.of, k)
		delete(w.keepers, wd)
	}
}

// run wakes keepers until ctx ends.
func (w *watch) run(ctx context.Context) {
	if w == nil {
		return
	}
	defer context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.fd = -1
		_ = w.f.Close()
	})()
	buf := make([]byte, 64*unix.SizeofInotifyEvent)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return // closed, as nothing else ends it
		}
		for in := bytes.NewReader(buf[:n]); in.Len() >= unix.SizeofInotifyEvent; {
			var e unix.InotifyEvent
			if binary.Read(in, binary.NativeEndian, &e) != nil {
				break
			}
			_, _ = in.Seek(int64(e.Len), 1)
			w.fire(e)
		}
	}
}

// fire wakes the keeper that an event is for; after an overflow all of them.
func (w *watch) fire(e unix.InotifyEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for wd, k := range w.keepers {
		if e.Mask&unix.IN_Q_OVERFLOW == 0 && wd != e.Wd {
			continue
		}
		delete(w.keepers, wd)
		delete(w.of, k)
		k.poke()
	}
}

func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}
