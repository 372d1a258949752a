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
	"github.com/nodeagent/nodeagent/pkg/probe"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/status"
)

// unready has probed what runs and has a readiness probe, also while the pod
// ends, and says by ID which of these containers are not ready.
func (w *worker) unready(p *v1.Pod, observed *runtime.Pod) map[string]bool {
	host := ""
	if ips := status.Addresses(p, observed, w.m.NodeIPs); len(ips) > 0 {
		host = ips[0]
	}
	var probed []probe.Container
	out := map[string]bool{}
	for i := range p.Spec.Containers {
		spec := &p.Spec.Containers[i]
		c := observed.Newest(spec.Name)
		if spec.ReadinessProbe == nil || c == nil || c.State != runtime.StateRunning {
			continue
		}
		if _, known := w.ready[c.ID]; !known {
			w.ready[c.ID] = w.m.wasReady(p.UID, c)
		}
		probed = append(probed, probe.Container{Spec: spec, ID: c.ID, Host: host, Started: c.StartedAt, Ready: w.ready[c.ID]})
		out[c.ID] = true
	}
	w.probes.Update(p, probed)
	for id := range w.ready {
		if !out[id] {
			delete(w.ready, id)
		}
	}
	for _, c := range probed {
		out[c.ID] = !w.probes.Ready(c.ID)
		w.noteReady(p, observed.Newest(c.Spec.Name), !out[c.ID])
	}
	return out
}

// noteReady notes down what the next agent has to know: a pod that is ready
// stays so when the agent is restarted, and one that is not does not become it.
func (w *worker) noteReady(p *v1.Pod, c *runtime.Container, ready bool) {
	if w.ready[c.ID] == ready {
		return
	}
	if err := w.m.setReady(p.UID, c, ready); err != nil {
		w.m.Log.Warn("cannot note down whether a container is ready; the next agent may get it wrong",
			"pod", pod.Describe(p), "container", c.Name, "err", err)
	}
	w.ready[c.ID] = ready
}

// readyFile is there while the readiness probe of a container holds. An empty
// file comes and goes in one step.
func (m *Manager) readyFile(uid types.UID, container string, attempt uint32) string {
	return filepath.Join(m.podDir(uid), "containers", container, strconv.Itoa(int(attempt))+".ready")
}

func (m *Manager) wasReady(uid types.UID, c *runtime.Container) bool {
	_, err := os.Lstat(m.readyFile(uid, c.Name, c.Attempt))
	return err == nil
}

func (m *Manager) setReady(uid types.UID, c *runtime.Container, ready bool) error {
	path := m.readyFile(uid, c.Name, c.Attempt)
	if !ready {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("container %s is unready: %w", c.Name, err)
		}
		return nil
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, nil, 0o644)
	}
	if err != nil {
		return fmt.Errorf("container %s is ready: %w", c.Name, err)
	}
	return nil
}
