package runtime

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/connectivity"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

const (
	// watchTick is how often a subscription looks after what events left open.
	watchTick = time.Second
	// overdueLimit is when an exit that the status never confirms is given up.
	overdueLimit = 2 * time.Minute
	// A broken subscription is tried again after redialFirst, doubling to redialMax.
	redialFirst = 20 * time.Millisecond
	redialMax   = time.Second
	// refusals without a code before a runtime counts as one without a stream.
	maxRefusals = 5
)

// rawEvent is one event of either stream, mapped to a pod.
type rawEvent struct {
	uid types.UID
	at  time.Time
}

// stream is one subscription: recv blocks for the next event that concerns a
// pod of ours, and returns an error when the subscription has ended.
type stream interface {
	recv(ctx context.Context) (rawEvent, error)
}

// Watch calls fn, from one goroutine, for each change of a pod of ours until
// ctx ends; it then returns nil. After the start and after each gap fn gets an
// Event without UID: look at everything. Without any event stream (Info.Events
// "poll") only gaps are reported, and the caller relists.
func (c *Client) Watch(ctx context.Context, fn func(Event)) error {
	wait, refusals := redialFirst, 0
	for ctx.Err() == nil {
		a, err := c.describe(ctx)
		if err == nil {
			var got bool
			got, err = c.watchOnce(ctx, c.eventMode(), fn)
			if got {
				wait, refusals = redialFirst, 0
			}
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, errUnimplemented):
				c.fallBack(a, err)
				continue
			case c.conn.GetState() == connectivity.Ready && !got:
				// The connection holds and yet the stream ends at once.
				if refusals++; refusals >= maxRefusals {
					c.fallBack(a, err)
					refusals = 0
					continue
				}
			default:
				c.forget()
			}
		}
		if wait < redialMax { // from then on it has been said often enough
			c.log.Warn("runtime events interrupted, trying again", "endpoint", c.o.Endpoint, "error", err, "wait", wait)
		}
		if !sleep(ctx, wait) {
			return nil
		}
		wait = min(2*wait, redialMax)
	}
	return nil
}

// sleep waits for d; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// fallBack takes the next way to learn of events.
func (c *Client) fallBack(a *about, why error) {
	ways, now := eventWays(a), c.eventMode()
	next := ways[min(slices.Index(ways, now)+1, len(ways)-1)]
	c.log.Info("runtime does not have this event stream", "stream", now, "next", next, "reason", why)
	c.setEventMode(next)
}

// watchOnce runs one subscription. got says that it delivered something.
func (c *Client) watchOnce(ctx context.Context, mode string, fn func(Event)) (got bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	switch mode {
	case eventsCRI:
		s, err := c.openCRI(ctx, false)
		if err != nil {
			return false, err
		}
		return c.pump(ctx, cancel, fn, s)
	case eventsContainerd:
		s, err := c.openContainerd(ctx)
		if err != nil {
			return false, err
		}
		// The CRI stream besides, where there is one: it comes when the status
		// is up to date, and not through the shim, which may lose an event
		// while containerd restarts.
		confirm, err := c.openCRI(ctx, true)
		if err != nil {
			return false, err
		}
		return c.pump(ctx, cancel, fn, s, confirm)
	default:
		fn(Event{At: time.Now()})
		return true, c.watchConnection(ctx)
	}
}

// watchConnection returns when the connection is lost.
func (c *Client) watchConnection(ctx context.Context) error {
	for {
		st := c.conn.GetState()
		if st != connectivity.Ready {
			// Calls bring the connection up; until then there is nothing to lose.
			if err := c.ping(ctx); err != nil {
				return err
			}
			continue
		}
		if !c.conn.WaitForStateChange(ctx, st) {
			return ctx.Err()
		}
		return errGap
	}
}

var (
	errGap       = errors.New("connection lost")
	errNotNeeded = errors.New("no such stream, and none needed")
)

