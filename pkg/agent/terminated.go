package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// collectTerminated keeps finished pods from filling the node. What a folder
// or a URL still names stays on the books, or it would run again.
func (a *agent) collectTerminated(ctx context.Context, n *node) {
	for _, r := range excess(a.store.Records(), a.cfg.Pods.MaxTerminatedPods) {
		if r.Source != store.SourcePush {
			n.workers.Discard(r.Pod.UID)
			continue
		}
		now := int64(0)
		_, err := a.push.Delete(ctx, pod.KeyOf(r.Pod), &now, r.Pod.UID, "")
		switch {
		case err == nil:
			a.log.Info("deleted a pod that finished long ago", "pod", pod.Describe(r.Pod), "maxTerminatedPods", a.cfg.Pods.MaxTerminatedPods)
		case !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errdefs.ErrConflict):
			a.log.Warn("cannot delete a pod that finished long ago; will try again", "pod", pod.Describe(r.Pod), "err", err)
		}
	}
}

// excess are the finished pods beyond keep, those that finished first.
func excess(records []store.Record, keep int) []store.Record {
	var done []store.Record
	for _, r := range records {
		if pod.IsTerminal(r.Pod.Status.Phase) && r.Pod.DeletionTimestamp == nil {
			done = append(done, r)
		}
	}
	if len(done) <= keep {
		return nil
	}
	slices.SortStableFunc(done, func(a, b store.Record) int { return finished(a).Compare(finished(b)) })
	return done[:len(done)-keep]
}

// finished is when a pod's last container ended; a refused pod had none.
func finished(r store.Record) time.Time {
	at := r.Accepted
	for _, c := range r.Pod.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && t.FinishedAt.After(at) {
			at = t.FinishedAt.Time
		}
	}
	return at
}
