package file

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// open opens a file for writing and leaves it open.
func (b *bench) open(name string, flags int) *os.File {
	b.Helper()
	f, err := os.OpenFile(b.path(name), os.O_WRONLY|flags, 0o644)
	b.must(err)
	b.Cleanup(func() { f.Close() })
	return f
}

// TestHalfWritten: neither is a file that is being written taken for bad, nor
// are its pods, and the event of its closing is enough to read it.
func TestHalfWritten(t *testing.T) {
	b := newBench(t)
	whole := manifestOf("new", "i:2") + "---\n" + manifestOf("old", "i:2")
	b.put("old.yaml", manifestOf("old", "i:1"))
	b.run()
	b.waitFor("old.yaml:old=i:1")
	fresh, again := b.open("new.yaml", os.O_CREATE|os.O_EXCL), b.open("old.yaml", os.O_TRUNC)
	for i, end := range []int{0, 1, 30, strings.Index(whole, "---"), len(whole) - 1} {
		for _, f := range []*os.File{fresh, again} {
			_, err := f.WriteAt([]byte(whole[:end]), 0)
			b.must(err)
		}
		r := b.fence()
		if !strings.HasPrefix(objects(r), "old.yaml:old=i:1 zz-fence") || r.problems() != "" {
			t.Fatalf("%d bytes written (%d): %s", end, i, r)
		}
	}
	for _, f := range []*os.File{fresh, again} {
		_, err := f.WriteAt([]byte(whole), 0)
		b.must(err)
		b.must(f.Close())
	}
	b.wait("both are read", func(r report) bool {
		return strings.HasPrefix(objects(r), "new.yaml:new=i:2 new.yaml:old=i:2 old.yaml:new=i:2 old.yaml:old=i:2")
	})
	b.stop()
	for _, r := range b.sink.reports {
		if r.problems() != "" || r.err != nil {
			t.Errorf("unexpected: %s", r)
		}
	}
}

// TestWrittenAtStart: what the store knows of such a file from before stays.
func TestWrittenAtStart(t *testing.T) {
	b := newBench(t)
	f := b.open("a.yaml", os.O_CREATE)
	_, err := f.WriteString(manifestOf("a", "i:1"))
	b.must(err)
	b.run()
	if r := b.waitProblem("a.yaml", "is being written"); objects(r) != "" {
		t.Error(r)
	}
	b.must(f.Close())
	if r := b.waitFor("a.yaml:a=i:1"); r.problems() != "" {
		t.Error(r)
	}
}

