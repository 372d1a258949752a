package volumes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	podpkg "github.com/nodeagent/nodeagent/pkg/pod"
)

// volumesDir is the folder below a pod's that this package owns.
const volumesDir = "volumes"

// Options of a Manager.
type Options struct {
	// PodsDir is <stateDir>/pods; volumes are in <PodsDir>/<uid>/volumes.
	PodsDir string
	// Mounter is the mount table. Default: the kernel's, by system calls.
	Mounter Mounter
	Log     *slog.Logger
}

// Manager sets volumes up and takes them down. Its methods may be called from
// several goroutines, for one pod from one at a time.
type Manager struct {
	dir     string
	mounter Mounter
	kinds   []Kind
	log     *slog.Logger
}

// New touches nothing.
func New(o Options) *Manager {
	if o.Mounter == nil {
		o.Mounter = kernelMounter{mountinfo: "/proc/self/mountinfo"}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{dir: o.PodsDir, mounter: o.Mounter, kinds: kinds(o.Mounter), log: o.Log}
}

// SetUp makes every volume that a container of the pod mounts ready, and
// returns them by name. It may be called again at any time: what is ready
// stays, what a crash left half done is finished. The error names volume and
// pod; errors.Is(err, errdefs.ErrInvalid) means that no retry helps.
func (m *Manager) SetUp(ctx context.Context, pod *v1.Pod) (map[string]Mounted, error) {
	out := map[string]Mounted{}
	used := used(pod)
	if len(used) == 0 {
		return out, nil
	}
	if err := checkName(string(pod.UID)); err != nil {
		return nil, fmt.Errorf("volumes of pod %s: uid: %w", podpkg.Describe(pod), err)
	}
	folder, err := m.podFolder(pod.UID, true)
	if err != nil {
		return nil, transient(fmt.Errorf("volumes of pod %s: %w", podpkg.Describe(pod), err))
	}
	defer folder.Close()
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if _, ok := used[v.Name]; !ok {
			continue // as kubelet: a volume that nobody mounts is not set up
		}
		if err := ctx.Err(); err != nil {
			return nil, transient(fmt.Errorf("volume %q of pod %s: %w", v.Name, podpkg.Describe(pod), err))
		}
		mounted, err := m.setUp(ctx, folder, pod, v)
		if err != nil {
			return nil, transient(fmt.Errorf("volume %q of pod %s: %w", v.Name, podpkg.Describe(pod), err))
		}
		out[v.Name] = mounted
	}
	return out, nil
}

// transient marks an error that says nothing about itself (the disk is full,
// a file cannot be opened) as worth a retry.
func transient(err error) error {
	if errors.Is(err, errdefs.ErrInvalid) || errors.Is(err, errdefs.ErrTransient) {
		return err
	}
	return errdefs.Errorf(errdefs.ErrTransient, "%w", err)
}

func (m *Manager) setUp(ctx context.Context, folder *Folder, pod *v1.Pod, v *v1.Volume) (Mounted, error) {
	if err := checkName(v.Name); err != nil {
		return Mounted{}, err
	}
	kind := m.kindOf(v)
	if kind == nil {
		return Mounted{}, errdefs.Errorf(errdefs.ErrInvalid, "%s is not supported; supported are %s", sourceName(v), m.kindNames())
	}
	plugin, err := folder.sub(kind.Plugin(), true)
	if err != nil {
		return Mounted{}, err
	}
	defer plugin.Close()
	record := kind.Record(v)
	record.Name, record.Kind = v.Name, kind.Name()
	if err := putRecord(plugin, record); err != nil {
		return Mounted{}, err
	}
	return kind.SetUp(ctx, Request{Pod: pod, Volume: v, Folder: plugin})
}

func (m *Manager) kindNames() string {
	var names []string
	for _, k := range m.kinds {
		names = append(names, k.Name())
	}
	return strings.Join(names, ", ")
}

// checkName refuses what is not one folder's name.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return errdefs.Errorf(errdefs.ErrInvalid, "%q cannot name a folder", name)
	}
	return nil
}

// used are the volumes that some container mounts.
func used(pod *v1.Pod) map[string]struct{} {
	out := map[string]struct{}{}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, vm := range list[i].VolumeMounts {
				out[vm.Name] = struct{}{}
			}
			for _, vd := range list[i].VolumeDevices {
				out[vd.Name] = struct{}{}
			}
		}
	}
	return out
}

// podFolder opens <PodsDir>/<uid>/volumes.
func (m *Manager) podFolder(uid types.UID, make bool) (*Folder, error) {
	pods, err := openRoot(m.dir)
	if err != nil {
		return nil, err
	}
	defer pods.Close()
	pod, err := pods.sub(string(uid), make)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	return pod.sub(volumesDir, make)
}

const recordSuffix = ".json"

func putRecord(f *Folder, r Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if have, err := f.readFile(r.Name + recordSuffix); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return f.writeFile(r.Name+recordSuffix, data)
}

