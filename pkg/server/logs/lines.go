package logs

import (
	"bufio"
	"bytes"
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

// tailStart returns the offset where the last n lines of f start. A line that
// was split into partial ones counts as one; so does an unfinished last one.
func tailStart(f *os.File, n int64) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	end := st.Size()
	if n <= 0 || end == 0 {
		return end, nil
	}
	buf := make([]byte, 64<<10)
	if _, err := f.ReadAt(buf[:1], end-1); err != nil {
		return 0, err
	}
	// The final line break ends the last line and starts none.
	if buf[0] == '\n' {
		end--
	}
	at, err := lineStartBefore(f, end, buf)
	for seen := int64(0); err == nil && at > 0; {
		var before int64
		if before, err = lineStartBefore(f, at-1, buf); err != nil {
			break
		}
		var k int
		k, err = f.ReadAt(buf[:min(128, at-1-before)], before)
		if err != nil {
			break
		}
		// Only behind a line that is complete does another whole line start.
		if !parse(buf[:k]).partial {
			if seen++; seen == n {
				return at, nil
			}
		}
		at = before
	}
	return at, err
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
