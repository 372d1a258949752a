package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxLinks is how many symlinks the kernel follows in one path.
const maxLinks = 40

// walk goes along path as the kernel does and calls visit for every folder and
// the name in it that decide where the path leads: those with a symlink, the
// last one, and the deepest one that exists when the path does not. visit
// begins to watch; what it was called for is looked at once more after it, so
// that no change falls between the look and the watch.
//
// It serves watching only. What a file is, and whether it may be read, is
// asked of the open file.
func walk(path string, visit func(dir, name string)) {
	cur, rest := "/", components(path)
	for looks := 0; len(rest) > 0 && looks < 2*maxLinks; {
		name := rest[0]
		if name == ".." {
			cur, rest = filepath.Dir(cur), rest[1:]
			continue
		}
		at := filepath.Join(cur, name)
		target, err := os.Readlink(at)
		switch {
		case err == nil:
			looks++
			visit(cur, name)
			if now, err := os.Readlink(at); err != nil || now != target {
				continue
			}
			rest = append(components(target), rest[1:]...)
			if filepath.IsAbs(target) {
				cur = "/"
			}
		case errors.Is(err, fs.ErrNotExist):
			looks++
			visit(cur, name)
			if _, err := os.Lstat(at); err != nil {
				return
			}
		default: // no symlink
			if len(rest) == 1 {
				visit(cur, name)
			}
			cur, rest = at, rest[1:]
		}
	}
}

func components(path string) []string {
	var c []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			c = append(c, name)
		}
	}
	return c
}
