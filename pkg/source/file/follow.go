package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// follower is one run of a source; it belongs to the goroutine of Run.
type follower struct {
	reader
	sink  store.Sink
	watch *watch // nil: only the poll

	// What the sink was told last, by origin; nil before the first time.
	published map[string]*result
	identity  identity // of the folder it came from
	failed    bool     // the sink was told of a failure after that
	polled    time.Time

	absent   map[string]time.Time // since when all or some of an origin is gone
	missing  time.Time            // since when the path itself is
	replaced time.Time            // when another folder took its place
	event    time.Time            // the last thing that happened
}

// identity tells one folder from another at the same path. Numbers of inodes
// are used again at once, hence the time of birth, where there is one.
type identity struct {
	major, minor uint32
	ino          uint64
	birth        unix.StatxTimestamp
}

func newFollower(o Options, writers func(int) writerState, sink store.Sink) *follower {
	return &follower{
		reader: reader{o: o, writers: writers, versions: map[string]*version{}}, sink: sink, absent: map[string]time.Time{},
	}
}

// finding is what one look saw.
type finding struct {
	identity identity
	single   bool               // Path is a file
	results  map[string]*result // by origin; nil for a file that is being written
}

// look looks at everything, tells the sink what is new and returns when to look
// again if nothing happens before.
func (f *follower) look(ctx context.Context) time.Duration {
	var seen finding
	var err error
	quiet := false
	for range attempts {
		f.drain()
		seen, err = f.scan(ctx)
		if ctx.Err() != nil {
			return 0
		}
		// What happened meanwhile may have hidden a file that moved to where the
		// reader had been already.
		if quiet = !f.drain(); quiet {
			break
		}
	}
	next := f.o.Poll
	soon := func(d time.Duration) { next = min(next, max(d, time.Millisecond)) }
	if !quiet {
		soon(churnPause)
	}
	if f.again > 0 {
		soon(f.again)
	}
	if err == nil && f.emptied(seen) {
		err = fmt.Errorf("%s was replaced by an empty folder: pods of the old one stay until a manifest is in it (one with only a comment will do)", f.o.Path)
	}
	if err != nil {
		if wait := f.fail(err); wait > 0 {
			soon(wait)
		}
		return next
	}
	if wait := f.publish(seen, quiet); wait > 0 {
		soon(wait)
	}
	return next
}

// drain says whether something relevant happened since it was asked last.
func (f *follower) drain() bool {
	if f.watch == nil || !f.watch.drain() {
		return false
	}
	f.event = f.o.Clock()
	return true
}

// emptied says that another folder, with nothing in it, took the place of one
// that had pods: a file system that was unmounted, or a folder that is being
// made anew.
func (f *follower) emptied(seen finding) bool {
	return len(f.published) > 0 && len(seen.results) == 0 && f.isAnother(seen)
}

func (f *follower) isAnother(seen finding) bool {
	return f.published != nil && !seen.single && (seen.identity != f.identity || !f.missing.IsZero())
}

// fail tells the sink that the path could not be read, and returns when to look
// again if that is not certain yet.
func (f *follower) fail(err error) time.Duration {
	if f.missing.IsZero() {
		f.missing = f.now
	}
	if gone := f.now.Sub(f.missing); f.published != nil && gone < removalHold {
		return removalHold - gone
	}
	f.failed = true
	f.sink.Fail(store.SourceFile, err)
	return 0
}

// publish tells the sink what was seen. What was there before is taken for
// removed only if the folder was quiet and it stayed away for a moment.
func (f *follower) publish(seen finding, quiet bool) (wait time.Duration) {
	if f.isAnother(seen) {
		f.replaced = f.now
	}
	f.missing = time.Time{}
	next := f.believe(seen, quiet)
	names := map[objectName]struct{}{}
	for _, res := range next {
		for _, obj := range res.objects {
			names[nameOf(obj)] = struct{}{}
		}
	}
	for origin, old := range f.published {
		lost := lostOf(old, next[origin], names)
		if lost == nil {
			delete(f.absent, origin)
			continue
		}
		left := f.hold(origin)
		if quiet && left <= 0 {
			delete(f.absent, origin)
			continue
		}
		if left = max(left, time.Millisecond); wait == 0 || left < wait {
			wait = left
		}
		next[origin] = join(next[origin], lost)
	}
	f.tell(next, seen.identity)
	return wait
}

// believe makes results of a finding. A file that is being written says what it
// said, and one that turned bad while things happened will be looked at again.
func (f *follower) believe(seen finding, quiet bool) map[string]*result {
	next := make(map[string]*result, len(seen.results))
	for origin, res := range seen.results {
		was := f.published[origin]
		switch {
		case res == nil && was != nil, res != nil && !quiet && res.keeps() && was != nil && !was.keeps():
			res = was
		case res == nil && f.published == nil:
			// What the store knows of it from an earlier life stays.
			res = f.problem(origin, errors.New("is being written by another process: it is read when it is closed"))
		case res == nil:
			continue
		}
		next[origin] = res
	}
	return next
}

