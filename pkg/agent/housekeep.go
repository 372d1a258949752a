package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/cni"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/server/api"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// How often things are looked at that no event tells of.
const (
	lookEvery    = 5 * time.Second
	collectEvery = 30 * time.Second
	// lookPatience is for a runtime that takes calls and answers none.
	lookPatience = 10 * time.Second
	// networkAge is how young a network attachment may be and belong to a
	// sandbox that another client of the runtime is still making: the runtime
	// lists it only when it is done.
	networkAge = 30 * time.Second
)

// What is said before the first look.
const (
	notAnswered = "the runtime has not answered yet"
	notLooked   = "not looked at yet"
)

// conditions are the last look at the runtime and the network.
type conditions struct {
	runtime       runtime.Info
	runtimeReason string // empty: ready
	network       api.Network
	networkReason string // empty: ready
}

// housekeep does what has to be done now and then: try again what a full disk
// prevented, import images that were dropped in, look after rules and the
// runtime's health, collect what crashes leaked.
func (a *agent) housekeep(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var collected time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.store.Retry()
		a.countSources()
		n := a.node.Load()
		if n == nil {
			continue
		}
		a.look(ctx, n)
		a.evictTainted(ctx)
		if a.seen.Load().runtimeReason != "" {
			continue // the rest needs the runtime
		}
		pause, images := a.keepPause(ctx, n.client), a.importImages(ctx, n.client)
		if pause || images {
			n.workers.WakeAll()
		}
		if time.Since(collected) >= collectEvery {
			collected = time.Now()
			a.collect(ctx, n)
			a.enforce(ctx, n.cgroups)
			a.collectTerminated(ctx, n)
		}
	}
}

// look refreshes the conditions. What has got better wakes the workers.
func (a *agent) look(ctx context.Context, n *node) {
	old, now := a.seen.Load(), &conditions{}
	asking, cancel := context.WithTimeout(ctx, lookPatience)
	info, err := n.client.Info(asking)
	cancel()
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, context.DeadlineExceeded):
		now.runtime, now.runtimeReason = old.runtime, fmt.Sprintf("the runtime has not answered for %s; is it stopped, or its disk?", lookPatience)
	case err != nil:
		now.runtime, now.runtimeReason = old.runtime, err.Error()
	default:
		now.runtime, now.runtimeReason = info, info.Reason
		if info.Ready {
			now.runtimeReason = ""
		}
	}
	if err := a.cni.Repair(ctx); err != nil && ctx.Err() == nil {
		a.log.Warn("cannot restore the pods' network rules", "err", err)
	}
	err = a.cni.Ready(ctx)
	if err != nil {
		// The plugins may have been installed, or a user's file removed, since.
		if a.cni.Ensure(ctx) == nil {
			err = a.cni.Ready(ctx)
		}
	}
	if err != nil {
		now.networkReason = err.Error()
	} else if now.runtimeReason == "" && !info.NetworkReady {
		now.networkReason = "the runtime has not taken up the network configuration: " + info.Reason
	}
	for _, net := range a.cni.Networks() {
		if net.Active {
			now.network = api.Network{Name: net.Name, Plugin: strings.Join(net.Plugins, ","), File: net.File}
		}
	}
	a.see(now)
	runtimeBack := a.changed("Runtime", old.runtimeReason, now.runtimeReason)
	networkBack := a.changed("Network", old.networkReason, now.networkReason)
	if runtimeBack || networkBack {
		n.workers.WakeAll()
	}
}

// changed records a condition that became good or bad, and says whether it
// became good.
func (a *agent) changed(what, old, now string) bool {
	switch {
	case old == now:
		return false
	case now == "":
		a.log.Info(what + " is ready")
		a.nodeEvent(v1.EventTypeNormal, what+"Ready", what+" is ready")
		return true
	default:
		a.log.Warn(what+" is not ready", "reason", now)
		a.nodeEvent(v1.EventTypeWarning, what+"NotReady", now)
		return false
	}
}

// collect removes network attachments and addresses of sandboxes that are no
// more, and what cut-short starts left in the runtime. The list of sandboxes is
// taken while none can be made.
func (a *agent) collect(ctx context.Context, n *node) {
	report, err := a.cni.GC(ctx, func(ctx context.Context) ([]cni.Attachment, error) {
		ids, err := n.client.SandboxIDs(ctx)
		if err != nil {
			return nil, err
		}
		live := make([]cni.Attachment, len(ids))
		for i, id := range ids {
			live[i].SandboxID = id
		}
		return live, nil
	})
	if err != nil && ctx.Err() == nil {
		a.log.Warn("cannot collect leaked network attachments; will try again", "err", err)
	}
	if len(report.Attachments)+len(report.Addresses)+len(report.Links)+len(report.NetNS) > 0 {
		a.log.Info("collected leaked network attachments", "attachments", report.Attachments, "addresses", report.Addresses,
			"links", report.Links, "netns", report.NetNS)
	}
	tasks, err := n.client.CollectTasks(ctx)
	if err != nil && ctx.Err() == nil {
		a.log.Warn("cannot collect tasks that belong to no container; will try again", "err", err)
	}
	if len(tasks) > 0 {
		a.log.Info("ended tasks that belonged to no container", "ids", tasks)
	}
	shims, err := n.client.CollectShims(ctx)
	if err != nil && ctx.Err() == nil {
		a.log.Warn("cannot collect shims that the runtime gave up; will try again", "err", err)
	}
	if len(shims) > 0 {
		a.log.Info("ended shims that the runtime had given up", "ids", shims)
	}
}

func (a *agent) countSources() {
	for _, s := range a.sourceStates() {
		a.metrics.Source(s.Name, s.Synced, len(s.Problems))
	}
}

// reportProblems makes an event of every problem of a source, so that it shows
// where users look first.
func (a *agent) reportProblems(ctx context.Context) error {
	known := map[string]bool{}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		now := map[string]bool{}
		report := func(source, reason, problem string) {
			now[source+problem] = true
			if !known[source+problem] {
				a.nodeEvent(v1.EventTypeWarning, reason, problem)
			}
		}
		for _, s := range a.sourceStates() {
			if s.Error != "" {
				report(s.Name, "SourceFailing", store.Problem{Origin: s.Target, Err: errors.New(s.Error)}.String())
			}
			for _, p := range s.Problems {
				report(s.Name, "InvalidManifest", p)
			}
		}
		known = now
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
