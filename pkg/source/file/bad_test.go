package file

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLeftAlone(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{".a.yaml", ".a.yaml.swp", "a.yaml~", "a.yaml.swp", "a.yaml.bak", "a.yaml.tmp", "#a.yaml#", ".#a.yaml"} {
		b.put(name, manifestOf("a", "i:1"))
		if !leftAlone(name) {
			t.Errorf("%s is not left alone", name)
		}
	}
	b.must(os.Mkdir(b.path("sub"), 0o755))
	b.put("sub/b.yaml", manifestOf("b", "i:1"))
	b.put("c.yaml", manifestOf("c", "i:1"))
	b.put("#d.yaml", manifestOf("d", "i:1"))
	b.put("e", manifestOf("e", "i:1")) // kubelet takes any name, too
	b.run()
	r := b.waitFor("#d.yaml:d=i:1 c.yaml:c=i:1 e:e=i:1")
	if r.problems() != "" {
		t.Error(r)
	}
}

// TestMatters is which events make the source look.
func TestMatters(t *testing.T) {
	w := &watch{dirs: map[int32]*dir{
		1: {all: true, names: map[string]struct{}{}},
		2: {names: map[string]struct{}{"manifests": {}}},
	}}
	for _, c := range []struct {
		wd   int32
		mask uint32
		name string
		want bool
	}{
		{1, unix.IN_CLOSE_WRITE, "a.yaml", true},
		{1, unix.IN_MOVED_FROM, "a.yaml", true},
		{1, unix.IN_ATTRIB, "a.yaml", true},
		{1, unix.IN_MOVED_TO, "..data", true},
		{1, unix.IN_CREATE, ".current", true},
		{1, unix.IN_CLOSE_WRITE, ".hidden.yaml", false},
		{1, unix.IN_CREATE, ".a.yaml.swp", false},
		{1, unix.IN_MOVED_TO, "a.yaml~", false},
		{1, unix.IN_CLOSE_WRITE, "a.tmp", false},
		{1, unix.IN_ATTRIB, "", true},
		{1, unix.IN_DELETE_SELF, "", true},
		{1, unix.IN_UNMOUNT, "", true},
		{2, unix.IN_MOVED_TO, "manifests", true},
		{2, unix.IN_MOVED_TO, "other", false},
		{2, unix.IN_ATTRIB, "", false},
		{2, unix.IN_MOVE_SELF, "", true},
		{3, unix.IN_MOVED_TO, "manifests", false}, // not watched any more
		{3, unix.IN_IGNORED, "", false},
		{-1, unix.IN_Q_OVERFLOW, "", true},
		{2, unix.IN_IGNORED, "", true}, // the kernel gave the watch up
		{2, unix.IN_MOVED_TO, "manifests", false},
	} {
		if got := w.matters(c.wd, c.mask, c.name); got != c.want {
			t.Errorf("event %#x of %q in folder %d: %v, want %v", c.mask, c.name, c.wd, got, c.want)
		}
	}
}

// TestProblems: what is wrong is told with file, line and field, and heals.
func TestProblems(t *testing.T) {
	b := newBench(t)
	good := manifestOf("a", "i:1")
	b.put("a.yaml", good)
	b.run()
	b.waitFor("a.yaml:a=i:1")
	for _, c := range []struct {
		name, content string
		want          []string
	}{
		{"b.yaml", "a: [", []string{":1"}},
		{"b.yaml", strings.Replace(good, "image", "imagge", 1), []string{":8", "Pod default/a", "spec.containers[0].imagge"}},
		{"b.yaml", "apiVersion: v1\nkind: Frob\nmetadata: {name: x}\n", []string{":2", "kind", "Frob"}},
		{"b.yaml", "\x00\xff", []string{"NUL"}},
		{"b.json", `{"apiVersion": "v1"`, []string{":1"}},
		{"README.md", "# Pods\nText.\n", []string{"README.md:", "move it out of the folder or begin its name with a dot"}},
	} {
		b.put(c.name, c.content)
		r := b.waitProblem(c.name, append(c.want, b.path(c.name))...)
		if objects(r) != "a.yaml:a=i:1" {
			t.Errorf("%s %q: %s", c.name, c.content, r)
		}
		b.must(os.Remove(b.path(c.name)))
		b.wait("the problem is gone", func(r report) bool { return r.err == nil && r.problems() == "" })
	}
	// One bad document of two: the good one counts, the file is held on to.
	b.put("a.yaml", manifestOf("c", "i:1")+"---\n"+strings.Replace(good, "image", "imagge", 1))
	r := b.waitProblem("a.yaml", "a.yaml:17", "imagge")
	if objects(r) != "a.yaml:c=i:1" || r.snap.Problems[0].Object != "Pod default/a" {
		t.Error(r)
	}
	b.put("a.yaml", good)
	if r := b.waitFor("a.yaml:a=i:1"); r.problems() != "" {
		t.Error(r)
	}
}

