package logs

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// A log is <attempt>.log, which the runtime writes to, and what was rotated out
// of it: <attempt>.log.<stamp>, which becomes <attempt>.log.<stamp>.gz. These
// are kubelet's names; of two that are of one second the later has a number
// behind it, so that their order is that of their names.
const (
	packedSuffix = ".gz"
	halfSuffix   = ".tmp" // being packed
	stampLayout  = "20060102-150405"
)

var stampPattern = regexp.MustCompile(`^\d{8}-\d{6}(-\d{6})?$`)

// rotated is one older part of a log, by its names in the folder. Both are there
// when packing was cut short.
type rotated struct {
	stamp         string
	plain, packed bool
}

// rotatedOf lists the older parts of the log of that name, oldest first.
func (d *Dir) rotatedOf(name string) ([]rotated, error) {
	names, err := d.names()
	if err != nil {
		return nil, err
	}
	byStamp := map[string]rotated{}
	for _, n := range names {
		rest, ok := strings.CutPrefix(n, name+".")
		stamp, packed := strings.CutSuffix(rest, packedSuffix)
		if !ok || !stampPattern.MatchString(stamp) {
			continue
		}
		r := byStamp[stamp]
		r.stamp = stamp
		r.packed, r.plain = r.packed || packed, r.plain || !packed
		byStamp[stamp] = r
	}
	parts := make([]rotated, 0, len(byStamp))
	for _, r := range byStamp {
		parts = append(parts, r)
	}
	slices.SortFunc(parts, func(a, b rotated) int { return strings.Compare(a.stamp, b.stamp) })
	return parts, nil
}

// part is one open file of a log. What is packed has the time of what it was
// packed from.
type part struct {
	f      *os.File
	stamp  string // empty: the file that the runtime writes to
	packed bool
	from   int64 // bytes of content that are passed over
}

func closeParts(parts []part) {
	for _, p := range parts {
		_ = p.f.Close()
	}
}

// snapshotTries bounds how often the parts are opened anew because a rotation
// came between.
const snapshotTries = 100

// partsAfter opens the parts of a log that are newer than a stamp, oldest first.
// The last may be a rotated one: the runtime has not reopened its file yet.
func (d *Dir) partsAfter(name, stamp string) ([]part, error) {
	for try := 1; ; try++ {
		before, err := d.rotatedOf(name)
		if err != nil {
			return nil, err
		}
		parts, err := d.openParts(name, before, stamp)
		if err != nil && (!errors.Is(err, errdefs.ErrNotFound) || try == snapshotTries) {
			return nil, err
		}
		after, lerr := d.rotatedOf(name)
		if lerr != nil {
			closeParts(parts)
			return nil, lerr
		}
		sameStamps := slices.EqualFunc(before, after, func(a, b rotated) bool { return a.stamp == b.stamp })
		if err == nil && (sameStamps || try == snapshotTries) {
			return parts, nil
		}
		closeParts(parts)
	}
}

// openParts is errdefs.ErrNotFound when one was renamed or removed meanwhile.
func (d *Dir) openParts(name string, list []rotated, after string) (parts []part, err error) {
	defer func() {
		if err != nil {
			closeParts(parts)
			parts = nil
		}
	}()
	for _, r := range list {
		if r.stamp <= after {
			continue
		}
		p := part{stamp: r.stamp, packed: !r.plain}
		file := name + "." + r.stamp
		if p.packed {
			file += packedSuffix
		}
		if p.f, err = d.open(file); err != nil {
			return parts, err
		}
		parts = append(parts, p)
	}
	f, err := d.open(name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return parts, nil
	}
	if err != nil {
		return parts, err
	}
	return append(parts, part{f: f}), nil
}

// content reads the part from where it is to be read.
func (p *part) content() (io.Reader, error) {
	start := p.from
	if p.packed {
		start = 0
	}
	if _, err := p.f.Seek(start, io.SeekStart); err != nil {
		return nil, p.failed(err)
	}
	if !p.packed {
		return p.f, nil
	}
	z, err := gzip.NewReader(p.f)
	if err != nil {
		return nil, p.failed(err)
	}
	if _, err := io.CopyN(io.Discard, z, p.from); err != nil && !errors.Is(err, io.EOF) {
		return nil, p.failed(err)
	}
	return z, nil
}

func (p *part) failed(err error) error {
	return fmt.Errorf("reading log %s: %w", p.f.Name(), err)
}

// is says that p is the open file f, or what it was packed into.
func (p *part) is(f *os.File) bool {
	mine, err1 := p.f.Stat()
	its, err2 := f.Stat()
	if err1 != nil || err2 != nil {
		return false
	}
	return os.SameFile(mine, its) || p.packed && mine.ModTime().Equal(its.ModTime())
}

// lastLines leaves of the parts those that hold the last n lines, and sets where
// the first of them is read from. The others are closed.
func lastLines(parts []part, n int64) ([]part, error) {
	for i := len(parts) - 1; i >= 0; i-- {
		at, seen, err := parts[i].tailStart(n)
		if err != nil {
			return parts, err
		}
		parts[i].from = at
		n -= seen
		if seen > 0 && at == 0 {
			// Its first line may be the rest of one that began before.
			partial, err := endPartial(parts[:i])
			if err != nil {
				return parts, err
			}
			if partial {
				n++
			}
		}
		if n <= 0 {
			closeParts(parts[:i])
			return parts[i:], nil
		}
	}
	return parts, nil
}

// tailStart returns where the last n lines start, and how many there are from
// there on: fewer than n when the part has no more.
func (p *part) tailStart(n int64) (at, seen int64, err error) {
	if !p.packed {
		at, seen, err = tailStart(p.f, n)
		return at, seen, p.wrap(err)
	}
	all, _, err := p.scan(-1)
	if err != nil || all.starts <= n {
		return 0, all.starts, err
	}
	_, at, err = p.scan(all.starts - n)
	return at, n, err
}

func (p *part) wrap(err error) error {
	if err == nil {
		return nil
	}
	return p.failed(err)
}

// endPartial says that the last line of all these parts is not its end.
func endPartial(parts []part) (partial bool, err error) {
	for empty, i := true, len(parts)-1; empty && i >= 0 && err == nil; i-- {
		partial, empty, err = parts[i].endsPartial()
	}
	return partial, err
}

// endsPartial says that the part's last line goes on in the next one.
func (p *part) endsPartial() (partial, empty bool, err error) {
	if !p.packed {
		partial, empty, err = endsPartial(p.f)
		return partial, empty, p.wrap(err)
	}
	all, end, err := p.scan(-1)
	return all.partial, end == 0, err
}

// holds says that the file of that name is f.
func (d *Dir) holds(name string, f *os.File) (bool, error) {
	mine, err := d.stat(name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var its unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &its); err != nil {
		return false, openError(f.Name(), err)
	}
	return mine.Dev == its.Dev && mine.Ino == its.Ino, nil
}

// stat looks at a file of the folder, and at a link itself.
func (d *Dir) stat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return st, openError(filepath.Join(d.name, name), err)
	}
	return st, nil
}

// names lists the folder. A second descriptor: reading a folder moves the
// offset that all users of the first one share.
func (d *Dir) names() ([]string, error) {
	fd, err := unix.Openat(int(d.f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(d.name, err)
	}
	f := os.NewFile(uintptr(fd), d.name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && !errors.Is(err, unix.ENOENT) { // the folder itself is removed
		return nil, fmt.Errorf("reading log folder %s: %w", d.name, err)
	}
	return names, nil
}
