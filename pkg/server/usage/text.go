// Package usage puts what pkg/stats reads into the forms that clients ask for:
// Prometheus' text with kubelet's and cAdvisor's names, kubelet's summary, and
// metrics.k8s.io.
package usage

import (
	"bufio"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// ContentType is that of the text.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// text writes Prometheus' text format as it goes: a hundred pods have more than
// ten thousand samples, and as metric families they would take ten times what
// they take in the text.
type text struct {
	w   *bufio.Writer
	buf []byte // one line
	now time.Time
}

func newText(w io.Writer, now time.Time) *text {
	return &text{w: bufio.NewWriterSize(w, 32<<10), now: now}
}

// Kinds of metrics.
const (
	gauge   = "gauge"
	counter = "counter"
)

func (t *text) family(name, kind, help string) {
	t.buf = append(t.buf[:0], "# HELP "...)
	t.buf = append(append(append(t.buf, name...), ' '), help...)
	t.buf = append(append(t.buf, "\n# TYPE "...), name...)
	t.buf = append(append(append(t.buf, ' '), kind...), '\n')
	_, _ = t.w.Write(t.buf) // errors stay: flush returns the first
}

// sample writes one line; labels are written already, without braces. A time that
// is not zero is written, too.
func (t *text) sample(name, labels string, value float64, at time.Time) {
	t.buf = append(t.buf[:0], name...)
	if labels != "" {
		t.buf = append(append(append(t.buf, '{'), labels...), '}')
	}
	t.buf = append(t.buf, ' ')
	switch {
	case value == math.Trunc(value) && math.Abs(value) < 1<<53:
		t.buf = strconv.AppendInt(t.buf, int64(value), 10)
	default:
		t.buf = strconv.AppendFloat(t.buf, value, 'g', -1, 64)
	}
	if !at.IsZero() {
		t.buf = strconv.AppendInt(append(t.buf, ' '), at.UnixMilli(), 10)
	}
	t.buf = append(t.buf, '\n')
	_, _ = t.w.Write(t.buf)
}

func (t *text) flush() error { return t.w.Flush() }

// escape makes a label's value of a string that somebody else wrote.
var escape = strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`)

// labels writes names and values, in pairs.
func labels(pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(pairs[i])
		b.WriteString(`="`)
		_, _ = escape.WriteString(&b, pairs[i+1])
		b.WriteByte('"')
	}
	return b.String()
}
