// Package table writes aligned columns for people, in kubectl's layout, and
// takes the teeth out of text that could drive a terminal.
package table

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	minWidth = 6 // of a column with its padding
	padding  = 3
)

// Writer writes rows under headers. Rows are held until Flush, which aligns
// them; columns that were wide once stay wide, so that the rows of a watch
// stand under those before them. It is not safe for concurrent use.
type Writer struct {
	out    io.Writer
	rows   [][]string
	widths []int
}

// New returns a Writer; an empty headers list writes none.
func New(out io.Writer, headers ...string) *Writer {
	w := &Writer{out: out}
	if len(headers) > 0 {
		w.Row(headers...)
	}
	return w
}

// Row adds a row. Cells are made safe and cut at the first line end.
func (w *Writer) Row(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = Cell(c)
	}
	w.rows = append(w.rows, row)
}

// Flush writes the rows that were added since the last Flush.
func (w *Writer) Flush() error {
	for _, r := range w.rows {
		for i, c := range r {
			if i == len(w.widths) {
				w.widths = append(w.widths, 0)
			}
			w.widths[i] = max(w.widths[i], utf8.RuneCountInString(c)+padding, minWidth)
		}
	}
	var b bytes.Buffer
	for _, r := range w.rows {
		var line strings.Builder
		for i, c := range r {
			line.WriteString(c)
			line.WriteString(strings.Repeat(" ", w.widths[i]-utf8.RuneCountInString(c)))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	w.rows = nil
	_, err := w.out.Write(b.Bytes())
	return err
}

// Cell is Safe for one line: what follows a line end becomes "...".
func Cell(s string) string {
	if i := strings.IndexAny(s, "\n\r\f\v"); i >= 0 {
		return Safe(s[:i]) + "..."
	}
	return Safe(s)
}

// Safe returns s with everything written out that a terminal or a reader could
// take for something else: control characters, among them the escape that
// starts terminal commands (CVE-2021-25743), the C1 controls, which some
// terminals obey as well, the marks that reorder text, and bytes that are not
// UTF-8. Names and messages come from manifests and containers, and neither is
// trusted with the operator's terminal.
func Safe(s string) string { return escape(s, "") }

// SafeText is Safe for text of several lines: line ends and tabs stay.
func SafeText(s string) string { return escape(s, "\n\t") }

func escape(s, keep string) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case strings.ContainsRune(keep, r):
			b.WriteRune(r)
		case r < 0x20:
			b.WriteByte('^')
			b.WriteRune(r + '@')
		case r == 0x7f:
			b.WriteString("^?")
		case unsafe(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func unsafe(r rune) bool {
	return r >= 0x80 && r < 0xa0 || // C1
		r >= 0x200b && r <= 0x200f || // zero width, direction marks
		r >= 0x2028 && r <= 0x202e || // line ends, direction overrides
		r >= 0x2066 && r <= 0x2069 || // direction isolates
		r == 0xfeff
}
