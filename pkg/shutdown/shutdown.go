// Package shutdown ends pods before the host goes down, in the order of their
// priority: systemd-logind is asked to wait for them. What belongs to which
// group is pure; the rest is a thin loop over logind and the pods.
package shutdown

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// In kubelet's words: what becomes of pods that run, and of new ones; and why
// the node is not ready.
const (
	Reason        = "Terminated"
	EventReason   = "NodeShutdown"
	Message       = "Pod was terminated in response to imminent node shutdown."
	RefuseMessage = "Pod was rejected as the node is shutting down."
	NotReady      = "node is shutting down"
)

const (
	retry = time.Second
	// poll is how often it looks whether pods have ended.
	poll = 50 * time.Millisecond
	// reloads is how often, retry apart, it looks whether logind has read its
	// configuration.
	reloads = 10
)

// Pods are the node's.
type Pods interface {
	// Alive are those of which something runs, with their priority written out.
	Alive() []*v1.Pod
	// Evict ends a pod; the second time it does nothing.
	Evict(uid types.UID, grace time.Duration)
	// Ending are those that Evict was called for, by this agent or the one before,
	// and of which something is left.
	Ending() []types.UID
	// Ended says that nothing of a pod is left, its volumes included.
	Ended(uid types.UID) bool
}

// Options are the manager's parts and settings; all are required.
type Options struct {
	// Periods are those of a valid configuration, at least one.
	Periods []config.ShutdownPeriod
	Pods    Pods
	Connect func(ctx context.Context) (Logind, error)
	// StateFile keeps a State; Boot is the id of this boot.
	StateFile, Boot string
	// Changed is told when UnderWay has changed.
	Changed func()
	// Recover is called when a shutdown was cancelled: the pods that it has ended
	// are to run again.
	Recover func(ctx context.Context)
	// Event tells of the node; Times are those of the latest shutdown, zero: none.
	Event func(eventType, reason, message string)
	Times func(start, end time.Time)
	Clock func() time.Time
	After func(time.Duration) <-chan time.Time
	Log   *slog.Logger
}

// Manager waits for shutdowns.
type Manager struct {
	Options
	state    State
	underWay atomic.Bool
}

// New takes up what the agent before knew; nothing runs until Run.
func New(o Options) *Manager {
	m := &Manager{Options: o}
	var err error
	if m.state, err = ReadState(o.StateFile); err != nil {
		o.Log.Warn("pods that the latest shutdown has ended may not run again", "err", err)
	}
	m.underWay.Store(m.state.UnderWay(o.Boot))
	m.Times(m.state.Start, m.state.End)
	return m
}

// UnderWay says that the node is shutting down.
func (m *Manager) UnderWay() bool { return m.underWay.Load() }

// Run works until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	last := ""
	for {
		err := m.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != last { // said once, not every second
			last = err.Error()
			m.Log.Warn("pods are not ended in order when the host shuts down; will keep trying", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.After(retry):
		}
	}
}

// errLost is the end of a connection.
var errLost = errors.New("the connection to D-Bus has ended")

// session is one connection. It listens before it looks, so that nothing is
// missed in between.
func (m *Manager) session(ctx context.Context) error {
	login, err := m.Connect(ctx)
	if err != nil {
		return err
	}
	defer login.Close()
	announced, err := login.Announced(ctx)
	if err != nil {
		return err
	}
	preparing, err := login.Preparing(ctx)
	if err != nil {
		return err
	}
	var lock io.Closer
	defer func() { unlock(lock) }()
	switch {
	case preparing: // logind gives no lock any more
		m.begin(ctx)
	case m.UnderWay():
		m.cancelled(ctx)
		return nil
	default:
		if err := m.delay(ctx, login); err != nil {
			return err
		}
		if lock, err = login.Delay(ctx); err != nil {
			return err
		}
		m.Log.Info("the host's shutdown waits for pods", "atMost", total(m.Periods))
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case begins, open := <-announced:
			switch {
			case !open:
				return errLost
			case begins:
				m.begin(ctx)
				unlock(lock)
				lock = nil
			case m.UnderWay():
				m.cancelled(ctx)
				return nil // the next session takes a lock
			}
		}
	}
}

func unlock(lock io.Closer) {
	if lock != nil {
		_ = lock.Close() // the kernel drops it whatever close says
	}
}

// delay has logind wait for as long as the pods may take.
func (m *Manager) delay(ctx context.Context, login Logind) error {
	want := total(m.Periods)
	has, err := login.MaxDelay(ctx)
	if err != nil || has >= want {
		return err
	}
	if err := login.SetMaxDelay(ctx, want); err != nil {
		return err
	}
	for range reloads {
		if has, err = login.MaxDelay(ctx); err != nil || has >= want {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.After(retry):
		}
	}
	return fmt.Errorf("logind waits for %s only, not for the %s of shutdownGracePeriod: does a file behind %s in %s set InhibitDelayMaxSec?", has, want, dropIn, DropInDir)
}

// begin ends the pods.
func (m *Manager) begin(ctx context.Context) {
	if !m.underWay.Swap(true) {
		m.keep(State{Boot: m.Boot, Start: m.Clock()})
		m.Event(v1.EventTypeNormal, EventReason, "Shutdown manager detected shutdown event")
		m.Log.Info("the host shuts down: pods end")
	}
	m.Changed()
	for _, g := range groups(m.Periods, m.Pods.Alive()) {
		m.end(ctx, g)
	}
	if ctx.Err() != nil {
		return // the next agent goes on
	}
	s := m.state
	s.End = m.Clock()
	m.keep(s)
	m.Log.Info("the host goes down: pods had their time", "took", s.End.Sub(s.Start))
}

// end ends one group, and waits for it while its period lasts.
func (m *Manager) end(ctx context.Context, g group) {
	if len(g.pods) == 0 {
		return
	}
	expired := m.After(g.period)
	for _, p := range g.pods {
		m.Pods.Evict(p.UID, g.grace(p))
	}
	for {
		left := m.left(g.pods)
		if len(left) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-expired:
			m.Log.Warn("pods have not ended in their time before the host goes down", "pods", left, "time", g.period)
			return
		case <-m.After(poll):
		}
	}
}

func (m *Manager) left(pods []*v1.Pod) (names []string) {
	for _, p := range pods {
		if !m.Pods.Ended(p.UID) {
			names = append(names, pod.Describe(p))
		}
	}
	return names
}

// cancelled has the pods run again, once those that were told to end have.
func (m *Manager) cancelled(ctx context.Context) {
	m.Event(v1.EventTypeNormal, EventReason, "Shutdown manager detected shutdown cancellation")
	m.Log.Info("the host's shutdown was cancelled: pods run again")
	for len(m.Pods.Ending()) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-m.After(poll):
		}
	}
	s := m.state
	s.Boot = ""
	m.keep(s)
	m.underWay.Store(false)
	m.Changed()
	m.Recover(ctx)
}

func (m *Manager) keep(s State) {
	m.state = s
	m.Times(s.Start, s.End)
	if err := s.write(m.StateFile); err != nil {
		m.Log.Warn("an agent that starts meanwhile may run pods", "err", err)
	}
}
