package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

const podDir, ctr = "default_web_uid-1", "app"

// folder makes root/<pod>/<container> with the given files.
func folder(t *testing.T, files map[string]string) (root, dir string) {
	t.Helper()
	root = t.TempDir()
	dir = filepath.Join(root, podDir, ctr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		put(t, filepath.Join(dir, name), text)
	}
	return root, dir
}

func put(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, root string) *Dir {
	t.Helper()
	d, err := OpenDir(root, podDir, ctr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func stamp(sec int) string {
	return time.Date(2026, 1, 2, 3, 4, sec, 5, time.UTC).Format(time.RFC3339Nano)
}

// entry is one raw CRI line.
func entry(sec int, stream, tag, text string) string {
	return fmt.Sprintf("%s %s %s %s\n", stamp(sec), stream, tag, text)
}

func TestStream(t *testing.T) {
	three := entry(1, "stdout", "F", "one") + entry(2, "stderr", "F", "two") + entry(3, "stdout", "F", "three")
	split := entry(1, "stdout", "F", "zero") + entry(2, "stdout", "P", "aa") + entry(3, "stdout", "P", "bb") + entry(4, "stdout", "F", "cc") + entry(5, "stdout", "F", "dd")
	n := func(i int64) *int64 { return &i }
	long := strings.Repeat("x", maxPending)
	for _, tt := range []struct {
		name string
		file string
		o    Options
		want string
	}{
		{name: "empty"},
		{name: "all", file: three, want: "one\ntwo\nthree\n"},
		{name: "timestamps", file: three, o: Options{Timestamps: true}, want: stamp(1) + " one\n" + stamp(2) + " two\n" + stamp(3) + " three\n"},
		{name: "tail", file: three, o: Options{TailLines: n(2)}, want: "two\nthree\n"},
		{name: "tail of none", file: three, o: Options{TailLines: n(0)}, want: ""},
		{name: "tail of more than all", file: three, o: Options{TailLines: n(9)}, want: "one\ntwo\nthree\n"},
		{name: "tail exactly all", file: three, o: Options{TailLines: n(3)}, want: "one\ntwo\nthree\n"},
		{name: "since", file: three, o: Options{Since: time.Date(2026, 1, 2, 3, 4, 2, 0, time.UTC)}, want: "two\nthree\n"},
		{name: "since and tail", file: three, o: Options{Since: time.Date(2026, 1, 2, 3, 4, 3, 0, time.UTC), TailLines: n(2)}, want: "three\n"},
		{name: "limit", file: three, o: Options{LimitBytes: n(5)}, want: "one\nt"},
		{name: "limit at the end of a line", file: three, o: Options{LimitBytes: n(4)}, want: "one\n"},
		{name: "stdout", file: three, o: Options{Stream: "stdout"}, want: "one\nthree\n"},
		{name: "stderr", file: three, o: Options{Stream: "stderr"}, want: "two\n"},
		{name: "partial lines", file: split, want: "zero\naabbcc\ndd\n"},
		{name: "partial lines have one time", file: split, o: Options{Timestamps: true}, want: stamp(1) + " zero\n" + stamp(2) + " aabbcc\n" + stamp(5) + " dd\n"},
		{name: "tail counts whole lines", file: split, o: Options{TailLines: n(2)}, want: "aabbcc\ndd\n"},
		{name: "tail in a split line", file: split, o: Options{TailLines: n(1)}, want: "dd\n"},
		{name: "partial lines of two streams", file: entry(1, "stdout", "P", "a") + entry(2, "stderr", "F", "E") + entry(3, "stdout", "F", "b"), want: "E\nab\n"},
		{name: "partial at the end", file: entry(1, "stdout", "F", "a") + entry(2, "stdout", "P", "b"), want: "a\nb"},
		{name: "no final line break", file: strings.TrimSuffix(three, "\n"), want: "one\ntwo\nthree\n"},
		{name: "tail without final line break", file: strings.TrimSuffix(three, "\n"), o: Options{TailLines: n(1)}, want: "three\n"},
		{name: "empty lines", file: entry(1, "stdout", "F", "") + stamp(2) + " stdout F\n", want: "\n\n"},
		{name: "several tags", file: entry(1, "stdout", "F:x", "a"), want: "a\n"},
		{name: "not the format", file: "half a li\n" + entry(1, "stdout", "F", "a"), want: "half a li\na\n"},
		{name: "spaces are content", file: entry(1, "stdout", "F", "  a  b "), want: "  a  b \n"},
		{name: "long pending lines pass in pieces", file: entry(1, "stdout", "P", long) + entry(1, "stdout", "P", long) + entry(1, "stdout", "F", "!"), o: Options{Timestamps: true}, want: stamp(1) + " " + long + long + "!\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, _ := folder(t, map[string]string{"0.log": tt.file})
			var out bytes.Buffer
			if err := open(t, root).Stream(t.Context(), 0, tt.o, &out); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != tt.want {
				t.Errorf("got %q, want %q", shorten(got), shorten(tt.want))
			}
		})
	}
}

func shorten(s string) string { return s[:min(len(s), 300)] }

// TestTailLarge compares with counting lines from the front.
func TestTailLarge(t *testing.T) {
	var all strings.Builder
	var plain []string
	for i := range 3000 {
		text := strings.Repeat("y", (i*37)%900) + fmt.Sprint(i)
		if i%5 == 0 {
			all.WriteString(entry(i%60, "stdout", "P", text))
			all.WriteString(entry(i%60, "stdout", "F", "+"))
			text += "+"
		} else {
			all.WriteString(entry(i%60, "stdout", "F", text))
		}
		plain = append(plain, text)
	}
	root, _ := folder(t, map[string]string{"0.log": all.String()})
	d := open(t, root)
	for _, n := range []int64{1, 2, 5, 6, 999, 2999, 3000, 3001} {
		var out bytes.Buffer
		if err := d.Stream(t.Context(), 0, Options{TailLines: &n}, &out); err != nil {
			t.Fatal(err)
		}
		want := strings.Join(plain[max(0, len(plain)-int(n)):], "\n") + "\n"
		if out.String() != want {
			t.Errorf("tail %d: got %d bytes, want %d", n, out.Len(), len(want))
		}
	}
}

func TestAttempts(t *testing.T) {
	root, _ := folder(t, map[string]string{"0.log": "", "2.log": "", "10.log": "", "10.log.20260102-030405": "", "x.log": "", "01.log": "", "3.log.gz": ""})
	got, err := open(t, root).Attempts()
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != "[10 2 0]" {
		t.Errorf("got %v, want [10 2 0]", got)
	}
}

// TestLinks: nothing in the log folder can make us read a file outside of it.
func TestLinks(t *testing.T) {
	root, dir := folder(t, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	put(t, secret, entry(1, "stdout", "F", "secret"))
	if err := os.Symlink(secret, filepath.Join(dir, "0.log")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "1.log"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "2.log"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(root, podDir, "other")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, podDir), filepath.Join(root, "linked")); err != nil {
		t.Fatal(err)
	}
	d := open(t, root)
	for _, attempt := range []int{0, 1, 2} {
		for _, follow := range []bool{false, true} {
			var out bytes.Buffer
			err := d.Stream(t.Context(), attempt, Options{Follow: follow}, &out)
			if !errors.Is(err, errdefs.ErrInvalid) || out.Len() > 0 {
				t.Errorf("attempt %d, follow %v: error %v and output %q, want ErrInvalid and none", attempt, follow, err, out.String())
			}
		}
	}
	if err := d.Stream(t.Context(), 7, Options{}, &bytes.Buffer{}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("missing attempt: %v, want ErrNotFound", err)
	}
	for _, names := range [][2]string{{podDir, "other"}, {"linked", ctr}, {podDir, ".."}, {"..", podDir}, {podDir + "/" + ctr, "."}, {"", ctr}} {
		if d, err := OpenDir(root, names[0], names[1]); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("OpenDir(%q, %q): %v, want ErrInvalid", names[0], names[1], err)
			if err == nil {
				d.Close()
			}
		}
	}
	if _, err := OpenDir(root, podDir, "gone"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("missing container: %v, want ErrNotFound", err)
	}
}

