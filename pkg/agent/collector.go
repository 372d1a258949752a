package agent

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker"
)

// newCollector removes images that nobody needs.
func (a *agent) newCollector(n *node) *images.Collector {
	return images.NewCollector(images.CollectorOptions{
		Runtime: n.client, Wanted: a.wanted,
		Disk: func(ctx context.Context) (available, capacity int64, err error) {
			f, err := n.stats.ImageFS(ctx)
			return int64(f.Images.Available), int64(f.Images.Capacity), err
		},
		High: a.cfg.ImageGCHighThresholdPercent, Low: a.cfg.ImageGCLowThresholdPercent,
		MinAge: a.cfg.ImageMinimumGCAge.Duration, MaxAge: a.cfg.ImageMaximumGCAge.Duration,
		File: a.statePath(imageUseFile), Event: a.nodeEvent, Removed: a.metrics.ImageCollected,
		Clock: time.Now, After: time.After, Log: a.log,
	})
}

// wanted are the pods that may still need their images: all but those that have
// finished for good.
func (a *agent) wanted() []*v1.Pod {
	pods := a.store.Awaiting()
	for _, r := range a.store.Records() {
		if st := r.Pod.Status; !pod.IsTerminal(st.Phase) || podworker.IsRefusal(st) {
			pods = append(pods, r.Pod)
		}
	}
	return pods
}