// records reads what is known of the volumes in a plugin's folder: by record,
// or, when that was lost, by the folder alone.
func (m *Manager) records(f *Folder, plugin string) ([]Record, error) {
	names, err := f.names()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	kind := strings.TrimPrefix(plugin, "kubernetes.io~")
	if k := m.kindOfPlugin(plugin); k != nil {
		kind = k.Name()
	}
	byName := map[string]Record{}
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue // unfinished
		}
		base, isRecord := strings.CutSuffix(name, recordSuffix)
		r, known := byName[base]
		if !known {
			r = Record{Name: base, Kind: kind}
		}
		if isRecord {
			if data, err := f.readFile(name); err == nil && len(data) > 0 {
				if err := json.Unmarshal(data, &r); err != nil || r.Name != base {
					m.log.Warn("the record of a volume cannot be read; its folder is still found", "file", filepath.Join(f.path, name), "err", err)
					r = Record{Name: base, Kind: kind}
				}
			}
		}
		byName[base] = r
	}
	out := make([]Record, 0, len(byName))
	for _, r := range byName {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// TearDown unmounts all that is mounted below <PodsDir>/<uid>/volumes, also
// what containers mounted there, and removes the folder. The pod's containers
// are gone. It follows no link and enters no mount; what is already gone is a
// success; errdefs.ErrTransient while something is still in use.
func (m *Manager) TearDown(ctx context.Context, uid types.UID) error {
	if err := checkName(string(uid)); err != nil {
		return fmt.Errorf("volumes of pod uid: %w", err)
	}
	if err := m.tearDown(ctx, uid); err != nil {
		return transient(fmt.Errorf("removing the volumes of pod uid %s: %w", uid, err))
	}
	return nil
}

func (m *Manager) tearDown(ctx context.Context, uid types.UID) error {
	folder, err := m.podFolder(uid, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := m.unmountAll(ctx, folder); err != nil {
		return err
	}
	plugins, err := folder.names()
	if err != nil {
		return err
	}
	for _, plugin := range plugins {
		if err := m.tearDownPlugin(ctx, folder, plugin); err != nil {
			return err
		}
	}
	pods, err := openRoot(m.dir)
	if err != nil {
		return err
	}
	defer pods.Close()
	pod, err := pods.sub(string(uid), false)
	if err != nil {
		return err
	}
	defer pod.Close()
	return pod.remove(volumesDir)
}

// tearDownPlugin lets a kind undo what is beyond the folder, then removes each
// volume and, last, its record, so that a crash in between is taken up again.
func (m *Manager) tearDownPlugin(ctx context.Context, folder *Folder, plugin string) error {
	f, err := folder.sub(plugin, false)
	if errors.Is(err, unix.ENOTDIR) {
		return nil // not ours; goes with the folder
	}
	if err != nil {
		return err
	}
	defer f.Close()
	records, err := m.records(f, plugin)
	if err != nil {
		return err
	}
	kind := m.kindOfPlugin(plugin)
	for _, r := range records {
		if kind != nil {
			if err := kind.TearDown(ctx, r); err != nil {
				return fmt.Errorf("volume %q: %w", r.Name, err)
			}
		}
		for _, name := range []string{r.Name, "." + r.Name, r.Name + recordSuffix} {
			if err := f.remove(name); err != nil {
				return fmt.Errorf("volume %q: %w", r.Name, err)
			}
		}
	}
	return nil
}

// unmountAll takes off every mount below the folder, the newest first. The
// table is read again after each round: a mount may have hidden another.
func (m *Manager) unmountAll(ctx context.Context, folder *Folder) error {
	const rounds = 10
	var last error
	for range rounds {
		points, err := m.mountsBelow(folder.path)
		if err != nil {
			return err
		}
		if len(points) == 0 {
			return nil
		}
		for _, p := range slices.Backward(points) {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := m.unmount(folder, p)
			if errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("%s is in use; see `fuser -vm %s`: %w", p, p, err)
			}
			if err != nil {
				last = err // raced with a change of the tree: look again
			}
		}
	}
	return fmt.Errorf("mounts keep appearing below %s: %w", folder.path, errors.Join(last, errdefs.ErrTransient))
}

// unmount reaches the mount point's parent without following links, because
// the pod may have owned the way there.
func (m *Manager) unmount(folder *Folder, path string) error {
	rel, err := filepath.Rel(folder.path, path)
	if err != nil {
		return err
	}
	parent := folder.fd
	if dir := filepath.Dir(rel); dir != "." {
		fd, err := folder.open(dir, unix.O_PATH|unix.O_DIRECTORY, inside)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		parent = fd
	}
	if err := m.mounter.Unmount(filepath.Join(fdPath(parent), filepath.Base(rel))); err != nil {
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	m.log.Debug("unmounted", "path", path)
	return nil
}

// mountsBelow lists mounts below a folder, oldest first.
func (m *Manager) mountsBelow(dir string) ([]string, error) {
	all, err := m.mounter.List()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range all {
		if strings.HasPrefix(p, dir+"/") {
			out = append(out, p)
		}
	}
	return out, nil
}

// Pods lists the pods that have a volumes folder or a mount in it, sorted.
func (m *Manager) Pods() ([]types.UID, error) {
	pods, err := openRoot(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer pods.Close()
	seen := map[types.UID]struct{}{}
	names, err := pods.names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if st, err := pods.lstat(filepath.Join(name, volumesDir)); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			seen[types.UID(name)] = struct{}{}
		}
	}
	points, err := m.mountsBelow(pods.path)
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		rel := strings.Split(strings.TrimPrefix(p, pods.path+"/"), "/")
		if len(rel) > 2 && rel[1] == volumesDir {
			seen[types.UID(rel[0])] = struct{}{}
		}
	}
	out := make([]types.UID, 0, len(seen))
	for uid := range seen {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out, nil
}
