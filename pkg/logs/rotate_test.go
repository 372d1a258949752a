package logs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// writer is a runtime that writes one container's log.
type writer struct {
	t    *testing.T
	path string

	mu       sync.Mutex
	f        *os.File
	n        int
	reopened chan struct{} // capacity 1
	fail     error
}

func newWriter(t *testing.T, dir string) *writer {
	w := &writer{t: t, path: filepath.Join(dir, "0.log"), reopened: make(chan struct{}, 1)}
	if err := w.reopen(t.Context(), "id"); err != nil {
		t.Fatal(err)
	}
	<-w.reopened
	t.Cleanup(func() { w.f.Close() })
	return w
}

func (w *writer) reopen(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if id != "id" {
		return fmt.Errorf("container %s is not there", id)
	}
	if w.fail != nil {
		return w.fail
	}
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	if w.f != nil {
		w.f.Close()
	}
	w.f = f
	select {
	case w.reopened <- struct{}{}:
	default:
	}
	return nil
}

func (w *writer) failWith(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

// write writes the next lines.
func (w *writer) write(lines int) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for range lines {
		b.WriteString(entry(1, "stdout", "F", fmt.Sprint(w.n)))
		w.n++
	}
	if _, err := w.f.WriteString(b.String()); err != nil {
		w.t.Error(err)
	}
}

// said is what all lines from a number on read like.
func (w *writer) said(from int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	for i := from; i < w.n; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// rotating runs a rotator of one container's log; end ends it.
func rotating(t *testing.T, root string, w *writer, more func(*RotateOptions)) (r *Rotator, end func()) {
	t.Helper()
	o := RotateOptions{
		Root: root, MaxSize: 4 << 10, MaxFiles: 4, Interval: 50 * time.Millisecond, Reopen: w.reopen,
		Clock: time.Now, Log: slog.New(slog.DiscardHandler),
	}
	if more != nil {
		more(&o)
	}
	r = NewRotator(o)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	end = func() { cancel(); wg.Wait() }
	t.Cleanup(end)
	r.Follow("uid-1", []Container{{ID: "id", PodFolder: podDir, Name: ctr}})
	return r, end
}

func eventually(t *testing.T, what string, cond func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// settled is the condition that a log has its number of files, all packed but
// the two newest.
func settled(d *Dir, files int) func() error {
	return func() error {
		old, err := d.rotatedOf("0.log")
		if err != nil {
			return err
		}
		for i, r := range old {
			if r.packed != (i < len(old)-1) || r.plain == r.packed {
				return fmt.Errorf("%+v", old)
			}
		}
		if _, err := d.stat("0.log"); err != nil || len(old) != files-1 {
			return fmt.Errorf("%d rotated files, want %d: %w", len(old), files-1, err)
		}
		names, err := d.names()
		if err == nil && len(names) != files {
			err = fmt.Errorf("%q", names)
		}
		return err
	}
}

// TestRotate: a log that is written to has so many files of about that size; the
// older ones are packed, and all that is there reads as one.
func TestRotate(t *testing.T) {
	root, dir := folder(t, nil)
	w := newWriter(t, dir)
	d := open(t, root)
	// Its looks are an hour apart: only writes can be what it acts upon.
	_, end := rotating(t, root, w, func(o *RotateOptions) { o.Interval = time.Hour })
	for range 8 {
		w.write(100)
		<-w.reopened
	}
	w.write(1)
	end()
	rotating(t, root, w, nil) // packs what the first one had not come to
	eventually(t, "four files", settled(d, 4))
	got := read(t, d, Options{})
	first, _, _ := strings.Cut(got, "\n")
	n := 0
	if _, err := fmt.Sscan(first, &n); err != nil || n == 0 || got != w.said(n) {
		t.Errorf("from %q (%v): %d bytes, want %d", first, err, len(got), len(w.said(n)))
	}
	old, err := d.rotatedOf("0.log")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "0.log."+old[0].stamp+packedSuffix))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the packed file: %v, %v", info.Mode(), err)
	}
}

