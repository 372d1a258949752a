package podworker

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRemoveLogs: one pod's logs and links go, also dead ones; others stay.
func TestRemoveLogs(t *testing.T) {
	logs, links := t.TempDir(), t.TempDir()
	for _, folder := range []string{"default_web_u1", "default_web_u2"} {
		if err := os.MkdirAll(filepath.Join(logs, folder, "main"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, attempt := range []string{"0", "1"} {
			if err := os.Symlink(filepath.Join(logs, folder, "main", attempt+".log"), filepath.Join(links, "web_default_main-"+folder+attempt+".log")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 { // again: nothing is left to do
		if err := RemoveLogs(logs, links, "u1"); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(logs); err != nil || len(left) != 1 || left[0].Name() != "default_web_u2" {
		t.Errorf("logs: %v, %v", left, err)
	}
	if left, err := os.ReadDir(links); err != nil || len(left) != 2 {
		t.Errorf("links: %v, %v", left, err)
	}
	if err := RemoveLogs(filepath.Join(logs, "none"), links, "u2"); err != nil {
		t.Errorf("no log folder: %v", err)
	}
}
