package services

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeagent/nodeagent/pkg/dns"
	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Input is the name by which the proxy waits for what is fed here.
const Input = "manifests"

const (
	// pause lies between two looks, so that many changes at once are one.
	pause = 5 * time.Millisecond
	// retry is when what could not be written down is tried again.
	retry = 5 * time.Second
	// early is the same for as long as nothing was handed on: a source that has
	// nothing to say wakes nobody.
	early = 20 * time.Millisecond
	// patience is with sources, after a start that remembers Services.
	patience = 2 * time.Second
)

// Store is where objects are read and what is made of them is written.
type Store interface {
	Records() []store.Record
	Resources(kind string) ([]store.Resource, uint64)
	SetResource(store.Resource) error
	PutDerived(manifest.Resource) error
	DeleteDerived(kind string, key pod.Key)
	// AllTried says that every source has delivered, or failed to, since the start.
	AllTried() bool
}

// Changes wake the controller; what they say does not matter.
type Changes interface {
	Watch(ctx context.Context, since uint64) (<-chan store.Change, error)
	WatchResources(ctx context.Context, since uint64) (<-chan store.ResourceChange, error)
}

// Proxy is fed with Services and endpoints.
type Proxy interface {
	Upsert(object any)
	Delete(object any)
	// Batch calls f; what f gives and takes is served together.
	Batch(f func())
	Synced(input string)
}

// Options are what a Controller needs.
type Options struct {
	Pools   Pools
	Place   Place
	Store   Store
	Changes Changes
	Proxy   Proxy
	Event   func(about events.ObjectRef, eventType, reason, message string)
	Clock   func() time.Time
	Log     *slog.Logger
}

// Controller follows the Services of the store.
type Controller struct {
	o     Options
	ready chan struct{} // closed once every pod was looked at

	mu      sync.Mutex // guards what follows
	state   *state
	replace func(dns.Snapshot)
	unsaved map[pod.Key]*entry
	unshown map[string]manifest.Resource
}

// New starts nothing.
func New(o Options) *Controller {
	return &Controller{
		o: o, ready: make(chan struct{}), state: newState(o.Pools, o.Place, o.Clock), unsaved: map[pod.Key]*entry{},
		unshown: map[string]manifest.Resource{},
	}
}

// Ready is closed once the endpoints are known: after a restart, when every
// pod has been looked at.
func (c *Controller) Ready() <-chan struct{} { return c.ready }

// Names has replace called with the names of all Services, now and whenever
// they change. A later call takes the place of an earlier one.
func (c *Controller) Names(replace func(dns.Snapshot)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replace = replace
	replace(c.state.names())
}

// Run follows changes until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { follow(ctx, c.o.Changes.Watch, wake) })
	wg.Go(func() { follow(ctx, c.o.Changes.WatchResources, wake) })
	// What is in the kernel may be of a source that has not delivered yet. An agent
	// that remembers Services does not wait for one that hangs.
	resources, _ := c.o.Store.Resources("")
	remembers, began := len(resources) > 0, c.o.Clock()
	for {
		c.look(remembers && c.o.Clock().Sub(began) >= patience)
		again := retry
		if !c.isReady() {
			again = early
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(again):
		}
	}
}

