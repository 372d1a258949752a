package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	nodeapi "github.com/nodeagent/nodeagent/pkg/node"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/shutdown"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// see takes up what the node is like now, for everybody who asks.
func (a *agent) see(c *conditions) {
	a.seen.Store(c)
	a.nodeObject.Set(a.nodeFacts(c).Object())
}

// nodeFacts are what the Node object is made of.
func (a *agent) nodeFacts(c *conditions) nodeapi.Facts {
	f := nodeapi.Facts{
		Name: a.cfg.NodeName, UID: a.nodeUID(), Labels: a.ownLabels(), Created: a.firstStart(),
		Addresses: a.cfg.NodeIP, PodCIDRs: a.cfg.Network.PodCIDRs,
		System: nodeapi.System("/", a.o.Build.Version), Handlers: c.runtime.Handlers, NotReady: c.runtimeReason,
	}
	if f.NotReady == "" {
		f.NotReady = c.networkReason
	}
	if a.shuttingDown() {
		f.NotReady = shutdown.NotReady
	}
	f.Pressure = *a.pressure.Load()
	if c.runtime.Name != "" {
		f.System.ContainerRuntimeVersion = c.runtime.Name + "://" + c.runtime.Version
	}
	h, r := a.host(), a.reservation()
	f.Capacity, f.Allocatable = nodeapi.Capacity(h, r), nodeapi.Allocatable(h, r)
	f.System.Swap = &v1.NodeSwapStatus{Capacity: &h.Swap}
	return f
}

// keepWishes takes up what clients of the API made of the node, and keeps it.
func (a *agent) keepWishes() {
	path := a.statePath(nodeFile)
	w, err := nodeapi.ReadWishes(path)
	if err != nil {
		// Pods have to be looked after all the same.
		a.log.Error("cannot read what the API has set", "err", err)
	}
	a.nodeObject.Keep(w, func(b []byte) error { return store.WriteFile(path, b) }, a.nodeChanged)
}

// nodeChanged looks again at pods that wait, when the node has become another.
func (a *agent) nodeChanged(old, now *v1.Node) {
	if old.Spec.Unschedulable != now.Spec.Unschedulable {
		reason := "NodeSchedulable"
		if now.Spec.Unschedulable {
			reason = "NodeNotSchedulable"
		}
		a.nodeEvent(v1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", a.cfg.NodeName, reason))
	}
	if n := a.node.Load(); n != nil {
		n.workers.WakeAll()
	}
}

// unschedulable says why a pod of the API has to wait; those of a folder or URL
// run whatever has been said of the node, as static pods do.
func (a *agent) unschedulable(p *v1.Pod, source string) string {
	if source != store.SourcePush {
		return ""
	}
	n, _ := a.nodeObject.Node()
	return nodeapi.Unschedulable(n, p.Spec.Tolerations)
}

// evictTainted ends the pods of the API that the node's taints allow no longer.
func (a *agent) evictTainted(ctx context.Context) {
	n, _ := a.nodeObject.Node()
	if len(n.Spec.Taints) == 0 {
		return
	}
	for _, r := range a.store.Records() {
		if r.Source != store.SourcePush || r.Pod.DeletionTimestamp != nil {
			continue
		}
		if at, ends := nodeapi.EndsAt(n, r.Pod.Spec.Tolerations); !ends || time.Now().Before(at) {
			continue
		}
		key := pod.KeyOf(r.Pod)
		if _, err := a.push.Delete(ctx, key, nil, r.Pod.UID, ""); err != nil {
			a.log.Warn("cannot end a pod that does not tolerate the node's taints; will try again", "pod", pod.Describe(r.Pod), "err", err)
			continue
		}
		a.events.PodEvent(r.Pod, "", v1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod "+key.String())
	}
}

func (a *agent) nodeUID() types.UID { return manifest.UID(a.instance, "", a.cfg.NodeName, "v1/Node") }

// firstStart is when this node began: its state folder keeps the name it had then.
func (a *agent) firstStart() time.Time {
	st, err := os.Stat(a.statePath(instFile))
	if err != nil {
		return a.started
	}
	return st.ModTime()
}
