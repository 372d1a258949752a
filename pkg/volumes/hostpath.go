package volumes

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// hostPath is a path of the node. It belongs to the node: it is made when the
// type says so, and never removed.
type hostPath struct{}

func (hostPath) Name() string                           { return "hostPath" }
func (hostPath) Plugin() string                         { return "kubernetes.io~host-path" }
func (hostPath) Handles(v *v1.Volume) bool              { return v.HostPath != nil }
func (hostPath) Record(v *v1.Volume) Record             { return Record{HostPath: v.HostPath.Path} }
func (hostPath) TearDown(context.Context, Record) error { return nil }

func (h hostPath) SetUp(_ context.Context, r Request) (Mounted, error) {
	path, err := hostPathOf(r.Volume.HostPath)
	if err != nil {
		return Mounted{}, err
	}
	return Mounted{Name: r.Volume.Name, Kind: h.Name(), HostPath: path}, nil
}

// hostPathOf checks the path that a volume names and returns where it leads.
func hostPathOf(src *v1.HostPathVolumeSource) (string, error) {
	kind := v1.HostPathUnset
	if src.Type != nil {
		kind = *src.Type
	}
	if !absolute(src.Path) {
		return "", errdefs.Errorf(errdefs.ErrInvalid, "path %q must be absolute and without \"..\"", src.Path)
	}
	return check(filepath.Clean(src.Path), kind)
}

// formats is what each type must be, and how kubelet says that it is not.
var formats = map[v1.HostPathType]struct {
	format uint32
	words  string
}{
	v1.HostPathDirectoryOrCreate: {unix.S_IFDIR, "a directory"},
	v1.HostPathDirectory:         {unix.S_IFDIR, "a directory"},
	v1.HostPathFileOrCreate:      {unix.S_IFREG, "a file"},
	v1.HostPathFile:              {unix.S_IFREG, "a file"},
	v1.HostPathSocket:            {unix.S_IFSOCK, "a socket file"},
	v1.HostPathCharDev:           {unix.S_IFCHR, "a character device"},
	v1.HostPathBlockDev:          {unix.S_IFBLK, "a block device"},
}

// check looks at the path, makes it when the type allows, and returns where it
// leads. The type is asked of an open file and the returned path is that
// file's: a link that is swapped between our look and the runtime's bind leads
// nowhere else.
func check(path string, kind v1.HostPathType) (string, error) {
	want, known := formats[kind]
	if !known && kind != v1.HostPathUnset {
		return "", errdefs.Errorf(errdefs.ErrInvalid, "hostPath type %q is not known", kind)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		switch kind {
		case v1.HostPathUnset:
			return path, nil // no check: the runtime makes a folder there
		case v1.HostPathDirectoryOrCreate:
			err = makeDir(path)
		case v1.HostPathFileOrCreate:
			err = makeFile(path)
		}
		if err == nil {
			fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		}
	}
	if known && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
		return "", typeError(path, want.words)
	}
	if err != nil {
		return "", errdefs.Errorf(errdefs.ErrTransient, "hostPath %s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", errdefs.Errorf(errdefs.ErrTransient, "hostPath %s: %w", path, err)
	}
	if known && st.Mode&unix.S_IFMT != want.format {
		return "", typeError(path, want.words)
	}
	return resolved(fd, path, &st), nil
}

// typeError is worth a retry: the path may appear.
func typeError(path, words string) error {
	return errdefs.Errorf(errdefs.ErrTransient, "hostPath type check failed: %s is not %s", path, words)
}

// resolved is the real path of an open file, or the path as given when the
// kernel's name for it leads elsewhere (/proc/1/ns/net is no path at all).
func resolved(fd int, path string, st *unix.Stat_t) string {
	name, err := os.Readlink(fdPath(fd))
	if err != nil {
		return path
	}
	var again unix.Stat_t
	if unix.Lstat(name, &again) != nil || again.Dev != st.Dev || again.Ino != st.Ino {
		return path
	}
	return name
}

// makeDir makes the folder, 0755 whatever the umask, and those above it.
func makeDir(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil // somebody was faster, or a link leads nowhere: the look that follows tells
	}
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, 0o755)
}

// makeFile makes an empty file, 0644; the folder above must be there.
func makeFile(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil // somebody was faster, or a link leads nowhere: the look that follows tells
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, 0o644)
}