// TestWrittenForLong: somebody who forgets to close a file is told why nothing
// happens.
func TestWrittenForLong(t *testing.T) {
	b := newBench(t)
	b.put("a.yaml", manifestOf("a", "i:1"))
	var ahead atomic.Int64
	b.run(func(s *Source) {
		s.o.Clock = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	b.waitFor("a.yaml:a=i:1")
	f := b.open("a.yaml", os.O_TRUNC)
	if r := b.fence(); r.problems() != "" {
		t.Error(r)
	}
	ahead.Store(int64(2 * patience))
	b.waitProblem("a.yaml", "is open for writing by another process")
	_, err := f.WriteString(manifestOf("a", "i:2"))
	b.must(err)
	b.must(f.Close())
	r := b.wait("a.yaml is read", func(r report) bool { return strings.HasPrefix(objects(r), "a.yaml:a=i:2") })
	if r.problems() != "" {
		t.Error(r)
	}
}

// TestWritersUnknown: where the kernel cannot tell, a file counts once it stays
// as it is.
func TestWritersUnknown(t *testing.T) {
	for _, events := range []bool{true, false} {
		t.Run(fmt.Sprintf("events=%v", events), func(t *testing.T) {
			b := newBench(t)
			b.run(func(s *Source) {
				s.writers = func(int) writerState { return unknown }
				if !events {
					noEvents(s)
				}
			})
			b.waitFor("")
			b.put("a.yaml", manifestOf("a", "i:1"))
			b.waitFor("a.yaml:a=i:1")
			b.write("a.yaml", manifestOf("a", "i:2"))
			b.waitFor("a.yaml:a=i:2")
			b.must(os.Remove(b.path("a.yaml")))
			b.waitFor("")
		})
	}
}

// TestClosingIsNotNeeded: files that appear whole without anybody closing them.
func TestClosingIsNotNeeded(t *testing.T) {
	b := newBench(t)
	b.run()
	b.waitFor("")
	b.must(os.WriteFile(b.dir+".yaml", []byte(manifestOf("a", "i:1")), 0o644))
	b.must(os.Link(b.dir+".yaml", b.path("a.yaml")))
	b.waitFor("a.yaml:a=i:1")
	fd, err := unix.Open(b.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Logf("no O_TMPFILE here: %v", err)
		return
	}
	_, err = unix.Write(fd, []byte(manifestOf("b", "i:1")))
	b.must(err)
	b.must(unix.Linkat(unix.AT_FDCWD, procPath(fd), unix.AT_FDCWD, b.path("b.yaml"), unix.AT_SYMLINK_FOLLOW))
	if r := b.fence(); r.problems() != "" {
		t.Error(r)
	}
	b.must(unix.Close(fd))
	b.wait("b.yaml is read", func(r report) bool { return strings.HasPrefix(objects(r), "a.yaml:a=i:1 b.yaml:b=i:1") })
}

// TestSameBytes: what is written again as it was changes nothing.
func TestSameBytes(t *testing.T) {
	b := newBench(t)
	content := manifestOf("a", "i:1")
	b.put("a.yaml", content)
	b.run()
	first := b.waitFor("a.yaml:a=i:1").snap.Objects[0].Pod
	b.write("a.yaml", content)
	b.fence()
	b.put("a.yaml", content)
	b.must(os.Chtimes(b.path("a.yaml"), time.Unix(1, 0), time.Unix(1, 0)))
	b.fence()
	b.stop()
	if n := len(b.sink.reports); n != 3 { // the first, and two of the fence
		t.Errorf("%d reports, want 3", n)
	}
	for _, r := range b.sink.reports {
		if got := r.snap.Objects[0]; got.Pod != first {
			t.Errorf("decoded again: %s", r)
		}
	}
}

// TestQuickRewrites: a rewrite is seen although size and time may be the same.
func TestQuickRewrites(t *testing.T) {
	b := newBench(t)
	b.run()
	for i := range 300 {
		image := fmt.Sprintf("i:%03d", i)
		b.write("a.yaml", manifestOf("a", image))
		b.waitFor("a.yaml:a=" + image)
	}
}

// TestEditors: the ways in which editors and tools save a file lose no pod.
func TestEditors(t *testing.T) {
	save := map[string]func(b *bench, content string){
		"in place": func(b *bench, c string) { b.write("a.yaml", c) },
		"rename":   func(b *bench, c string) { b.put("a.yaml", c) },
		"backup first": func(b *bench, c string) {
			b.must(os.Rename(b.path("a.yaml"), b.path("a.yaml~")))
			f := b.open("a.yaml", os.O_CREATE|os.O_EXCL)
			_, err := f.WriteString(c)
			b.must(err)
			b.fence()
			b.must(f.Close())
			b.must(os.Remove(b.path("a.yaml~")))
		},
		"unlink first": func(b *bench, c string) {
			b.must(os.Remove(b.path("a.yaml")))
			b.write("a.yaml", c)
		},
		"other name": func(b *bench, c string) {
			b.must(os.Rename(b.path("a.yaml"), b.path("b.yaml")))
			b.write("b.yaml", c)
			b.must(os.Rename(b.path("b.yaml"), b.path("a.yaml")))
		},
	}
	for name, save := range save {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.put("a.yaml", manifestOf("a", "i:0"))
			b.sink.check = func(s snapshot) error { return b.needs(s, "a") }
			b.run()
			b.waitFor("a.yaml:a=i:0")
			for i := 1; i <= 10; i++ {
				image := fmt.Sprintf("i:%d", i)
				save(b, manifestOf("a", image))
				b.wait("a.yaml is read", func(r report) bool { return strings.HasPrefix(objects(r), "a.yaml:a="+image) && r.problems() == "" })
			}
		})
	}
}
