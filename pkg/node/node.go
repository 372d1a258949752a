// Package node is the Node object that clients of the API see of the one node
// there is: made of what the agent knows, and of what they want it to be.
package node

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/journal"
)

const (
	// history is how many changes a watch may lag behind.
	history = 64
	// heartbeat is how old lastHeartbeatTime gets when nothing else changes, as
	// with kubelet's reports.
	heartbeat = 5 * time.Minute
)

// Facts are what a Node object is made of.
type Facts struct {
	Name      string
	UID       types.UID
	Labels    map[string]string
	Created   time.Time
	Addresses []string // IPs of the node
	PodCIDRs  []string
	// Capacity is what the node has, Allocatable what of it pods can ask for.
	Capacity, Allocatable v1.ResourceList

	System   v1.NodeSystemInfo
	Handlers []string // of the runtime
	// NotReady says why pods cannot run; empty: they can.
	NotReady string
	// Pressure is what the node runs short of.
	Pressure []v1.NodeConditionType
}

// Object is the Node object, without its conditions' times.
func (f Facts) Object() *v1.Node {
	n := &v1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: f.Name, UID: f.UID, Labels: f.Labels, CreationTimestamp: metav1.NewTime(f.Created)},
		Spec:       v1.NodeSpec{PodCIDRs: f.PodCIDRs},
		Status:     v1.NodeStatus{NodeInfo: f.System},
	}
	if len(f.PodCIDRs) > 0 {
		n.Spec.PodCIDR = f.PodCIDRs[0]
	}
	for _, a := range f.Addresses {
		n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: a})
	}
	n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeHostName, Address: f.Name})
	n.Status.Capacity, n.Status.Allocatable = f.Capacity, f.Allocatable
	for _, h := range f.Handlers {
		n.Status.RuntimeHandlers = append(n.Status.RuntimeHandlers, v1.NodeRuntimeHandler{Name: h})
	}
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "nodeagent runs pods"}
	if f.NotReady != "" {
		ready = v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionFalse, Reason: "KubeletNotReady", Message: f.NotReady}
	}
	for _, p := range pressures() {
		c := v1.NodeCondition{Type: p.of, Status: v1.ConditionFalse, Reason: "Kubelet" + p.reasons[0], Message: p.messages[0]}
		if slices.Contains(f.Pressure, p.of) {
			c.Status, c.Reason, c.Message = v1.ConditionTrue, "Kubelet"+p.reasons[1], p.messages[1]
		}
		n.Status.Conditions = append(n.Status.Conditions, c)
	}
	n.Status.Conditions = append(n.Status.Conditions, ready)
	return n
}

// Keeper holds the current Node object and its recent changes. Its methods may
// be called from any goroutine.
type Keeper struct {
	now     func() time.Time
	counter *journal.Counter
	journal *journal.Journal[*v1.Node]

	mu   sync.Mutex
	own  *v1.Node // as the agent and its configuration have it
	node *v1.Node // with the wishes of clients
	// wishes are kept by save; changed is told of what came of them.
	wishes  Wishes
	save    func([]byte) error
	changed func(old, now *v1.Node)
}

// NewKeeper is a keeper without a node yet; revisions are those of the store.
func NewKeeper(counter *journal.Counter, now func() time.Time) *Keeper {
	return &Keeper{now: now, counter: counter, journal: journal.New[*v1.Node](counter, history)}
}

// Keep takes up the wishes of an earlier agent, and from then on those of
// clients: save is given what ReadWishes reads, and changed is told of what came
// of it. It is called once, before the node is served.
func (k *Keeper) Keep(w Wishes, save func([]byte) error, changed func(old, now *v1.Node)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wishes, k.save, k.changed = w, save, changed
}

// Labels are those that clients want the node to have.
func (k *Keeper) Labels() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.wishes.Labels
}

// Wish makes the node what a client wants of it, as far as that is the client's
// to say. The node must be of that revision still, or it is
// errdefs.ErrConflict; want does not say any other than that. With dry nothing
// is changed.
func (k *Keeper) Wish(want *v1.Node, resourceVersion string, dry bool) (*v1.Node, field.ErrorList, error) {
	old, now, errs, err := k.wish(want, resourceVersion, dry)
	if len(errs) == 0 && err == nil && !dry && now != old {
		k.changed(old, now)
	}
	return now, errs, err
}

func (k *Keeper) wish(want *v1.Node, resourceVersion string, dry bool) (old, now *v1.Node, errs field.ErrorList, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if resourceVersion != k.node.ResourceVersion {
		return nil, nil, nil, fmt.Errorf("node %s has changed since revision %s: %w", k.node.Name, resourceVersion, errdefs.ErrConflict)
	}
	w, errs := wishesOf(want, k.own, k.now())
	if len(errs) > 0 {
		return nil, nil, errs, nil
	}
	if dry {
		shown := w.on(k.own, k.now())
		shown.Status = k.node.Status
		return k.node, shown, nil, nil
	}
	text, err := w.manifest(k.own.Name)
	if err == nil {
		err = k.save(text)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("keep the labels, taints and state of node %s: %w", k.own.Name, err)
	}
	old, k.wishes = k.node, w
	k.publish(k.own)
	return old, k.node, nil, nil
}

// Set makes n the Node, with the wishes of clients, unless that is what it is
// already. The keeper owns n from then on.
func (k *Keeper) Set(n *v1.Node) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.publish(n)
}

// publish makes the node known; k.mu is held.
func (k *Keeper) publish(own *v1.Node) {
	k.own = own
	n := k.wishes.on(own, k.since())
	now := metav1.NewTime(k.now())
	for i := range n.Status.Conditions {
		c := &n.Status.Conditions[i]
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		if old := k.condition(c.Type); old != nil {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			if now.Sub(old.LastHeartbeatTime.Time) < heartbeat {
				c.LastHeartbeatTime = old.LastHeartbeatTime
			}
		}
	}
	if k.node != nil {
		n.ResourceVersion = k.node.ResourceVersion
		if apiequality.Semantic.DeepEqual(k.node, n) {
			return
		}
	}
	revision := k.counter.Next()
	n.ResourceVersion = strconv.FormatUint(revision, 10)
	k.node = n
	k.journal.Append(revision, n)
}

// since is when the node was cordoned, or now.
func (k *Keeper) since() time.Time {
	if k.node != nil {
		for _, t := range k.node.Spec.Taints {
			if t.Key == v1.TaintNodeUnschedulable && t.TimeAdded != nil {
				return t.TimeAdded.Time
			}
		}
	}
	return k.now()
}

// condition is a condition of the current node; k.mu is held.
func (k *Keeper) condition(t v1.NodeConditionType) *v1.NodeCondition {
	if k.node == nil {
		return nil
	}
	i := slices.IndexFunc(k.node.Status.Conditions, func(c v1.NodeCondition) bool { return c.Type == t })
	if i < 0 {
		return nil
	}
	return &k.node.Status.Conditions[i]
}

// Node is the current object, which nobody changes, and the revision of the
// whole API.
func (k *Keeper) Node() (*v1.Node, uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.node, k.counter.Current()
}

// WatchNode delivers what the node becomes after revision since, until ctx ends
// or the reader falls behind; then the channel is closed.
func (k *Keeper) WatchNode(ctx context.Context, since uint64) (<-chan *v1.Node, error) {
	return k.journal.Follow(ctx, since, nil)
}
