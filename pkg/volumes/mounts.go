package volumes

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	podpkg "github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// MountOptions are what the mounts of one container depend on besides its
// volumes.
type MountOptions struct {
	// Env looks up the container's environment, for subPathExpr.
	Env func(name string) (string, bool)
	// Images are the references of image volumes as the runtime knows them, by
	// volume name.
	Images map[string]string
	// RecursiveReadOnly says that the container's runtime handler can make a
	// mount read-only with all that is mounted below it.
	RecursiveReadOnly bool
}

// ContainerMounts turns a container's volumeMounts into binds, in the spec's
// order; it binds subPaths to a place of their own first. mounted is what SetUp
// returned.
func (m *Manager) ContainerMounts(ctx context.Context, pod *v1.Pod, c *v1.Container, mounted map[string]Mounted, o MountOptions) ([]runtime.Mount, error) {
	var out []runtime.Mount
	seen := map[string]string{}
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		mount, err := containerMount(pod, c, vm, mounted, o)
		if err == nil && mount.subPath != "" && mount.Image == "" {
			mount.HostPath, err = m.subPath(ctx, pod, c, i, mounted[vm.Name], mount.subPath)
		}
		if other, twice := seen[mount.ContainerPath]; twice && err == nil {
			err = errdefs.Errorf(errdefs.ErrInvalid, "mountPath %s is already taken by volume %q", mount.ContainerPath, other)
		}
		if err != nil {
			return nil, fmt.Errorf("container %q of pod %s, volumeMount %q: %w", c.Name, podpkg.Describe(pod), vm.Name, err)
		}
		seen[mount.ContainerPath] = vm.Name
		out = append(out, mount.Mount)
	}
	return out, nil
}

// Devices are the block devices of the container's volumeDevices, as HOST:CONTAINER:rwm.
func Devices(pod *v1.Pod, c *v1.Container, mounted map[string]Mounted) ([]string, error) {
	var out []string
	for i := range c.VolumeDevices {
		d := &c.VolumeDevices[i]
		v, ok := mounted[d.Name]
		if !ok || !v.Block {
			return nil, errdefs.Errorf(errdefs.ErrInvalid, "container %q of pod %s, volumeDevice %q: the volume is no block device", c.Name, podpkg.Describe(pod), d.Name)
		}
		permissions := "rwm"
		if v.ReadOnly {
			permissions = "rm"
		}
		out = append(out, v.HostPath+":"+d.DevicePath+":"+permissions)
	}
	return out, nil
}

// bind is a mount whose subPath is yet to be found.
type bind struct {
	runtime.Mount
	subPath string
}

// containerMount is the pure part of ContainerMounts for one volumeMount.
func containerMount(pod *v1.Pod, c *v1.Container, vm *v1.VolumeMount, mounted map[string]Mounted, o MountOptions) (b bind, err error) {
	v, ok := mounted[vm.Name]
	if !ok {
		if !slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool { return v.Name == vm.Name }) {
			return b, errdefs.Errorf(errdefs.ErrInvalid, "spec.volumes has no such volume")
		}
		return b, errdefs.Errorf(errdefs.ErrTransient, "the volume is not set up")
	}
	if v.Block {
		return b, errdefs.Errorf(errdefs.ErrInvalid, "volume %s has volumeMode Block, but is specified in volumeMounts", vm.Name)
	}
	b.Mount = runtime.Mount{Name: vm.Name, HostPath: v.HostPath, ReadOnly: vm.ReadOnly || v.ReadOnly, SELinux: v.Relabel}
	if b.ContainerPath, err = containerPath(vm.MountPath); err != nil {
		return b, err
	}
	if b.Propagation, err = propagationOf(c, vm); err != nil {
		return b, err
	}
	if b.RecursiveReadOnly, err = recursiveReadOnly(vm, o.RecursiveReadOnly); err != nil {
		return b, err
	}
	if b.subPath, err = subPathOf(vm, o.Env); err != nil {
		return b, err
	}
	if v.Image {
		if b.Image = o.Images[vm.Name]; b.Image == "" {
			return b, errdefs.Errorf(errdefs.ErrTransient, "the image of the volume is not there yet")
		}
		b.ImageSubPath = b.subPath
	}
	return b, nil
}

