package podworker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// resourcesFile says what resources a container was last given: not every
// runtime tells.
func (m *Manager) resourcesFile(uid types.UID, container string, attempt uint32) string {
	return filepath.Join(m.podDir(uid), "containers", container, strconv.Itoa(int(attempt))+".resources")
}

// noteGiven notes it down, before the container is made and after it was resized.
func (m *Manager) noteGiven(uid types.UID, container string, attempt uint32, r *v1.ResourceRequirements) error {
	path := m.resourcesFile(uid, container, attempt)
	data, err := json.Marshal(r)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, data, 0o600) // half a file says nothing, as none does
	}
	if err != nil {
		return fmt.Errorf("cannot note down the resources of container %s: %w", container, err)
	}
	return nil
}

// applied is what resources a container was last given. One of an agent that
// noted nothing down has those of its spec.
func (w *worker) applied(uid types.UID, c *runtime.Container, spec *v1.Container) *v1.ResourceRequirements {
	if r := w.given[c.ID]; r != nil {
		return r
	}
	r := &v1.ResourceRequirements{}
	data, err := os.ReadFile(w.m.resourcesFile(uid, c.Name, c.Attempt))
	if err != nil || json.Unmarshal(data, r) != nil {
		r = spec.Resources.DeepCopy()
	}
	w.given[c.ID] = r
	return r
}

// resize gives a container the CPU and memory of its spec. The pod's cgroup is
// first made wider, if it has to be, and in the end not wider than it has to be:
// the kernel takes no quota of a container that exceeds its pod's.
func (s *turn) resize(ctx context.Context, p *v1.Pod, observed *runtime.Pod, a lifecycle.Action) (err error) {
	defer func() {
		if s.resizeError = ""; err != nil {
			s.resizeError = err.Error()
		}
	}()
	spec, _, ok := pod.Container(p, a.Container)
	c := observed.Newest(a.Container)
	if !ok || c == nil || c.ID != a.ID {
		return nil
	}
	wider := s.m.Cgroups.Ensure(ctx, p)
	if err := s.m.Containers.UpdateContainer(ctx, a.ID, p, spec, s.m.oomScore(p, spec)); err != nil {
		return errors.Join(err, wider)
	}
	s.m.Hook("between UpdateContainer and its note")
	if err := s.m.Cgroups.Ensure(ctx, p); err != nil {
		return err
	}
	if err := s.m.noteGiven(p.UID, c.Name, c.Attempt, &spec.Resources); err != nil {
		return err
	}
	s.given[c.ID] = spec.Resources.DeepCopy()
	return nil
}
