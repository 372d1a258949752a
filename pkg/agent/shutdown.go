package agent

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	nodeapi "github.com/nodeagent/nodeagent/pkg/node"
	"github.com/nodeagent/nodeagent/pkg/podworker"
	"github.com/nodeagent/nodeagent/pkg/shutdown"
	"github.com/nodeagent/nodeagent/pkg/status"
)

// newShutdown is made before the store is opened: it knows whether pods that were
// ended are to run again.
func (a *agent) newShutdown() *shutdown.Manager {
	periods := a.cfg.ShutdownPeriods()
	if len(periods) == 0 {
		return nil
	}
	return shutdown.New(shutdown.Options{
		Periods: periods, Pods: ending{a},
		Connect:   func(ctx context.Context) (shutdown.Logind, error) { return shutdown.Connect(ctx, shutdown.DropInDir) },
		StateFile: a.statePath(shutdownFile), Boot: nodeapi.System("/", "").BootID,
		Changed: func() { a.see(a.seen.Load()) },
		Recover: func(ctx context.Context) {
			select {
			case <-ctx.Done():
			case a.again <- struct{}{}:
				<-ctx.Done()
			}
		},
		Event: a.nodeEvent, Times: a.metrics.Shutdown, Clock: time.Now, After: time.After, Log: a.log,
	})
}

func (a *agent) shuttingDown() bool { return a.shutdown != nil && a.shutdown.UnderWay() }

// reconsider says of a pod's final status that it is to run all the same: the
// node had refused it, or has ended it for a shutdown that is over.
func (a *agent) reconsider(st v1.PodStatus) bool {
	ended := st.Phase == v1.PodFailed && st.Reason == shutdown.Reason && st.Message == shutdown.Message
	return podworker.IsRefusal(st) || ended && !a.shuttingDown()
}

// refuseAtShutdown keeps new pods from starting before the host goes down.
func (a *agent) refuseAtShutdown(rest func(*v1.Pod, []*v1.Pod) *status.Refusal) func(*v1.Pod, []*v1.Pod) *status.Refusal {
	return func(p *v1.Pod, running []*v1.Pod) *status.Refusal {
		if a.shuttingDown() {
			return &status.Refusal{Reason: podworker.ReasonNodeShutdown, Message: shutdown.RefuseMessage}
		}
		return rest(p, running)
	}
}

// ending are the node's pods as a shutdown sees them. It comes once they run.
type ending struct{ a *agent }

func (e ending) Alive() []*v1.Pod         { return e.a.prioritised(e.a.node.Load().workers.Alive()) }
func (e ending) Ending() []types.UID      { return e.a.node.Load().workers.Passing() }
func (e ending) Ended(uid types.UID) bool { return e.a.node.Load().workers.Ended(uid) }
func (e ending) Evict(uid types.UID, grace time.Duration) {
	e.a.node.Load().workers.Evict(uid, podworker.Eviction{
		Reason: shutdown.Reason, Message: shutdown.Message, Grace: grace, Disrupted: true, Passing: true,
	})
}
