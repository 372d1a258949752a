package shutdown

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/config"
)

func testPod(name string, priority int32, grace int64) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)},
		Spec:       v1.PodSpec{Priority: &priority, TerminationGracePeriodSeconds: &grace},
	}
}

func TestGroups(t *testing.T) {
	for name, tc := range map[string]struct {
		periods []config.ShutdownPeriod
		want    string // pods and their grace by group
	}{
		"two":       {[]config.ShutdownPeriod{{Priority: 0, ShutdownGracePeriodSeconds: 20}, {Priority: 2000000000, ShutdownGracePeriodSeconds: 10}}, "20s: low=5s none=20s mid=20s high=20s | 10s: critical=10s node=2s"},
		"unordered": {[]config.ShutdownPeriod{{Priority: 1000, ShutdownGracePeriodSeconds: 7}, {Priority: 10, ShutdownGracePeriodSeconds: 3}}, "3s: low=3s none=3s mid=3s | 7s: high=7s critical=7s node=2s"},
		"one":       {[]config.ShutdownPeriod{{Priority: 10, ShutdownGracePeriodSeconds: 0}}, "0s: low=0s none=0s mid=0s high=0s critical=0s node=0s"},
		"boundary":  {[]config.ShutdownPeriod{{Priority: -10, ShutdownGracePeriodSeconds: 1}, {Priority: 100, ShutdownGracePeriodSeconds: 2}, {Priority: 5000, ShutdownGracePeriodSeconds: 3}}, "1s: low=1s none=1s | 2s: mid=2s high=2s | 3s: critical=3s node=2s"},
	} {
		none := testPod("none", 0, 30)
		none.Spec.Priority = nil
		pods := []*v1.Pod{testPod("low", -10, 5), none, testPod("mid", 100, 30), testPod("high", 1000, 60), testPod("critical", 2000000000, 30), testPod("node", 2000001000, 2)}
		got := ""
		for i, g := range groups(tc.periods, pods) {
			if i > 0 {
				got += " | "
			}
			got += g.period.String() + ":"
			for _, p := range g.pods {
				got += fmt.Sprintf(" %s=%s", p.Name, g.grace(p))
			}
		}
		if got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, tc.want)
		}
	}
	if got := total([]config.ShutdownPeriod{{ShutdownGracePeriodSeconds: 20}, {ShutdownGracePeriodSeconds: 10}}); got != 30*time.Second {
		t.Errorf("total %s", got)
	}
}

// host is a fake of logind, of the pods and of time: timers fire when all that
// waits for them does, in the order of when they are due.
type host struct {
	t  *testing.T
	mu sync.Mutex

	now       time.Time
	delay     time.Duration
	asked     time.Duration // by SetMaxDelay; taken up at the look after the next
	looks     int
	preparing bool
	announced chan bool
	fail      error // of Connect
	held      int
	log       []string
	// pods by when they end after Evict; never: below 0.
	pods    map[types.UID]time.Duration
	all     []*v1.Pod
	evicted map[types.UID]time.Time
	recover chan struct{}
	file    string
}

const never = time.Duration(-1)

func newHost(t *testing.T) *host {
	return &host{
		t: t, now: time.Unix(1000, 0), delay: time.Hour, announced: make(chan bool, 4), pods: map[types.UID]time.Duration{},
		evicted: map[types.UID]time.Time{}, recover: make(chan struct{}, 4), file: filepath.Join(t.TempDir(), "shutdown"),
	}
}

func (h *host) pod(name string, priority int32, ends time.Duration) {
	h.all = append(h.all, testPod(name, priority, 30))
	h.pods[types.UID(name)] = ends
}

func (h *host) lock() func() { h.mu.Lock(); return h.mu.Unlock }

func (h *host) say(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf("%d ", h.now.Unix()-1000)+fmt.Sprintf(format, args...))
}

func (h *host) Announced(context.Context) (<-chan bool, error) { return h.announced, nil }
func (h *host) Preparing(context.Context) (bool, error)        { defer h.lock()(); return h.preparing, nil }
func (h *host) MaxDelay(context.Context) (time.Duration, error) {
	defer h.lock()()
	if h.looks++; h.asked != 0 && h.looks > 2 {
		h.delay = h.asked
	}
	return h.delay, nil
}

func (h *host) SetMaxDelay(_ context.Context, d time.Duration) error {
	defer h.lock()()
	h.asked = d
	h.say("asks for %s", d)
	return nil
}

func (h *host) Delay(context.Context) (io.Closer, error) {
	defer h.lock()()
	h.held++
	h.say("locks")
	return h, nil
}

func (h *host) Close() error { return nil } // of the connection and the lock

func (h *host) Alive() (out []*v1.Pod) {
	for _, p := range h.all {
		if !h.Ended(p.UID) {
			out = append(out, p)
		}
	}
	return out
}

func (h *host) Evict(uid types.UID, grace time.Duration) {
	defer h.lock()()
	if h.evicted[uid].IsZero() {
		h.evicted[uid] = h.now
		h.say("ends %s in %s", uid, grace)
	}
}

func (h *host) Ended(uid types.UID) bool {
	defer h.lock()()
	at := h.evicted[uid]
	return !at.IsZero() && h.pods[uid] >= 0 && !h.now.Before(at.Add(h.pods[uid]))
}

func (h *host) Ending() (out []types.UID) {
	for _, p := range h.Alive() {
		if !h.evicted[p.UID].IsZero() {
			out = append(out, p.UID)
		}
	}
	return out
}

