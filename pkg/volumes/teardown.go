package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// TearDown unmounts all that is mounted below <PodsDir>/<uid>/volumes, also
// what containers mounted there, and what is bound from there, and removes both
// folders. The pod's containers
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
	pods, err := openRoot(m.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pods.Close()
	pod, err := pods.sub(string(uid), false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pod.Close()
	// What is bound from volumes first.
	for _, dir := range []string{subPathsDir, volumesDir} {
		if err := m.tearDownFolder(ctx, pod, dir); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) tearDownFolder(ctx context.Context, pod *Folder, dir string) error {
	folder, err := pod.sub(dir, false)
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
		if dir != volumesDir {
			break
		}
		if err := m.tearDownPlugin(ctx, folder, plugin); err != nil {
			return err
		}
	}
	return pod.remove(dir)
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
		for _, dir := range []string{volumesDir, subPathsDir} {
			if st, err := pods.lstat(filepath.Join(name, dir)); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				seen[types.UID(name)] = struct{}{}
			}
		}
	}
	points, err := m.mountsBelow(pods.path)
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		rel := strings.Split(strings.TrimPrefix(p, pods.path+"/"), "/")
		if len(rel) > 2 && (rel[1] == volumesDir || rel[1] == subPathsDir) {
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
