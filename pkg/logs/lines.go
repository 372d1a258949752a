package logs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"time"
)

// maxPending bounds what is kept of a line that has not ended yet, per stream.
// The runtime splits lines at 16 KiB, but a program may print megabytes
// without a line break; longer ones are passed on in pieces.
const maxPending = 256 << 10

// errLimit ends a stream whose LimitBytes are used up.
var errLimit = errors.New("limit reached")

// line is one line of a CRI log file:
// "2016-10-06T00:17:09.669794202Z stdout P content".
type line struct {
	time    []byte
	stream  []byte // stdout, stderr; nil when the line is not in the format
	partial bool
	content []byte
}

// parse splits a line without its line break. The tag field may hold several
// tags joined by colons; the first is P or F. A line that is not in the format
// (cut off by a power failure, say) is content as a whole.
func parse(raw []byte) line {
	ts, rest, ok1 := bytes.Cut(raw, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	// An empty line of a container may end right after its tag.
	tag, content, _ := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || (string(stream) != "stdout" && string(stream) != "stderr") {
		return line{content: raw}
	}
	first, _, _ := bytes.Cut(tag, []byte{':'})
	switch string(first) {
	case "P":
		return line{time: ts, stream: stream, partial: true, content: content}
	case "F":
		return line{time: ts, stream: stream, content: content}
	}
	return line{content: raw}
}

// printer joins partial lines per stream and writes what the options ask for.
type printer struct {
	w       *bufio.Writer
	o       Options
	left    int64 // bytes until the limit; negative: none
	pending map[string]*pending
}

type pending struct {
	buf    []byte
	time   []byte
	active bool // a partial line was seen and not ended
	headed bool // its time stamp has been written already
}

func newPrinter(w io.Writer, o Options) *printer {
	p := &printer{w: bufio.NewWriterSize(w, 32<<10), o: o, left: -1, pending: map[string]*pending{"stdout": {}, "stderr": {}}}
	if o.LimitBytes != nil {
		p.left = *o.LimitBytes
	}
	return p
}

// print takes one raw line.
func (p *printer) print(raw []byte) error {
	l := parse(raw)
	if l.stream == nil {
		if p.o.Stream != "" || !p.o.Since.IsZero() {
			return nil
		}
		return p.write(l.content, []byte{'\n'})
	}
	name := string(l.stream)
	if p.o.Stream != "" && p.o.Stream != name {
		return nil
	}
	if !p.o.Since.IsZero() {
		t, err := time.Parse(time.RFC3339Nano, string(l.time))
		if err != nil || t.Before(p.o.Since) {
			return nil
		}
	}
	q := p.pending[name]
	if l.partial {
		if !q.active {
			q.active, q.time = true, append(q.time[:0], l.time...)
		}
		q.buf = append(q.buf, l.content...)
		if len(q.buf) >= maxPending {
			return p.drain(q, nil)
		}
		return nil
	}
	if q.active {
		q.buf = append(q.buf, l.content...)
		err := p.drain(q, []byte{'\n'})
		q.active, q.headed = false, false
		return err
	}
	if p.o.Timestamps {
		return p.write(l.time, []byte{' '}, l.content, []byte{'\n'})
	}
	return p.write(l.content, []byte{'\n'})
}

// drain writes what is pending of one stream.
func (p *printer) drain(q *pending, end []byte) error {
	var err error
	if p.o.Timestamps && !q.headed {
		err = p.write(q.time, []byte{' '}, q.buf, end)
	} else {
		err = p.write(q.buf, end)
	}
	q.headed = true
	q.buf = q.buf[:0]
	return err
}

// finish writes lines that never ended and flushes.
func (p *printer) finish() error {
	for _, name := range []string{"stdout", "stderr"} {
		if q := p.pending[name]; q.active {
			if err := p.drain(q, nil); err != nil && !errors.Is(err, errLimit) {
				return err
			}
			q.active, q.headed = false, false
		}
	}
	return p.w.Flush()
}

func (p *printer) write(parts ...[]byte) error {
	for _, b := range parts {
		if p.left >= 0 && int64(len(b)) >= p.left {
			b = b[:p.left]
			p.left = 0
			if _, err := p.w.Write(b); err != nil {
				return err
			}
			return errLimit
		}
		if p.left >= 0 {
			p.left -= int64(len(b))
		}
		if _, err := p.w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// tailStart returns the offset where the last n lines of f start, and how many
// lines there are from there on: fewer than n when there are no more. A line that
// was split into partial ones counts as one; so does an unfinished last one.
func tailStart(f *os.File, n int64) (at, seen int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	end := st.Size()
	if n <= 0 || end == 0 {
		return end, 0, nil
	}
	buf := make([]byte, 64<<10)
	if at, err = lastLineStart(f, end, buf); err != nil {
		return 0, 0, err
	}
	for at > 0 {
		before, err := lineStartBefore(f, at-1, buf)
		if err != nil {
			return 0, 0, err
		}
		partial, err := partialAt(f, before, at-1, buf)
		if err != nil {
			return 0, 0, err
		}
		// Only behind a line that is complete does another whole line start.
		if !partial {
			if seen++; seen == n {
				return at, n, nil
			}
		}
		at = before
	}
	return 0, seen + 1, nil
}

// lastLineStart is where the last line of f[:end] starts; end is above 0. The
// final line break ends the last line and starts none.
func lastLineStart(f *os.File, end int64, buf []byte) (int64, error) {
	if _, err := f.ReadAt(buf[:1], end-1); err != nil {
		return 0, err
	}
	if buf[0] == '\n' {
		end--
	}
	return lineStartBefore(f, end, buf)
}

// partialAt says that the line f[at:end] is one that goes on in the next.
func partialAt(f *os.File, at, end int64, buf []byte) (bool, error) {
	k, err := f.ReadAt(buf[:min(lineHead, end-at)], at)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return parse(buf[:k]).partial, nil
}

// lineHead holds time, stream and tag of a line.
const lineHead = 128

// endsPartial says that the last line of f goes on elsewhere.
func endsPartial(f *os.File) (partial, empty bool, err error) {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return false, true, err
	}
	buf := make([]byte, 64<<10)
	at, err := lastLineStart(f, st.Size(), buf)
	if err != nil {
		return false, false, err
	}
	partial, err = partialAt(f, at, st.Size(), buf)
	return partial, false, err
}

// scanned is what a walk through a packed part has seen.
type scanned struct {
	starts  int64 // whole lines
	partial bool  // the last line goes on elsewhere
}

// scan walks through a packed part, which cannot be read backwards, up to the
// start of the whole line with that number, from 0; -1: to its end.
func (p *part) scan(until int64) (s scanned, at int64, err error) {
	if _, err := p.f.Seek(0, io.SeekStart); err != nil {
		return s, 0, p.failed(err)
	}
	z, err := gzip.NewReader(p.f)
	if err != nil {
		return s, 0, p.failed(err)
	}
	in := bufio.NewReaderSize(z, 32<<10)
	for head := make([]byte, 0, lineHead); ; {
		b, err := in.ReadSlice('\n')
		if len(b) > 0 {
			if len(head) == 0 && !s.partial {
				if s.starts == until {
					return s, at, nil
				}
				s.starts++
			}
			head = append(head, b[:min(len(b), lineHead-len(head))]...)
			at += int64(len(b))
		}
		if err == nil || errors.Is(err, io.EOF) && len(head) > 0 {
			s.partial = parse(bytes.TrimSuffix(head, []byte{'\n'})).partial
			head = head[:0]
		}
		switch {
		case errors.Is(err, io.EOF):
			return s, at, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return s, at, p.failed(err)
		}
	}
}

// lineStartBefore returns the offset after the last line break in f[:end], or 0.
func lineStartBefore(f *os.File, end int64, buf []byte) (int64, error) {
	// Most lines are short: look at little first.
	size := int64(512)
	for end > 0 {
		size = min(size, end, int64(len(buf)))
		k, err := f.ReadAt(buf[:size], end-size)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:k], '\n'); i >= 0 {
			return end - size + int64(i) + 1, nil
		}
		end -= size
		size *= 8
	}
	return 0, nil
}