// after is in no hurry with long timers: time goes on by the short ones.
func (h *host) after(d time.Duration) <-chan time.Time {
	defer h.lock()()
	c := make(chan time.Time, 1)
	if d > retry {
		due := h.now.Add(d)
		go func() {
			for h.t.Context().Err() == nil {
				h.mu.Lock()
				now := h.now
				h.mu.Unlock()
				if !now.Before(due) {
					c <- now
					return
				}
				time.Sleep(time.Microsecond)
			}
		}()
		return c
	}
	h.now = h.now.Add(d)
	c <- h.now
	return c
}

func (h *host) manager(boot string) *Manager {
	return New(Options{
		Periods: []config.ShutdownPeriod{{Priority: 0, ShutdownGracePeriodSeconds: 20}, {Priority: 1000, ShutdownGracePeriodSeconds: 10}},
		Pods:    h,
		Connect: func(context.Context) (Logind, error) {
			defer h.lock()()
			err := h.fail
			h.fail = nil
			return h, err
		},
		StateFile: h.file, Boot: boot,
		Changed: func() { defer h.lock()(); h.say("changed") },
		Recover: func(context.Context) { h.recover <- struct{}{} },
		Event:   func(_, reason, message string) { defer h.lock()(); h.say("%s: %s", reason, message) },
		Times:   func(start, end time.Time) {},
		Clock:   func() time.Time { defer h.lock()(); return h.now },
		After:   h.after, Log: slog.New(slog.DiscardHandler),
	})
}

// run runs a manager until the test, or the function that it returns, ends it.
func (h *host) run(m *Manager) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	stop = func() { cancel(); <-done }
	h.t.Cleanup(stop)
	return stop
}

// until waits for what the log says.
func (h *host) until(cond func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		ok, log := cond(), slices.Clone(h.log)
		h.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("log %q", log)
		}
	}
}

func (h *host) state() State {
	s, err := ReadState(h.file)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *host) said(line string) func() bool {
	return func() bool {
		return slices.ContainsFunc(h.log, func(l string) bool { _, what, _ := cut(l); return what == line })
	}
}

func cut(l string) (at, what string, ok bool) {
	for i := range l {
		if l[i] == ' ' {
			return l[:i], l[i+1:], true
		}
	}
	return "", l, false
}

func TestPodsEndInOrder(t *testing.T) {
	h := newHost(t)
	h.fail, h.delay = errors.New("no bus yet"), 5*time.Second
	h.pod("critical", 2000, never)
	h.pod("quick", 0, 0)
	h.pod("slow", 500, 3*time.Second)
	m := h.manager("boot")
	h.run(m)
	h.until(h.said("locks"))
	if m.UnderWay() || h.delay != 30*time.Second {
		t.Errorf("under way: %v, delay %s", m.UnderWay(), h.delay)
	}
	h.announced <- true
	h.until(func() bool { return !h.state().End.IsZero() })
	h.mu.Lock()
	defer h.mu.Unlock()
	began := slices.IndexFunc(h.log, func(l string) bool { _, what, _ := cut(l); return what == "changed" })
	var what []string
	for _, l := range h.log[began:] {
		_, w, _ := cut(l)
		what = append(what, w)
	}
	if want := []string{"changed", "ends quick in 20s", "ends slow in 20s", "ends critical in 10s"}; !slices.Equal(what, want) {
		t.Errorf("log %q", h.log)
	}
	s := h.state()
	if first := h.evicted["critical"].Sub(h.evicted["slow"]); first < 3*time.Second || first > 20*time.Second || !m.UnderWay() || !s.UnderWay("boot") || s.UnderWay("next") {
		t.Errorf("the critical pod was told to end %s after the others; state %+v", first, s)
	}
	if took := s.End.Sub(h.evicted["critical"]); took < 10*time.Second {
		t.Errorf("a pod that does not end had %s", took)
	}
}

func TestCancelledShutdown(t *testing.T) {
	h := newHost(t)
	h.pod("a", 0, time.Second)
	m := h.manager("boot")
	h.run(m)
	h.until(h.said("locks"))
	h.announced <- true
	h.until(func() bool { return !h.state().End.IsZero() })
	h.announced <- false
	<-h.recover
	h.until(func() bool { return h.held == 2 })
	if s := h.state(); m.UnderWay() || s.UnderWay("boot") || s.Start.IsZero() {
		t.Errorf("state %+v", s)
	}
}

// TestShutdownGoesOn: the agent dies while pods end. Without an announcement
// the next one goes on, also after the cancellation that it did not see.
func TestShutdownGoesOn(t *testing.T) {
	h := newHost(t)
	h.pod("stubborn", 0, never)
	h.pod("critical", 5000, time.Second)
	stop := h.run(h.manager("boot"))
	h.until(h.said("locks"))
	h.announced <- true
	h.until(h.said("ends stubborn in 20s"))
	stop()
	h.preparing = true
	m := h.manager("boot")
	if !m.UnderWay() {
		t.Error("it is forgotten that the node is shutting down")
	}
	stop = h.run(m)
	h.until(h.said("ends critical in 10s"))
	stop()
	h.preparing = false
	h.pods["stubborn"] = 0
	h.run(h.manager("boot"))
	<-h.recover
	if next := h.manager("next"); next.UnderWay() {
		t.Error("the next boot is not shutting down")
	}
}
