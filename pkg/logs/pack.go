package logs

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// packDelay is how long a part stays as it is once it is not the newest rotated
// one: the runtime has ended writing to it, and of a log that is written so fast
// that it is removed within this time, none is packed.
const packDelay = time.Second

// packLater packs in the background what may be packed, if it does not already.
func (k *keeper) packLater(ctx context.Context, dir *Dir) {
	todo, err := k.packable(dir)
	if err == nil && len(todo) == 0 || !k.packer.TryLock() {
		return
	}
	k.wg.Go(func() {
		defer k.packer.Unlock()
		for len(todo) > 0 && err == nil {
			todo, err = k.packSome(ctx, todo)
		}
		if err != nil && ctx.Err() == nil {
			k.o.Log.Warn("cannot pack a container's rotated log; will try again", "container", k.c.Name, "pod", k.c.PodFolder, "err", err)
		}
	})
}

// packable lists the stamps of the parts that are not packed, but the newest:
// the runtime may still write to that.
func (k *keeper) packable(dir *Dir) ([]string, error) {
	old, err := dir.rotatedOf(k.name)
	if err != nil || len(old) == 0 {
		return nil, err
	}
	var stamps []string
	for _, r := range old[:len(old)-1] {
		if r.plain {
			stamps = append(stamps, r.stamp)
		}
	}
	return stamps, nil
}

// packSome packs those of the parts that are still there after a while, and
// returns what could be packed next.
func (k *keeper) packSome(ctx context.Context, stamps []string) ([]string, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(packDelay):
	}
	if err := k.packing.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer k.packing.Release(1)
	dir, err := OpenDir(k.o.Root, k.c.PodFolder, k.c.Name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	old, err := dir.rotatedOf(k.name)
	if err != nil {
		return nil, err
	}
	for _, r := range old {
		if !r.plain || !slices.Contains(stamps, r.stamp) {
			continue
		}
		if err := k.pack(ctx, dir, r); err != nil {
			return nil, err
		}
	}
	return k.packable(dir)
}

// errUnlinked ends the packing of a part that was removed meanwhile.
var errUnlinked = errors.New("the file was removed")

// pack makes NAME.gz of an older part. It has its name only when it is complete
// and on the disk, and only then the part itself is removed.
func (k *keeper) pack(ctx context.Context, dir *Dir, r rotated) error {
	name := k.name + "." + r.stamp
	if r.packed {
		return dir.unlink(name) // that was cut short
	}
	src, err := dir.open(name)
	if err != nil {
		return err
	}
	defer src.Close()
	half := name + halfSuffix
	err = dir.packInto(ctx, src, half, k.o.Hook)
	if err != nil {
		err = errors.Join(err, dir.unlink(half))
		if errors.Is(err, errUnlinked) {
			return nil
		}
		return err
	}
	fd := int(dir.f.Fd())
	if err := unix.Renameat(fd, half, fd, name+packedSuffix); err != nil {
		return fmt.Errorf("renaming log %s: %w", filepath.Join(dir.name, half), err)
	}
	k.o.Hook("between a log's packing and its removal")
	if !linked(src) {
		return dir.unlink(name + packedSuffix) // removed while it was packed
	}
	return dir.unlink(name)
}

// packInto writes the packed form of src to a new file of the folder, with its
// owner, mode and time.
func (d *Dir) packInto(ctx context.Context, src *os.File, name string, hook func(string)) error {
	if err := d.unlink(name); err != nil { // of a packing that was cut short
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return openError(src.Name(), err)
	}
	path := filepath.Join(d.name, name)
	fd, err := unix.Openat(int(d.f.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("making log %s: %w", path, err)
	}
	out := os.NewFile(uintptr(fd), path)
	defer out.Close()
	err = squeeze(ctx, out, src, hook)
	if err == nil {
		err = errors.Join(out.Chown(int(st.Uid), int(st.Gid)), out.Chmod(os.FileMode(st.Mode&0o777)),
			unix.UtimesNanoAt(int(d.f.Fd()), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW), out.Sync())
	}
	if err != nil {
		return fmt.Errorf("packing log %s: %w", strings.TrimSuffix(path, halfSuffix), err)
	}
	return nil
}

// squeeze gives up when the file is removed under its hands, or ctx ends.
func squeeze(ctx context.Context, to io.Writer, from *os.File, hook func(string)) error {
	z, err := gzip.NewWriterLevel(to, gzip.BestSpeed)
	if err != nil {
		return err
	}
	for {
		n, err := io.CopyN(z, from, 1<<20)
		if errors.Is(err, io.EOF) {
			hook("while a log is packed")
			return z.Close()
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", n, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !linked(from) {
			return errUnlinked
		}
	}
}

// linked says that an open file still has a name.
func linked(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink > 0
}
