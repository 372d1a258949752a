package file

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// result is what one file says. Results are never changed once made.
type result struct {
	objects  []manifest.Object
	problems []store.Problem
}

// keeps says that the store holds on to what it knows of the file.
func (r *result) keeps() bool { return len(r.problems) > 0 }

// stamp changes whenever a file does, unless two changes fall into one tick of
// the file system's clock.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// version is what is remembered of a file between two looks.
type version struct {
	stamp  stamp
	sum    [sha256.Size]byte
	result *result // nil when it was never read whole
	// fresh is true when stamp alone proves that the file is as it was read.
	fresh bool

	// Of a file that is being written: what it looked like, since when it has
	// looked like that, and since when it has been written.
	seen    stamp
	seenAt  time.Time
	writing time.Time
}

// verdict is the outcome of one look at one name.
type verdict int

const (
	read    verdict = iota // result is what the file says
	none                   // no manifest: gone, or a folder
	written                // being written: to be left as it was
)

// reader reads manifests and remembers what it has read.
type reader struct {
	o        Options
	writers  func(fd int) writerState
	versions map[string]*version // by origin

	// Of the look that goes on:
	now   time.Time
	root  string            // real path of the folder; empty when Path is a file
	again time.Duration     // when to look again at files that are being written
	link  func(path string) // called for each symlink in the folder; may be nil
}

func (r *reader) problem(origin string, err error) *result {
	return &result{problems: []store.Problem{{Origin: origin, Err: err, Keep: true}}}
}

// lookAgain asks for another look after d.
func (r *reader) lookAgain(d time.Duration) {
	if r.again == 0 || d < r.again {
		r.again = max(d, time.Millisecond)
	}
}

// entry looks at one name in the folder.
func (r *reader) entry(folder int, name, origin string) (*result, verdict) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstatat(folder, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, none
		}
		return r.problem(origin, fmt.Errorf("cannot be looked at: %w", err)), read
	}
	isLink := false
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return nil, none
	case unix.S_IFREG:
		if v := r.versions[origin]; v != nil && v.fresh && v.stamp == stampOf(&st) {
			return v.result, read
		}
	case unix.S_IFLNK:
		isLink = true
		if r.link != nil {
			r.link(filepath.Join(r.root, name))
		}
	}
	fd := -1
	// O_PATH opens nothing: neither does a FIFO block, nor is a device started.
	err := retry(func() (err error) {
		fd, err = unix.Openat(folder, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		return err
	})
	switch {
	case err == nil:
		defer unix.Close(fd)
		return r.opened(fd, origin, isLink)
	case errors.Is(err, unix.ENOENT) && !isLink:
		return nil, none
	case errors.Is(err, unix.ENOENT):
		return r.problem(origin, errors.New("the symlink's target does not exist")), read
	default:
		return r.problem(origin, fmt.Errorf("cannot be opened: %w", err)), read
	}
}

// opened looks at what an O_PATH descriptor is of.
func (r *reader) opened(fd int, origin string, isLink bool) (*result, verdict) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return r.problem(origin, fmt.Errorf("cannot be looked at: %w", err)), read
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Nlink == 0 {
		return nil, none
	}
	if isLink {
		target, err := os.Readlink(procPath(fd))
		if err != nil {
			return r.problem(origin, fmt.Errorf("the symlink's target cannot be found out: %w", err)), read
		}
		if !isBelow(r.root, target) {
			return r.problem(origin, fmt.Errorf("the symlink leads out of the folder, to %s: copy the file into %s, or make the folder itself the symlink",
				target, r.root)), read
		}
	}
	if kind := kindOf(st.Mode); kind != "" {
		return r.problem(origin, fmt.Errorf("is a %s, not a file: remove it from the folder", kind)), read
	}
	if v := r.versions[origin]; v != nil && v.fresh && v.stamp == stampOf(&st) {
		return v.result, read
	}
	if st.Size > maxFile {
		return r.problem(origin, tooLarge(st.Size)), read
	}
	return r.content(fd, origin)
}

