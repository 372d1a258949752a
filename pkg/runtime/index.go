package runtime

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// index remembers, for each sandbox and container of ours that is alive in the
// runtime, which pod it belongs to, the detail that was read last, and what
// events said about it. It is bounded by the ids of the last full list.
type index struct {
	mu  sync.Mutex
	seq uint64
	m   map[string]*entry
}

// entry is one id. Its detail is shared with callers, who do not change it.
type entry struct {
	uid     types.UID
	sandbox bool
	seq     uint64 // when it was added, for prune
	// own marks an id that this client started: its start event is no news.
	own bool

	ctr *Container // valid for ctr.State
	sb  *Sandbox   // set only while ready

	// exitSeen is when an event said that its process ended; zero: none did,
	// or the runtime's status has caught up.
	exitSeen time.Time
	// waited: a reader has waited the full time for the status already.
	waited bool
}

func (x *index) init() { x.m = map[string]*entry{} }

// put notes that id belongs to uid and returns its entry; the lock is held.
func (x *index) put(id string, uid types.UID, sandbox bool) *entry {
	e := x.m[id]
	if e == nil {
		x.seq++
		e = &entry{uid: uid, sandbox: sandbox, seq: x.seq}
		x.m[id] = e
	}
	return e
}

// learn is put under the lock.
func (x *index) learn(id string, uid types.UID, sandbox, own bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.put(id, uid, sandbox)
	e.own = e.own || own
}

// drop forgets an id that was removed.
func (x *index) drop(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.m, id)
}

// mark is taken before a full list; prune then spares what was added since.
func (x *index) mark() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.seq
}

// prune forgets every id that a full list, begun at mark, did not show.
func (x *index) prune(mark uint64, live map[string]struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, e := range x.m {
		if _, ok := live[id]; !ok && e.seq <= mark {
			delete(x.m, id)
		}
	}
}

// owner returns the pod of id.
func (x *index) owner(id string) (uid types.UID, own, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.m[id]
	if e == nil {
		return "", false, false
	}
	return e.uid, e.own, true
}

// exited notes that an event said that id's process ended.
func (x *index) exited(id string, at time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.m[id]
	if e == nil || e.ctr != nil && e.ctr.State == StateExited {
		return
	}
	e.exitSeen, e.waited = at, false
}

// lagging says that an event reported the end of id and no reader has waited
// for its status yet.
func (x *index) lagging(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.m[id]
	return e != nil && !e.exitSeen.IsZero() && !e.waited
}

// gaveUp notes that waiting for id's status did not help.
func (x *index) gaveUp(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.m[id]; e != nil {
		e.waited = true
	}
}

// overdue lists the pods whose runtime status has not caught up with an exit
// that an event reported, so that somebody looks again. After limit the event
// is taken as wrong.
func (x *index) overdue(now time.Time, limit time.Duration) []types.UID {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []types.UID
	for _, e := range x.m {
		switch {
		case e.exitSeen.IsZero():
		case now.Sub(e.exitSeen) > limit:
			e.exitSeen = time.Time{}
		case e.waited:
			out = append(out, e.uid)
		}
	}
	return out
}

// container returns the cached detail of id when it is still in state.
func (x *index) container(id string, state ContainerState) *Container {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.m[id]; e != nil && e.ctr != nil && e.ctr.State == state && state != StateUnknown {
		return e.ctr
	}
	return nil
}

// setContainer caches a detail and clears the exit that it confirms.
func (x *index) setContainer(uid types.UID, c *Container) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.put(c.ID, uid, false)
	e.ctr = c
	if c.State == StateExited {
		e.exitSeen = time.Time{}
	}
}

// readySandbox returns the cached detail of a ready sandbox.
func (x *index) readySandbox(id string) *Sandbox {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.m[id]; e != nil {
		return e.sb
	}
	return nil
}

// setSandbox caches s when its addresses are final, and forgets it otherwise.
func (x *index) setSandbox(uid types.UID, s *Sandbox, final bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.put(s.ID, uid, true)
	if s.Ready && final {
		e.sb = s
		return
	}
	e.sb = nil
	if !s.Ready {
		e.exitSeen = time.Time{}
	}
}
