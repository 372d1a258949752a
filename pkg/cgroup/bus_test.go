package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// introduced is one end of a D-Bus connection without a bus, whose other end
// needs no credentials: it plays the other side of the introduction itself.
type introduced struct {
	net.Conn
	answers  io.Reader
	answered *io.PipeWriter
	done     chan struct{}
}

func introduce(c net.Conn) *introduced {
	r, w := io.Pipe()
	return &introduced{Conn: c, answers: r, answered: w, done: make(chan struct{})}
}

func (i *introduced) Write(b []byte) (int, error) {
	select {
	case <-i.done:
		return i.Conn.Write(b)
	default:
	}
	switch line := strings.TrimSpace(strings.Trim(string(b), "\x00")); {
	case line == "AUTH":
		go fmt.Fprint(i.answered, "REJECTED ANONYMOUS\r\n")
	case strings.HasPrefix(line, "AUTH "):
		go fmt.Fprint(i.answered, "OK 0\r\n")
	case line == "BEGIN":
		close(i.done)
	}
	return len(b), nil
}

func (i *introduced) Read(b []byte) (int, error) {
	select {
	case <-i.done:
		return i.Conn.Read(b)
	default:
		return i.answers.Read(b)
	}
}

// fakeManager is systemd on the other end of the connections. Its exported
// methods are those of org.freedesktop.systemd1.Manager.
type fakeManager struct {
	asked chan struct{} // of every job

	mu      sync.Mutex
	ends    []*dbus.Conn // all, to close
	calls   []string
	loaded  map[string]bool
	refuses *dbus.Error
	result  string // of jobs; empty: they never end
	dials   int
	dialErr error
}

// AddMatch is org.freedesktop.DBus's.
func (m *fakeManager) AddMatch(string) *dbus.Error { return nil }

func (m *fakeManager) connect() (*dbus.Conn, error) {
	here, there := net.Pipe()
	var conns [2]*dbus.Conn
	for i, end := range []net.Conn{here, there} {
		c, err := dbus.NewConn(introduce(end))
		if err != nil {
			return nil, err
		}
		if err := c.Auth([]dbus.Auth{dbus.AuthAnonymous()}); err != nil {
			return nil, err
		}
		conns[i] = c
	}
	err := errors.Join(conns[1].Export(m, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager"),
		conns[1].Export(m, "/org/freedesktop/DBus", "org.freedesktop.DBus"))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ends = append(m.ends, conns[0], conns[1])
	return conns[0], err
}

func (m *fakeManager) dial(context.Context) (*sd.Conn, error) {
	m.mu.Lock()
	m.dials++
	err := m.dialErr
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return sd.NewConnection(m.connect)
}

// job ends at once, if it ends; every connection hears of it.
func (m *fakeManager) job(unit string) (dbus.ObjectPath, *dbus.Error) {
	m.asked <- struct{}{}
	if m.refuses != nil {
		return "", m.refuses
	}
	path := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", len(m.calls)))
	if result, ends := m.result, slices.Clone(m.ends); result != "" {
		go func() {
			for i := 1; i < len(ends); i += 2 {
				_ = ends[i].Emit("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager.JobRemoved", uint32(1), path, unit, result)
			}
		}()
	}
	return path, nil
}

func propertyNames(props []sd.Property) string {
	var out []string
	for _, p := range props {
		out = append(out, p.Name)
	}
	return strings.Join(out, ",")
}

func (m *fakeManager) StartTransientUnit(name, mode string, props []sd.Property, _ []sd.PropertyCollection) (dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf("start %s %s %s", name, mode, propertyNames(props)))
	if m.loaded[name] {
		return "", dbus.NewError("org.freedesktop.systemd1.UnitExists", []any{"Unit " + name + " already exists."})
	}
	return m.job(name)
}

func (m *fakeManager) StopUnit(name, mode string) (dbus.ObjectPath, *dbus.Error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf("stop %s %s", name, mode))
	if !m.loaded[name] {
		return "", dbus.NewError("org.freedesktop.systemd1.NoSuchUnit", []any{"Unit " + name + " not loaded."})
	}
	return m.job(name)
}

func (m *fakeManager) SetUnitProperties(name string, runtime bool, props []sd.Property) *dbus.Error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, fmt.Sprintf("set %s %v %s", name, runtime, propertyNames(props)))
	return m.refuses
}

