// Package logs reads container logs in CRI's format from the pod log folder, and
// keeps them small: it rotates, packs and removes them.
//
// The folder's content is written by the runtime on behalf of containers, so
// nothing in it is trusted: every step from the root down is opened without
// following symbolic links, and only regular files are read.
package logs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Dir is the log folder of one container: <attempt>.log files. Close it.
type Dir struct {
	f    *os.File
	pod  *os.File // the folder above: it shows when f is removed
	name string   // for errors only
}

// OpenDir opens root/<pod>/<container>. Neither name may hold a slash or lead
// out of root; root itself may be reached through links, as it is the
// administrator's. A folder that is not there is errdefs.ErrNotFound.
func OpenDir(root, pod, container string) (*Dir, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(root, err)
	}
	defer unix.Close(fd)
	podFolder, err := openBelow(fd, root, pod)
	if err != nil {
		return nil, err
	}
	f, err := openBelow(int(podFolder.Fd()), podFolder.Name(), container)
	if err != nil {
		_ = podFolder.Close()
		return nil, err
	}
	return &Dir{f: f, pod: podFolder, name: f.Name()}, nil
}

// openBelow opens the folder name in the folder fd, whose path is for errors.
func openBelow(fd int, path, name string) (*os.File, error) {
	if !plainName(name) {
		return nil, fmt.Errorf("log folder %q: %q is not a plain file name: %w", path, name, errdefs.ErrInvalid)
	}
	path = filepath.Join(path, name)
	next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(path, err)
	}
	return os.NewFile(uintptr(next), path), nil
}

// Close releases the folder.
func (d *Dir) Close() error { return errors.Join(d.f.Close(), d.pod.Close()) }

// Attempts lists the attempts that have a log, newest first. One whose file is
// being rotated has none of that name for a moment.
func (d *Dir) Attempts() ([]int, error) {
	names, err := d.names()
	if err != nil {
		return nil, err
	}
	var attempts []int
	for _, name := range names {
		base, rest, _ := strings.Cut(name, ".log")
		if rest != "" && !stampPattern.MatchString(strings.TrimSuffix(strings.TrimPrefix(rest, "."), packedSuffix)) || !strings.Contains(name, ".log") {
			continue
		}
		if n, err := strconv.Atoi(base); err == nil && n >= 0 && strconv.Itoa(n) == base {
			attempts = append(attempts, n)
		}
	}
	slices.Sort(attempts)
	attempts = slices.Compact(attempts)
	slices.Reverse(attempts)
	return attempts, nil
}

// open opens one file of the folder. O_NONBLOCK keeps a FIFO that somebody put
// there from blocking us before we see that it is none of ours.
func (d *Dir) open(name string) (*os.File, error) {
	path := filepath.Join(d.name, name)
	fd, err := unix.Openat(int(d.f.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, openError(path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("log file %s is not a regular file: %w", path, errdefs.ErrInvalid)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// gone says that the folder has been removed while it is open.
func (d *Dir) gone() bool {
	var st unix.Stat_t
	err := unix.Fstat(int(d.f.Fd()), &st)
	return err != nil || st.Nlink == 0
}

func plainName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("log %s: %w", path, errdefs.ErrNotFound)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		// O_NOFOLLOW on a link: ELOOP for a file, ENOTDIR with O_DIRECTORY.
		return fmt.Errorf("log %s is a symbolic link or not what it should be, and is not followed: %w", path, errdefs.ErrInvalid)
	default:
		return fmt.Errorf("opening log %s: %w", path, err)
	}
}
