package stats

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// Disk is what one pod has on disks.
type Disk struct {
	At time.Time
	// RootFS is what each container wrote to its own file system, and Logs its
	// logs, by the container's name; all that the runtime still has of it counts.
	RootFS, Logs map[string]Space
	// Volumes are those that take space of the node's own: tmpfs are memory.
	Volumes map[string]volumes.Volume
	// Claims are the file systems of its PersistentVolumeClaims, by the volume's
	// name; not those on the network, which may not answer.
	Claims map[string]Filesystem
	// Own are the files that the agent gives to the pod.
	Own Space
}

// Ephemeral is what counts against the pod's ephemeral-storage limit, as kubelet
// adds it up: writable layers, logs, volumes on the node's disk, and the agent's
// own files for the pod.
func (d Disk) Ephemeral() Space {
	sum := d.Own
	for _, part := range []map[string]Space{d.RootFS, d.Logs} {
		for _, s := range part {
			sum = sum.plus(s)
		}
	}
	for name := range d.Volumes {
		sum = sum.plus(d.volume(name))
	}
	return sum
}

// Container is what counts against one container's limit: its layer and its logs.
func (d Disk) Container(name string) Space { return d.RootFS[name].plus(d.Logs[name]) }

func (d Disk) volume(name string) Space {
	v := d.Volumes[name]
	if !v.OnDisk() {
		return Space{}
	}
	return Space{Bytes: uint64(v.Used), Inodes: uint64(v.Files)}
}

// Disks measures what pods have on disks, now: one call of the runtime, and a walk
// through the volumes of each.
func (r *Reader) Disks(ctx context.Context, pods []*v1.Pod) (map[types.UID]Disk, error) {
	layers, err := r.layers(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[types.UID]Disk, len(pods))
	for _, p := range pods {
		d, err := r.disk(ctx, p)
		if err != nil {
			return nil, err
		}
		d.RootFS = layers[p.UID]
		out[p.UID] = d
	}
	return out, nil
}

// layers is what containers wrote, by pod and name.
func (r *Reader) layers(ctx context.Context) (map[types.UID]map[string]Space, error) {
	layers, err := r.o.Runtime.Layers(ctx)
	if err != nil {
		return nil, fmt.Errorf("measuring what containers wrote: %w", err)
	}
	out := map[types.UID]map[string]Space{}
	for id, l := range layers {
		known, ok := r.o.Runtime.Known(id)
		if !ok || known.Container == nil {
			continue
		}
		if out[known.UID] == nil {
			out[known.UID] = map[string]Space{}
		}
		name := known.Container.Name
		out[known.UID][name] = out[known.UID][name].plus(Space{Bytes: l.Bytes, Inodes: l.Inodes})
	}
	return out, nil
}

func (r *Reader) disk(ctx context.Context, p *v1.Pod) (d Disk, err error) {
	d.At = r.o.Clock()
	if d.Volumes, err = r.o.Volumes.Usage(ctx, p.UID); err != nil {
		return d, err
	}
	if d.Claims, err = r.claims(p); err != nil {
		return d, err
	}
	own, err := r.o.OwnFiles(p.UID)
	if err != nil {
		return d, err
	}
	d.Own.Bytes = uint64(own)
	d.Logs, err = logs(filepath.Join(r.o.PodLogDir, p.Namespace+"_"+p.Name+"_"+string(p.UID)))
	return d, err
}

// claims looks at the file systems of a pod's PersistentVolumeClaims.
func (r *Reader) claims(p *v1.Pod) (map[string]Filesystem, error) {
	if !slices.ContainsFunc(p.Spec.Volumes, func(v v1.Volume) bool { return pod.ClaimOf(p, v.Name) != "" }) {
		return nil, nil
	}
	list, err := r.o.Volumes.Of(p.UID)
	if err != nil {
		return nil, err
	}
	out := map[string]Filesystem{}
	for _, v := range list {
		if pod.ClaimOf(p, v.Name) == "" || r.onNetwork(v.Path) {
			continue
		}
		// One that was taken away meanwhile is left out.
		if f, err := r.filesystem(v.Path); err == nil {
			out[v.Name] = f
		}
	}
	return out, nil
}

// logs measures the folders of a pod's log folder: there is one for each container.
func logs(dir string) (map[string]Space, error) {
	out := map[string]Space{}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil // nothing has run yet
	}
	if err != nil {
		return nil, fmt.Errorf("measuring logs: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // removed meanwhile
		}
		var s Space
		for _, f := range files {
			info, err := f.Info()
			if err != nil {
				continue
			}
			s.Inodes++
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				s.Bytes += uint64(st.Blocks) * 512
			}
		}
		out[e.Name()] = s
	}
	return out, nil
}

// NodeFS is the file system that pods fill through volumes, logs and the agent's
// files.
func (r *Reader) NodeFS() (Filesystem, error) { return r.filesystem(r.o.StateDir) }

// ImageFS are the file systems with the images and with what containers write;
// mostly one and the same, and often the node's. Used is what the runtime takes of it.
type ImageFS struct {
	Images, Containers Filesystem
	// ImageSpace and ContainerSpace are what the runtime has there.
	ImageSpace, ContainerSpace Space
}

// ImageFS asks the runtime; one call.
func (r *Reader) ImageFS(ctx context.Context) (out ImageFS, err error) {
	images, containers, err := r.o.Runtime.ImageFilesystems(ctx)
	if err != nil {
		return out, err
	}
	if out.Images, out.ImageSpace, err = r.sum(images); err != nil {
		return out, err
	}
	out.Containers, out.ContainerSpace, err = r.sum(containers)
	return out, err
}

func (r *Reader) sum(list []runtime.Filesystem) (f Filesystem, s Space, err error) {
	if len(list) == 0 || list[0].Path == "" {
		return f, s, errors.New("the runtime does not tell where its images are")
	}
	for _, l := range list {
		s = s.plus(Space{Bytes: l.Bytes, Inodes: l.Inodes})
	}
	f, err = r.filesystem(list[0].Path)
	return f, s, err
}

func (r *Reader) filesystem(path string) (Filesystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Filesystem{}, fmt.Errorf("measuring the file system of %s: %w", path, err)
	}
	unit := uint64(st.Frsize)
	return Filesystem{
		Device: r.mountSource(path), Time: r.o.Clock(), Path: path,
		Capacity: st.Blocks * unit, Available: st.Bavail * unit, Used: (st.Blocks - st.Bfree) * unit,
		Inodes: st.Files, InodesFree: st.Ffree, InodesUsed: st.Files - st.Ffree,
	}, nil
}
