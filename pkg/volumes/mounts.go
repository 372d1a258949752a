package volumes

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	podpkg "github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// ContainerMounts turns a container's volumeMounts into binds, in the spec's
// order. mounted is what SetUp returned. It is pure.
func ContainerMounts(pod *v1.Pod, c *v1.Container, mounted map[string]Mounted) ([]runtime.Mount, error) {
	fail := func(vm *v1.VolumeMount, format string, args ...any) error {
		return fmt.Errorf("container %q of pod %s, volumeMount %q: "+format, append([]any{c.Name, podpkg.Describe(pod), vm.Name}, args...)...)
	}
	if len(c.VolumeDevices) > 0 {
		return nil, errdefs.Errorf(errdefs.ErrInvalid, "container %q of pod %s: volumeDevices are not supported", c.Name, podpkg.Describe(pod))
	}
	var out []runtime.Mount
	seen := map[string]string{}
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		if vm.SubPath != "" || vm.SubPathExpr != "" {
			return nil, fail(vm, "subPath is not supported: %w", errdefs.ErrInvalid)
		}
		if vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly == v1.RecursiveReadOnlyEnabled {
			return nil, fail(vm, "recursiveReadOnly: Enabled is not supported: %w", errdefs.ErrInvalid)
		}
		v, ok := mounted[vm.Name]
		if !ok {
			if !slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool { return v.Name == vm.Name }) {
				return nil, fail(vm, "spec.volumes has no such volume: %w", errdefs.ErrInvalid)
			}
			return nil, fail(vm, "the volume is not set up: %w", errdefs.ErrTransient)
		}
		path, err := containerPath(vm.MountPath)
		if err != nil {
			return nil, fail(vm, "%w", err)
		}
		if other, twice := seen[path]; twice {
			return nil, fail(vm, "mountPath %s is already taken by volume %q: %w", path, other, errdefs.ErrInvalid)
		}
		seen[path] = vm.Name
		propagation, err := propagationOf(c, vm)
		if err != nil {
			return nil, fail(vm, "%w", err)
		}
		out = append(out, runtime.Mount{
			Name:          vm.Name,
			HostPath:      v.HostPath,
			ContainerPath: path,
			ReadOnly:      vm.ReadOnly || v.ReadOnly,
			Propagation:   propagation,
			SELinux:       v.Relabel,
		})
	}
	return out, nil
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
