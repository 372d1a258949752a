package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	podpkg "github.com/nodeagent/nodeagent/pkg/pod"
)

// subPathsDir is where subPaths are bound, <pod>/volume-subpaths/<volume>/<container>/<index>,
// as with kubelet.
const subPathsDir = "volume-subpaths"

// subPath finds a part of a volume, makes it when it is missing, and binds it to
// a place that no container can change; the runtime binds from there. Containers
// own the way to the part and may swap links in it in a loop
// (CVE-2017-1002101, CVE-2021-25741): what is bound is the file that was opened
// and found to be within the volume, never a path that is looked up again.
//
// Why it failed is for the log: it may say something about the host.
func (m *Manager) subPath(ctx context.Context, pod *v1.Pod, c *v1.Container, index int, v Mounted, rel string) (string, error) {
	fail := func(did string, err error) (string, error) {
		m.log.Warn("cannot mount a part of a volume", "pod", podpkg.Describe(pod), "container", c.Name, "volume", v.Name, "err", err)
		return "", errdefs.Errorf(errdefs.ErrTransient, "failed to %s for volumeMount %q of container %q", did, v.Name, c.Name)
	}
	volume, err := openRoot(v.HostPath)
	if err != nil {
		return fail("prepare subPath", err)
	}
	defer volume.Close()
	fd, err := volume.within(rel)
	if errors.Is(err, unix.ENOENT) {
		if fd, err = volume.makeWithin(rel); err != nil {
			return fail("create subPath directory", err)
		}
	}
	if err != nil {
		return fail("prepare subPath", err)
	}
	defer unix.Close(fd)
	path, err := m.bindSubPath(ctx, fd, pod, filepath.Join(v.Name, c.Name), strconv.Itoa(index))
	if err != nil {
		return fail("prepare subPath", err)
	}
	return path, nil
}

// within opens what rel leads to. Links are followed as long as they stay in
// the folder, also absolute ones; the answer of the first, trusting look is
// only a name, which the second one opens without following any.
func (f *Folder) within(rel string) (int, error) {
	look, err := unix.Openat(f.fd, rel, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", filepath.Join(f.path, rel), err)
	}
	real, err := os.Readlink(fdPath(look))
	if err := errors.Join(err, unix.Close(look)); err != nil {
		return -1, err
	}
	inner, err := filepath.Rel(f.path, real)
	if err != nil || !filepath.IsAbs(real) || inner == ".." || strings.HasPrefix(inner, "../") {
		return -1, errdefs.Errorf(errdefs.ErrInvalid, "%s leads out of the volume", filepath.Join(f.path, rel))
	}
	return f.open(inner, unix.O_PATH|unix.O_NOFOLLOW, inside)
}

// makeWithin makes a folder, and those above it, with the mode of the volume.
func (f *Folder) makeWithin(rel string) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return -1, err
	}
	have, rest := rel, ""
	for {
		above, name := filepath.Split(have)
		have, rest = filepath.Clean(above), filepath.Join(name, rest)
		fd, err := f.within(have)
		if errors.Is(err, unix.ENOENT) && have != "." {
			continue
		}
		if err != nil {
			return -1, err
		}
		dir := &Folder{fd: fd, path: filepath.Join(f.path, have)}
		defer dir.Close()
		return dir.makeDirs(rest, st.Mode&0o7777)
	}
}

// bindSubPath binds an open file to a place of its own; what is bound there
// already, by an earlier attempt of the container, stays when it is the same.
func (m *Manager) bindSubPath(ctx context.Context, fd int, pod *v1.Pod, dir, name string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	pods, err := openRoot(m.dir)
	if err != nil {
		return "", err
	}
	defer pods.Close()
	place := filepath.Join(string(pod.UID), subPathsDir, dir)
	parent, err := pods.makeDirs(place, 0o750)
	if err != nil {
		return "", err
	}
	f := &Folder{fd: parent, path: filepath.Join(pods.path, place)}
	defer f.Close()
	var source unix.Stat_t
	if err := unix.Fstat(fd, &source); err != nil {
		return "", err
	}
	bound, err := m.clearPlace(f, name, &source)
	if err != nil || bound {
		return filepath.Join(f.path, name), err
	}
	target, err := f.makePlace(name, source.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return "", err
	}
	defer unix.Close(target)
	return filepath.Join(f.path, name), m.mounter.Mount(fdPath(fd), fdPath(target), "", []string{"bind"})
}

// clearPlace takes off what is bound to a place, unless it is the source.
func (m *Manager) clearPlace(f *Folder, name string, source *unix.Stat_t) (bound bool, err error) {
	for range 10 {
		mounted, err := isMount(f, name)
		if errors.Is(err, unix.ENOENT) || err == nil && !mounted {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if st, err := f.lstat(name); err == nil && st.Dev == source.Dev && st.Ino == source.Ino {
			return true, nil
		}
		if err := m.mounter.Detach(filepath.Join(fdPath(f.fd), name)); err != nil {
			return false, fmt.Errorf("unmounting %s: %w", filepath.Join(f.path, name), err)
		}
	}
	return false, errdefs.Errorf(errdefs.ErrTransient, "%s is mounted over and over", filepath.Join(f.path, name))
}

// makePlace makes the mount point, a folder or an empty file, and opens it.
func (f *Folder) makePlace(name string, folder bool) (int, error) {
	if st, err := f.lstat(name); err == nil && (st.Mode&unix.S_IFMT == unix.S_IFDIR) != folder {
		if err := f.remove(name); err != nil {
			return -1, err
		}
	}
	if folder {
		return makeDirAt(f.fd, name, 0o750)
	}
	made, err := unix.Openat(f.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o640)
	if err != nil {
		return -1, err
	}
	if err := unix.Close(made); err != nil {
		return -1, err
	}
	return f.open(name, unix.O_PATH|unix.O_NOFOLLOW, sameMount)
}