// TestFollowWhileRotating: a follower sees every line once, in order.
func TestFollowWhileRotating(t *testing.T) {
	root, dir := folder(t, nil)
	w := newWriter(t, dir)
	d := open(t, root)
	rotating(t, root, w, func(o *RotateOptions) { o.MaxFiles = 1000 })
	ended := make(chan struct{})
	out, finish := follow(t, d, Options{Ended: ended})
	for range 20 {
		w.write(100)
		<-w.reopened
	}
	eventually(t, "something was packed", func() error {
		old, err := d.rotatedOf("0.log")
		if err == nil && !old[0].packed {
			err = fmt.Errorf("%+v", old[0])
		}
		return err
	})
	w.write(100)
	close(ended)
	if err := finish(); err != nil {
		t.Fatal(err)
	}
	out.await(t, w.said(0))
	if got := read(t, d, Options{}); got != w.said(0) {
		t.Errorf("read again: %d bytes, want %d", len(got), len(w.said(0)))
	}
}

// TestKilledWhileRotating: the agent dies at every step, and the next one
// finishes; what the container has written meanwhile is all there.
func TestKilledWhileRotating(t *testing.T) {
	for _, point := range []string{
		"before a log is renamed", "between a log's rename and its reopening", "while a log is packed", "between a log's packing and its removal",
	} {
		t.Run(point, func(t *testing.T) {
			root, dir := folder(t, nil)
			w := newWriter(t, dir)
			d := open(t, root)
			died := make(chan struct{})
			var once sync.Once
			_, end := rotating(t, root, w, func(o *RotateOptions) {
				o.MaxFiles = 100
				o.Hook = func(p string) {
					if p == point {
						once.Do(func() { close(died) })
						runtime.Goexit()
					}
				}
			})
			for range 4 {
				w.write(100)
				select {
				case <-died:
				case <-w.reopened:
				}
			}
			<-died
			end()
			w.write(100)
			if got := read(t, d, Options{}); got != w.said(0) {
				t.Errorf("after the kill: %d bytes, want %d", len(got), len(w.said(0)))
			}
			rotating(t, root, w, func(o *RotateOptions) { o.MaxFiles = 100 })
			eventually(t, "all is rotated and packed", func() error {
				old, err := d.rotatedOf("0.log")
				if err != nil {
					return err
				}
				return settled(d, len(old)+1)()
			})
			w.write(1)
			if got := read(t, d, Options{}); got != w.said(0) {
				t.Errorf("in the end: %d bytes, want %d", len(got), len(w.said(0)))
			}
		})
	}
}

// TestReopenFails: the log keeps its name while the runtime cannot open another.
func TestReopenFails(t *testing.T) {
	root, dir := folder(t, nil)
	w := newWriter(t, dir)
	d := open(t, root)
	tried := make(chan struct{}, 1000)
	w.failWith(errors.New("the disk is full"))
	rotating(t, root, w, func(o *RotateOptions) {
		o.Reopen = func(ctx context.Context, id string) error {
			tried <- struct{}{}
			return w.reopen(ctx, id)
		}
	})
	w.write(100)
	<-tried
	<-tried // tried again, with the name given back in between
	w.failWith(nil)
	<-w.reopened
	w.write(1)
	if got := read(t, d, Options{}); got != w.said(0) {
		t.Errorf("%d bytes, want %d", len(got), len(w.said(0)))
	}
	if old, err := d.rotatedOf("0.log"); err != nil || len(old) != 1 {
		t.Errorf("%+v, %v: want one rotated file", old, err)
	}
}

