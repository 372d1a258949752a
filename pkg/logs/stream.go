package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
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
	cur   part      // the newest part that was come to; no file: none yet
	in    io.Reader // its content
	stamp string    // of the newest part before it
	carry []byte    // an unfinished raw line
	watch *fsnotify.Watcher
	// settle is when the open part may be left for the one that follows it, and
	// settled that it has come.
	settle  <-chan time.Time
	settled bool
	ended   bool
}

func (r *reader) close() {
	if r.cur.f != nil {
		_ = r.cur.f.Close()
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
	parts, err := r.openFirst(ctx)
	if err != nil {
		return err
	}
	if r.o.TailLines != nil {
		if parts, err = lastLines(parts, *r.o.TailLines); err != nil {
			closeParts(parts)
			return err
		}
	}
	if err := r.walk(ctx, parts); err != nil || r.cur.f == nil {
		return err
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

// walk goes on to the last of the parts, and prints those before it in full. It
// closes what it has left behind.
func (r *reader) walk(ctx context.Context, parts []part) error {
	for i, p := range parts {
		if r.cur.f != nil {
			_ = r.cur.f.Close()
		}
		if r.cur.stamp != "" {
			r.stamp = r.cur.stamp
		}
		r.cur, r.in, r.settle, r.settled = p, nil, nil, false
		last := i == len(parts)-1
		if !last && r.older(p) {
			continue
		}
		var err error
		if r.in, err = r.cur.content(); err == nil && !last {
			if err = r.drain(ctx); err == nil {
				err = r.rest()
			}
		}
		if err != nil {
			closeParts(parts[i+1:])
			return err
		}
	}
	return nil
}

// older says that all of a part was written before what is asked for.
func (r *reader) older(p part) bool {
	st, err := p.f.Stat()
	return err == nil && !r.o.Since.IsZero() && st.ModTime().Before(r.o.Since)
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

// openFirst opens all of the log; when it is followed and not there yet, it waits
// for it. There is none when the container ended without a log.
func (r *reader) openFirst(ctx context.Context) ([]part, error) {
	for {
		parts, err := r.dir.partsAfter(r.name, "")
		if err != nil || len(parts) > 0 {
			return parts, err
		}
		if !r.o.Follow {
			return nil, openError(filepath.Join(r.dir.name, r.name), unix.ENOENT)
		}
		if r.ended || r.dir.gone() {
			return nil, nil
		}
		if err := r.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// drain reads the open part to its present end.
func (r *reader) drain(ctx context.Context) error {
	buf := make([]byte, 32<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.in.Read(buf)
		if n > 0 {
			if err := r.feed(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || (n == 0 && err == nil) {
			return nil
		}
		if err != nil {
			return r.cur.failed(err)
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

// next is called at the end of the open part. It returns true when there may
// be more to read: the file grew, was truncated, or gave way to a new one.
func (r *reader) next(ctx context.Context) (bool, error) {
	for {
		if again, err := r.swap(ctx); err != nil || again {
			return again, err
		}
		if r.ended {
			// What was written between the last read and the end.
			return false, r.drain(ctx)
		}
		if r.dir.gone() {
			return false, nil
		}
		if err := r.wait(ctx); err != nil {
			return false, err
		}
		grown, err := r.grown()
		if err != nil || grown {
			return grown, err
		}
	}
}

// grown says that the open file has bytes behind our offset, after seeking to
// its beginning when it was truncated in place.
func (r *reader) grown() (bool, error) {
	if r.cur.packed {
		return false, nil
	}
	at, err := r.cur.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, r.cur.failed(err)
	}
	st, err := r.cur.f.Stat()
	if err != nil {
		return false, r.cur.failed(err)
	}
	if st.Size() < at {
		r.carry = r.carry[:0]
		_, err := r.cur.f.Seek(0, io.SeekStart)
		return true, err
	}
	return st.Size() > at, nil
}

// settleTime is how long the runtime may write what it had taken before it
// reopened its file to the old one, while it writes to the new one already.
const settleTime = 200 * time.Millisecond

// swap goes on to what was written after the open part, when rotation put
// another file under its name. The runtime creates the new file before it stops
// writing to the old one, so the old one is left only when it is not the newest
// of the rotated ones any more, when the new one has had content for a while, or
// when the container has ended; it is read to its end first.
func (r *reader) swap(ctx context.Context) (bool, error) {
	if same, err := r.dir.holds(r.name, r.cur.f); err != nil || same {
		return false, err
	}
	parts, err := r.dir.partsAfter(r.name, r.stamp)
	if err != nil {
		return false, err
	}
	// The open one is among them under the name that it has now, unless it was removed.
	stamp := r.stamp
	for i, p := range parts {
		if p.is(r.cur.f) {
			stamp = p.stamp
			closeParts(parts[:i+1])
			parts = parts[i+1:]
			break
		}
	}
	leave, err := r.mayLeave(parts)
	if err != nil || !leave {
		closeParts(parts)
		return false, err
	}
	if err := r.drain(ctx); err != nil {
		closeParts(parts)
		return false, err
	}
	if err := r.rest(); err != nil {
		closeParts(parts)
		return false, err
	}
	r.cur.stamp = stamp
	return true, r.walk(ctx, parts)
}

// mayLeave says whether nothing is written to the open part any more, by what
// comes after it.
func (r *reader) mayLeave(newer []part) (bool, error) {
	switch len(newer) {
	case 0:
		return false, nil
	case 1:
	default:
		return true, nil
	}
	st, err := newer[0].f.Stat()
	if err != nil {
		return false, newer[0].failed(err)
	}
	switch {
	case r.ended || r.settled:
		return true, nil
	case st.Size() > 0 && r.settle == nil:
		r.settle = time.After(settleTime)
	}
	return false, nil
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
	case <-r.settle:
		r.settle, r.settled = nil, true
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
