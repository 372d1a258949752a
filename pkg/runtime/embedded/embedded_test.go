package embedded

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

func TestEnsureStartsOnceAndTheNextAgentTakesOver(t *testing.T) {
	h := newHost(t)
	first := h.agent()
	h.must(first.Ensure(t.Context()))
	pid := h.one()
	h.must(first.Ensure(t.Context()))
	if now := h.one(); now != pid {
		t.Errorf("a second Ensure started another: %d → %d", pid, now)
	}
	next := h.agent() // the first one's agent was killed
	h.must(next.Ensure(t.Context()))
	if now := h.one(); now != pid {
		t.Errorf("the next agent started another: %d → %d", pid, now)
	}
	if next.proc.child != nil {
		t.Error("the next agent believes that it is the parent")
	}
	h.must(next.Stop(t.Context()))
	if r := h.running(); len(r) > 0 {
		t.Errorf("after Stop: %v", r)
	}
}

func TestRestartedOnlyWhenSomethingChanged(t *testing.T) {
	for name, change := range map[string]func(h *host){
		"configuration": func(h *host) { h.o.CNIBinDir = "/elsewhere" },
		"version":       func(h *host) { h.tell("version", "containerd github.com/containerd/containerd/v2 v2.4.2 abc") },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			s := h.agent()
			h.must(s.Ensure(t.Context()))
			pid := h.one()
			change(h)
			h.must(h.agent().Ensure(t.Context()))
			if h.one() == pid {
				t.Error("it was not restarted")
			}
			if files, _ := filepath.Glob(h.o.StateDir + "/config-*"); len(files) != 1 {
				t.Errorf("configurations: %v, want the new one alone", files)
			}
		})
	}
}

func TestStubbornIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the grace period")
	}
	h := newHost(t)
	h.tell("stubborn", "")
	s := h.agent()
	h.must(s.Ensure(t.Context()))
	h.must(s.Stop(t.Context()))
	if r := h.running(); len(r) > 0 {
		t.Errorf("after Stop: %v", r)
	}
}

// run supervises in the background until the test ends.
func (h *host) run(s *Supervisor) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	h.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			h.Errorf("Run: %v", err)
		}
	})
}

func TestRunStartsItAgain(t *testing.T) {
	for name, adopted := range map[string]bool{"own child": false, "adopted": true} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			s := h.agent()
			h.must(s.Ensure(t.Context()))
			if adopted {
				child := s.proc.child
				s = h.agent()
				h.must(s.Ensure(t.Context()))
				go func() { _ = child.Wait() }() // as init would
			}
			h.run(s)
			pid := h.one()
			h.must(syscall.Kill(pid, syscall.SIGKILL))
			h.until("another runs", func() bool { r := h.running(); return len(r) == 1 && r[0] != pid })
			c, err := New(h.o)
			h.must(err)
			h.until("it answers", func() bool { return c.check(t.Context()) == nil })
		})
	}
}

func TestRunWaitsForAReason(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	h.must(s.Ensure(t.Context()))
	h.run(s)
	h.tell("fail", "containerd: disk on fire")
	pid := h.one()
	h.must(syscall.Kill(pid, syscall.SIGKILL))
	h.until("it ended", func() bool { return len(h.running()) == 0 })
	h.must(os.Remove(filepath.Join(h.bin, "fail")))
	h.until("another runs", func() bool { return len(h.running()) == 1 })
}

func TestEnsureSaysWhyItEnded(t *testing.T) {
	h := newHost(t)
	h.tell("fail", "containerd: disk on fire")
	err := h.agent().Ensure(t.Context())
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "disk on fire") || !strings.Contains(err.Error(), "containerd.log") {
		t.Errorf("error %v", err)
	}
	again := h.agent().Ensure(t.Context())
	if again.Error() != err.Error() {
		t.Errorf("the same failure reads differently: %v, %v", err, again)
	}
}

func TestEnsureEndsWithItsContext(t *testing.T) {
	h := newHost(t)
	h.tell("hang", "")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- h.agent().Ensure(ctx) }()
	h.until("it runs", func() bool { return len(h.running()) == 1 })
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	h.must(os.Remove(filepath.Join(h.bin, "hang")))
	h.must(h.agent().Ensure(t.Context()))
}

func TestOthersAreLeftAlone(t *testing.T) {
	h, other := newHost(t), newHost(t)
	h.must(h.agent().Ensure(t.Context()))
	s := other.agent()
	h.must(s.Ensure(t.Context()))
	h.must(s.Stop(t.Context()))
	h.one()
	if r := other.running(); len(r) > 0 {
		t.Errorf("after Stop: %v", r)
	}
}

func TestStateOfTheLastBootIsRemoved(t *testing.T) {
	h := newHost(t)
	stale := filepath.Join(h.o.State(), "task")
	h.must(os.MkdirAll(stale, 0o755))
	h.must(os.WriteFile(h.o.bootFile(), []byte("another boot\n"), 0o600))
	s := h.agent()
	h.must(s.Ensure(t.Context()))
	if _, err := os.Stat(stale); err == nil {
		t.Error("the last boot's state is still there")
	}
	h.must(s.Stop(t.Context()))
	h.must(os.MkdirAll(stale, 0o755))
	h.must(h.agent().Ensure(t.Context()))
	if _, err := os.Stat(stale); err != nil {
		t.Errorf("this boot's state was removed: %v", err)
	}
}

func TestLongSocketPathIsRefused(t *testing.T) {
	_, err := New(Options{StateDir: "/" + strings.Repeat("x", 90)})
	if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "--state-dir") {
		t.Errorf("error %v", err)
	}
}

func TestLogIsRotated(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	h.must(s.Ensure(t.Context()))
	h.must(os.WriteFile(h.o.logFile(), make([]byte, maxLog), 0o640))
	s.rotateLog()
	now, err := os.Stat(h.o.logFile())
	h.must(err)
	old, err := os.Stat(h.o.logFile() + ".1")
	h.must(err)
	if now.Size() != 0 || old.Size() != maxLog {
		t.Errorf("sizes %d and %d", now.Size(), old.Size())
	}
}
