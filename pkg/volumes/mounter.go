package volumes

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	mount "k8s.io/mount-utils"
)

// Mounter is what is needed of the mount table. k8s.io/mount-utils'
// mount.Interface satisfies it.
type Mounter interface {
	// Mount mounts a new file system onto target.
	Mount(source, target, fstype string, options []string) error
	// Unmount takes the topmost mount off target; unix.EBUSY while it is used.
	Unmount(target string) error
	// List is the mount table, in the order the mounts were made.
	List() ([]mount.MountPoint, error)
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

func (k kernelMounter) List() ([]mount.MountPoint, error) {
	b, err := os.ReadFile(k.mountinfo)
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	var out []mount.MountPoint
	for line := range strings.Lines(string(b)) {
		// id parent dev root mountpoint options [optional…] - type source super
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 6 || len(tail) < 2 {
			return nil, fmt.Errorf("the mount table has a line that is not understood: %q", line)
		}
		out = append(out, mount.MountPoint{
			Device: unescape(tail[1]), Path: unescape(head[4]), Type: tail[0], Opts: strings.Split(head[5], ","),
		})
	}
	return out, nil
}

// unescape undoes the table's \040 for a space and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1:i+4]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(s string) bool {
	for _, c := range s {
		if c < '0' || c > '7' {
			return false
		}
	}
	return true
}
