package volumes

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// emptyDir is a folder that lives as long as the pod: on the node's disk, in
// memory (tmpfs) or in huge pages (hugetlbfs).
//
// A sizeLimit is the size of a tmpfs. On disk it is only measured (Manager.Usage):
// the agent evicts a pod that exceeds it.
type emptyDir struct{ mounter Mounter }

func (emptyDir) Name() string                           { return "emptyDir" }
func (emptyDir) Plugin() string                         { return "kubernetes.io~empty-dir" }
func (emptyDir) Handles(v *v1.Volume) bool              { return v.EmptyDir != nil }
func (emptyDir) TearDown(context.Context, Record) error { return nil }

func (emptyDir) Record(v *v1.Volume) Record {
	r := Record{Medium: string(v.EmptyDir.Medium)}
	if v.EmptyDir.SizeLimit != nil {
		r.Limit = v.EmptyDir.SizeLimit.Value()
	}
	return r
}

func (e emptyDir) SetUp(_ context.Context, r Request) (Mounted, error) {
	src := r.Volume.EmptyDir
	var err error
	switch {
	case src.Medium == v1.StorageMediumDefault:
		err = e.disk(r)
	case src.Medium == v1.StorageMediumMemory:
		err = e.memory(r, tmpfsSize(r.Pod, src))
	case src.Medium == v1.StorageMediumHugePages, strings.HasPrefix(string(src.Medium), string(v1.StorageMediumHugePagesPrefix)):
		err = e.hugePages(r)
	default:
		err = errdefs.Errorf(errdefs.ErrInvalid, "medium %q is not known; use \"\", Memory or HugePages", src.Medium)
	}
	if err != nil {
		return Mounted{}, err
	}
	return Mounted{
		Name: r.Volume.Name, Kind: e.Name(), HostPath: filepath.Join(r.Folder.Path(), r.Volume.Name), Relabel: true,
	}, nil
}

// openMode is the mode of a volume's folder: everybody may write, because
// containers run as users that we do not know.
const openMode = 0o777

// owner is the group that the pod asked for, if any, and the mode that goes
// with it.
func owner(p *v1.Pod, mode uint32) (gid int, _ uint32) {
	if g := groupOf(p, false); g != nil {
		return g.gid, mode | g.bits(true)
	}
	return 0, mode
}

// disk makes the folder under another name and renames it when its mode is
// right: what has the final name is ready, and belongs to the pod, which may
// have changed its mode since.
func (e emptyDir) disk(r Request) error {
	name := r.Volume.Name
	st, err := r.Folder.lstat(name)
	if err == nil {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return errdefs.Errorf(errdefs.ErrInvalid, "%s is not a folder; remove it", filepath.Join(r.Folder.Path(), name))
		}
		return nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	tmp := "." + name
	if err := unix.Mkdirat(r.Folder.fd, tmp, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making the folder: %w", err)
	}
	fd, err := r.Folder.open(tmp, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, sameMount)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	gid, mode := owner(r.Pod, openMode)
	// chown drops the set-group-id bit, so the mode comes last.
	if err := unix.Fchown(fd, 0, gid); err != nil {
		return fmt.Errorf("giving the folder to group %d: %w", gid, err)
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return fmt.Errorf("opening the folder to the containers' users: %w", err)
	}
	if err := unix.Renameat(r.Folder.fd, tmp, r.Folder.fd, name); err != nil {
		return fmt.Errorf("naming the folder: %w", err)
	}
	return nil
}

// memory mounts a tmpfs of a size in bytes, 0 being half of the node's memory.
// Its mode is sticky, as with kubelet: nobody removes another user's files.
func (e emptyDir) memory(r Request, size int64) error {
	gid, mode := owner(r.Pod, unix.S_ISVTX|openMode)
	options := []string{fmt.Sprintf("mode=%o", mode), fmt.Sprintf("gid=%d", gid)}
	if size > 0 {
		options = append(options, fmt.Sprintf("size=%d", size))
	} else {
		options = append(options, "size=50%")
	}
	return mountOnce(r, unix.TMPFS_MAGIC, func(target string) error {
		// What is in memory may be a secret: keep it out of swap where the
		// kernel can (6.4).
		err := e.mounter.Mount("tmpfs", target, "tmpfs", append(options, "noswap"))
		if errors.Is(err, unix.EINVAL) {
			err = e.mounter.Mount("tmpfs", target, "tmpfs", options)
		}
		return err
	})
}

// tmpfsSize is the smaller of the volume's limit and the pod's memory limit,
// which its content counts against; 0 when neither is set. In bytes.
func tmpfsSize(p *v1.Pod, src *v1.EmptyDirVolumeSource) int64 {
	size := podMemory(p)
	if src.SizeLimit != nil && src.SizeLimit.Value() > 0 && (size == 0 || src.SizeLimit.Value() < size) {
		size = src.SizeLimit.Value()
	}
	return size
}

// podMemory is the pod's memory limit in bytes: the pod's own, or the sum of
// its containers' when each has one; else 0. Init containers that have ended
// give nothing back to the volume, so they do not count.
func podMemory(p *v1.Pod) int64 {
	if p.Spec.Resources != nil && !p.Spec.Resources.Limits.Memory().IsZero() {
		return p.Spec.Resources.Limits.Memory().Value()
	}
	sum := resource.Quantity{}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.Resources.Limits.Memory().IsZero() {
			return 0
		}
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			sum.Add(*c.Resources.Limits.Memory())
		}
	}
	for i := range p.Spec.Containers {
		limit := p.Spec.Containers[i].Resources.Limits.Memory()
		if limit.IsZero() {
			return 0
		}
		sum.Add(*limit)
	}
	return sum.Value()
}

func (e emptyDir) hugePages(r Request) error {
	size, err := pageSize(r.Pod, r.Volume.EmptyDir.Medium)
	if err != nil {
		return err
	}
	gid, mode := owner(r.Pod, openMode)
	options := []string{fmt.Sprintf("pagesize=%d", size), fmt.Sprintf("mode=%o", mode), fmt.Sprintf("gid=%d", gid)}
	if l := r.Volume.EmptyDir.SizeLimit; l != nil && l.Value() > 0 {
		options = append(options, fmt.Sprintf("size=%d", l.Value()))
	}
	return mountOnce(r, unix.HUGETLBFS_MAGIC, func(target string) error {
		return e.mounter.Mount("nodev", target, "hugetlbfs", options)
	})
}

// pageSize is named by the medium (HugePages-2Mi), or by what the containers
// ask for when that is one size. In bytes.
func pageSize(p *v1.Pod, medium v1.StorageMedium) (int64, error) {
	if text, ok := strings.CutPrefix(string(medium), string(v1.StorageMediumHugePagesPrefix)); ok {
		q, err := resource.ParseQuantity(text)
		if err != nil || q.Value() <= 0 {
			return 0, errdefs.Errorf(errdefs.ErrInvalid, "medium %q names no page size, as in HugePages-2Mi", medium)
		}
		return q.Value(), nil
	}
	sizes := map[int64]struct{}{}
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for name := range list[i].Resources.Requests {
				text, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
				if q, err := resource.ParseQuantity(text); ok && err == nil {
					sizes[q.Value()] = struct{}{}
				}
			}
		}
	}
	if len(sizes) != 1 {
		return 0, errdefs.Errorf(errdefs.ErrInvalid, "medium HugePages: the containers request %d page sizes; request one, or name one as in HugePages-2Mi", len(sizes))
	}
	for size := range sizes {
		return size, nil
	}
	return 0, nil
}