// content reads the file that an O_PATH descriptor is of.
func (r *reader) content(fd int, origin string) (*result, verdict) {
	// By way of /proc it is the same file that was judged, whatever the name
	// means by now.
	f, err := os.OpenFile(procPath(fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		if errors.Is(err, unix.EAGAIN) { // somebody holds a write lease
			return r.leave(origin, stamp{}, rewatch)
		}
		return r.problem(origin, fmt.Errorf("cannot be read: %w", bare(err))), read
	}
	defer f.Close()
	in := int(f.Fd())
	var before, after unix.Stat_t
	if err := unix.Fstat(in, &before); err != nil {
		return r.problem(origin, fmt.Errorf("cannot be looked at: %w", err)), read
	}
	if r.writers(in) == busy {
		return r.leave(origin, stampOf(&before), rewatch)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return r.problem(origin, fmt.Errorf("cannot be read: %w", bare(err))), read
	}
	state := r.writers(in) // again: it tells that nobody began to write meanwhile
	if err := unix.Fstat(in, &after); err != nil {
		return r.problem(origin, fmt.Errorf("cannot be looked at: %w", err)), read
	}
	now := stampOf(&after)
	switch {
	case state == busy || now != stampOf(&before):
		return r.leave(origin, now, rewatch)
	case len(data) > maxFile:
		return r.problem(origin, tooLarge(int64(len(data)))), read
	case (state == unknown || len(data) == 0) && !r.settled(origin, now):
		return r.leave(origin, now, settle)
	}
	return r.decode(origin, now, data), read
}

func (r *reader) decode(origin string, now stamp, data []byte) *result {
	v := r.version(origin)
	sum := sha256.Sum256(data)
	if v.result == nil || v.sum != sum {
		v.sum, v.result = sum, r.parse(origin, data)
	}
	v.stamp, v.fresh = now, r.isOld(now.ctime)
	v.seen, v.seenAt, v.writing = stamp{}, time.Time{}, time.Time{}
	return v.result
}

func (r *reader) parse(origin string, data []byte) *result {
	if len(data) == 0 {
		// A full disk or a crash leaves such files behind.
		return r.problem(origin, errors.New("is empty: remove the file to remove its pods, or write a comment into it"))
	}
	objects, errs := r.o.Decode(data, manifest.Options{Origin: origin, NodeName: r.o.NodeName})
	res := &result{objects: objects}
	for _, e := range errs {
		var err error = e
		if r.root != "" && !isManifestName(origin) {
			err = fmt.Errorf("%w (if it is no manifest, move it out of the folder or begin its name with a dot)", e)
		}
		// Keep, although some documents may be good: which pods the bad one had is
		// not known.
		res.problems = append(res.problems, store.Problem{Origin: origin, Object: e.Object, Err: err, Keep: true})
	}
	return res
}

func (r *reader) version(origin string) *version {
	v := r.versions[origin]
	if v == nil {
		v = &version{}
		r.versions[origin] = v
	}
	return v
}

// leave notes that a file is being written and asks for another look.
func (r *reader) leave(origin string, now stamp, again time.Duration) (*result, verdict) {
	v := r.version(origin)
	v.fresh = false
	if v.seen != now || v.seenAt.IsZero() {
		v.seen, v.seenAt = now, r.now
	}
	if v.writing.IsZero() {
		v.writing = r.now
	}
	if r.now.Sub(v.writing) >= patience {
		r.lookAgain(patience / 2)
		return r.problem(origin, errors.New("is open for writing by another process: it is read when it is closed")), written
	}
	r.lookAgain(again)
	return nil, written
}

// settled says that a file looks as it did a moment ago.
func (r *reader) settled(origin string, now stamp) bool {
	v := r.versions[origin]
	if v != nil && v.seen == now && r.now.Sub(v.seenAt) >= settle {
		return true
	}
	return v == nil && r.now.Sub(time.Unix(now.ctime.Unix())) > time.Minute
}

// isOld says that a change from now on would get another time. Local file
// systems count in ticks of at most 10 ms; those that keep no fractions, in
// seconds.
func (r *reader) isOld(ctime unix.Timespec) bool {
	tick := 100 * time.Millisecond
	if ctime.Nsec == 0 {
		tick = 2500 * time.Millisecond
	}
	return r.now.Sub(time.Unix(ctime.Unix())) > tick
}

type writerState int

const (
	free writerState = iota
	busy
	unknown
)

// writers asks the kernel whether anybody has a file open for writing: only
// when nobody has, a read lease is granted. It is given back at once.
func writers(fd int) writerState {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return unknown
	}
	switch uint32(fs.Type) {
	case unix.NFS_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		return unknown // leases there tell what the server grants
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	switch {
	case err == nil:
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
		return free
	case errors.Is(err, unix.EAGAIN):
		return busy
	default:
		return unknown
	}
}

// kindOf names what is no regular file.
func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return ""
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	default:
		return "special file"
	}
}

func tooLarge(size int64) error {
	return fmt.Errorf("has %d bytes; the limit is %d (10 MiB): split it", size, maxFile)
}

// isBelow says that path lies in folder; both are real paths.
func isBelow(folder, path string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// bare strips the name under /proc from an error, which means nothing to
// anybody.
func bare(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
