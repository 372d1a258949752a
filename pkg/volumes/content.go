package volumes

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Objects are what volumes are made of. An object that does not exist is
// errdefs.ErrNotFound; what is returned is never changed.
type Objects interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
	PersistentVolumeClaim(namespace, name string) (*v1.PersistentVolumeClaim, error)
	PersistentVolume(name string) (*v1.PersistentVolume, error)
}

// noObjects is for a node that nobody gives any.
type noObjects struct{}

func (noObjects) ConfigMap(string, string) (*v1.ConfigMap, error) { return nil, errdefs.ErrNotFound }
func (noObjects) Secret(string, string) (*v1.Secret, error)       { return nil, errdefs.ErrNotFound }
func (noObjects) PersistentVolume(string) (*v1.PersistentVolume, error) {
	return nil, errdefs.ErrNotFound
}

func (noObjects) PersistentVolumeClaim(string, string) (*v1.PersistentVolumeClaim, error) {
	return nil, errdefs.ErrNotFound
}

// content is what the kinds have in common whose files the agent writes. Their
// mounts are read-only, and a change swaps all files at once.
type content struct {
	mounter     Mounter
	objects     Objects
	allocatable func() v1.ResourceList
	clock       func() time.Time
}

func (content) follows()                               {}
func (content) TearDown(context.Context, Record) error { return nil }

// fill makes the volume's folder, in memory or on disk, and puts the files into
// it. Nothing is made when there is an error in what they come from.
func (c content) fill(r Request, kind string, medium v1.StorageMedium, files payload, err error) (Mounted, error) {
	if err != nil {
		return Mounted{}, err
	}
	dir := emptyDir{mounter: c.mounter}
	if medium == v1.StorageMediumMemory {
		err = dir.memory(r, 0)
	} else {
		err = dir.disk(r)
	}
	if err != nil {
		return Mounted{}, err
	}
	fd, err := r.Folder.open(r.Volume.Name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, inside)
	if err != nil {
		return Mounted{}, err
	}
	f := &Folder{fd: fd, path: filepath.Join(r.Folder.path, r.Volume.Name)}
	defer f.Close()
	if err := f.mountPoints(nested(r.Pod, r.Volume.Name)); err != nil {
		return Mounted{}, err
	}
	if err := f.project(files, groupOf(r.Pod, true), c.clock()); err != nil {
		return Mounted{}, err
	}
	return Mounted{Name: r.Volume.Name, Kind: kind, HostPath: f.path, ReadOnly: true, Relabel: true}, nil
}

// written is a volume that fill has made before; folder is <pod>/volumes.
func written(folder *Folder, kind Kind, v *v1.Volume) Mounted {
	return Mounted{Name: v.Name, Kind: kind.Name(), HostPath: filepath.Join(folder.path, kind.Plugin(), v.Name), ReadOnly: true, Relabel: true}
}

// nested are the places within the volume where other volumes of the pod are
// mounted: the runtime cannot make them, the mount being read-only.
func nested(p *v1.Pod, volume string) (out []string) {
	for c := range containers(p) {
		for _, outer := range c.VolumeMounts {
			if outer.Name != volume || outer.SubPath != "" || outer.SubPathExpr != "" {
				continue
			}
			for _, inner := range c.VolumeMounts {
				rel, err := filepath.Rel(filepath.Clean("/"+outer.MountPath), filepath.Clean("/"+inner.MountPath))
				if err == nil && inner.Name != volume && rel != "." && !strings.HasPrefix(rel, "..") {
					out = append(out, rel)
				}
			}
		}
	}
	return out
}

// mountPoints makes folders, one below the other.
func (f *Folder) mountPoints(paths []string) error {
	for _, p := range paths {
		dir, err := f.makeDirs(p, 0o755)
		if err != nil {
			return fmt.Errorf("making the mount point of another volume: %w", err)
		}
		if err := unix.Close(dir); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs opens a folder below this one and makes what is missing of the way;
// it follows no link. What it makes has the given mode, whatever the umask.
func (f *Folder) makeDirs(rel string, mode uint32) (fd int, err error) {
	fd, err = unix.Openat(f.fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if rel == "." {
		return fd, nil
	}
	for _, name := range strings.Split(filepath.Clean(rel), "/") {
		next, err := makeDirAt(fd, name, mode)
		err = errors.Join(err, unix.Close(fd))
		if err != nil {
			return -1, fmt.Errorf("%s: %w", filepath.Join(f.path, rel), err)
		}
		fd = next
	}
	return fd, nil
}

// makeDirAt opens a folder and makes it when it is not there.
func makeDirAt(dir int, name string, mode uint32) (int, error) {
	if err := checkName(name); err != nil {
		return -1, err
	}
	made := unix.Mkdirat(dir, name, mode&0o777)
	if made != nil && !errors.Is(made, unix.EEXIST) {
		return -1, made
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil && made == nil {
		if err = chmod(fd, mode); err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return fd, err
}

// notFound is how kubelet says that an object is missing.
func notFound(kind, name string, err error) error {
	if errors.Is(err, errdefs.ErrNotFound) {
		return errdefs.Errorf(errdefs.ErrNotFound, "%s %q not found", kind, name)
	}
	return err
}