// TestRotateLinks: a log that is a link is left alone, and so is where it leads.
func TestRotateLinks(t *testing.T) {
	root, dir := folder(t, nil)
	outside := t.TempDir()
	big := strings.Repeat(entry(1, "stdout", "F", "mine"), 1000)
	for _, name := range []string{"0.log", "0.log.20260102-030405", "0.log.20260102-030406"} {
		put(t, filepath.Join(outside, name), big)
	}
	links := map[string]string{
		filepath.Join(dir, "0.log"):                 filepath.Join(outside, "0.log"),
		filepath.Join(dir, "0.log.20260102-030405"): filepath.Join(outside, "0.log.20260102-030405"),
		filepath.Join(root, podDir, "linked"):       outside,
	}
	for from, to := range links {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	r := NewRotator(RotateOptions{
		Root: root, MaxSize: 1, MaxFiles: 2, Clock: time.Now, Log: slog.New(slog.DiscardHandler),
		Reopen: func(context.Context, string) error { t.Error("reopened"); return nil },
	})
	for _, name := range []string{ctr, "linked"} {
		k := &keeper{Rotator: r, c: Container{ID: "id", PodFolder: podDir, Name: name}, name: "0.log"}
		if _, err := k.look(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
		if d, err := OpenDir(root, podDir, name); err == nil {
			if err := k.pack(t.Context(), d, rotated{stamp: "20260102-030405", plain: true}); err == nil {
				t.Errorf("%s: a link was packed", name)
			}
			d.Close()
		}
		if err := Remove(root, podDir, name, 0); (err == nil) != (name == ctr) {
			t.Errorf("removing %s: %v", name, err)
		}
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 3 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

// TestForgotten: a container that has ended is left alone.
func TestForgotten(t *testing.T) {
	root, dir := folder(t, nil)
	w := newWriter(t, dir)
	r, _ := rotating(t, root, w, nil)
	w.write(100)
	<-w.reopened
	r.Follow("uid-1", nil)
	r.mu.Lock()
	left := len(r.pods)
	r.mu.Unlock()
	if left != 0 {
		t.Errorf("%d pods", left)
	}
	eventually(t, "its keeper ends", func() error {
		r.watch.mu.Lock()
		defer r.watch.mu.Unlock()
		if n := len(r.watch.of); n > 0 {
			return fmt.Errorf("%d watches", n)
		}
		return nil
	})
}

func TestRemove(t *testing.T) {
	root, dir := folder(t, map[string]string{
		"1.log": "", "1.log.20260102-030405": "", "1.log.20260102-030404.gz": "", "1.log.20260102-030405.tmp": "", "10.log": "", "11.log.20260102-030405": "",
	})
	for range 2 {
		if err := Remove(root, podDir, ctr, 1); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if err := Remove(root, podDir, "gone", 1); err != nil {
		t.Error(err)
	}
}

func TestNextStamp(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	stamps := []string{}
	for _, at := range []time.Time{now, now, now, now.Add(-time.Hour), now.Add(time.Second), now.Add(time.Second)} {
		var old []rotated
		for _, s := range stamps {
			old = append(old, rotated{stamp: s})
		}
		stamps = append(stamps, nextStamp(old, at))
	}
	want := []string{"20260102-030405", "20260102-030405-000001", "20260102-030405-000002", "20260102-030405-000003", "20260102-030406", "20260102-030406-000001"}
	if !slices.Equal(stamps, want) || !slices.IsSorted(stamps) {
		t.Errorf("got %q, want %q", stamps, want)
	}
	for _, s := range stamps {
		if !stampPattern.MatchString(s) {
			t.Errorf("%s is no stamp", s)
		}
	}
}

// TestSoon: the faster a log is written, the sooner it is looked at again.
func TestSoon(t *testing.T) {
	for _, tt := range []struct {
		left, grown int64
		took        time.Duration
		want        time.Duration
	}{
		{10 << 20, 1, time.Second, latest},
		{4 << 20, 1, 0, 100 * time.Millisecond},
		{10 << 20, 10 << 20, 100 * time.Millisecond, 100 * time.Millisecond},
		{0, 100 << 20, time.Second, soonest},
	} {
		if got := soon(tt.left, tt.grown, tt.took); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
