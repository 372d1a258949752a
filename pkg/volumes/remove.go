package volumes

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth is how many levels are held open at once. A container may have
	// nested folders deeper than we may have descriptors.
	maxDepth = 32
	// maxPasses over one folder that keeps getting new entries.
	maxPasses = 100
)

// remove removes name from the folder and all below it, follows no link and
// steps onto no mount: a mount below is an error that wraps unix.EXDEV or
// EBUSY. What is not there is a success.
func (f *Folder) remove(name string) error {
	r := remover{}
	err := r.entry(f.fd, name, f.path, 0)
	return err
}

type remover struct {
	top   int // the first folder below which everything goes
	moved int
}

func (r *remover) entry(dir int, name, path string, depth int) error {
	path = filepath.Join(path, name)
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	// Linux says EISDIR for a folder, POSIX and some file systems EPERM.
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	fd, oerr := openat2(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, sameMount)
	if errors.Is(oerr, unix.ENOTDIR) {
		// Not a folder after all: an immutable file.
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	if errors.Is(oerr, unix.ENOENT) {
		return nil
	}
	if oerr != nil {
		return &fs.PathError{Op: "open", Path: path, Err: oerr}
	}
	if depth == 0 {
		r.top = fd
	}
	if err := r.empty(fd, path, depth); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}

// empty removes what is in the open folder and closes it. Entries that appear
// meanwhile are removed by the next pass.
func (r *remover) empty(fd int, path string, depth int) (err error) {
	d := os.NewFile(uintptr(fd), path)
	defer func() { err = errors.Join(err, d.Close()) }()
	for range maxPasses {
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := d.Readdirnames(-1)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			if depth >= maxDepth {
				err = r.lift(fd, name, path)
			} else {
				err = r.entry(fd, name, path, depth+1)
			}
			if err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%s: something keeps writing to it", path)
}

// lift removes a file, and moves a folder to the top, where a later pass finds
// it: so any depth is removed with maxDepth descriptors.
func (r *remover) lift(dir int, name, path string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	for range maxPasses {
		r.moved++
		err = unix.Renameat2(dir, name, r.top, fmt.Sprintf(".nodeagent-removed-%d", r.moved), unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: filepath.Join(path, name), Err: err}
	}
	return nil
}
