package volumes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Volume is one volume as found on the node.
type Volume struct {
	PodUID types.UID `json:"podUID"`
	Name   string    `json:"name"`
	Kind   string    `json:"kind"`
	Medium string    `json:"medium,omitempty"`
	Path   string    `json:"path"`
	// Limit in bytes; 0: none.
	Limit int64 `json:"limit,omitempty"`
	// Used in bytes; -1: not measured (a path of the host, or too many files
	// for a quick look).
	Used int64 `json:"used"`
	// Files is how many there are, folders among them, when Used was measured.
	Files int64 `json:"files,omitempty"`
	// Mounted says that it is a mount of its own.
	Mounted bool `json:"mounted"`
}

// OnDisk says that what it holds takes space of the node's disk.
func (v Volume) OnDisk() bool { return v.Used >= 0 && v.Medium == string(v1.StorageMediumDefault) }

const (
	// listBudget is how many files List looks at, over all volumes.
	listBudget = 20000
	// maxWalkDepth bounds the descriptors that measuring holds.
	maxWalkDepth = 256
)

// List is every volume on the node, by pod and name. It is cheap: a volume
// with very many files is shown as not measured.
func (m *Manager) List() ([]Volume, error) {
	uids, err := m.Pods()
	if err != nil {
		return nil, err
	}
	points, err := m.mounter.List()
	if err != nil {
		return nil, err
	}
	mounted := map[string]bool{}
	for _, p := range points {
		mounted[p] = true
	}
	w := walk{budget: listBudget}
	var out []Volume
	for _, uid := range uids {
		volumes, err := m.list(uid, mounted, &w)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("volumes of pod uid %s: %w", uid, err)
		}
		out = append(out, volumes...)
	}
	return out, nil
}

// Usage measures the pod's emptyDirs, in bytes by volume name, however many
// files they have.
func (m *Manager) Usage(ctx context.Context, uid types.UID) (map[string]Volume, error) {
	if err := checkName(string(uid)); err != nil {
		return nil, err
	}
	w := walk{ctx: ctx, budget: -1}
	volumes, err := m.list(uid, nil, &w)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("measuring the volumes of pod uid %s: %w", uid, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out := map[string]Volume{}
	for _, v := range volumes {
		if v.Used >= 0 {
			out[v.Name] = v
		}
	}
	return out, nil
}

// Of lists the pod's volumes without measuring them.
func (m *Manager) Of(uid types.UID) ([]Volume, error) {
	if err := checkName(string(uid)); err != nil {
		return nil, err
	}
	out, err := m.list(uid, nil, &walk{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it has none
	}
	return out, err
}

func (m *Manager) list(uid types.UID, mounted map[string]bool, w *walk) ([]Volume, error) {
	folder, err := m.podFolder(uid, false)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	plugins, err := folder.names()
	if err != nil {
		return nil, err
	}
	var out []Volume
	for _, plugin := range plugins {
		f, err := folder.sub(plugin, false)
		if err != nil {
			continue // not a folder, or gone
		}
		records, err := m.records(f, plugin)
		for _, r := range records {
			out = append(out, describe(uid, f, r, mounted, w))
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func describe(uid types.UID, f *Folder, r Record, mounted map[string]bool, w *walk) Volume {
	v := Volume{PodUID: uid, Name: r.Name, Kind: r.Kind, Medium: r.Medium, Limit: r.Limit, Path: r.HostPath, Used: -1}
	if v.Path == "" {
		v.Path = filepath.Join(f.path, r.Name)
	}
	if r.HostPath != "" {
		return v
	}
	v.Mounted = mounted[v.Path]
	if r.Foreign {
		return v
	}
	fd, err := f.open(r.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, inside)
	if err != nil {
		return v // half done
	}
	if r.Medium != string(v1.StorageMediumDefault) {
		defer unix.Close(fd)
		var st unix.Statfs_t
		if unix.Fstatfs(fd, &st) == nil && st.Blocks > 0 {
			v.Used = int64(st.Blocks-st.Bfree) * st.Bsize
			v.Files = int64(st.Files - st.Ffree)
			v.Limit = int64(st.Blocks) * st.Bsize
		}
		return v
	}
	if used, ok := w.measure(fd); ok {
		v.Used, v.Files = used, w.files
	}
	return v
}

// walk adds up the disk space of folders, without following links or entering
// mounts, and counts a file with several names once.
type walk struct {
	ctx    context.Context // nil: not cancelled
	budget int             // files to look at; negative: all
	files  int64           // of the folder that is measured, with itself
	seen   map[[2]uint64]struct{}
}

// measure closes the descriptor.
func (w *walk) measure(fd int) (bytes int64, ok bool) {
	w.seen, w.files = map[[2]uint64]struct{}{}, 1
	return w.folder(fd, 0)
}

func (w *walk) folder(fd, depth int) (bytes int64, ok bool) {
	d := os.NewFile(uintptr(fd), "volume")
	defer d.Close()
	if depth > maxWalkDepth || (w.ctx != nil && w.ctx.Err() != nil) {
		return 0, false
	}
	for {
		names, err := d.Readdirnames(512)
		for _, name := range names {
			if w.budget == 0 {
				return 0, false
			}
			w.budget--
			n, ok := w.entry(fd, name, depth)
			if !ok {
				return 0, false
			}
			bytes += n
		}
		if err != nil {
			return bytes, errors.Is(err, io.EOF)
		}
	}
}

func (w *walk) entry(dir int, name string, depth int) (bytes int64, ok bool) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, true // gone meanwhile
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if _, again := w.seen[key]; again {
			return 0, true
		}
		w.seen[key] = struct{}{}
	}
	w.files++
	bytes = st.Blocks * 512
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return bytes, true
	}
	fd, err := openat2(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, sameMount)
	if err != nil {
		return 0, true // a mount, or gone: neither is this volume's space
	}
	n, ok := w.folder(fd, depth+1)
	return bytes + n, ok
}
