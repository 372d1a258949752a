// Package proxy serves Services on this node: it takes Services and endpoints
// in, plans what they mean here (pkg/proxy/plan) and has a backend put that into
// the kernel, again and again, from whatever is there at that moment.
package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/proxy/conntrack"
	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// Options are what a proxy is made of.
type Options struct {
	// Mode is auto or the name of one of Modes, which are in auto's order.
	Mode  string
	Modes []Mode
	// StateFile notes the modes that may have something in the kernel.
	StateFile string
	// Inputs are the names that Synced must be called with before anything is
	// applied: rules of an earlier agent stay until everything is known again.
	Inputs []string
	// Node is the node as it is configured, without Addresses.
	Node plan.Node
	// PodCIDRsFromNode takes Node.LocalPods from SetNode's node when it has some.
	PodCIDRsFromNode bool

	Addresses Addresses
	Flows     conntrack.Table
	Health    Health
	Metrics   Metrics
	// Event records what is wrong, or was; it must not wait.
	Event func(about events.ObjectRef, eventType, reason, message string)
	// Sysctl turns a switch of the kernel on, by its path below /proc/sys;
	// nil does so. A missing one is fs.ErrNotExist.
	Sysctl func(path string) error
	Clock  func() time.Time // nil: time.Now
	Log    *slog.Logger
}

// Proxy is safe for concurrent use.
type Proxy struct {
	o        Options
	services *servicemap.Map
	wake     chan struct{}
	started  time.Time
	batch    chan struct{} // holds one while what is there is incomplete

	mu      sync.Mutex
	waiting map[string]bool // inputs that have not synced
	node    plan.Node
	pending pending
	status  Status
	// addresses are those of the last pass, nil before the first.
	addresses []netip.Addr

	run state // Run's own
}

// pending is what has come since the last pass began.
type pending struct {
	foreign int // changes of our kernel state by others
	// triggers are when the objects changed that the endpoints come from.
	triggers []trigger
}

type trigger struct {
	family corev1.IPFamily
	at     time.Time
}

// Status is how the proxy stands.
type Status struct {
	Mode string // "" until it is chosen
	// Reason says why not everything is in the kernel; "" is that it is.
	Reason              string
	Since               time.Time // of Reason
	LastSync            time.Time
	Services, Frontends int
}

// New starts nothing; Upsert and its like may be called at once.
func New(o Options) *Proxy {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Sysctl == nil {
		o.Sysctl = sysctl
	}
	if o.Event == nil {
		o.Event = func(events.ObjectRef, string, string, string) {}
	}
	if o.Metrics == nil {
		o.Metrics = noMetrics{}
	}
	p := &Proxy{o: o, services: servicemap.New(), wake: make(chan struct{}, 1), batch: make(chan struct{}, 1), node: o.Node, waiting: map[string]bool{}}
	for _, name := range o.Inputs {
		p.waiting[name] = true
	}
	p.started = p.o.Clock()
	p.status.Reason, p.status.Since = "not begun", p.started
	return p
}

// Upsert takes in a Service, an EndpointSlice or an Endpoints object. What is
// wrong with it is an event on the object, and what is right about it counts.
func (p *Proxy) Upsert(object any) {
	changed, err := p.services.Upsert(object)
	if err != nil {
		about := reference(object)
		p.o.Log.Warn("a part of the object is not served", "kind", about.Kind, "namespace", about.Namespace, "name", about.Name, "err", err)
		p.o.Event(about, corev1.EventTypeWarning, "NotServed", err.Error())
	}
	p.changed(object, changed, true)
}

// Delete takes an object out, by its kind, namespace and name.
func (p *Proxy) Delete(object any) {
	changed, err := p.services.Delete(object)
	if err != nil {
		p.o.Log.Error("not deleted", "err", err)
	}
	p.changed(object, changed, false)
}

func (p *Proxy) changed(object any, changed, present bool) {
	_, service := object.(*corev1.Service)
	p.o.Metrics.ProxyChange(service, changed)
	p.mu.Lock()
	if t, ok := triggerOf(object); ok && changed && present && t.at.After(p.started) {
		p.pending.triggers = append(p.pending.triggers, t)
	}
	p.mu.Unlock()
	if changed {
		p.queue()
	}
}

// triggerOf reads when the pods changed of which a slice tells.
func triggerOf(object any) (trigger, bool) {
	slice, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return trigger{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, slice.Annotations[corev1.EndpointsLastChangeTriggerTime])
	family := corev1.IPv4Protocol
	if slice.AddressType == discoveryv1.AddressTypeIPv6 {
		family = corev1.IPv6Protocol
	}
	return trigger{family, at}, err == nil
}

// Batch calls f; the objects that f gives and takes are served together.
func (p *Proxy) Batch(f func()) {
	p.batch <- struct{}{}
	defer func() { <-p.batch }()
	f()
}

func (p *Proxy) snapshot() servicemap.Snapshot {
	p.batch <- struct{}{}
	defer func() { <-p.batch }()
	return p.services.Snapshot()
}

