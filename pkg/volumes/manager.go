package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

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
	// Objects are what volumes are made of. Default: there are none.
	Objects Objects
	// Allocatable is what the node has for pods: the limit of a container that
	// sets none. Default: nothing is known.
	Allocatable func() v1.ResourceList
	// NodeMatches says whether the node is one that a PersistentVolume is for.
	// Default: it never is.
	NodeMatches func(*v1.NodeSelector) bool
	Clock       func() time.Time // default: time.Now
	Log         *slog.Logger
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
	if o.Objects == nil {
		o.Objects = noObjects{}
	}
	if o.Allocatable == nil {
		o.Allocatable = func() v1.ResourceList { return nil }
	}
	if o.NodeMatches == nil {
		o.NodeMatches = func(*v1.NodeSelector) bool { return false }
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{dir: o.PodsDir, mounter: o.Mounter, kinds: kinds(o), log: o.Log}
}

// SetUpError is why volumes are not ready, one error for each of them, in
// kubelet's words: MountVolume.SetUp failed for volume "x" : …
type SetUpError []error

func (e SetUpError) Error() string {
	words := make([]string, len(e))
	for i, err := range e {
		words[i] = err.Error()
	}
	return strings.Join(words, "; ")
}

func (e SetUpError) Unwrap() []error { return e }

// SetUp makes every volume that a container of the pod mounts ready, and
// returns them by name. It may be called again at any time: what is ready
// stays, what a crash left half done is finished, and what objects say now is
// what the files hold. The error is a SetUpError; errors.Is(err,
// errdefs.ErrInvalid) means that no retry helps.
func (m *Manager) SetUp(ctx context.Context, pod *v1.Pod) (map[string]Mounted, error) {
	out := map[string]Mounted{}
	var failed SetUpError
	err := m.each(ctx, pod, true, func(folder *Folder, kind Kind, v *v1.Volume) {
		mounted, err := m.setUp(ctx, folder, kind, pod, v)
		if errors.Is(err, errdefs.ErrNotFound) && m.isSetUp(folder, kind, v) {
			// A container may restart with the files it had; Refresh tells of it.
			mounted, err = written(folder, kind, v), nil
		}
		if err != nil {
			failed = append(failed, transient(fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)))
			return
		}
		out[v.Name] = mounted
	})
	if err != nil {
		failed = append(failed, err)
	}
	if len(failed) > 0 {
		return nil, failed
	}
	return out, nil
}

// Refresh brings the files of volumes that are set up in line with the objects
// they are made of; other volumes it leaves alone. The files stay as they are
// when an object is gone; the error is a SetUpError.
func (m *Manager) Refresh(ctx context.Context, pod *v1.Pod) error {
	if !slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool { return m.isLive(&v) }) {
		return nil
	}
	var failed SetUpError
	err := m.each(ctx, pod, false, func(folder *Folder, kind Kind, v *v1.Volume) {
		if !m.isLive(v) {
			return
		}
		if !m.isSetUp(folder, kind, v) {
			return
		}
		if _, err := m.setUp(ctx, folder, kind, pod, v); err != nil {
			failed = append(failed, transient(fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)))
		}
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		failed = append(failed, err)
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

// isSetUp says that a volume with files of ours is there.
func (m *Manager) isSetUp(folder *Folder, kind Kind, v *v1.Volume) bool {
	if !m.isLive(v) || checkName(v.Name) != nil {
		return false
	}
	_, err := folder.lstat(filepath.Join(kind.Plugin(), v.Name, dataLink))
	return err == nil
}

func (m *Manager) isLive(v *v1.Volume) bool {
	_, ok := m.kindOf(v).(live)
	return ok
}

// each calls do for every volume that a container mounts; with make it makes
// the pod's folder. As with kubelet, a volume that nobody mounts is not set up.
func (m *Manager) each(ctx context.Context, pod *v1.Pod, make bool, do func(*Folder, Kind, *v1.Volume)) error {
	used := used(pod)
	if len(used) == 0 {
		return nil
	}
	if err := checkName(string(pod.UID)); err != nil {
		return fmt.Errorf("volumes of pod %s: uid: %w", podpkg.Describe(pod), err)
	}
	folder, err := m.podFolder(pod.UID, make)
	if err != nil {
		return transient(fmt.Errorf("volumes of pod %s: %w", podpkg.Describe(pod), err))
	}
	defer folder.Close()
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if _, ok := used[v.Name]; !ok {
			continue
		}
		if err := ctx.Err(); err != nil {
			return transient(fmt.Errorf("volume %q of pod %s: %w", v.Name, podpkg.Describe(pod), err))
		}
		do(folder, m.kindOf(v), v)
	}
	return nil
}

// transient marks an error that says nothing about itself (the disk is full,
// a file cannot be opened) as worth a retry.
func transient(err error) error {
	if errors.Is(err, errdefs.ErrInvalid) || errors.Is(err, errdefs.ErrTransient) {
		return err
	}
	return errdefs.Errorf(errdefs.ErrTransient, "%w", err)
}

func (m *Manager) setUp(ctx context.Context, folder *Folder, kind Kind, pod *v1.Pod, v *v1.Volume) (Mounted, error) {
	if err := checkName(v.Name); err != nil {
		return Mounted{}, err
	}
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
	mounted, err := kind.SetUp(ctx, Request{Pod: pod, Volume: v, Folder: plugin})
	if err == nil && record.Foreign && mounted.HostPath != filepath.Join(plugin.path, v.Name) {
		record.HostPath = mounted.HostPath // known only now
		err = putRecord(plugin, record)
	}
	return mounted, err
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

// containers are all of a pod, in the order they start.
func containers(p *v1.Pod) iter.Seq[*v1.Container] {
	return func(yield func(*v1.Container) bool) {
		for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				if !yield(&list[i]) {
					return
				}
			}
		}
		for i := range p.Spec.EphemeralContainers {
			if !yield((*v1.Container)(&p.Spec.EphemeralContainers[i].EphemeralContainerCommon)) {
				return
			}
		}
	}
}

// used are the volumes that some container mounts.
func used(pod *v1.Pod) map[string]struct{} {
	out := map[string]struct{}{}
	for c := range containers(pod) {
		for _, vm := range c.VolumeMounts {
			out[vm.Name] = struct{}{}
		}
		for _, vd := range c.VolumeDevices {
			out[vd.Name] = struct{}{}
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
