package file

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// noEvents makes a machine that has no inotify to give.
func noEvents(s *Source) {
	s.newWatch = func(*slog.Logger) (*watch, error) { return nil, fmt.Errorf("inotify_init1: %w", unix.EMFILE) }
	s.o.Poll = 10 * time.Millisecond
}

// TestPollOnly: without events everything works, and it is said once.
func TestPollOnly(t *testing.T) {
	b := newBench(t)
	b.run(noEvents)
	b.waitFor("")
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.waitFor("a.yaml:a=i:1")
	f := b.open("b.yaml", os.O_CREATE)
	_, err := f.WriteString(manifestOf("b", "i:1"))
	b.must(err)
	n := b.sink.count()
	if r := b.wait("polls", func(report) bool { return len(b.sink.reports) > n+3 }); objects(r) != "a.yaml:a=i:1" || r.problems() != "" {
		t.Error(r)
	}
	b.must(f.Close())
	b.waitFor("a.yaml:a=i:1 b.yaml:b=i:1")
	b.must(os.Rename(b.path("a.yaml"), b.path("c.yaml")))
	b.waitFor("b.yaml:b=i:1 c.yaml:a=i:1")
	b.must(os.Rename(b.dir, b.dir+".away"))
	b.waitFailure("does not exist")
	b.must(os.Rename(b.dir+".away", b.dir))
	b.waitFor("b.yaml:b=i:1 c.yaml:a=i:1")
	b.must(os.Remove(b.path("b.yaml")))
	b.waitFor("c.yaml:a=i:1")
	b.stop()
	if n := strings.Count(b.log.String(), "no file events"); n != 1 {
		t.Errorf("said %d times:\n%s", n, b.log)
	}
}

// TestPollBehindEvents: the poll finds what no event told, as on a network file
// system that others write to.
func TestPollBehindEvents(t *testing.T) {
	b := newBench(t)
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.run(func(s *Source) {
		s.o.Poll = 10 * time.Millisecond
		s.newWatch = func(log *slog.Logger) (*watch, error) {
			w, err := newWatch(log)
			if err != nil {
				return nil, err
			}
			// A pipe that nobody writes to: it can be waited for, and watches nothing.
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				return nil, err
			}
			w.close()
			w.fd, w.file = p[0], os.NewFile(uintptr(p[0]), "pipe")
			t.Cleanup(func() { unix.Close(p[1]) })
			return w, nil
		}
	})
	b.waitFor("a.yaml:a=i:1")
	b.put("a.yaml", manifestOf("a", "i:2"))
	b.waitFor("a.yaml:a=i:2")
	b.must(os.Remove(b.path("a.yaml")))
	b.waitFor("")
}

// TestOverflow: when the kernel had to drop events, everything is looked at.
func TestOverflow(t *testing.T) {
	data, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Skip(err)
	}
	var limit int
	if _, err := fmt.Sscan(string(data), &limit); err != nil || limit > 1<<17 {
		t.Skipf("max_queued_events %s", data)
	}
	b := newBench(t)
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.put("1.tmp", "")
	gate := make(chan struct{})
	entered := make(chan struct{})
	b.sink.check = func(s snapshot) error {
		if strings.Contains(objects(report{snap: s}), "i:2") {
			close(entered)
			<-gate
			b.sink.check = nil
		}
		return nil
	}
	b.run()
	b.waitFor("a.yaml:a=i:1")
	b.put("a.yaml", manifestOf("a", "i:2"))
	<-entered
	// Events of names that do not matter fill the queue; the one that does is
	// dropped.
	for i := 0; i <= limit; i += 2 {
		b.must(os.Rename(b.path("1.tmp"), b.path("2.tmp")))
		b.must(os.Rename(b.path("2.tmp"), b.path("1.tmp")))
	}
	b.put("a.yaml", manifestOf("a", "i:3"))
	close(gate)
	b.waitFor("a.yaml:a=i:3")
}

// TestWatchesAreGivenBack: following links and folders as they change leaves no
// watch and no descriptor behind.
func TestWatchesAreGivenBack(t *testing.T) {
	b := newBench(t)
	descriptors := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		b.must(err)
		return len(names)
	}
	s := New(Options{Path: b.path("current"), Decode: nil, Log: slog.New(slog.DiscardHandler)})
	w, err := newWatch(s.o.Log)
	b.must(err)
	defer w.close()
	f := newFollower(s.o, s.writers, b.sink)
	f.watch = w
	before, watches := descriptors(), 0
	for i := range 50 {
		dir := fmt.Sprintf("v%d", i)
		b.must(os.Mkdir(b.path(dir), 0o755))
		b.must(os.Mkdir(b.path(dir+"/sub"), 0o755))
		b.must(os.Symlink("sub/none", b.path(dir+"/link.yaml")))
		b.relink(dir, "current")
		f.look(context.Background())
		if i == 0 {
			watches = len(w.dirs)
		}
	}
	if len(w.dirs) != watches || watches == 0 {
		t.Errorf("%d watches at first, %d in the end", watches, len(w.dirs))
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", w.fd))
	b.must(err)
	if n := strings.Count(string(info), "inotify wd:"); n != watches {
		t.Errorf("the kernel has %d watches, want %d", n, watches)
	}
	if after := descriptors(); after != before {
		t.Errorf("%d descriptors at first, %d in the end", before, after)
	}
}

// TestEndsAtOnce: a source ends while it waits, and when it was never started
// in earnest.
func TestEndsAtOnce(t *testing.T) {
	b := newBench(t)
	b.run()
	b.waitFor("")
	b.stop()
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("enough"))
	if err := New(Options{Path: b.dir, Log: slog.New(slog.DiscardHandler)}).Run(ctx, b.sink); err != nil {
		t.Error(err)
	}
}

// TestManyFiles: a look at a large folder in which nothing changed opens
// nothing; what is read again is what changed.
func TestManyFiles(t *testing.T) {
	b := newBench(t)
	const n = 2000
	for i := range n {
		b.put(fmt.Sprintf("%05d.yaml", i), manifestOf(fmt.Sprintf("p%d", i), "i:1"))
	}
	decoded := map[string]int{}
	later := time.Now().Add(time.Hour) // no file's time is that of now
	o := New(Options{Path: b.dir, Log: slog.New(slog.DiscardHandler)}).o
	o.Clock = func() time.Time { return later }
	o.Decode = counting(decoded)
	asked := 0
	f := newFollower(o, func(fd int) writerState { asked++; return writers(fd) }, b.sink)
	f.look(context.Background())
	if len(decoded) != n || asked < n {
		t.Fatalf("%d files decoded, %d opened", len(decoded), asked)
	}
	asked = 0
	f.look(context.Background())
	if asked != 0 {
		t.Errorf("%d files were opened without need", asked)
	}
	b.write("00007.yaml", manifestOf("p7", "i:2"))
	f.look(context.Background())
	for origin, times := range decoded {
		want := 1
		if filepath.Base(origin) == "00007.yaml" {
			want = 2
		}
		if times != want {
			t.Errorf("%s was decoded %d times", origin, times)
		}
	}
	if r := b.sink.reports[len(b.sink.reports)-1]; len(r.snap.Objects) != n {
		t.Errorf("%d objects", len(r.snap.Objects))
	}
}
