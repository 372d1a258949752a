// Package logind is a D-Bus of a test's own with something on it that behaves as
// systemd-logind does towards those who delay a shutdown.
package logind

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	manager  = "org.freedesktop.login1.Manager"
	path     = dbus.ObjectPath("/org/freedesktop/login1")
	patience = 2 * time.Minute
)

const busConfig = `<busconfig>
<type>custom</type>
<listen>unix:path=%s</listen>
<auth>EXTERNAL</auth>
<policy context="default">
<allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/>
<allow own="*"/>
</policy>
</busconfig>
`

// Fake is the logind. Its methods may be called from any goroutine.
type Fake struct {
	t    testing.TB
	conn *dbus.Conn
	// Address is for DBUS_SYSTEM_BUS_ADDRESS.
	Address string
	dropIns string

	mu        sync.Mutex
	delay     time.Duration
	preparing bool
	locks     []*lock
}

// lock is a pipe; it is free once nobody has its other end.
type lock struct{ ours, theirs *os.File }

// Start runs it until the test ends, with files in dir. It waits delay for locks,
// until it is told to read what is in the folder dropIns.
func Start(t testing.TB, dir, dropIns string, delay time.Duration) *Fake {
	t.Helper()
	socket, config := filepath.Join(dir, "bus.sock"), filepath.Join(dir, "bus.conf")
	f := &Fake{t: t, Address: "unix:path=" + socket, dropIns: dropIns, delay: delay}
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, socket), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("dbus-daemon", "--nofork", "--nopidfile", "--nosyslog", "--config-file="+config)
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f.conn != nil {
			_ = f.conn.Close()
		}
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
		for _, l := range f.locks {
			l.sent()
			_ = l.ours.Close()
		}
	})
	f.await("dbus-daemon listens", func() (err error) {
		f.conn, err = dbus.Connect(f.Address)
		return err
	})
	for iface, object := range map[string]any{manager: (*login)(f), "org.freedesktop.DBus.Properties": (*properties)(f)} {
		if err := f.conn.Export(object, path, iface); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.conn.Export((*systemd)(f), "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"org.freedesktop.login1", "org.freedesktop.systemd1"} {
		if _, err := f.conn.RequestName(name, dbus.NameFlagDoNotQueue); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *Fake) await(what string, cond func() error) {
	f.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: %v", what, err)
		}
	}
}

// Announce tells of a shutdown, or that it was cancelled. Who calls it knows that
// locks which were asked for have arrived.
func (f *Fake) Announce(begins bool) {
	f.t.Helper()
	f.mu.Lock()
	f.preparing = begins
	for _, l := range f.locks {
		l.sent()
	}
	f.mu.Unlock()
	if err := f.conn.Emit(path, manager+".PrepareForShutdown", begins); err != nil {
		f.t.Fatal(err)
	}
}

func (l *lock) sent() {
	if l.theirs != nil {
		_ = l.theirs.Close()
		l.theirs = nil
	}
}

// Locks are how many were given so far.
func (f *Fake) Locks() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.locks)
}

// Held says whether somebody still has the latest lock.
func (f *Fake) Held() bool {
	f.mu.Lock()
	l := f.locks[len(f.locks)-1]
	f.mu.Unlock()
	if err := l.ours.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		f.t.Fatal(err)
	}
	_, err := l.ours.Read(make([]byte, 1))
	return err != io.EOF
}

// AwaitLocks waits until so many locks were given.
func (f *Fake) AwaitLocks(n int) {
	f.t.Helper()
	f.await("locks", func() error {
		if have := f.Locks(); have < n {
			return fmt.Errorf("%d locks were asked for, want %d", have, n)
		}
		return nil
	})
}

// AwaitRelease waits until nobody has the latest lock.
func (f *Fake) AwaitRelease() {
	f.t.Helper()
	f.await("the lock's release", func() error {
		if f.Held() {
			return fmt.Errorf("it is held")
		}
		return nil
	})
}

// login, properties and systemd are what it shows on the bus.
type (
	login      Fake
	properties Fake
	systemd    Fake
)

func (l *login) Inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	f := (*Fake)(l)
	f.mu.Lock()
	defer f.mu.Unlock()
	if what != "shutdown" || who == "" || why == "" || mode != "delay" {
		return 0, dbus.MakeFailedError(fmt.Errorf("inhibit %q %q %q %q", what, who, why, mode))
	}
	if f.preparing {
		return 0, dbus.NewError("org.freedesktop.login1.OperationInProgress", nil)
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	f.locks = append(f.locks, &lock{ours, theirs})
	return dbus.UnixFD(theirs.Fd()), nil
}

func (p *properties) Get(iface, name string) (dbus.Variant, *dbus.Error) {
	f := (*Fake)(p)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case iface == manager && name == "InhibitDelayMaxUSec":
		return dbus.MakeVariant(uint64(f.delay / time.Microsecond)), nil
	case iface == manager && name == "PreparingForShutdown":
		return dbus.MakeVariant(f.preparing), nil
	}
	return dbus.Variant{}, dbus.MakeFailedError(fmt.Errorf("no property %s of %s", name, iface))
}

// KillUnit has logind read its configuration.
func (s *systemd) KillUnit(unit, whom string, signal int32) *dbus.Error {
	f := (*Fake)(s)
	if unit != "systemd-logind.service" || whom != "all" || signal != 1 {
		return dbus.MakeFailedError(fmt.Errorf("kill %s %s %d", unit, whom, signal))
	}
	files, err := filepath.Glob(filepath.Join(f.dropIns, "*.conf"))
	if err != nil {
		return dbus.MakeFailedError(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return dbus.MakeFailedError(err)
		}
		_, value, _ := strings.Cut(string(b), "[Login]\nInhibitDelayMaxSec=")
		seconds, err := strconv.Atoi(strings.TrimSpace(value))
		if err != nil {
			return dbus.MakeFailedError(err)
		}
		f.mu.Lock()
		f.delay = time.Duration(seconds) * time.Second
		f.mu.Unlock()
	}
	return nil
}