func (c *Client) ping(ctx context.Context) error {
	_, err := invoke(ctx, c, "version", "", connectTimeout, c.rt.Version, &cri.VersionRequest{})
	return err
}

// pump reads the streams until one ends, and then waits for all. A second full
// look a moment after the first covers events between the request and the
// server's subscription.
func (c *Client) pump(ctx context.Context, cancel context.CancelFunc, fn func(Event), streams ...stream) (got bool, err error) {
	events := make(chan rawEvent)
	failed := make(chan error, len(streams))
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	for _, s := range streams {
		readers.Go(func() { failed <- read(ctx, s, events) })
	}
	fn(Event{At: time.Now()})
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	settled := false
	for {
		select {
		case e := <-events:
			got = true
			fn(Event{UID: e.uid, At: e.at})
		case now := <-tick.C:
			if !settled {
				settled, got = true, true
				fn(Event{At: now})
			}
			for _, uid := range c.index.overdue(now, overdueLimit) {
				fn(Event{UID: uid, At: now})
			}
		case err := <-failed:
			if err != nil {
				return got, err
			}
		}
	}
}

// read passes on the events of s until it ends; nil when the runtime does not
// have it and can do without.
func read(ctx context.Context, s stream, events chan<- rawEvent) error {
	for {
		e, err := s.recv(ctx)
		if errors.Is(err, errNotNeeded) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case events <- e:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// criStream reads GetContainerEvents, which containerd has since 1.7.
type criStream struct {
	c *Client
	s cri.RuntimeService_GetContainerEventsClient
	// confirm: it runs beside another stream and passes on exits only.
	confirm bool
}

func (c *Client) openCRI(ctx context.Context, confirm bool) (stream, error) {
	s, err := c.rt.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return nil, translate("runtime get_container_events", err)
	}
	return &criStream{c: c, s: s, confirm: confirm}, nil
}

func (s *criStream) recv(ctx context.Context) (rawEvent, error) {
	for {
		e, err := s.s.Recv()
		if err = translate("runtime get_container_events", err); err != nil {
			if s.confirm && errors.Is(err, errUnimplemented) {
				return rawEvent{}, errNotNeeded
			}
			return rawEvent{}, err
		}
		if s.confirm && e.GetContainerEventType() != cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
			continue
		}
		if uid, ok := s.c.takeCRI(ctx, e); ok {
			return rawEvent{uid: uid, at: nanos(e.GetCreatedAt())}, nil
		}
	}
}

// takeCRI maps an event to a pod of ours. Removals carry no sandbox status
// when the sandbox itself is gone; the index knows those.
func (c *Client) takeCRI(ctx context.Context, e *cri.ContainerEventResponse) (types.UID, bool) {
	id, st := e.GetContainerId(), e.GetPodSandboxStatus()
	uid, own, known := c.index.owner(id)
	if !known && st != nil {
		if !c.ours(st.GetLabels()) {
			return "", false
		}
		uid, known = types.UID(st.GetLabels()[pod.LabelPodUID]), true
		c.index.learn(id, uid, id == st.GetId(), false)
	}
	switch e.GetContainerEventType() {
	case cri.ContainerEventType_CONTAINER_STOPPED_EVENT:
		return c.takeExit(ctx, id, exit{seen: time.Now()})
	case cri.ContainerEventType_CONTAINER_CREATED_EVENT, cri.ContainerEventType_CONTAINER_STARTED_EVENT:
		return uid, known && !own
	default:
		return uid, known
	}
}

// takeExit notes the end of id's process.
func (c *Client) takeExit(ctx context.Context, id string, x exit) (types.UID, bool) {
	uid, _, known := c.index.owner(id)
	if !known {
		var err error
		if uid, known, err = c.lookup(ctx, id); err != nil {
			// An empty event makes the caller look at everything.
			c.log.Warn("cannot tell whose container ended", "container", id, "error", err)
			return "", true
		}
	}
	return uid, known && c.index.exited(id, x)
}
