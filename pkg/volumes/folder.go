package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Folder is an open directory. Everything below it is reached from its
// descriptor, one name at a time or with the kernel refusing links: processes
// in containers own what is inside volumes and may swap a directory for a link
// at any moment (CVE-2017-1002101, CVE-2021-25741).
type Folder struct {
	fd   int
	path string // for messages and for what the runtime is told
}

// How open resolves.
const (
	// inside stays below the folder and follows no link of any sort.
	inside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	// sameMount, in addition, does not step onto another mount: EXDEV.
	sameMount = inside | unix.RESOLVE_NO_XDEV
)

// openRoot opens a folder that the administrator named; links in its path are
// theirs. The path is what the mount table says.
func openRoot(path string) (*Folder, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := &Folder{fd: fd, path: path}
	if f.path, err = os.Readlink(fdPath(fd)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close gives the descriptor back.
func (f *Folder) Close() error { return unix.Close(f.fd) }

// Path of the folder, absolute.
func (f *Folder) Path() string { return f.path }

// fdPath names an open file for calls that take a path only. It holds the
// process id so that a helper program may use it, too.
func fdPath(fd int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }

// open opens rel below the folder.
func (f *Folder) open(rel string, flags int, resolve uint64) (int, error) {
	fd, err := openat2(f.fd, rel, flags|unix.O_CLOEXEC, resolve)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: filepath.Join(f.path, rel), Err: err}
	}
	return fd, nil
}

func openat2(dir int, rel string, flags int, resolve uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, rel, &unix.OpenHow{Flags: uint64(flags), Resolve: resolve})
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue // a rename or mount elsewhere raced with the lookup
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
			// Before kernel 5.6, or a seccomp filter that does not know it.
			return openWalk(dir, rel, flags, resolve)
		}
		return fd, err
	}
}

// openWalk does what openat2 would, one name after the other.
func openWalk(dir int, rel string, flags int, resolve uint64) (int, error) {
	cur, own := dir, false
	done := func() {
		if own {
			_ = unix.Close(cur) // an O_PATH descriptor: nothing to lose
		}
	}
	names := strings.Split(filepath.Clean(rel), "/")
	for i, name := range names {
		if name == ".." || name == "" {
			done()
			return -1, unix.EXDEV
		}
		how := unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		if i == len(names)-1 {
			how = flags | unix.O_NOFOLLOW
		}
		fd, err := unix.Openat(cur, name, how, 0)
		if err == nil && resolve&unix.RESOLVE_NO_XDEV != 0 && !sameDevice(cur, fd) {
			err = errors.Join(unix.EXDEV, unix.Close(fd))
		}
		done()
		if err != nil {
			return -1, err
		}
		cur, own = fd, true
	}
	return cur, nil
}

// sameDevice does not see a bind mount of the same file system; openat2 does.
func sameDevice(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev
}

// sub opens a child folder; with make it is made when missing, for root only.
func (f *Folder) sub(name string, make bool) (*Folder, error) {
	if make {
		if err := unix.Mkdirat(f.fd, name, 0o750); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, &fs.PathError{Op: "mkdir", Path: filepath.Join(f.path, name), Err: err}
		}
	}
	fd, err := f.open(name, unix.O_PATH|unix.O_DIRECTORY, inside)
	if err != nil {
		return nil, err
	}
	return &Folder{fd: fd, path: filepath.Join(f.path, name)}, nil
}

// names lists the folder, unsorted.
func (f *Folder) names() ([]string, error) {
	fd, err := unix.Openat(f.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: f.path, Err: err}
	}
	d := os.NewFile(uintptr(fd), f.path)
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}

// lstat looks at one name and follows nothing.
func (f *Folder) lstat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(f.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		err = &fs.PathError{Op: "lstat", Path: filepath.Join(f.path, name), Err: err}
	}
	return st, err
}

// readFile and writeFile are for our own small files in the folder.
func (f *Folder) readFile(name string) ([]byte, error) {
	fd, err := f.open(name, unix.O_RDONLY|unix.O_NOFOLLOW, sameMount)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), filepath.Join(f.path, name))
	b := make([]byte, 64<<10)
	n, err := file.Read(b)
	if n == 0 && err != nil {
		b = nil // empty: a power cut before the data was on disk
		err = nil
	}
	return b[:n], errors.Join(err, file.Close())
}

// writeFile replaces the file as a whole or not at all.
func (f *Folder) writeFile(name string, data []byte) error {
	tmp := "." + name
	fd, err := unix.Openat(f.fd, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return &fs.PathError{Op: "create", Path: filepath.Join(f.path, tmp), Err: err}
	}
	file := os.NewFile(uintptr(fd), filepath.Join(f.path, tmp))
	_, err = file.Write(data)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := unix.Renameat(f.fd, tmp, f.fd, name); err != nil {
		return &fs.PathError{Op: "rename", Path: filepath.Join(f.path, name), Err: err}
	}
	return nil
}
