package agent

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/stats"
)

// newStats reads what the node and the pods of the store use.
func (a *agent) newStats(n *node, cgroups *cgroup.Manager, sandboxImage string) *stats.Reader {
	return stats.New(stats.Options{
		Cgroups: cgroups, Runtime: n.client, Volumes: a.volumes, OwnFiles: n.workers.OwnFiles,
		Pods: a.pods, Proc: "/proc", Sys: "/sys", SandboxImage: sandboxImage, StateDir: a.cfg.StateDir, PodLogDir: a.cfg.PodLogDir, Clock: time.Now, Log: a.log,
	})
}

// pods are all that the agent knows; nobody changes them.
func (a *agent) pods() []*v1.Pod {
	records := a.store.Records()
	out := make([]*v1.Pod, 0, len(records))
	for _, r := range records {
		out = append(out, r.Pod)
	}
	return out
}

// readStats is what the API reads usage with.
func (a *agent) readStats() (*stats.Reader, error) {
	if n := a.node.Load(); n != nil {
		return n.stats, nil
	}
	return nil, a.noRuntime()
}