// TestEmptyFile: a full disk and a crash leave files without a byte.
func TestEmptyFile(t *testing.T) {
	b := newBench(t)
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.run()
	b.waitFor("a.yaml:a=i:1")
	b.write("a.yaml", "")
	b.waitProblem("a.yaml", "is empty", "remove the file")
	b.write("a.yaml", "# none\n")
	b.wait("nothing is wanted", func(r report) bool { return objects(r) == "" && r.problems() == "" })
}

func TestLargeFile(t *testing.T) {
	b := newBench(t)
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.must(os.WriteFile(b.path("huge.yaml.tmp"), nil, 0o644))
	b.must(os.Truncate(b.path("huge.yaml.tmp"), 1<<40)) // sparse: reading it would take the machine
	b.must(os.Rename(b.path("huge.yaml.tmp"), b.path("huge.yaml")))
	b.run()
	r := b.waitProblem("huge.yaml", "has 1099511627776 bytes; the limit is 10485760")
	if objects(r) != "a.yaml:a=i:1" {
		t.Error(r)
	}
	// The limit itself is allowed. It is comments that fill it: documents have a
	// limit of their own.
	comment := "# " + strings.Repeat("x", 1<<20-20) + "\n---\n"
	b.put("huge.yaml", strings.Repeat(comment, 10)+manifestOf("big", "i:1"))
	b.waitFor("a.yaml:a=i:1 huge.yaml:big=i:1")
}

// TestUnreadableFile looks with the rights of nobody.
func TestUnreadableFile(t *testing.T) {
	b := newBench(t)
	for p := b.dir; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		b.must(os.Chmod(p, 0o755))
	}
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.put("b.yaml", manifestOf("b", "i:1"))
	b.run(func(s *Source) {
		real := s.newWatch
		s.newWatch = func(log *slog.Logger) (*watch, error) {
			if os.Geteuid() == 0 {
				// The thread is given up with its goroutine: it is never unlocked.
				runtime.LockOSThread()
				if _, _, e := unix.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0); e != 0 {
					return nil, e
				}
			}
			return real(log)
		}
	})
	b.waitFor("a.yaml:a=i:1 b.yaml:b=i:1")
	b.must(os.Chmod(b.path("a.yaml"), 0))
	r := b.waitProblem("a.yaml", "cannot be read: permission denied")
	if objects(r) != "b.yaml:b=i:1" || strings.Contains(r.problems(), "/proc") {
		t.Error(r)
	}
	b.must(os.Chmod(b.path("a.yaml"), 0o644))
	b.waitFor("a.yaml:a=i:1 b.yaml:b=i:1")
	b.must(os.Chmod(b.dir, 0))
	b.waitFailure("permission denied")
	b.must(os.Chmod(b.dir, 0o755))
	b.waitFor("a.yaml:a=i:1 b.yaml:b=i:1")
}

// TestManyProblems: a folder full of rubbish is reported file by file.
func TestManyProblems(t *testing.T) {
	b := newBench(t)
	for i := range 300 {
		b.put(fmt.Sprintf("%03d.yaml", i), fmt.Sprintf("bad: [%d", i))
	}
	b.put("good.yaml", manifestOf("good", "i:1"))
	b.run()
	r := b.waitFor("good.yaml:good=i:1")
	files := map[string]bool{}
	for _, p := range r.snap.Problems {
		files[p.Origin] = true
	}
	if len(files) != 300 {
		t.Errorf("%d files were reported", len(files))
	}
}
