package volumes

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// local binds a folder of the node, so that a pod that is gone leaves no claim
// on it. The fsGroup gets it, unless another pod has it already.
func (k claims) local(r Request, src *v1.LocalVolumeSource, options []string, readOnly bool) error {
	if !absolute(src.Path) {
		return errdefs.Errorf(errdefs.ErrInvalid, "path %q must be absolute and without \"..\"", src.Path)
	}
	for _, o := range options {
		if _, ok := flagOptions[o]; !ok || o == "bind" || o == "rbind" || o == "remount" {
			return errdefs.Errorf(errdefs.ErrInvalid, "mount option %q is not one that a folder can be bound with", o)
		}
	}
	fd, err := unix.Open(src.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return errdefs.Errorf(errdefs.ErrTransient, "local volume %s: %w", src.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errdefs.Errorf(errdefs.ErrTransient, "local volume %s: %w", src.Path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFBLK:
		return errdefs.Errorf(errdefs.ErrInvalid, "local volume %s is a block device: mount it and name the folder, or claim it with volumeMode Block", src.Path)
	default:
		return errdefs.Errorf(errdefs.ErrTransient, "local volume %s is not a directory", src.Path)
	}
	mounted, err := isMount(r.Folder, r.Volume.Name)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if g := groupOf(r.Pod, false); g != nil && !readOnly && !mounted {
		if err := k.give(g, r, fd, &st); err != nil {
			return err
		}
	}
	target, err := makeDirAt(r.Folder.fd, r.Volume.Name, 0o750)
	if err != nil {
		return fmt.Errorf("making the mount point: %w", err)
	}
	defer unix.Close(target)
	if !mounted {
		if err := k.mounter.Mount(fdPath(fd), fdPath(target), "", []string{"bind"}); err != nil {
			return err
		}
	}
	if readOnly {
		options = append(slices.Clone(options), "ro")
	}
	if len(options) == 0 {
		return nil
	}
	// The first call takes no flags. It may be that only that one was made.
	return k.mounter.Mount("", filepath.Join(fdPath(r.Folder.fd), r.Volume.Name), "", append([]string{"bind", "remount"}, options...))
}

// give makes a volume its group's before it is bound: a crash in between is
// taken up again. Policy OnRootMismatch believes the top folder.
func (k claims) give(g *group, r Request, fd int, st *unix.Stat_t) error {
	shared, err := k.elsewhere(r, st)
	if err != nil || shared {
		return err
	}
	policy := r.Pod.Spec.SecurityContext.FSGroupChangePolicy
	if policy != nil && *policy == v1.FSGroupChangeOnRootMismatch && g.has(fd) {
		return nil
	}
	return g.own(fd)
}

// elsewhere says that another pod has the folder mounted.
func (k claims) elsewhere(r Request, st *unix.Stat_t) (bool, error) {
	points, err := k.mounter.List()
	if err != nil {
		return false, err
	}
	pods, err := openRoot(k.podsDir)
	if err != nil {
		return false, err
	}
	defer pods.Close()
	for _, p := range points {
		rel := strings.Split(strings.TrimPrefix(p, pods.path+"/"), "/")
		if len(rel) != 4 || rel[1] != volumesDir || rel[0] == string(r.Pod.UID) {
			continue
		}
		var other unix.Stat_t
		if unix.Lstat(p, &other) == nil && other.Dev == st.Dev && other.Ino == st.Ino {
			return true, nil
		}
	}
	return false, nil
}

// absolute says that a path is, and does not go up.
func absolute(path string) bool {
	return filepath.IsAbs(path) && !slices.Contains(strings.Split(path, "/"), "..") && !strings.Contains(path, "\x00")
}