// sink collects output and lets a test wait for it.
type sink struct {
	mu   sync.Mutex
	b    bytes.Buffer
	news chan struct{}
}

func newSink() *sink { return &sink{news: make(chan struct{}, 1)} }

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.b.Write(b)
	select {
	case s.news <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *sink) await(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for s.String() != want {
		select {
		case <-s.news:
		case <-deadline:
			t.Fatalf("output %q, want %q", s.String(), want)
		}
	}
}

// follow starts to follow attempt 0; finish waits for the end of it.
func follow(t *testing.T, d *Dir, o Options) (out *sink, finish func() error) {
	t.Helper()
	out = newSink()
	o.Follow = true
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { done <- d.Stream(ctx, 0, o, out) })
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	return out, func() error {
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("following does not end")
			return nil
		}
	}
}

func TestFollow(t *testing.T) {
	root, dir := folder(t, map[string]string{"0.log": entry(1, "stdout", "F", "a")})
	log := filepath.Join(dir, "0.log")
	ended := make(chan struct{})
	out, finish := follow(t, open(t, root), Options{Ended: ended})
	out.await(t, "a\n")
	put(t, log, entry(2, "stdout", "F", "b"))
	out.await(t, "a\nb\n")
	// A raw line may come in pieces.
	whole := entry(3, "stdout", "F", "cd")
	put(t, log, whole[:len(whole)-2])
	put(t, log, whole[len(whole)-2:]+entry(4, "stdout", "F", "e"))
	out.await(t, "a\nb\ncd\ne\n")
	put(t, log, entry(5, "stdout", "F", "last"))
	close(ended)
	if err := finish(); err != nil {
		t.Fatal(err)
	}
	out.await(t, "a\nb\ncd\ne\nlast\n")
}

