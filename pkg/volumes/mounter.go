package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Mounter is what is needed of the mount table.
type Mounter interface {
	// Mount mounts a new file system onto target.
	Mount(source, target, fstype string, options []string) error
	// MountHelper does so with a program that knows the file system.
	MountHelper(ctx context.Context, source, target, fstype string, options []string) error
	// Unmount takes the topmost mount off target; unix.EBUSY while it is used.
	Unmount(target string) error
	// Detach takes the topmost mount off target, whoever uses it.
	Detach(target string) error
	// List is where everything is mounted, in the order the mounts were made.
	List() ([]string, error)
}

// kernelMounter makes the system calls itself: mount(8) costs a process per
// volume and resolves links in paths that containers can write to.
type kernelMounter struct{ mountinfo string }

// flagOptions are the mount options that are flags; the rest is for the file system.
var flagOptions = map[string]uintptr{
	"ro": unix.MS_RDONLY, "rw": 0, "defaults": 0,
	"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC, "remount": unix.MS_REMOUNT,
}

func (kernelMounter) Mount(source, target, fstype string, options []string) error {
	var flags uintptr
	var data []string
	for _, o := range options {
		if f, ok := flagOptions[o]; ok {
			flags |= f
		} else {
			data = append(data, o)
		}
	}
	if err := unix.Mount(source, target, fstype, flags, strings.Join(data, ",")); err != nil {
		return fmt.Errorf("mounting %s (%s): %w", fstype, strings.Join(options, ","), err)
	}
	return nil
}

func (kernelMounter) Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	var st unix.Statfs_t
	if serr := unix.Statfs(target, &st); serr != nil || st.Type != unix.TMPFS_MAGIC {
		return err
	}
	// Somebody on the host sits in a tmpfs. There is no device behind it that
	// must be quiet: take it out of the tree, the kernel frees it when they leave.
	return unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
}

func (kernelMounter) Detach(target string) error {
	return unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
}

func (k kernelMounter) List() ([]string, error) {
	f, err := os.Open(k.mountinfo)
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	points := make([]string, len(mounts))
	for i, m := range mounts {
		points[i] = m.Mountpoint
	}
	return points, nil
}

// mountOnce puts a file system of the given magic onto the volume's folder, unless
// it is there.
func mountOnce(r Request, magic int64, do func(target string) error) error {
	name := r.Volume.Name
	if err := unix.Mkdirat(r.Folder.fd, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making the mount point: %w", err)
	}
	fd, err := r.Folder.open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, inside)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	mounted, err := isMount(r.Folder, name)
	if err != nil {
		return err
	}
	if !mounted {
		return do(fdPath(fd))
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("looking at the mount: %w", err)
	}
	if st.Type != magic {
		return errdefs.Errorf(errdefs.ErrTransient, "%s is another mount (type %#x); unmount it", filepath.Join(r.Folder.Path(), name), st.Type)
	}
	return nil
}

// isMount asks the kernel whether a child of the folder is a mount of its own.
func isMount(f *Folder, name string) (bool, error) {
	fd, err := f.open(name, unix.O_PATH|unix.O_NOFOLLOW, sameMount)
	if errors.Is(err, unix.EXDEV) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, unix.Close(fd)
}
