package logs

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// squeezed is text as the rotator packs it.
func squeezed(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write([]byte(text))
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// read is what a log has to say.
func read(t *testing.T, d *Dir, o Options) string {
	t.Helper()
	var out bytes.Buffer
	if err := d.Stream(t.Context(), 0, o, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestReadRotated: a log reads the same however it is cut into files, packed or
// not, from the front and from behind.
func TestReadRotated(t *testing.T) {
	var raw, want []string
	for i := range 120 {
		text := strings.Repeat("z", i*31%700) + fmt.Sprint(i)
		if i%3 == 0 { // in two pieces
			raw = append(raw, entry(i/3, "stdout", "P", text))
			text += "+"
			raw = append(raw, entry(i/3, "stdout", "F", "+"))
		} else {
			raw = append(raw, entry(i/3, "stdout", "F", text))
		}
		want = append(want, text+"\n")
	}
	for _, cuts := range [][]int{{40, 80, 120}, {1, 2, 3}, {0, 0, 17}, {40, 81, 160}, {159, 160, 160}} {
		t.Run(fmt.Sprint(cuts), func(t *testing.T) {
			part := func(from, to int) string { return strings.Join(raw[from:to], "") }
			root, dir := folder(t, map[string]string{
				"0.log.20260102-030405.gz":        squeezed(t, part(0, cuts[0])),
				"0.log.20260102-030405-000001.gz": squeezed(t, part(cuts[0], cuts[1])),
				// Packing was cut short: both are there, and both say the same.
				"0.log.20260102-030406":        part(cuts[1], cuts[2]),
				"0.log.20260102-030406.gz":     squeezed(t, part(cuts[1], cuts[2])),
				"0.log.20260102-030406.tmp":    "half",
				"0.log.20260102-030407-000002": "",
				"0.log":                        part(cuts[2], len(raw)),
				"1.log":                        entry(1, "stdout", "F", "of another attempt"),
				"0.log.old":                    entry(1, "stdout", "F", "somebody else's"),
			})
			d := open(t, root)
			if got := read(t, d, Options{}); got != strings.Join(want, "") {
				t.Errorf("all: %q", shorten(got))
			}
			for n := range int64(len(want) + 2) {
				if got := read(t, d, Options{TailLines: &n}); got != strings.Join(want[max(0, len(want)-int(n)):], "") {
					t.Errorf("the last %d: %q", n, shorten(got))
				}
			}
			limit := int64(1000)
			if got := read(t, d, Options{LimitBytes: &limit}); got != strings.Join(want, "")[:limit] {
				t.Errorf("limited: %q", shorten(got))
			}
			// Times of the files decide nothing that those of the lines do not.
			long := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
			if err := os.Chtimes(filepath.Join(dir, "0.log.20260102-030405.gz"), long, long); err != nil {
				t.Fatal(err)
			}
			since := time.Date(2026, 1, 2, 3, 4, 39, 0, time.UTC)
			if got := read(t, d, Options{Since: since}); cuts[0] < 150 && got != strings.Join(want[117:], "") {
				t.Errorf("since: %q", shorten(got))
			}
		})
	}
}

// TestNoCurrentFile: between the two steps of a rotation the log has no file of
// its own name.
func TestNoCurrentFile(t *testing.T) {
	root, dir := folder(t, map[string]string{
		"0.log.20260102-030405": entry(1, "stdout", "F", "a"),
		"0.log.20260102-030406": entry(2, "stdout", "F", "b"),
	})
	d := open(t, root)
	if got := read(t, d, Options{}); got != "a\nb\n" {
		t.Errorf("got %q", got)
	}
	if got, err := d.Attempts(); err != nil || fmt.Sprint(got) != "[0]" {
		t.Errorf("attempts %v, %v", got, err)
	}
	ended := make(chan struct{})
	out, finish := follow(t, d, Options{Ended: ended})
	out.await(t, "a\nb\n")
	put(t, filepath.Join(dir, "0.log.20260102-030406"), entry(3, "stdout", "F", "c"))
	out.await(t, "a\nb\nc\n")
	put(t, filepath.Join(dir, "0.log"), entry(4, "stdout", "F", "d"))
	close(ended)
	if err := finish(); err != nil {
		t.Fatal(err)
	}
	out.await(t, "a\nb\nc\nd\n")
}

// TestFollowSkipsNothing: two rotations, the first one's file packed, come
// between two looks of a follower.
func TestFollowSkipsNothing(t *testing.T) {
	root, dir := folder(t, map[string]string{"0.log": entry(1, "stdout", "F", "a")})
	d := open(t, root)
	r := &reader{dir: d, name: "0.log", o: Options{Follow: true}}
	var b bytes.Buffer
	r.p = newPrinter(&b, r.o)
	defer r.close()
	parts, err := r.openFirst(t.Context())
	if err == nil {
		err = r.walk(t.Context(), parts)
	}
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	put(t, in("0.log"), entry(2, "stdout", "F", "b"))
	info, err := os.Stat(in("0.log"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, in("0.log.20260102-030405.gz"), squeezed(t, entry(1, "stdout", "F", "a")+entry(2, "stdout", "F", "b")))
	if err := os.Chtimes(in("0.log.20260102-030405.gz"), info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(in("0.log")); err != nil {
		t.Fatal(err)
	}
	put(t, in("0.log.20260102-030406"), entry(3, "stdout", "F", "c"))
	put(t, in("0.log"), entry(4, "stdout", "F", "d"))
	for range 3 {
		if _, err := r.swap(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.drain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.p.finish(); err != nil || b.String() != "a\nb\nc\nd\n" {
		t.Errorf("got %q, %v", b.String(), err)
	}
}
