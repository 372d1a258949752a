//go:build bench

package bench

import (
	"fmt"
	"path/filepath"
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