// Synced says that an input has given all that it has.
func (p *Proxy) Synced(input string) {
	p.mu.Lock()
	delete(p.waiting, input)
	p.mu.Unlock()
	p.queue()
}

// SetNode says how the cluster knows this node: its zone, addresses, pod
// ranges and whether it may be sent anything; nil is that it was deleted.
func (p *Proxy) SetNode(node *corev1.Node) {
	if p.o.Health != nil {
		p.o.Health.SetNode(node)
	}
	if node == nil {
		return
	}
	p.mu.Lock()
	p.node.Zone = node.Labels[corev1.LabelTopologyZone]
	if ips := nodeIPs(node); len(ips) > 0 {
		p.node.IPs = ips
	}
	if cidrs := podCIDRs(node); p.o.PodCIDRsFromNode && len(cidrs) > 0 {
		p.node.LocalPods.Prefixes = cidrs
	}
	p.mu.Unlock()
	p.queue()
}

// SetServiceCIDRs says which addresses the cluster gives to Services.
func (p *Proxy) SetServiceCIDRs(ranges []netip.Prefix) {
	p.mu.Lock()
	p.node.ServiceCIDRs = slices.Clone(ranges)
	p.mu.Unlock()
	p.queue()
}

// Status is how the proxy stands now.
func (p *Proxy) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Ready says why not everything is in the kernel.
func (p *Proxy) Ready() error {
	if s := p.Status(); s.Reason != "" {
		return fmt.Errorf("%s", s.Reason)
	}
	return nil
}

// queue has Run look at everything again.
func (p *Proxy) queue() {
	p.o.Metrics.ProxyQueued(p.o.Clock())
	if p.o.Health != nil {
		p.o.Health.Queued()
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func reference(object any) events.ObjectRef {
	var about events.ObjectRef
	switch object.(type) {
	case *corev1.Service:
		about.Kind = "Service"
	case *discoveryv1.EndpointSlice:
		about.Kind = "EndpointSlice"
	default:
		about.Kind = "Endpoints"
	}
	if o, ok := object.(metav1.Object); ok {
		about.Namespace, about.Name, about.UID = o.GetNamespace(), o.GetName(), o.GetUID()
	}
	return about
}

// Backend is one way to put a ruleset into the kernel. It owns what it put
// there, and nothing else.
type Backend interface {
	// Apply makes the kernel hold now; old is what the last successful Apply was
	// given. The first one, and one after Forget or an error, replaces whatever
	// is there without a moment in which nothing is. It cuts no connection.
	Apply(ctx context.Context, old, now ruleset.Ruleset) error
	// Forget makes the next Apply replace everything.
	Forget()
	// Cleanup removes everything; when there is nothing it succeeds.
	Cleanup(ctx context.Context) error
	// Watch listens from now on for changes by others; nil is that nobody else
	// can make any.
	Watch() (Watcher, error)
	// Close gives back what the process holds; what is in the kernel stays.
	Close() error
}

// FlowKeeper is a backend that remembers itself which endpoint a UDP flow has.
type FlowKeeper interface {
	// EndFlows ends those to endpoints that get nothing new and do not serve any
	// more. serves is asked with a frontend's address, unspecified for a node
	// port, and an endpoint.
	EndFlows(serves func(at, endpoint netip.AddrPort) bool) error
}

// Watcher calls changed after each change that others made, until ctx ends.
type Watcher interface {
	Run(ctx context.Context, changed func()) error
}

// Mender is a Watcher that puts single things right by itself; it calls f each
// time, which does not wait.
type Mender interface{ Mended(f func()) }

// Addresses are those of the node's interfaces.
type Addresses interface {
	List() ([]netip.Addr, error)
	// Watch calls changed when they may be others, until ctx ends.
	Watch(ctx context.Context, changed func()) error
}

// Health answers load balancers (pkg/proxy/healthcheck).
type Health interface {
	Sync(node ruleset.Node, checks []ruleset.HealthCheck)
	Queued()
	Updated()
	SetNode(node *corev1.Node)
}

// Metrics are what dashboards show.
type Metrics interface {
	// ProxyChange counts an object of interest; changed is that it made a difference.
	ProxyChange(service, changed bool)
	ProxyQueued(at time.Time)
	// ProxySynced measures one pass; full is that everything was replaced.
	ProxySynced(mode string, full bool, took time.Duration, at time.Time, err error)
	// ProxyProgrammed is how long after its pods an EndpointSlice was in the kernel.
	ProxyProgrammed(family corev1.IPFamily, took time.Duration)
	// ProxyNoLocal is how many Service ports have a policy Local, endpoints, and
	// none on this node; policy is internal or external.
	ProxyNoLocal(policy string, family corev1.IPFamily, n int)
	// FlowsCleaned measures a look at the kernel's UDP flows.
	FlowsCleaned(family corev1.IPFamily, took time.Duration, removed uint)
}
