package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// removePatience bounds Remove when the caller's context does not.
const removePatience = 10 * time.Second

var classes = []string{class(v1.PodQOSGuaranteed), class(v1.PodQOSBurstable), class(v1.PodQOSBestEffort)}

// Remove kills what still runs in the pod's cgroups and removes their folders
// in every tree, whatever QoS class they were made for. The caller has stopped
// the pod's containers: what is left are strays. Removing what is not there
// succeeds; a process that does not die in time is errdefs.ErrTransient.
func (m *Manager) Remove(ctx context.Context, uid types.UID) error {
	if uid == "" || strings.ContainsAny(string(uid), "/\x00") {
		return fmt.Errorf("cgroup of pod uid %q: the uid cannot name a folder: %w", uid, errdefs.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	burstable := false
	for _, class := range classes {
		chain := m.names.chain(class, podName(uid))
		found, err := m.removeChain(ctx, chain)
		if err != nil {
			return fmt.Errorf("removing cgroup %s: %w", m.names.parent(chain), err)
		}
		burstable = burstable || (found && class == classes[1])
	}
	if burstable {
		m.share(ctx, uid, 0)
	}
	m.shelter(ctx)
	return nil
}

// removeChain removes one pod's cgroup in every tree and says if there was one.
func (m *Manager) removeChain(ctx context.Context, chain []string) (found bool, err error) {
	var dirs []string
	for _, h := range m.trees {
		if dir := m.dir(h, chain); exists(dir) {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) == 0 {
		return false, nil
	}
	stopped := m.units == nil
	told := map[int]bool{}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		m.kill(dirs, told)
		if !stopped {
			// Stopping the slice removes systemd's own folders; the rest is ours.
			if err := m.units.Stop(ctx, m.names.parent(chain)); err != nil {
				return true, err
			}
			stopped = true
		}
		var busy error
		for _, dir := range dirs {
			busy = errors.Join(busy, m.rmTree(dir))
		}
		if busy == nil {
			return true, nil
		}
		if !errors.Is(busy, unix.EBUSY) {
			return true, busy
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return true, fmt.Errorf("%w (%w): %w", busy, ctx.Err(), errdefs.ErrTransient)
		}
	}
}

// rmTree removes a cgroup and those below it, deepest first.
func (m *Manager) rmTree(dir string) error {
	for _, sub := range subdirs(dir) {
		if err := m.rmTree(sub); err != nil {
			return err
		}
	}
	if err := m.kernel.Rmdir(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// subdirs lists child cgroups; a cgroup that is gone has none.
func subdirs(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out
}

// kill sends SIGKILL to every process in the folders and below. cgroup.kill
// (v2, kernel 5.14) reaches forks that race with us; without it the caller's
// loop does. told are the processes that were logged: on cgroup v1 one is found
// in every tree, and again until it has died.
func (m *Manager) kill(dirs []string, told map[int]bool) {
	for _, dir := range dirs {
		if err := m.kernel.Write(dir, "cgroup.kill", "1"); err == nil {
			continue
		}
		m.killTree(dir, filepath.Base(dir), told)
	}
}

func (m *Manager) killTree(dir, pod string, told map[int]bool) {
	if _, err := os.Lstat(filepath.Join(dir, "freezer.state")); err == nil {
		// A frozen process of cgroup v1 does not even die.
		if err := m.kernel.Write(dir, "freezer.state", "THAWED"); err != nil {
			m.log.Debug("thawing a pod's cgroup", "dir", dir, "err", err)
		}
	}
	procs, err := read(dir, "cgroup.procs")
	if err == nil {
		for _, text := range strings.Fields(procs) {
			if pid, err := strconv.Atoi(text); err == nil && pid > 1 && pid != os.Getpid() {
				m.killOne(pid, pod, told)
			}
		}
	}
	for _, sub := range subdirs(dir) {
		m.killTree(sub, pod, told)
	}
}

// killOne kills through a pidfd, after looking again that the process is in the
// pod's cgroup: between reading the list and now the number may have gone to
// somebody else.
func (m *Manager) killOne(pid int, pod string, told map[int]bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil { // before kernel 5.3
		fd = -1
	} else {
		defer unix.Close(fd)
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !inPod(string(groups), pod) {
		return
	}
	if !told[pid] {
		told[pid] = true
		m.log.Warn("killing a process that outlived its pod", "pid", pid, "cgroup", pod)
	}
	if fd >= 0 {
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	} else {
		err = unix.Kill(pid, unix.SIGKILL)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		m.log.Warn("a process that outlived its pod cannot be killed", "pid", pid, "err", err)
	}
}

// inPod looks for the pod's folder in the text of /proc/PID/cgroup.
func inPod(groups, pod string) bool {
	for line := range strings.Lines(groups) {
		if slices.Contains(strings.Split(strings.TrimSpace(line), "/"), pod) {
			return true
		}
	}
	return false
}

// Pods lists the pods that have a cgroup of ours in any tree, sorted.
func (m *Manager) Pods() ([]types.UID, error) {
	seen := map[types.UID]struct{}{}
	for _, h := range m.trees {
		for _, class := range classes {
			dir := m.dir(h, m.names.chain(class))
			entries, err := os.ReadDir(dir)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("listing the pods' cgroups: %w", err)
			}
			for _, e := range entries {
				uid, ok := m.names.uidOf(e.Name(), class)
				if ok && e.IsDir() && m.kernel.Marked(filepath.Join(dir, e.Name())) == m.owner {
					seen[uid] = struct{}{}
				}
			}
		}
	}
	out := make([]types.UID, 0, len(seen))
	for uid := range seen {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out, nil
}

// Cleanup removes the QoS parents, and Options.Root when we made it, as far as
// they are empty: with a pod in them, ours or another's, they stay.
func (m *Manager) Cleanup(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, class := range []string{classes[2], classes[1], ""} {
		chain := m.names.chain(class)
		if err := m.cleanupLevel(ctx, chain); err != nil {
			return err
		}
	}
	for i := len(m.names.root); i > 0; i-- {
		if err := m.cleanupLevel(ctx, m.names.root[:i]); err != nil {
			return err
		}
	}
	m.burstable, m.written = nil, 0
	return nil
}

func (m *Manager) cleanupLevel(ctx context.Context, chain []string) error {
	var mine, passive []string
	for _, h := range m.trees {
		dir := m.dir(h, chain)
		if !exists(dir) {
			continue
		}
		if len(subdirs(dir)) > 0 {
			return nil // in use
		}
		if procs, err := read(dir, "cgroup.procs"); err == nil && procs != "" {
			return nil
		}
		switch {
		case h.passive:
			passive = append(passive, dir)
		case m.kernel.Marked(dir) == m.owner:
			mine = append(mine, dir)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	// runc makes the passive tree's parents, without a mark: they are ours when
	// the others are.
	mine = append(mine, passive...)
	if m.units != nil {
		if err := m.units.Stop(ctx, m.names.parent(chain)); err != nil {
			return err
		}
	}
	for _, dir := range mine {
		err := m.kernel.Rmdir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("removing an empty cgroup: %w", err)
		}
	}
	return nil
}