func newFakeManager(t *testing.T) (*fakeManager, *bus) {
	m := &fakeManager{asked: make(chan struct{}, 10), result: "done", loaded: map[string]bool{}}
	t.Cleanup(m.hangUp)
	return m, &bus{dial: m.dial}
}

// hangUp loses every connection.
func (m *fakeManager) hangUp() {
	m.mu.Lock()
	ends := m.ends
	m.ends = nil
	m.mu.Unlock()
	for _, c := range ends {
		_ = c.Close()
	}
}

func TestSystemdJobs(t *testing.T) {
	props := []sd.Property{sd.PropDescription("d"), sd.PropWants("kubepods.slice"), property("DefaultDependencies", false), property("CPUWeight", uint64(7))}
	const all = "Description,Wants,DefaultDependencies,CPUWeight"
	start := func(b *bus) error { return b.Start(t.Context(), "x.slice", props...) }
	stop := func(b *bus) error { return b.Stop(t.Context(), "x.slice") }
	denied := dbus.NewError("org.freedesktop.DBus.Error.AccessDenied", []any{"denied"})
	for name, tc := range map[string]struct {
		set   func(m *fakeManager)
		do    func(*bus) error
		calls []string
		err   []string // empty: none
		kind  error
	}{
		"start": {nil, start, []string{"start x.slice replace " + all}, nil, nil},
		"start what is there": {func(m *fakeManager) { m.loaded["x.slice"] = true }, start,
			[]string{"start x.slice replace " + all, "set x.slice true CPUWeight"}, nil, nil},
		"start fails":    {func(m *fakeManager) { m.result = "failed" }, start, []string{"start x.slice replace " + all}, []string{"starting slice x.slice", `"failed"`, "systemctl status x.slice"}, errdefs.ErrTransient},
		"start refused":  {func(m *fakeManager) { m.refuses = denied }, start, []string{"start x.slice replace " + all}, []string{"starting slice x.slice", "denied"}, nil},
		"stop":           {func(m *fakeManager) { m.loaded["x.slice"] = true }, stop, []string{"stop x.slice replace"}, nil, nil},
		"stop what went": {nil, stop, []string{"stop x.slice replace"}, nil, nil},
		"stop fails": {func(m *fakeManager) { m.loaded["x.slice"], m.result = true, "timeout" }, stop,
			[]string{"stop x.slice replace"}, []string{"stopping slice x.slice", `"timeout"`}, errdefs.ErrTransient},
		"stop refused": {func(m *fakeManager) { m.loaded["x.slice"], m.refuses = true, denied }, stop, []string{"stop x.slice replace"}, []string{"stopping slice x.slice", "denied"}, nil},
		"set refused": {func(m *fakeManager) { m.refuses = denied }, func(b *bus) error { return b.Set(t.Context(), "x.slice", props[3]) },
			[]string{"set x.slice true CPUWeight"}, []string{"setting properties of slice x.slice", "denied"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m, b := newFakeManager(t)
			if tc.set != nil {
				tc.set(m)
			}
			err := tc.do(b)
			if (err != nil) != (len(tc.err) > 0) || tc.kind != nil && !errors.Is(err, tc.kind) {
				t.Fatalf("got %v, want %q", err, tc.err)
			}
			for _, want := range tc.err {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			if !slices.Equal(m.calls, tc.calls) {
				t.Errorf("asked systemd to %q, want %q", m.calls, tc.calls)
			}
		})
	}
}

// TestSystemdThatHangs: a job that does not end holds its caller up no longer
// than the caller wants.
func TestSystemdThatHangs(t *testing.T) {
	m, b := newFakeManager(t)
	m.result = ""
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := b.connect(ctx); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Start(ctx, "x.slice") }()
	<-m.asked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestSystemdConnection is kept, and made again when it is lost.
func TestSystemdConnection(t *testing.T) {
	m, b := newFakeManager(t)
	for range 2 {
		if err := b.Start(t.Context(), "x.slice"); err != nil {
			t.Fatal(err)
		}
	}
	if m.dials != 1 {
		t.Errorf("connected %d times for two calls", m.dials)
	}
	m.hangUp()
	m.dialErr = errors.New("no such file")
	if err := b.Stop(t.Context(), "x.slice"); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), `use cgroup driver "cgroupfs"`) {
		t.Errorf("without systemd: %v", err)
	}
	m.dialErr = nil
	if err := b.Start(t.Context(), "x.slice"); err != nil {
		t.Errorf("after systemd came back: %v", err)
	}
}
