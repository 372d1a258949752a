package probe

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// world is what a prober stands in: a clock that the test moves, a runtime
// whose commands the test answers, and what was recorded.
type world struct {
	t *testing.T
	*Prober

	mu      sync.Mutex
	changed *sync.Cond
	now     time.Time
	alarms  []alarm
	exec    func(id string, cmd []string) (out string, exit int32, err error)
	asked   int // commands run
	events  []string
	counts  map[string]int
}

type alarm struct {
	at time.Time
	c  chan time.Time
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newWorld(t *testing.T) *world {
	w := &world{t: t, now: start, counts: map[string]int{}, exec: func(string, []string) (string, int32, error) { return "", 0, nil }}
	w.changed = sync.NewCond(&w.mu)
	w.Prober = New(Options{Runtime: w, Recorder: w, Metrics: w, Clock: w.clock, After: w.after, Log: slog.New(slog.DiscardHandler)})
	return w
}

func (w *world) clock() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now }

func (w *world) after(d time.Duration) <-chan time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := alarm{at: w.now.Add(d), c: make(chan time.Time, 1)}
	if d <= 0 {
		a.c <- w.now
	} else {
		w.alarms = append(w.alarms, a)
	}
	w.changed.Broadcast()
	return a.c
}

// pass waits until n probes wait for their time, and moves the clock on.
func (w *world) pass(n int, d time.Duration) {
	w.t.Helper()
	w.until(fmt.Sprintf("%d probes wait", n), func() bool { return len(w.alarms) == n })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
	w.alarms = slices.DeleteFunc(w.alarms, func(a alarm) bool {
		due := !a.at.After(w.now)
		if due {
			a.c <- w.now
		}
		return due
	})
}

// until waits for a condition, which is looked at with the lock held.
func (w *world) until(what string, cond func() bool) {
	w.t.Helper()
	late := false
	stop := time.AfterFunc(20*time.Second, func() { w.mu.Lock(); late = true; w.changed.Broadcast(); w.mu.Unlock() })
	defer stop.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for !cond() {
		if late {
			w.t.Fatalf("never happened: %s; events %q, counts %v", what, w.events, w.counts)
		}
		w.changed.Wait()
	}
}

func (w *world) ExecSync(ctx context.Context, id string, cmd []string, _ time.Duration) ([]byte, []byte, int32, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out, exit, err := w.exec(id, cmd)
	w.asked++
	w.changed.Broadcast()
	return []byte(out), nil, exit, err
}

func (w *world) PodEvent(p *v1.Pod, container, eventType, reason, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, strings.Join([]string{p.Name, container, eventType, reason, message}, " "))
	w.changed.Broadcast()
}

func (w *world) Probed(p *v1.Pod, container, kind string, good bool, _ time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[fmt.Sprintf("%s %s %s %t", p.Name, container, kind, good)]++
	w.changed.Broadcast()
}

func (w *world) ProbesEnded(p *v1.Pod, container string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.counts {
		if strings.HasPrefix(key, p.Name+" "+container+" ") {
			delete(w.counts, key)
		}
	}
}

var web = &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"}}

// execProbe is a container that is probed by a command each second.
func execProbe(id string) Container {
	return Container{ID: id, Host: "127.0.0.1", Began: start, Spec: &v1.Container{Name: "main", ReadinessProbe: &v1.Probe{
		ProbeHandler:  v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"ready?"}}},
		PeriodSeconds: 1, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 1,
	}}}
}
