package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// maxRawLine bounds one line of the file. CRI runtimes write 16 KiB at most; a
// longer one is taken in pieces so that a damaged file cannot fill our memory.
const maxRawLine = 1 << 20

// Options says what to read; the fields are those of v1.PodLogOptions.
type Options struct {
	Follow     bool
	Timestamps bool
	// TailLines from the end; nil: all.
	TailLines *int64
	// Since leaves out older lines; zero: none.
	Since time.Time
	// LimitBytes of output; nil: no limit.
	LimitBytes *int64
	// Stream is "stdout", "stderr" or "" for both.
	Stream string
	// Ended is closed when the container has ended and its log is complete; a
	// followed log returns once it is read to its end then. Nil: never.
	Ended <-chan struct{}
}

// Stream writes the log of one attempt to w. It returns nil at the end of the
// log, when the limit is reached, or when a followed container has ended; the
// context's error when that ends first; errdefs.ErrNotFound when there is no
// such log and it is not followed. w sees whole batches of lines, so a
// flushing writer is cheap.
func (d *Dir) Stream(ctx context.Context, attempt int, o Options, w io.Writer) error {
	r := &reader{dir: d, name: strconv.Itoa(attempt) + ".log", o: o, p: newPrinter(w, o)}
	defer r.close()
	err := r.run(ctx)
	if errors.Is(err, errLimit) {
		err = nil
	}
	// Only what came before a failure may still be missing; a failed flush
	// after a failed write says nothing new.
	if ferr := r.p.finish(); err == nil {
		err = ferr
	}
	return err
}

type reader struct {
	dir   *Dir
	name  string
	o     Options
	p     *printer
	f     *os.File
	carry []byte // an unfinished raw line
	watch *fsnotify.Watcher
	ended bool
}

func (r *reader) close() {
	if r.f != nil {
		_ = r.f.Close()
	}
	if r.watch != nil {
		_ = r.watch.Close()
	}
}

func (r *reader) run(ctx context.Context) error {
	if r.o.Follow {
		// Before the first read: what is written from here on is either read
		// or wakes us.
		if err := r.startWatch(); err != nil {
			return err
		}
	}
	if err := r.openFirst(ctx); err != nil || r.f == nil {
		return err
	}
	if r.o.TailLines != nil {
		at, err := tailStart(r.f, *r.o.TailLines)
		if err != nil {
			return fmt.Errorf("reading log %s: %w", r.f.Name(), err)
		}
		if _, err := r.f.Seek(at, io.SeekStart); err != nil {
			return fmt.Errorf("reading log %s: %w", r.f.Name(), err)
		}
	}
	for {
		if err := r.drain(ctx); err != nil {
			return err
		}
		if !r.o.Follow {
			return r.rest()
		}
		if err := r.p.w.Flush(); err != nil {
			return err
		}
		more, err := r.next(ctx)
		if err != nil {
			return err
		}
		if !more {
			return r.rest()
		}
	}
}

// startWatch watches the folder through its descriptor, so that a folder that
// was swapped for a link meanwhile is not followed; and the folder above it,
// because the removal of one that is held open shows only there.
func (r *reader) startWatch() error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("following log %s: inotify: %w: raise fs.inotify.max_user_instances", r.dir.name, err)
	}
	r.watch = w
	for _, f := range []*os.File{r.dir.f, r.dir.pod} {
		if err := w.Add("/proc/self/fd/" + strconv.Itoa(int(f.Fd()))); err != nil {
			return fmt.Errorf("following log %s: inotify: %w: raise fs.inotify.max_user_watches", r.dir.name, err)
		}
	}
	return nil
}

// openFirst opens the file; when it is followed and not there yet, it waits
// for it. r.f stays nil when the container ended without a log.
func (r *reader) openFirst(ctx context.Context) error {
	for {
		f, err := r.dir.open(r.name)
		if err == nil {
			r.f = f
			return nil
		}
		if !r.o.Follow || !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		if r.ended || r.dir.gone() {
			return nil
		}
		if err := r.wait(ctx); err != nil {
			return err
		}
	}
}

