package podworker

import (
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// target is the running container whose processes an ephemeral container is to
// see, by ID; empty: that of no other one.
func target(p *v1.Pod, observed *runtime.Pod, name string) (string, error) {
	for i := range p.Spec.EphemeralContainers {
		e := &p.Spec.EphemeralContainers[i]
		if e.Name != name || e.TargetContainerName == "" {
			continue
		}
		if c := observed.Newest(e.TargetContainerName); c != nil && c.State == runtime.StateRunning {
			return c.ID, nil
		}
		return "", fmt.Errorf("unable to find target container %s: it does not run", e.TargetContainerName)
	}
	return "", nil
}