// TestFollowEnded: a container that has ended already has its log read to the
// end, once.
func TestFollowEnded(t *testing.T) {
	root, _ := folder(t, map[string]string{"0.log": entry(1, "stdout", "F", "a")})
	ended := make(chan struct{})
	close(ended)
	out, finish := follow(t, open(t, root), Options{Ended: ended})
	if err := finish(); err != nil {
		t.Fatal(err)
	}
	out.await(t, "a\n")
}

func TestFollowRotation(t *testing.T) {
	root, dir := folder(t, map[string]string{"0.log": entry(1, "stdout", "F", "a")})
	log := filepath.Join(dir, "0.log")
	ended := make(chan struct{})
	out, finish := follow(t, open(t, root), Options{Ended: ended})
	out.await(t, "a\n")
	// The runtime goes on writing to the renamed file until it has reopened.
	old := log + ".20260102-030405"
	if err := os.Rename(log, old); err != nil {
		t.Fatal(err)
	}
	put(t, old, entry(2, "stdout", "F", "b"))
	put(t, log, "")
	put(t, old, entry(3, "stdout", "F", "c"))
	put(t, log, entry(4, "stdout", "F", "d"))
	out.await(t, "a\nb\nc\nd\n")
	put(t, log, entry(5, "stdout", "F", "e"))
	out.await(t, "a\nb\nc\nd\ne\n")
	close(ended)
	if err := finish(); err != nil {
		t.Fatal(err)
	}
}

func TestFollowTruncated(t *testing.T) {
	root, dir := folder(t, map[string]string{"0.log": entry(1, "stdout", "F", "aaaa")})
	log := filepath.Join(dir, "0.log")
	out, _ := follow(t, open(t, root), Options{})
	out.await(t, "aaaa\n")
	if err := os.Truncate(log, 0); err != nil {
		t.Fatal(err)
	}
	put(t, log, entry(2, "stdout", "F", "b"))
	out.await(t, "aaaa\nb\n")
}

func TestFollowRemoved(t *testing.T) {
	root, dir := folder(t, map[string]string{"0.log": entry(1, "stdout", "F", "a")})
	out, finish := follow(t, open(t, root), Options{})
	out.await(t, "a\n")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := finish(); err != nil {
		t.Fatal(err)
	}
}

// TestFollowWaits: a log that is not there yet is waited for.
func TestFollowWaits(t *testing.T) {
	root, dir := folder(t, nil)
	ended := make(chan struct{})
	out, finish := follow(t, open(t, root), Options{Ended: ended})
	put(t, filepath.Join(dir, "0.log"), entry(1, "stdout", "F", "a"))
	out.await(t, "a\n")
	close(ended)
	if err := finish(); err != nil {
		t.Fatal(err)
	}
}

func TestFollowCancelled(t *testing.T) {
	root, _ := folder(t, map[string]string{"0.log": ""})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := open(t, root).Stream(ctx, 0, Options{Follow: true}, &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want Canceled", err)
	}
}

// FuzzStream: no file makes the reader panic, and reading all of it gives
// what following it to its end gives.
func FuzzStream(f *testing.F) {
	f.Add([]byte(entry(1, "stdout", "F", "a")), int64(1))
	f.Add([]byte(entry(1, "stdout", "P", "a")+"\n\n x y z"), int64(0))
	f.Add([]byte("stdout F"), int64(3))
	f.Fuzz(func(t *testing.T, file []byte, tail int64) {
		root, _ := folder(t, map[string]string{"0.log": string(file)})
		d := open(t, root)
		var once, followed, tailed bytes.Buffer
		ended := make(chan struct{})
		close(ended)
		err := errors.Join(
			d.Stream(t.Context(), 0, Options{}, &once),
			d.Stream(t.Context(), 0, Options{Follow: true, Ended: ended}, &followed),
			d.Stream(t.Context(), 0, Options{TailLines: &tail}, &tailed))
		if err != nil {
			t.Fatal(err)
		}
		if once.String() != followed.String() {
			t.Errorf("read %q, followed %q", once.String(), followed.String())
		}
	})
}