// hold is for how long yet what an origin lost is not taken for removed.
func (f *follower) hold(origin string) time.Duration {
	since, ok := f.absent[origin]
	if !ok {
		since = f.now
		f.absent[origin] = since
	}
	calm := since
	if f.event.After(calm) {
		calm = f.event
	}
	left := min(removalHold-f.now.Sub(calm), longHold-f.now.Sub(since))
	if !f.replaced.IsZero() {
		left = max(left, longHold-f.now.Sub(f.replaced))
	}
	return left
}

// tell applies what differs from what the sink knows. At every poll it applies
// anyway, so that the user sees that the folder is still being read.
func (f *follower) tell(next map[string]*result, id identity) {
	due := f.now.Sub(f.polled) >= f.o.Poll
	same := f.published != nil && maps.EqualFunc(f.published, next, sameResult)
	f.published, f.identity = next, id
	if same && !f.failed && !due {
		return
	}
	f.failed, f.polled = false, f.now
	f.sink.Apply(store.SourceFile, snapshotOf(next))
}

// snapshotOf has the files in the order of their names: of two that name one
// pod the first wins.
func snapshotOf(results map[string]*result) (snap store.Snapshot) {
	for _, origin := range slices.Sorted(maps.Keys(results)) {
		snap.Objects = append(snap.Objects, results[origin].objects...)
		snap.Problems = append(snap.Problems, results[origin].problems...)
	}
	return snap
}

// objectName is what no two objects share.
type objectName struct {
	kind string
	pod.Key
}

func nameOf(o manifest.Object) objectName { return objectName{o.Kind(), o.Key()} }

// lostOf is what an origin said before and nobody says any more, nil for
// nothing. A file that cannot be read has lost nothing: the store keeps it.
func lostOf(old, now *result, names map[objectName]struct{}) *result {
	if now != nil && now.keeps() {
		return nil
	}
	lost := &result{}
	for _, obj := range old.objects {
		if _, ok := names[nameOf(obj)]; !ok {
			lost.objects = append(lost.objects, obj)
		}
	}
	if now == nil {
		lost.problems = old.problems
	}
	if len(lost.objects) == 0 && len(lost.problems) == 0 {
		return nil
	}
	return lost
}

func join(now, lost *result) *result {
	if now == nil {
		return lost
	}
	return &result{
		objects:  slices.Concat(now.objects, lost.objects),
		problems: slices.Concat(now.problems, lost.problems),
	}
}

func sameResult(a, b *result) bool {
	if a == b {
		return true
	}
	return slices.EqualFunc(a.objects, b.objects, func(a, b manifest.Object) bool {
		return a.Pod == b.Pod && a.Other == b.Other // decoded once
	}) && slices.EqualFunc(a.problems, b.problems, func(a, b store.Problem) bool {
		return a.Err.Error() == b.Err.Error()
	})
}

// scan looks at the path once.
func (f *follower) scan(ctx context.Context) (finding, error) {
	f.now, f.again, f.root, f.link = f.o.Clock(), 0, "", nil
	if f.watch != nil {
		f.watch.begin()
		defer f.watch.end()
		walk(f.o.Path, f.watch.add)
	}
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Open(f.o.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return finding{}, fmt.Errorf("%s does not exist: it is read when it appears", f.o.Path)
	}
	if err != nil {
		return finding{}, fmt.Errorf("open %s: %w", f.o.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return finding{}, fmt.Errorf("look at %s: %w", f.o.Path, err)
	}
	seen := finding{identity: identity{st.Dev_major, st.Dev_minor, st.Ino, st.Btime}, results: map[string]*result{}}
	switch mode := uint32(st.Mode); mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = f.folder(ctx, fd, &seen)
	case unix.S_IFREG:
		seen.single = true
		res, verdict := f.opened(fd, f.o.Path, false)
		if verdict == none {
			return finding{}, fmt.Errorf("%s does not exist: it is read when it appears", f.o.Path)
		}
		seen.results[f.o.Path] = res
	default:
		err = fmt.Errorf("%s is a %s: a folder or a file is needed", f.o.Path, kindOf(mode))
	}
	for origin := range f.versions {
		if _, ok := seen.results[origin]; !ok && err == nil {
			delete(f.versions, origin)
		}
	}
	return seen, err
}

// folder looks at every file in a folder. It is the same folder throughout,
// even when the path leads to another one meanwhile.
func (f *follower) folder(ctx context.Context, fd int, seen *finding) error {
	root, err := os.Readlink(procPath(fd))
	if err != nil {
		return fmt.Errorf("find out the real path of %s: %w", f.o.Path, err)
	}
	f.root = root
	if f.watch != nil {
		f.watch.add(procPath(fd)+"/.", "")
		f.link = func(path string) {
			walk(path, func(dir, name string) {
				if dir == root || isBelow(root, dir) {
					f.watch.add(dir, name)
				}
			})
		}
	}
	names, err := namesIn(fd)
	if err != nil {
		return fmt.Errorf("read folder %s: %w", f.o.Path, bare(err))
	}
	for _, name := range names {
		if leftAlone(name) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		origin := filepath.Join(f.o.Path, name)
		if res, verdict := f.entry(fd, name, origin); verdict != none {
			seen.results[origin] = res
		}
	}
	return nil
}

func namesIn(folder int) ([]string, error) {
	fd := -1
	err := retry(func() (err error) {
		fd, err = unix.Openat(folder, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), "folder")
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}
