package agent

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/metrics"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/stats"
)

// newStats reads what the node and the pods of the store use.
func (a *agent) newStats(n *node, cgroups *cgroup.Manager, sandboxImage string) *stats.Reader {
	a.metrics.Claims(a.claims)
	if tree, ok := cgroups.Tree("memory"); ok {
		version := 1
		if tree.V2 {
			version = 2
		}
		a.metrics.CgroupVersion(version)
	}
	return stats.New(stats.Options{
		Cgroups: cgroups, Runtime: n.client, Volumes: a.volumes, OwnFiles: n.workers.OwnFiles,
		Pods: a.pods, Proc: "/proc", Sys: "/sys", SandboxImage: sandboxImage, StateDir: a.cfg.StateDir, PodLogDir: a.cfg.PodLogDir, Clock: time.Now, Log: a.log,
	})
}

// claims are the file systems of PersistentVolumeClaims, as measured last; of two
// pods that share one each finds the same.
func (a *agent) claims() (out []metrics.Claim) {
	n := a.node.Load()
	if n == nil {
		return nil
	}
	seen := map[pod.Key]bool{}
	for uid, d := range n.stats.LastDisks().Pods {
		r, ok := a.store.ByUID(uid)
		for volume, fs := range d.Claims {
			if !ok {
				continue
			}
			key := pod.Key{Namespace: r.Pod.Namespace, Name: pod.ClaimOf(r.Pod, volume)}
			if seen[key] {
				continue
			}
			seen[key] = true
			out = append(out, metrics.Claim{
				Namespace: key.Namespace, Name: key.Name, Capacity: fs.Capacity, Available: fs.Available, Used: fs.Used,
				Inodes: fs.Inodes, InodesFree: fs.InodesFree, InodesUsed: fs.InodesUsed,
			})
		}
	}
	return out
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
