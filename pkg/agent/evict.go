package agent

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// evictOversized ends pods with an emptyDir on disk that has outgrown its
// sizeLimit. Nothing else keeps it from filling the disk: the kernel has no
// quota for a folder. A tmpfs is as large as its limit and needs no eviction.
func (a *agent) evictOversized(ctx context.Context, n *node) {
	for _, r := range a.store.Records() {
		limits := diskLimits(r.Pod)
		if len(limits) == 0 || pod.IsTerminal(r.Pod.Status.Phase) || r.Pod.DeletionTimestamp != nil {
			continue
		}
		used, err := a.volumes.Usage(ctx, r.Pod.UID)
		if err != nil {
			if ctx.Err() == nil {
				a.log.Warn("cannot measure the pod's volumes; will try again", "pod", pod.Describe(r.Pod), "err", err)
			}
			continue
		}
		for name, limit := range limits {
			if used[name].Used > limit.Value() {
				n.workers.Evict(r.Pod.UID, fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q.", name, limit.String()))
			}
		}
	}
}

// diskLimits are the limits of a pod's emptyDirs on disk by volume name.
func diskLimits(p *v1.Pod) map[string]*resource.Quantity {
	limits := map[string]*resource.Quantity{}
	for i := range p.Spec.Volumes {
		e := p.Spec.Volumes[i].EmptyDir
		if e != nil && e.Medium == v1.StorageMediumDefault && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
			limits[p.Spec.Volumes[i].Name] = e.SizeLimit
		}
	}
	return limits
}