// drain reads the open file to its present end.
func (r *reader) drain(ctx context.Context) error {
	buf := make([]byte, 32<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.f.Read(buf)
		if n > 0 {
			if err := r.feed(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || (n == 0 && err == nil) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading log %s: %w", r.f.Name(), err)
		}
	}
}

func (r *reader) feed(b []byte) error {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			r.carry = append(r.carry, b...)
			if len(r.carry) < maxRawLine {
				return nil
			}
			return r.rest()
		}
		raw := b[:i]
		if len(r.carry) > 0 {
			r.carry = append(r.carry, raw...)
			raw = r.carry
		}
		if err := r.p.print(raw); err != nil {
			return err
		}
		r.carry = r.carry[:0]
		b = b[i+1:]
	}
	return nil
}

// rest prints a last line that has no line break.
func (r *reader) rest() error {
	if len(r.carry) == 0 {
		return nil
	}
	err := r.p.print(r.carry)
	r.carry = r.carry[:0]
	return err
}

// next is called at the end of the open file. It returns true when there may
// be more to read: the file grew, was truncated, or gave way to a new one.
func (r *reader) next(ctx context.Context) (bool, error) {
	for {
		if again, err := r.swap(ctx); err != nil || again {
			return again, err
		}
		if r.ended || r.dir.gone() {
			return false, nil
		}
		if err := r.wait(ctx); err != nil {
			return false, err
		}
		grown, err := r.grown()
		if err != nil || grown {
			return grown, err
		}
		if r.ended {
			// What was written between the last read and the end.
			return false, r.drain(ctx)
		}
	}
}

// grown says that the open file has bytes behind our offset, after seeking to
// its beginning when it was truncated in place.
func (r *reader) grown() (bool, error) {
	at, err := r.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, fmt.Errorf("reading log %s: %w", r.f.Name(), err)
	}
	st, err := r.f.Stat()
	if err != nil {
		return false, fmt.Errorf("reading log %s: %w", r.f.Name(), err)
	}
	if st.Size() < at {
		r.carry = r.carry[:0]
		_, err := r.f.Seek(0, io.SeekStart)
		return true, err
	}
	return st.Size() > at, nil
}

// swap goes on to the file that stands under our name now, when rotation put
// another one there. The runtime creates the new file before it stops writing
// to the old one, so the old one is left only when the new one has content (or
// the container has ended), and is read to its end first.
func (r *reader) swap(ctx context.Context) (bool, error) {
	f, err := r.dir.open(r.name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	was, err1 := r.f.Stat()
	now, err2 := f.Stat()
	if err := errors.Join(err1, err2); err != nil {
		_ = f.Close()
		return false, fmt.Errorf("reading log %s: %w", r.f.Name(), err)
	}
	if os.SameFile(was, now) || (now.Size() == 0 && !r.ended) {
		_ = f.Close()
		return false, nil
	}
	if err := r.drain(ctx); err != nil {
		_ = f.Close()
		return false, err
	}
	_ = r.f.Close()
	r.f = f
	return true, r.rest()
}

// wait returns when something happened in the folder or the container ended.
func (r *reader) wait(ctx context.Context) error {
	ended := r.o.Ended
	if r.ended {
		ended = nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-ended:
		r.ended = true
		return nil
	case _, ok := <-r.watch.Events:
		if !ok {
			return fmt.Errorf("following log %s: the watch ended", r.dir.name)
		}
		return nil
	case err, ok := <-r.watch.Errors:
		if !ok {
			return fmt.Errorf("following log %s: the watch ended", r.dir.name)
		}
		// A queue overflow only means that something happened.
		if errors.Is(err, fsnotify.ErrEventOverflow) {
			return nil
		}
		return fmt.Errorf("following log %s: inotify: %w", r.dir.name, err)
	}
}
