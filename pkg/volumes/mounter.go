package volumes

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mounter is what is needed of the mount table.
type Mounter interface {
	// Mount mounts a new file system onto target.
	Mount(source, target, fstype string, options []string) error
	// Unmount takes the topmost mount off target; unix.EBUSY while it is used.
	Unmount(target string) error
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
