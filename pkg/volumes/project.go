package volumes

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The layout is kubelet's, and programs rely on it: each name in the folder is
// a link to ..data/<name>, ..data is a link to a folder with a time in its
// name, and a change is a new such folder and one rename of ..data. Who reads
// sees the old files or the new ones, and never some of both.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
	dataFolder  = "..2006_01_02_15_04_05."
)

// project makes the files what the volume's folder holds. It may have been
// killed in the middle of an earlier call.
func (f *Folder) project(files payload, g *group, now time.Time) error {
	if err := files.check(); err != nil {
		return err
	}
	current := f.current()
	if current == "" || !f.holds(current, files) {
		next, err := f.write(files, g, now)
		if err != nil {
			return err
		}
		if err := f.swap(next); err != nil {
			return err
		}
		current = next
	}
	return f.show(files, g, current)
}

// current is the folder that ..data leads to; empty when there is none, or none
// of ours.
func (f *Folder) current() string {
	name, err := f.readlink(dataLink)
	if err != nil || !strings.HasPrefix(name, "..") || checkName(name) != nil {
		return ""
	}
	if st, err := f.lstat(name); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return ""
	}
	return name
}

func (f *Folder) readlink(name string) (string, error) {
	b := make([]byte, 4096)
	n, err := unix.Readlinkat(f.fd, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// holds says that a folder has these files and no other.
func (f *Folder) holds(name string, files payload) bool {
	fd, err := f.open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, sameMount)
	if err != nil {
		return false
	}
	n, ok := countFiles(fd)
	if !ok || n != len(files) {
		return false
	}
	for p, want := range files {
		fd, err := f.open(filepath.Join(name, p), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, sameMount)
		if err != nil {
			return false
		}
		file := os.NewFile(uintptr(fd), p)
		got, err := io.ReadAll(io.LimitReader(file, int64(len(want.data))+1))
		if err := errors.Join(err, file.Close()); err != nil || !bytes.Equal(got, want.data) {
			return false
		}
	}
	return true
}

// countFiles counts what is no folder, and closes the descriptor.
func countFiles(fd int) (n int, ok bool) {
	d := os.NewFile(uintptr(fd), "volume")
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return 0, false
	}
	for _, e := range entries {
		if !e.IsDir() {
			n++
			continue
		}
		below, err := openat2(fd, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, sameMount)
		if err != nil {
			return 0, false
		}
		m, ok := countFiles(below)
		if !ok {
			return 0, false
		}
		n += m
	}
	return n, true
}

// write puts the files into a new folder, which nobody sees yet.
func (f *Folder) write(files payload, g *group, now time.Time) (name string, err error) {
	name = now.UTC().Format(dataFolder) + rand.Text()[:10]
	if err := unix.Mkdirat(f.fd, name, 0o700); err != nil {
		return "", fmt.Errorf("making the folder of the new files: %w", err)
	}
	fd, err := f.open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, sameMount)
	if err != nil {
		return "", err
	}
	dir := &Folder{fd: fd, path: filepath.Join(f.path, name)}
	defer dir.Close()
	if err := chmod(fd, 0o755); err != nil {
		return "", err
	}
	for _, p := range slices.Sorted(maps.Keys(files)) {
		if err := dir.writeNew(p, files[p]); err != nil {
			return "", fmt.Errorf("writing %q: %w", p, err)
		}
	}
	return name, g.own(fd)
}

func (f *Folder) writeNew(p string, content file) error {
	dir, err := f.makeDirs(path.Dir(p), 0o755)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, path.Base(p), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), p)
	_, err = out.Write(content.data)
	return errors.Join(err, unix.Fchmod(fd, content.mode), out.Close())
}

// swap makes ..data lead to a folder, in one step.
func (f *Folder) swap(name string) error {
	if err := f.remove(newDataLink); err != nil { // of a call that was killed
		return err
	}
	if err := unix.Symlinkat(name, f.fd, newDataLink); err != nil {
		return fmt.Errorf("linking to the new files: %w", err)
	}
	if err := unix.Renameat(f.fd, newDataLink, f.fd, dataLink); err != nil {
		return fmt.Errorf("switching to the new files: %w", err)
	}
	return nil
}

// show makes the links that users see and removes what is no longer there: in
// this order, so that a file that stays never lacks its link.
func (f *Folder) show(files payload, g *group, current string) error {
	tops := files.tops()
	for _, top := range slices.Sorted(maps.Keys(tops)) {
		if err := f.link(top, g); err != nil {
			return fmt.Errorf("linking %q: %w", top, err)
		}
	}
	names, err := f.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		_, wanted := tops[name]
		target, err := f.readlink(name)
		stale := err == nil && !wanted && target == path.Join(dataLink, name)
		if strings.HasPrefix(name, "..") {
			stale = name != dataLink && name != current
		}
		if stale {
			if err := f.remove(name); err != nil {
				return fmt.Errorf("removing what is no longer in the volume: %w", err)
			}
		}
	}
	return nil
}

// link makes one user-visible name. A folder in its place is the mount point of
// another volume, and stays.
func (f *Folder) link(top string, g *group) error {
	target := path.Join(dataLink, top)
	err := unix.Symlinkat(target, f.fd, top)
	if errors.Is(err, unix.EEXIST) {
		st, serr := f.lstat(top)
		if is, _ := f.readlink(top); serr == nil && (is == target || st.Mode&unix.S_IFMT == unix.S_IFDIR) {
			return nil
		}
		if err := f.remove(top); err != nil {
			return err
		}
		err = unix.Symlinkat(target, f.fd, top)
	}
	if err != nil || g == nil {
		return err
	}
	return unix.Fchownat(f.fd, top, -1, g.gid, unix.AT_SYMLINK_NOFOLLOW)
}
