package runtime

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"k8s.io/apimachinery/pkg/types"
)

// recorder collects the events of a Watch.
type recorder struct {
	mu     sync.Mutex
	events []Event
	more   chan struct{}
}

func startWatch(t *testing.T, c *Client) *recorder {
	t.Helper()
	r := &recorder{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- c.Watch(ctx, func(e Event) {
			r.mu.Lock()
			r.events = append(r.events, e)
			r.mu.Unlock()
			select {
			case r.more <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return r
}

func (r *recorder) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

func (r *recorder) wait(t *testing.T, mark int, uid types.UID) Event {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		i := slices.IndexFunc(r.events[mark:], func(e Event) bool { return e.UID == uid })
		if i >= 0 {
			defer r.mu.Unlock()
			return r.events[mark+i]
		}
		r.mu.Unlock()
		select {
		case <-r.more:
		case <-limit:
			t.Fatalf("no event for %q in %v", uid, r.events[mark:])
		}
	}
}

// tell sends an event until it arrives: what goes into the stream of a way that
// was given up, before the fake has seen that, is lost.
func (r *recorder) tell(t *testing.T, uid types.UID, send func()) {
	t.Helper()
	mark, limit := r.mark(), time.After(20*time.Second)
	for again := time.NewTicker(time.Second); ; {
		send()
		for heard := true; heard; {
			r.mu.Lock()
			arrived := slices.ContainsFunc(r.events[mark:], func(e Event) bool { return e.UID == uid })
			r.mu.Unlock()
			if arrived {
				again.Stop()
				return
			}
			select {
			case <-r.more:
			case <-again.C:
				heard = false
			case <-limit:
				t.Fatalf("no event for %q", uid)
			}
		}
	}
}

// TestEventWays: every kind of runtime, through an exit and a restart.
func TestEventWays(t *testing.T) {
	for _, tc := range []struct {
		name     string
		cri, own bool
		events   string
		subs     int
	}{
		{"containerd", false, true, "containerd", 1}, // 1.6
		{"containerd", true, true, "containerd", 2},  // 1.7 and newer
		{"containerd", true, false, "cri", 1},        // behind a proxy that lets only CRI through
		{"cri-o", true, false, "cri", 1},
		{"cri-o", false, false, "poll", 0},
	} {
		t.Run(fmt.Sprint(tc), func(t *testing.T) {
			f := newFake(t, func(f *fakeRuntime) { f.name, f.criEvents, f.ownEvents = tc.name, tc.cri, tc.own })
			c := dialFake(t, f, nil)
			r := startWatch(t, c)
			r.wait(t, 0, "")
			// Falling back announces a gap each time.
			for limit := time.After(20 * time.Second); c.eventMode() != tc.events; {
				select {
				case <-r.more:
				case <-limit:
					t.Fatalf("events come by %s", c.eventMode())
				}
			}
			f.subscribed(t, tc.subs)
			if i, err := c.Info(t.Context()); err != nil || i.Events != tc.events {
				t.Fatalf("Info = %+v, %v", i, err)
			}
			_, id := startPod(t, c, onePod("u1"))
			if tc.subs > 0 {
				r.tell(t, "u1", func() { f.end(id, 5, "Error", 0) })
				if m := mustPod(t, c, "u1").Newest("main"); m.State != StateExited || m.ExitCode != 5 {
					t.Fatalf("%+v", m)
				}
			}
			mark := r.mark()
			f.stop()
			f.start(t)
			r.wait(t, mark, "")
			f.subscribed(t, tc.subs)
			if len(mustPods(t, c)) != 1 {
				t.Error("the pod is not listed after a restart of the runtime")
			}
		})
	}
}

// TestLaggingStatus: a CRI event tells an exit that the status shows later.
func TestLaggingStatus(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	r := startWatch(t, c)
	f.subscribed(t, 1)
	_, id := startPod(t, c, onePod("u1"))
	if m := mustPod(t, c, "u1").Newest("main"); m.State != StateRunning {
		t.Fatalf("%+v", m)
	}
	mark := r.mark()
	f.end(id, 9, "Error", 4) // the fourth status call tells
	if e := r.wait(t, mark, "u1"); e.At != time.Unix(0, 77) {
		t.Errorf("event at %v", e.At)
	}
	if m := mustPod(t, c, "u1").Newest("main"); m.State != StateExited || m.ExitCode != 9 {
		t.Fatalf("read after the event: %+v", m)
	}
	// A status that never follows is waited for once, and looked at again later.
	_, id = startPod(t, c, onePod("u2"))
	mark = r.mark()
	f.end(id, 9, "Error", -1)
	r.wait(t, mark, "u2")
	if m := mustPod(t, c, "u2").Newest("main"); m.State != StateRunning {
		t.Fatalf("without a status: %+v", m)
	}
	calls := f.count("ctrStatus")
	mustPod(t, c, "u2")
	if n := f.count("ctrStatus") - calls; n != 0 {
		t.Errorf("the second reader asked %d times", n)
	}
	f.confirm(id)
	r.wait(t, r.mark(), "u2")
	if m := mustPod(t, c, "u2").Newest("main"); m.State != StateExited {
		t.Fatalf("%+v", m)
	}
}

// TestToldExit: containerd's event tells an exit in full, long before the status.
func TestToldExit(t *testing.T) {
	f := newFake(t, func(f *fakeRuntime) { f.name, f.criEvents, f.ownEvents = "containerd", false, true })
	c := dialFake(t, f, nil)
	r := startWatch(t, c)
	f.subscribed(t, 1)
	box, id := startPod(t, c, onePod("u1"))
	other, _ := startPod(t, dialFake(t, f, func(o *Options) { o.Owner = "other" }), onePod("theirs"))
	mustPod(t, c, "u1")
	mark := r.mark()
	f.mu.Lock()
	f.sendOwn("/tasks/start", &eventtypes.TaskStart{ContainerID: id})                             // our own doing
	f.sendOwn("/tasks/exit", &eventtypes.TaskExit{ContainerID: id, ID: "an-exec", ExitStatus: 1}) // not its first process
	f.sendOwn("/tasks/exit", &eventtypes.TaskExit{ContainerID: other, ID: other, ExitStatus: 1})  // not ours
	f.sendOwn("/tasks/exit", &eventtypes.TaskExit{ContainerID: "unknown", ID: "unknown"})         // nobody's
	f.sendOwn("/containers/delete", &eventtypes.ContainerDelete{ID: "unknown"})                   // nobody's
	f.sendOwn("/tasks/oom", &eventtypes.TaskOOM{ContainerID: id})
	f.mu.Unlock()
	r.wait(t, mark, "u1")
	if m := mustPod(t, c, "u1").Newest("main"); m.State != StateRunning {
		t.Fatalf("running container: %+v", m)
	}
	r.mu.Lock()
	for _, e := range r.events[mark:] {
		if e.UID != "u1" && e.UID != "" {
			t.Errorf("event %v", e)
		}
	}
	r.mu.Unlock()
	mark = r.mark()
	f.end(id, 137, "Better reason", -1)
	r.wait(t, mark, "u1")
	calls := f.count("ctrStatus")
	for range 2 {
		m := mustPod(t, c, "u1").Newest("main")
		if m.State != StateExited || m.ExitCode != 137 || m.Reason != "OOMKilled" || !m.FinishedAt.Equal(time.Unix(99, 0)) || m.StartedAt.IsZero() {
			t.Fatalf("told exit: %+v", m)
		}
	}
	if m := mustPods(t, c)[0].Newest("main"); m.State != StateExited {
		t.Fatalf("told exit in the full list: %+v", m)
	}
	if n := f.count("ctrStatus") - calls; n != 0 {
		t.Errorf("%d status calls for a told exit", n)
	}
	// A look is asked for until the status confirms it; the status then counts.
	f.confirm(id)
	r.wait(t, r.mark(), "u1")
	if m := mustPod(t, c, "u1").Newest("main"); m.Reason != "Better reason" || m.FinishedAt.Equal(time.Unix(99, 0)) {
		t.Fatalf("confirmed exit: %+v", m)
	}
	c.index.mu.Lock()
	if c.index.m[id].exit != nil {
		t.Error("a confirmed exit is still open")
	}
	c.index.mu.Unlock()

	// The sandbox's own process.
	mark = r.mark()
	f.mu.Lock()
	f.sendOwn("/tasks/exit", &eventtypes.TaskExit{ContainerID: box, ID: box, ExitStatus: 137})
	f.mu.Unlock()
	r.wait(t, mark, "u1")
	if s := mustPod(t, c, "u1").Sandbox(); s.Ready || s.IPs != nil {
		t.Fatalf("sandbox that ended: %+v", s)
	}
}

// TestExitOfUnknown: the agent restarted and has not listed yet.
func TestExitOfUnknown(t *testing.T) {
	f := newFake(t, func(f *fakeRuntime) { f.name, f.criEvents, f.ownEvents = "containerd", false, true })
	_, id := startPod(t, dialFake(t, f, nil), onePod("u1"))
	c := dialFake(t, f, nil)
	r := startWatch(t, c)
	f.subscribed(t, 1)
	f.end(id, 4, "", -1)
	r.wait(t, 0, "u1")
	if m := mustPod(t, c, "u1").Newest("main"); m.State != StateExited || m.ExitCode != 4 || m.Reason != "Error" {
		t.Fatalf("%+v", m)
	}
}