// follow wakes for each change. Whoever falls behind a watch begins a new one,
// which wakes at once.
func follow[T any](ctx context.Context, watch func(context.Context, uint64) (<-chan T, error), wake chan<- struct{}) {
	for ctx.Err() == nil {
		changes, err := watch(ctx, 0)
		if err != nil {
			return // only a revision that is too old is refused, and 0 is none
		}
		for range changes {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
}

func (c *Controller) isReady() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// look takes over what is there now, and hands on what is different; enough is
// that sources were waited for.
func (c *Controller) look(enough bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tried := enough || c.o.Store.AllTried() // before what they brought is read
	desired, records, endpoints, known := c.read()
	changes := c.state.update(desired)
	for _, e := range changes.resolved {
		c.unsaved[pod.KeyOf(e.want)] = e
		if e.err != nil {
			c.warn("Service", records[pod.KeyOf(e.want)], "NotServed", e.err.Error())
		}
	}
	for key, e := range c.unsaved {
		if c.save(e, records[key]) {
			delete(c.unsaved, key)
		}
	}
	c.sayUnused(endpoints)
	// A pod may move from one slice to another: it is in one at every moment.
	c.o.Proxy.Batch(func() {
		for _, o := range changes.deleted {
			c.o.Proxy.Delete(o)
		}
		for _, o := range changes.upserted {
			c.o.Proxy.Upsert(o)
		}
	})
	c.publish(changes)
	if c.replace != nil && len(changes.upserted)+len(changes.deleted) > 0 {
		c.replace(c.state.names())
	}
	if tried && known && !c.isReady() {
		close(c.ready)
		c.o.Proxy.Synced(Input)
	}
}

// read is all that there is, with the records of the Services and the Endpoints;
// known says that every pod has been looked at since the agent started.
func (c *Controller) read() (d Desired, records map[pod.Key]store.Resource, endpoints []store.Resource, known bool) {
	known = true
	for _, r := range c.o.Store.Records() {
		d.Pods = append(d.Pods, r.Pod)
		known = known && r.Pod.Status.Phase != v1.PodUnknown
	}
	resources, _ := c.o.Store.Resources("")
	records = map[pod.Key]store.Resource{}
	for _, r := range resources {
		if r.Source == store.SourceAgent {
			continue // our own
		}
		switch o := r.Wanted.(type) {
		case *v1.Service:
			s := Service{Want: o, Order: r.Order}
			if served, ok := r.Object.(*v1.Service); ok && r.Resolved {
				s.Before = served
			}
			d.Services = append(d.Services, s)
			records[r.Key()] = r
		case *discoveryv1.EndpointSlice:
			d.Slices = append(d.Slices, o)
		case *v1.Endpoints:
			d.Endpoints = append(d.Endpoints, o)
			endpoints = append(endpoints, r)
		}
	}
	return d, records, endpoints, known
}

// save writes down how a Service is served, and reports that nothing is left to
// be written.
func (c *Controller) save(e *entry, r store.Resource) bool {
	if r.Object == nil {
		return true // it is gone
	}
	o := r.Object.DeepCopyObject().(*v1.Service)
	o.Spec, o.Status = e.want.Spec, e.want.Status
	if e.served != nil {
		o.Spec, o.Status = e.served.Spec, e.served.Status
	}
	r.Object, r.Problem = o, ""
	if e.err != nil {
		r.Problem = e.err.Error()
	}
	err := c.o.Store.SetResource(r)
	switch {
	case err == nil, errors.Is(err, errdefs.ErrNotFound):
		return true
	case !errors.Is(err, errdefs.ErrConflict): // then it has changed, and is looked at again
		c.o.Log.Warn("the next start may choose other addresses", "err", err)
	}
	return false
}

// publish shows the endpoints that were made here. One whose name an object of
// the user's has is shown when that is gone.
func (c *Controller) publish(changes changes) {
	for _, o := range changes.withdrawn {
		delete(c.unshown, describe(o))
		c.o.Store.DeleteDerived(manifest.KindOf(o), pod.KeyOf(o))
	}
	for _, o := range changes.made {
		c.unshown[describe(o)] = o
	}
	for name, o := range c.unshown {
		// The store keeps what it is given; the proxy and we have our own.
		err := c.o.Store.PutDerived(o.DeepCopyObject().(manifest.Resource))
		switch {
		case err == nil:
			delete(c.unshown, name)
		case slices.Contains(changes.made, o):
			c.o.Log.Warn("endpoints are served, but not shown", "object", name, "err", err)
		}
	}
}

// sayUnused marks the user's Endpoints objects that count for nothing.
func (c *Controller) sayUnused(records []store.Resource) {
	for _, r := range records {
		problem := ""
		if c.state.followsPods(r.Key()) {
			problem = fmt.Sprintf("not used: Service %s has a selector, so its endpoints are pods: remove the selector or this object", r.Key())
		}
		if r.Problem == problem {
			continue
		}
		r.Problem = problem
		if err := c.o.Store.SetResource(r); err != nil {
			continue // changed, gone, or no disk: the next look tries again
		}
		if problem != "" {
			c.warn("Endpoints", r, "NotUsed", problem)
		}
	}
}

// warn tells of a problem of an object.
func (c *Controller) warn(kind string, r store.Resource, reason, message string) {
	key := r.Key()
	if r.Origin != "" {
		message = r.Origin + ": " + message
	}
	c.o.Log.Warn("an object is not served as it should be", "object", strings.ToLower(kind)+" "+key.String(), "err", message)
	c.o.Event(events.ObjectRef{Kind: kind, Namespace: key.Namespace, Name: key.Name, UID: r.Wanted.GetUID()}, v1.EventTypeWarning, reason, message)
}

func describe(o manifest.Resource) string {
	return fmt.Sprintf("%s %s", strings.ToLower(manifest.KindOf(o)), pod.KeyOf(o))
}
