package shutdown

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	loginName  = "org.freedesktop.login1"
	loginPath  = dbus.ObjectPath("/org/freedesktop/login1")
	loginIface = "org.freedesktop.login1.Manager"
	prepare    = "PrepareForShutdown"

	systemdName  = "org.freedesktop.systemd1"
	systemdPath  = dbus.ObjectPath("/org/freedesktop/systemd1")
	systemdIface = "org.freedesktop.systemd1.Manager"
	loginUnit    = "systemd-logind.service"
	sighup       = int32(1)
	// DropInDir is where logind's configuration is amended.
	DropInDir = "/etc/systemd/logind.conf.d"
	dropIn    = "99-nodeagent.conf"
	// signals is how many announcements may wait while pods end.
	signals = 16
)

// Logind is systemd-logind, which announces shutdowns and can be made to wait. It
// is for one connection: when that breaks, Announced's channel is closed.
type Logind interface {
	// Announced delivers true when a shutdown begins and false when it was
	// cancelled.
	Announced(ctx context.Context) (<-chan bool, error)
	// Preparing says that a shutdown has been announced.
	Preparing(ctx context.Context) (bool, error)
	// MaxDelay is how long logind waits at most; SetMaxDelay asks for another
	// value, which logind takes up a moment later.
	MaxDelay(ctx context.Context) (time.Duration, error)
	SetMaxDelay(ctx context.Context, d time.Duration) error
	// Delay makes it wait until the lock is closed.
	Delay(ctx context.Context) (lock io.Closer, err error)
	io.Closer
}

// bus is logind over D-Bus.
type bus struct {
	conn *dbus.Conn
	dir  string
}

// Connect connects to logind over the system's D-Bus; dropIns is DropInDir, or a
// test's.
func Connect(ctx context.Context, dropIns string) (Logind, error) {
	// The context of a connection ends it.
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the system's D-Bus: %w", err)
	}
	return &bus{conn: conn, dir: dropIns}, nil
}

func (b *bus) Close() error { return b.conn.Close() }

func (b *bus) Announced(ctx context.Context) (<-chan bool, error) {
	in, out := make(chan *dbus.Signal, signals), make(chan bool)
	b.conn.Signal(in)
	err := b.conn.AddMatchSignalContext(ctx, dbus.WithMatchObjectPath(loginPath), dbus.WithMatchInterface(loginIface), dbus.WithMatchMember(prepare))
	if err != nil {
		return nil, fmt.Errorf("cannot ask D-Bus for logind's signals: %w", err)
	}
	go func() { // ends with the connection
		defer close(out)
		for s := range in {
			if s.Name != loginIface+"."+prepare || len(s.Body) == 0 {
				continue
			}
			begins, ok := s.Body[0].(bool)
			if !ok {
				continue
			}
			select {
			case out <- begins:
			case <-b.conn.Context().Done():
				return
			}
		}
	}()
	return out, nil
}

func (b *bus) property(ctx context.Context, name string, to any) error {
	err := b.conn.Object(loginName, loginPath).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, loginIface, name).Store(to)
	if err != nil {
		return fmt.Errorf("cannot read %s of logind: %w", name, err)
	}
	return nil
}

func (b *bus) Preparing(ctx context.Context) (preparing bool, err error) {
	return preparing, b.property(ctx, "PreparingForShutdown", &preparing)
}

func (b *bus) MaxDelay(ctx context.Context) (time.Duration, error) {
	var us uint64
	err := b.property(ctx, "InhibitDelayMaxUSec", &us)
	return time.Duration(us) * time.Microsecond, err
}

func (b *bus) SetMaxDelay(ctx context.Context, d time.Duration) error {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the folder of logind's configuration: %w", err)
	}
	text := fmt.Sprintf("# Written by nodeagent (shutdownGracePeriod); nodeagent cleanup removes it.\n[Login]\nInhibitDelayMaxSec=%.0f\n", d.Seconds())
	path := filepath.Join(b.dir, dropIn)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("cannot tell logind to wait for pods: %w", err)
	}
	return b.reload(ctx)
}

func (b *bus) reload(ctx context.Context) error {
	err := b.conn.Object(systemdName, systemdPath).CallWithContext(ctx, systemdIface+".KillUnit", 0, loginUnit, "all", sighup).Err
	if err != nil {
		return fmt.Errorf("cannot have logind read its configuration again: %w", err)
	}
	return nil
}

func (b *bus) Delay(ctx context.Context) (io.Closer, error) {
	var fd dbus.UnixFD
	err := b.conn.Object(loginName, loginPath).CallWithContext(ctx, loginIface+".Inhibit", 0, "shutdown", "nodeagent", "pods have to end", "delay").Store(&fd)
	if err != nil {
		return nil, fmt.Errorf("cannot have logind wait for pods: %w", err)
	}
	return os.NewFile(uintptr(fd), "logind's lock"), nil
}

// Restore removes what SetMaxDelay wrote and has logind take that up; removed
// says that there was something.
func Restore(ctx context.Context, dropIns string) (removed bool, err error) {
	err = os.Remove(filepath.Join(dropIns, dropIn))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	// Where no logind runs, the next one reads it.
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return true, nil
	}
	defer conn.Close()
	return true, (&bus{conn: conn}).reload(ctx)
}
