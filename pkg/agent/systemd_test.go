package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// notifySocket stands in for systemd and hands over what it is told.
func notifySocket(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		if err := l.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4096)
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestNotifications(t *testing.T) {
	told := notifySocket(t)
	s := systemd{log: slog.New(slog.DiscardHandler)}
	s.ready("all is well")
	if got := told(); got != "READY=1\nSTATUS=all is well" {
		t.Errorf("ready: %q", got)
	}
	s.reloading()
	first, usec, _ := strings.Cut(told(), "\nMONOTONIC_USEC=")
	if n, err := strconv.ParseInt(usec, 10, 64); first != "RELOADING=1" || err != nil || n <= 0 {
		t.Errorf("reloading: %q, %q", first, usec)
	}
	s.stopping()
	if got := told(); got != "STOPPING=1" {
		t.Errorf("stopping: %q", got)
	}
}

// TestWatchdogIsFedWhileAlive: and not while a main loop hangs.
func TestWatchdogIsFedWhileAlive(t *testing.T) {
	told := notifySocket(t)
	t.Setenv("WATCHDOG_USEC", "3000")
	var log bytes.Buffer
	hangs := []error{nil, errors.New("a loop hangs"), nil}
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	err := systemd{log: slog.New(slog.NewTextHandler(&log, nil))}.watchdog(ctx, func(within time.Duration) error {
		if within != 3*time.Millisecond {
			t.Errorf("within %s", within)
		}
		asked++
		if asked == len(hangs) {
			cancel()
		}
		return hangs[min(asked, len(hangs))-1]
	})
	if err != nil {
		t.Fatal(err)
	}
	for range asked - 1 {
		if got := told(); got != "WATCHDOG=1" {
			t.Errorf("told %q", got)
		}
	}
	if strings.Count(log.String(), "a loop hangs") != 1 {
		t.Errorf("log: %s", &log)
	}
	// Nothing else was sent.
	systemd{log: slog.New(slog.DiscardHandler)}.stopping()
	if got := told(); got != "STOPPING=1" {
		t.Errorf("fed while a loop hung: %q", got)
	}
}

func TestNoServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	var log bytes.Buffer
	s := systemd{log: slog.New(slog.NewTextHandler(&log, nil))}
	s.ready("x")
	s.reloading()
	s.stopping()
	if err := s.watchdog(t.Context(), func(time.Duration) error { return nil }); err != nil || log.Len() > 0 {
		t.Errorf("%v, %s", err, &log)
	}
}

func TestJournalKeepsLevelAndFields(t *testing.T) {
	type entry struct {
		message  string
		priority journal.Priority
		fields   map[string]string
	}
	var got []entry
	var down error
	var text bytes.Buffer
	log := slog.New(&journalHandler{
		send: func(m string, p journal.Priority, f map[string]string) error {
			if down == nil {
				got = append(got, entry{m, p, f})
			}
			return down
		},
		fallback: slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelInfo}),
	})
	log.Debug("not wanted")
	log.Info("ready", "node", "n 1", "took", 3*time.Second)
	log.With("pod", "default/web").WithGroup("ctr").Warn("odd", "exit-code", 7, slog.Group("a", "b", "c"))
	log.Error("broken", "err", errors.New("two\nlines"))
	want := []entry{
		{`ready node="n 1" took=3s`, journal.PriInfo, map[string]string{"NODEAGENT_NODE": "n 1", "NODEAGENT_TOOK": "3s"}},
		{`odd pod=default/web ctr.exit-code=7 ctr.a.b=c`, journal.PriWarning, map[string]string{"NODEAGENT_POD": "default/web", "NODEAGENT_CTR_EXIT_CODE": "7", "NODEAGENT_CTR_A_B": "c"}},
		{`broken err="two\nlines"`, journal.PriErr, map[string]string{"NODEAGENT_ERR": "two\nlines"}},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i, w := range want {
		w.fields["SYSLOG_IDENTIFIER"] = "nodeagent"
		if got[i].message != w.message || got[i].priority != w.priority || !maps.Equal(got[i].fields, w.fields) {
			t.Errorf("got %+v, want %+v", got[i], w)
		}
	}
	down = errors.New("journald is away")
	log.With("pod", "default/web").Info("said all the same")
	if !strings.Contains(text.String(), `msg="said all the same" pod=default/web`) {
		t.Errorf("on standard error: %q", &text)
	}
}
