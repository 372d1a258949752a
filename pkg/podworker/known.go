package podworker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/probe"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
)

// note is something about a container that only an agent knows. An empty file
// beside the container's termination message tells the next one.
type note string

// The notes: its probes hold, its hooks have ended well.
const (
	noteReady   note = "ready"
	noteStarted note = "started"
	noteHooked  note = "hooked"
	noteStopped note = "stopped"
)

var allNotes = []note{noteReady, noteStarted, noteHooked, noteStopped}

// notes are those that hold of one container.
type notes map[note]bool

// judge has probed what runs and has started in full, also while the pod ends,
// and says by ID what hooks and probes have come to.
func (w *worker) judge(p *v1.Pod, observed *runtime.Pod) map[string]lifecycle.Known {
	host := ""
	if ips := status.Addresses(p, observed, w.m.NodeIPs); len(ips) > 0 {
		host = ips[0]
	}
	var probed []probe.Container
	out, running := map[string]lifecycle.Known{}, map[string]bool{}
	for i := range observed.Containers {
		c := &observed.Containers[i]
		spec, _, ok := pod.Container(p, c.Name)
		if !ok || observed.Newest(c.Name) != c {
			continue
		}
		if c.State == runtime.StateExited {
			out[c.ID] = lifecycle.Known{Applied: w.applied(p.UID, c, spec)}
		}
		if c.State != runtime.StateRunning {
			continue
		}
		running[c.ID] = true
		known := w.hooksOf(p, spec, c)
		known.Applied = w.applied(p.UID, c, spec)
		if probe.Probed(spec) && known.Hooked && known.Failed == "" {
			n := w.notesOf(p.UID, c)
			probed = append(probed, probe.Container{Spec: spec, ID: c.ID, Host: host, Began: c.StartedAt,
				Known: probe.Result{Started: n[noteStarted], Ready: n[noteReady]}})
		}
		known.Started = known.Hooked && !probe.Probed(spec)
		known.Ready = known.Started
		out[c.ID] = known
	}
	w.probes.Update(p, probed)
	for _, c := range probed {
		known, r := out[c.ID], w.probes.Result(c.ID)
		known.Started, known.Ready = r.Started, r.Ready
		switch r.Failed {
		case probe.Startup:
			known.Failed = lifecycle.FailedStartup
		case probe.Liveness:
			known.Failed = lifecycle.FailedLiveness
		}
		out[c.ID] = known
		w.noteDown(p, observed.Newest(c.Spec.Name), noteStarted, known.Started)
		w.noteDown(p, observed.Newest(c.Spec.Name), noteReady, known.Ready)
	}
	w.forgetEnded(running)
	return out
}

// forgetEnded ends what goes on for containers that do not run any more.
func (w *worker) forgetEnded(running map[string]bool) {
	for id := range w.notes {
		if !running[id] {
			delete(w.notes, id)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, h := range w.hooks {
		if !running[id.container] {
			h.cancel()
			delete(w.hooks, id)
		}
	}
}

// notesOf reads, once, what an earlier agent has noted down.
func (w *worker) notesOf(uid types.UID, c *runtime.Container) notes {
	if w.notes[c.ID] == nil {
		w.notes[c.ID] = notes{}
		for _, n := range allNotes {
			_, err := os.Lstat(w.m.noteFile(uid, c, n))
			w.notes[c.ID][n] = err == nil
		}
	}
	return w.notes[c.ID]
}

// noteDown notes down what the next agent has to know: a pod that is ready stays
// so when the agent is restarted, and one that is not does not become it.
func (w *worker) noteDown(p *v1.Pod, c *runtime.Container, n note, holds bool) {
	if w.notesOf(p.UID, c)[n] == holds {
		return
	}
	if err := w.m.setNote(p.UID, c, n, holds); err != nil {
		w.m.Log.Warn("cannot note down what is known of a container; the next agent may get it wrong", "pod", pod.Describe(p), "err", err)
	}
	w.notes[c.ID][n] = holds
}

// noteFile is there while a note holds. An empty file comes and goes in one step.
func (m *Manager) noteFile(uid types.UID, c *runtime.Container, n note) string {
	return filepath.Join(m.podDir(uid), "containers", c.Name, strconv.Itoa(int(c.Attempt))+"."+string(n))
}

// clearNotes forgets what is noted down of a container that is about to be made:
// a runtime that has lost everything begins to count anew.
func (m *Manager) clearNotes(uid types.UID, container string, attempt uint32) error {
	for _, n := range allNotes {
		if err := m.setNote(uid, &runtime.Container{Name: container, Attempt: attempt}, n, false); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) setNote(uid types.UID, c *runtime.Container, n note, holds bool) error {
	path := m.noteFile(uid, c, n)
	if !holds {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("container %s is not %s: %w", c.Name, n, err)
		}
		return nil
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, nil, 0o644)
	}
	if err != nil {
		return fmt.Errorf("container %s is %s: %w", c.Name, n, err)
	}
	return nil
}
