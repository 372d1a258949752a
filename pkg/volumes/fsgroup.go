package volumes

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// group is the fsGroup of a pod as one volume is given it; nil: none. It owns
// every file, may read it and, unless the volume is read-only, write it; what is
// made in a folder later belongs to it, too.
type group struct {
	gid      int
	readOnly bool
}

func groupOf(p *v1.Pod, readOnly bool) *group {
	if sc := p.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		return &group{int(*sc.FSGroup), readOnly}
	}
	return nil
}

// bits are what the group may do.
func (g *group) bits(folder bool) uint32 {
	b := uint32(0o660)
	if g.readOnly {
		b = 0o440
	}
	if folder {
		b |= unix.S_ISGID | 0o110
	}
	return b
}

// maxOwned is how deep folders may be nested whose group is changed: each level
// is open meanwhile.
const maxOwned = 1024

// own gives a folder and all below it to the group. It follows no link and
// enters no other mount. The folder itself is last, so that its mode says
// whether the rest is done.
func (g *group) own(dir int) error {
	if g == nil {
		return nil
	}
	if err := g.below(dir, 0); err != nil {
		return fmt.Errorf("giving the volume to group %d: %w", g.gid, err)
	}
	return nil
}

func (g *group) below(dir, depth int) error {
	if depth > maxOwned {
		return fmt.Errorf("folders are nested deeper than %d: %w", maxOwned, unix.ELOOP)
	}
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), "volume")
	defer d.Close()
	for {
		names, err := d.Readdirnames(512)
		for _, name := range names {
			if err := g.entry(fd, name, depth); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	return g.one(dir)
}

func (g *group) entry(dir int, name string, depth int) error {
	fd, err := openat2(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, sameMount)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EXDEV) {
		return nil // gone, or another mount
	}
	if errors.Is(err, unix.ELOOP) {
		return unix.Fchownat(dir, name, -1, g.gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return g.below(fd, depth+1)
	}
	return g.one(fd)
}

// one changes an open file. chown drops the set-id bits, so the mode comes last.
func (g *group) one(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	want := st.Mode&0o7777 | g.bits(st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if int(st.Gid) == g.gid && (want == st.Mode&0o7777 || st.Mode&unix.S_IFMT == unix.S_IFLNK) {
		return nil
	}
	if err := unix.Fchownat(fd, "", -1, g.gid, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil // has no mode of its own
	}
	return chmod(fd, want)
}

// has says that a folder is the group's already.
func (g *group) has(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return false
	}
	want := g.bits(true)
	return int(st.Gid) == g.gid && st.Mode&want == want
}

// chmod sets the mode of an open file, also of one that is open as a path only.
func chmod(fd int, mode uint32) error { return unix.Chmod(fdPath(fd), mode) }
