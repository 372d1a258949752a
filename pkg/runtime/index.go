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

	// oom: an event said that the kernel killed something in it.
	oom bool
	// exit is set from an event that says its process ended until the runtime's
	// status says so too.
	exit *exit
}

// exit is what an event said about the end of a process.
type exit struct {
	seen time.Time // when the event came
	// known says that the event told code and at; a CRI event does not.
	known bool
	code  int32
	at    time.Time
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

// exited notes that an event said that id's process ended; false when readers
// have seen the runtime's status say so already.
func (x *index) exited(id string, news exit) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.m[id]
	if e == nil {
		return true
	}
	if e.ctr != nil && e.ctr.State == StateExited {
		return false
	}
	if e.exit == nil || news.known {
		e.exit = &news
	}
	return true
}

// oom notes that the kernel killed a process of id for memory.
func (x *index) oom(id string) (uid types.UID, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.m[id]
	if e == nil {
		return "", false
	}
	e.oom = true
	return e.uid, true
}

// ended completes a running container, in place, with what an event said about
// its end; false when no event told the exit code.
func (x *index) ended(d *Container) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.m[d.ID]
	if e == nil || e.exit == nil || !e.exit.known || d.State != StateRunning {
		return false
	}
	d.State, d.ExitCode, d.FinishedAt = StateExited, e.exit.code, e.exit.at
	switch { // containerd's own words
	case e.oom:
		d.Reason = "OOMKilled"
	case d.ExitCode == 0:
		d.Reason = "Completed"
	default:
		d.Reason = "Error"
	}
	return true
}

// sandboxEnded says that an event told the end of a sandbox's process.
func (x *index) sandboxEnded(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.m[id]
	return e != nil && e.exit != nil && e.exit.known
}

// lagging says that an event reported the end of id without its code, and no
// reader has waited for its status yet.
func (x *index) lagging(id string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.m[id]
	return e != nil && e.exit != nil && !e.exit.known && !e.exit.waited
}

// gaveUp notes that waiting for id's status did not help.
func (x *index) gaveUp(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.m[id]; e != nil && e.exit != nil {
		e.exit.waited = true
	}
}

// overdue lists the pods for which no reader has seen the runtime's status
// confirm an exit that an event reported, so that somebody looks again: the
// status may have a better reason. After limit the event is taken as wrong.
func (x *index) overdue(now time.Time, limit time.Duration) []types.UID {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []types.UID
	for _, e := range x.m {
		switch {
		case e.exit == nil:
		case now.Sub(e.exit.seen) > limit:
			e.exit = nil
		default:
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
		e.exit = nil
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
		e.exit = nil
	}
}
