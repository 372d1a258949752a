package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// units is what is asked of systemd, which owns the tree with its driver.
type units interface {
	// Start makes a transient slice; on one that runs it sets the properties.
	Start(ctx context.Context, name string, props ...sd.Property) error
	// Set changes properties until the next boot.
	Set(ctx context.Context, name string, props ...sd.Property) error
	// Stop ends a slice and all in it; one that is not loaded is a success.
	Stop(ctx context.Context, name string) error
}

// slice starts the pod's slice and, for the first pod, those above it.
func (m *Manager) slice(ctx context.Context, chain []string, l limits) error {
	v2 := m.trees[0].v2
	if err := m.parentSlices(ctx, chain[:len(chain)-1]); err != nil {
		return err
	}
	props := append(m.properties(chain, v2), shareProperty(v2, l.shares))
	props = append(props, m.limitProperties(v2, l)...)
	return m.units.Start(ctx, m.names.parent(chain), props...)
}

// parentSlices starts those of kubepods and below that are not there.
func (m *Manager) parentSlices(ctx context.Context, chain []string) error {
	v2 := m.trees[0].v2
	for n := len(m.names.root) + 1; n <= len(chain); n++ {
		parent := chain[:n]
		if exists(m.dir(m.trees[0], parent)) {
			continue
		}
		props := append(m.properties(parent, v2), shareProperty(v2, m.initialShares(parent)))
		if err := m.units.Start(ctx, m.names.parent(parent), props...); err != nil {
			return err
		}
		for _, h := range m.trees {
			if dir := m.dir(h, parent); exists(dir) {
				m.mark(dir)
			}
		}
	}
	return nil
}

// properties are those of every slice of ours.
func (m *Manager) properties(chain []string, v2 bool) []sd.Property {
	io := "BlockIOAccounting"
	if v2 {
		io = "IOAccounting"
	}
	props := []sd.Property{
		sd.PropDescription("nodeagent: " + path.Join(chain...)),
		property("DefaultDependencies", false),
		property("CPUAccounting", true),
		property("MemoryAccounting", true),
		property("TasksAccounting", true),
		property(io, true),
	}
	if len(chain) > 1 {
		props = append(props, sd.PropWants(m.names.parent(chain[:len(chain)-1])))
	}
	return props
}

func property(name string, value any) sd.Property {
	return sd.Property{Name: name, Value: dbus.MakeVariant(value)}
}

func shareProperty(v2 bool, s uint64) sd.Property {
	if v2 {
		return property("CPUWeight", weight(s))
	}
	return property("CPUShares", s)
}

// limitProperties repeat the limits for systemd, which writes its own idea of
// them again when it reloads. What has no property (huge pages) is only in the
// files.
func (m *Manager) limitProperties(v2 bool, l limits) []sd.Property {
	const infinity = ^uint64(0)
	or := func(n int64) uint64 {
		if n <= 0 {
			return infinity
		}
		return uint64(n)
	}
	perSecond := infinity
	if l.quota > 0 {
		// systemd keeps hundredths of a CPU and would round down (runc rounds
		// up for the same reason): never give a pod less than it asked for.
		const step = 10000
		perSecond = (uint64(l.quota)*1000000/uint64(m.period) + step - 1) / step * step
	}
	memory := "MemoryLimit"
	if v2 {
		memory = "MemoryMax"
	}
	props := []sd.Property{
		property("CPUQuotaPerSecUSec", perSecond),
		property(memory, or(l.memory)),
		property("TasksMax", or(l.pids)),
	}
	if m.period != defaultPeriod.Microseconds() {
		props = append(props, property("CPUQuotaPeriodUSec", uint64(m.period)))
	}
	if v2 && m.tiered && l.low >= 0 {
		props = append(props, property("MemoryMin", uint64(l.min)), property("MemoryLow", uint64(l.low)))
	}
	return props
}

// bus speaks to systemd over D-Bus. It connects when first used, and again
// when the connection was lost.
type bus struct {
	dial func(context.Context) (*sd.Conn, error)

	mu   sync.Mutex
	conn *sd.Conn
}

func newBus() *bus { return &bus{dial: sd.NewWithContext} }

// jobPatience bounds one systemd job.
const jobPatience = 30 * time.Second

func (b *bus) connect(ctx context.Context) (*sd.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil && b.conn.Connected() {
		return b.conn, nil
	}
	// The connection outlives this call; its context would close it.
	c, err := b.dial(context.WithoutCancel(ctx))
	if err != nil {
		return nil, fmt.Errorf("systemd does not answer on D-Bus; use cgroup driver %q on a host without it: %w (%w)", DriverCgroupfs, err, errdefs.ErrUnavailable)
	}
	if b.conn != nil {
		b.conn.Close() // half of it may still be open
	}
	b.conn = c
	return c, nil
}

func (b *bus) Start(ctx context.Context, name string, props ...sd.Property) error {
	c, err := b.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, jobPatience)
	defer cancel()
	done := make(chan string, 1)
	_, err = c.StartTransientUnitContext(ctx, name, "replace", props, done)
	if isBusError(err, "org.freedesktop.systemd1.UnitExists") {
		return b.Set(ctx, name, settable(props)...)
	}
	if err != nil {
		return fmt.Errorf("starting slice %s: %w", name, err)
	}
	return wait(ctx, done, "starting", name)
}

// settable leaves out what may only be said when a unit is made.
func settable(props []sd.Property) []sd.Property {
	var out []sd.Property
	for _, p := range props {
		switch p.Name {
		case "DefaultDependencies", "Wants", "Description":
		default:
			out = append(out, p)
		}
	}
	return out
}

func (b *bus) Set(ctx context.Context, name string, props ...sd.Property) error {
	c, err := b.connect(ctx)
	if err != nil {
		return err
	}
	if err := c.SetUnitPropertiesContext(ctx, name, true, props...); err != nil {
		return fmt.Errorf("setting properties of slice %s: %w", name, err)
	}
	return nil
}

func (b *bus) Stop(ctx context.Context, name string) error {
	c, err := b.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, jobPatience)
	defer cancel()
	done := make(chan string, 1)
	_, err = c.StopUnitContext(ctx, name, "replace", done)
	if isBusError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stopping slice %s: %w", name, err)
	}
	return wait(ctx, done, "stopping", name)
}

func wait(ctx context.Context, done <-chan string, what, name string) error {
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("%s slice %s: systemd's job ended with %q; see `systemctl status %s`: %w", what, name, result, name, errdefs.ErrTransient)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s slice %s: %w (%w)", what, name, ctx.Err(), errdefs.ErrTransient)
	}
}

func isBusError(err error, name string) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == name
}
