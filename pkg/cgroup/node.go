package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	sd "github.com/coreos/go-systemd/v22/dbus"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Share is what a part of the node may use. Resources that are not in it are left
// as they are, or unlimited.
type Share struct {
	Amounts v1.ResourceList
	PIDs    int64 // 0: no limit
}

// limits of the share; everything has the CPU that it was given, nothing a quota.
func (s Share) limits() limits {
	return limits{
		shares: shares(s.Amounts.Cpu().MilliValue()), memory: s.Amounts.Memory().Value() / pageBytes * pageBytes,
		pids: s.PIDs, huge: hugeLimits(s.Amounts), low: -1,
	}
}

// pageBytes is what the kernel rounds memory limits down to.
var pageBytes = int64(os.Getpagesize())

// Enforce makes the cgroup of all pods and holds it to its share, now and when
// Keep finds it changed.
func (m *Manager) Enforce(ctx context.Context, s Share) error {
	m.mu.Lock()
	l := s.limits()
	same := m.node != nil && reflect.DeepEqual(*m.node, l)
	m.node = &l
	m.mu.Unlock()
	if same && exists(m.dir(m.trees[0], m.names.chain())) {
		return m.Keep(ctx)
	}
	if m.units != nil {
		if err := m.parentSlices(ctx, m.names.chain()); err != nil {
			return err
		}
	}
	for _, h := range m.trees {
		if h.passive {
			continue
		}
		if err := m.parents(ctx, h, m.names.chain()); err != nil {
			return err
		}
	}
	if m.units != nil && m.ours(m.names.chain()) {
		props := append(m.limitProperties(m.trees[0].v2, l), shareProperty(m.trees[0].v2, l.shares))
		if err := m.units.Set(ctx, m.names.parent(m.names.chain()), props...); err != nil {
			return err
		}
	}
	return m.Keep(ctx)
}

// ours says that a cgroup was made here, or that nobody else has it.
func (m *Manager) ours(chain []string) bool {
	for _, h := range m.trees {
		if dir := m.dir(h, chain); !h.passive && exists(dir) && m.kernel.Marked(dir) == m.owner {
			return true
		}
	}
	return m.adopt
}

