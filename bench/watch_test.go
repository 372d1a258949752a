//go:build bench

package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watcher notes when files appear in a folder.
type watcher struct {
	mu    sync.Mutex
	seen  map[string]time.Time
	fresh chan struct{} // one token: something was added
}

func newWatcher(t *testing.T, dir string) *watcher {
	t.Helper()
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	if err := fs.Add(dir); err != nil {
		t.Fatal(err)
	}
	w := &watcher{seen: map[string]time.Time{}, fresh: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range fs.Events {
			if !e.Has(fsnotify.Create) {
				continue
			}
			now := time.Now()
			w.mu.Lock()
			w.seen[filepath.Base(e.Name)] = now
			w.mu.Unlock()
			select {
			case w.fresh <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() { fs.Close(); <-done })
	return w
}

// last waits for all files and returns when the last of them appeared.
func (w *watcher) last(d time.Duration, files []string) (time.Time, error) {
	deadline := time.After(d)
	for {
		var latest time.Time
		missing := ""
		w.mu.Lock()
		for _, f := range files {
			at, ok := w.seen[f]
			if !ok {
				missing = f
				break
			}
			if at.After(latest) {
				latest = at
			}
		}
		w.mu.Unlock()
		if missing == "" {
			return latest, nil
		}
		select {
		case <-w.fresh:
		case <-deadline:
			return latest, fmt.Errorf("no %s within %v", missing, d)
		}
	}
}

// rss is a process's VmRSS in MiB.
func rss(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

// cpu is a process's user and system time so far. The kernel counts in 1/100 s.
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("process %d: short stat line", pid)
	}
	user, err := strconv.ParseInt(f[11], 10, 64)
	if err != nil {
		return 0, err
	}
	sys, err := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+sys) * 10 * time.Millisecond, err
}