// containerPath cleans a mountPath; a relative one starts at "/", as with kubelet.
func containerPath(p string) (string, error) {
	if p == "" || strings.Contains(p, ":") || slices.Contains(strings.Split(p, "/"), "..") {
		return "", errdefs.Errorf(errdefs.ErrInvalid, "mountPath %q must not be empty, hold \":\" or \"..\"", p)
	}
	return filepath.Clean("/" + p), nil
}

// propagationOf checks what validation has checked before, because the runtime
// would give any container the host's mounts.
func propagationOf(c *v1.Container, vm *v1.VolumeMount) (string, error) {
	if vm.MountPropagation == nil {
		return string(v1.MountPropagationNone), nil
	}
	switch p := *vm.MountPropagation; p {
	case v1.MountPropagationNone, v1.MountPropagationHostToContainer:
		return string(p), nil
	case v1.MountPropagationBidirectional:
		if c.SecurityContext == nil || c.SecurityContext.Privileged == nil || !*c.SecurityContext.Privileged {
			return "", errdefs.Errorf(errdefs.ErrInvalid, "mountPropagation Bidirectional needs a privileged container")
		}
		return string(p), nil
	default:
		return "", errdefs.Errorf(errdefs.ErrInvalid, "mountPropagation %q is not known", p)
	}
}

// recursiveReadOnly decides whether a read-only mount is read-only with all
// that is mounted below it.
func recursiveReadOnly(vm *v1.VolumeMount, able bool) (bool, error) {
	if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	switch how := *vm.RecursiveReadOnly; {
	case !vm.ReadOnly:
		return false, errdefs.Errorf(errdefs.ErrInvalid, "volume %q requested recursive read-only mode, but it is not read-only", vm.Name)
	case vm.MountPropagation != nil && *vm.MountPropagation != v1.MountPropagationNone:
		return false, errdefs.Errorf(errdefs.ErrInvalid, "volume %q requested recursive read-only mode, but it is not compatible with propagation %q", vm.Name, *vm.MountPropagation)
	case how == v1.RecursiveReadOnlyIfPossible:
		return able, nil
	case how != v1.RecursiveReadOnlyEnabled:
		return false, errdefs.Errorf(errdefs.ErrInvalid, "recursiveReadOnly %q is not known", how)
	case !able:
		return false, errdefs.Errorf(errdefs.ErrInvalid, "volume %q requested recursive read-only mode, but it is not supported by the runtime", vm.Name)
	}
	return true, nil
}

// subPathOf is the part of the volume that is mounted; empty: all of it.
func subPathOf(vm *v1.VolumeMount, env func(string) (string, bool)) (string, error) {
	path := vm.SubPath
	if vm.SubPathExpr != "" {
		var missing []string
		path = podpkg.Expand(vm.SubPathExpr, func(name string) (string, bool) {
			value, ok := "", false
			if env != nil {
				value, ok = env(name)
			}
			if !ok || value == "" {
				missing = append(missing, name)
			}
			return value, true
		})
		if len(missing) > 0 {
			slices.Sort(missing)
			return "", errdefs.Errorf(errdefs.ErrInvalid, "missing value for %s", strings.Join(slices.Compact(missing), ", "))
		}
	}
	if path == "" {
		return "", nil
	}
	if filepath.IsAbs(path) || strings.Contains(path, "\x00") {
		return "", errdefs.Errorf(errdefs.ErrInvalid, "error SubPath `%s` must not be an absolute path", path)
	}
	if slices.Contains(strings.Split(path, "/"), "..") {
		return "", errdefs.Errorf(errdefs.ErrInvalid, "unable to provision SubPath `%s`: must not contain '..'", path)
	}
	return filepath.Clean(path), nil
}