// Keep brings the limits of the cgroup of all pods back to what Enforce was given,
// where somebody has changed them. Memory that is used already cannot be taken
// away: that is an error until pods were evicted or have ended.
func (m *Manager) Keep(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	chain := m.names.chain()
	if m.node == nil || !m.ours(chain) {
		return nil
	}
	var errs []error
	for _, h := range m.trees {
		if h.passive || !exists(m.dir(h, chain)) {
			continue
		}
		for _, s := range h.settings(*m.node, m.pageSizes, m.period) {
			errs = append(errs, m.keep(m.dir(h, chain), s))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("limits of %s: %w", m.names.parent(chain), err)
	}
	return m.protect(ctx)
}

// keep writes one file that holds something else.
func (m *Manager) keep(dir string, s setting) error {
	have, err := read(dir, s.file)
	if err == nil && (have == s.value || s.value == "-1" && len(have) >= len("9223372036854771712")) {
		return nil
	}
	return m.set(dir, s)
}

// EnforceReserved holds a cgroup of others, a path below the root, to its share.
// cpuOnly leaves all but CPU as it is.
func (m *Manager) EnforceReserved(ctx context.Context, cgroup string, s Share, cpuOnly bool) error {
	l := s.limits()
	found := false
	var settings []setting
	for _, h := range m.trees {
		dir := filepath.Join(h.dir, path.Clean("/"+cgroup))
		if h.passive || !exists(dir) {
			continue
		}
		found = true
		if _, named := s.Amounts[v1.ResourceCPU]; named && h.has("cpu") {
			settings = append(settings, h.cpu(l, m.period)[0])
		}
		if !cpuOnly {
			settings = append(settings, h.reserved(s, l)...)
		}
		for _, one := range settings {
			if err := m.set(dir, one); err != nil {
				return fmt.Errorf("limits of %s: %w", cgroup, err)
			}
		}
		settings = settings[:0]
	}
	if !found {
		return fmt.Errorf("cgroup %s is not there; make it, or leave it out of enforceNodeAllocatable: %w", cgroup, errdefs.ErrNotFound)
	}
	if m.units == nil || !strings.HasSuffix(cgroup, ".slice") {
		return nil
	}
	// systemd would write its own idea of them again.
	return m.units.Set(ctx, path.Base(cgroup), reservedProperties(m.trees[0].v2, s, l, cpuOnly)...)
}

// reserved are the settings of a reserved cgroup but for CPU, of what is named.
func (h hierarchy) reserved(s Share, l limits) (out []setting) {
	if _, named := s.Amounts[v1.ResourceMemory]; named && h.has("memory") {
		if h.v2 {
			// What is kept for the host is not reclaimed for pods (KEP-2570).
			out = append(out, setting{"memory.max", itoa(l.memory)}, setting{"memory.min", itoa(l.memory)})
		} else {
			out = append(out, setting{"memory.limit_in_bytes", itoa(l.memory)})
		}
	}
	if s.PIDs > 0 && h.has("pids") {
		out = append(out, setting{"pids.max", itoa(s.PIDs)})
	}
	return out
}

func reservedProperties(v2 bool, s Share, l limits, cpuOnly bool) (props []sd.Property) {
	if _, named := s.Amounts[v1.ResourceCPU]; named {
		props = append(props, shareProperty(v2, l.shares))
	}
	if _, named := s.Amounts[v1.ResourceMemory]; named && !cpuOnly {
		if v2 {
			props = append(props, property("MemoryMax", uint64(l.memory)), property("MemoryMin", uint64(l.memory)))
		} else {
			props = append(props, property("MemoryLimit", uint64(l.memory)))
		}
	}
	if s.PIDs > 0 && !cpuOnly {
		props = append(props, property("TasksMax", uint64(s.PIDs)))
	}
	return props
}

// protect sums what pods are protected with into the cgroups above them, which
// bound it: the kernel protects nothing beyond what every level has. The sums are
// read from the pods' cgroups; m.mu is held.
func (m *Manager) protect(ctx context.Context) error {
	h := m.trees[0]
	if !h.v2 || !h.has("memory") || !m.ours(m.names.chain()) {
		return nil
	}
	guaranteed, burstable := m.sum(h, "", "memory.min"), m.sum(h, class(v1.PodQOSBurstable), "memory.low")
	for _, level := range []struct {
		class    string
		min, low int64
	}{{"", guaranteed + burstable, burstable}, {class(v1.PodQOSBurstable), 0, burstable}} {
		chain := m.names.chain(level.class)
		dir := m.dir(h, chain)
		changed := false
		for _, s := range []setting{{"memory.min", itoa(level.min)}, {"memory.low", itoa(level.low)}} {
			if have, err := read(dir, s.file); err != nil || have == s.value {
				continue // not there: no such pod, or no such setting
			}
			changed = true
			if err := m.set(dir, s); err != nil {
				return err
			}
		}
		if changed && m.units != nil {
			if err := m.units.Set(ctx, m.names.parent(chain), property("MemoryMin", uint64(level.min)), property("MemoryLow", uint64(level.low))); err != nil {
				return err
			}
		}
	}
	return nil
}

// sum adds up one file of the pods of a class.
func (m *Manager) sum(h hierarchy, class, file string) (sum int64) {
	if !m.tiered {
		return 0
	}
	dir := m.dir(h, m.names.chain(class))
	for _, sub := range subdirs(dir) {
		if _, ok := m.names.uidOf(filepath.Base(sub), class); !ok {
			continue
		}
		if text, err := read(sub, file); err == nil {
			if n, err := strconv.ParseInt(text, 10, 64); err == nil {
				sum += n
			}
		}
	}
	return sum
}
