// Package cgroup makes one cgroup per pod, under QoS parents, on cgroup v1,
// hybrid and v2, with the names of the cgroupfs and systemd drivers. Layout and
// formulas are kubelet's, so that monitoring which knows kubelet works as is.
//
// Nothing is known only in memory: which pods have cgroups is read back from
// the folders. A folder that we made carries an extended attribute with the
// owner, because a kubelet, or another agent, may share the parents.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	podpkg "github.com/nodeagent/nodeagent/pkg/pod"
)

// The cgroup drivers.
const (
	DriverCgroupfs = "cgroupfs"
	DriverSystemd  = "systemd"
)

// Options of a Manager.
type Options struct {
	// FS is where cgroups are mounted. Default /sys/fs/cgroup.
	FS string
	// Root is the cgroup that holds kubepods, as a path below FS. Default "/".
	Root string
	// Driver is DriverCgroupfs (default) or DriverSystemd and must be the runtime's.
	Driver string
	// PidsLimit of each pod; 0: no limit.
	PidsLimit int64
	// NoQuota leaves limits of CPU unenforced; else they are quotas of Period.
	// Default 100ms.
	NoQuota bool
	Period  time.Duration
	// Tiered keeps what pods request of memory from being reclaimed (KEP-2570,
	// cgroup v2): memory.min of Guaranteed pods, memory.low of Burstable ones.
	Tiered bool
	// Adopt has the limits of a kubepods cgroup written that somebody else made.
	Adopt bool
	// Owner marks the folders we make; Pods lists only those with the same
	// owner. Two agents on one host need different ones. Default "nodeagent".
	Owner string
	Log   *slog.Logger
}

// Manager makes and removes the cgroups of pods. Its methods may be called from
// several goroutines, for one pod from one at a time.
type Manager struct {
	owner     string
	pidsLimit int64
	noQuota   bool
	period    int64 // microseconds
	tiered    bool
	adopt     bool
	log       *slog.Logger
	names     names
	trees     []hierarchy
	pageSizes []string
	kernel    kernel
	units     units  // nil with cgroupfs
	self      string // this process's cgroup v2 path, "" when unknown

	warned sync.Map // message key → struct{}: one warning each

	mu sync.Mutex // guards the QoS parents and what follows
	// burstable is cpu.shares by burstable pod: their sum is the parent's
	// share. nil until read from the folders.
	burstable map[types.UID]uint64
	written   uint64 // the sum last written
	// node is what all pods together may use; nil until Enforce.
	node *limits
}

// defaultPeriod is kubelet's.
const defaultPeriod = 100 * time.Millisecond

// kernel is what is asked of the cgroup file system; tests put a folder that
// behaves like it in its place.
type kernel interface {
	// Mkdir makes one cgroup; an existing one is os.ErrExist, a missing parent os.ErrNotExist.
	Mkdir(dir string) error
	// Rmdir removes one cgroup without children; EBUSY while it has processes.
	Rmdir(dir string) error
	// Write sets one existing file.
	Write(dir, file, value string) error
	// Mark and Marked keep the owner's name on a cgroup.
	Mark(dir, owner string) error
	Marked(dir string) string
}

// New looks at what is mounted and starts nothing.
func New(o Options) (*Manager, error) {
	if o.FS == "" {
		o.FS = "/sys/fs/cgroup"
	}
	if o.Owner == "" {
		o.Owner = "nodeagent"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Driver == "" {
		o.Driver = DriverCgroupfs
	}
	if o.Driver != DriverCgroupfs && o.Driver != DriverSystemd {
		return nil, fmt.Errorf("cgroup driver %q: use %q or %q: %w", o.Driver, DriverCgroupfs, DriverSystemd, errdefs.ErrInvalid)
	}
	trees, err := detect(o.FS)
	if err != nil {
		return nil, err
	}
	if o.Period == 0 {
		o.Period = defaultPeriod
	}
	m := &Manager{
		noQuota:   o.NoQuota,
		period:    o.Period.Microseconds(),
		tiered:    o.Tiered,
		adopt:     o.Adopt,
		owner:     o.Owner,
		pidsLimit: o.PidsLimit,
		log:       o.Log,
		names:     newNames(o.Root, o.Driver == DriverSystemd),
		trees:     trees,
		pageSizes: pageSizes("/sys/kernel/mm/hugepages"),
		kernel:    linux{},
		self:      selfCgroup("/proc/self/cgroup"),
	}
	if o.Driver == DriverSystemd {
		m.units = newBus()
	}
	return m, nil
}

// pageSizes lists the host's huge page sizes in the hugetlb controller's names.
func pageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // a kernel without huge pages
	}
	var out []string
	for _, e := range entries {
		kb, ok := strings.CutPrefix(e.Name(), "hugepages-")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(kb, "kB"), 10, 64)
		if err == nil {
			out = append(out, pageSizeName(n<<10))
		}
	}
	slices.Sort(out)
	return out
}

func selfCgroup(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return p
		}
	}
	return ""
}

// Parent is the pod's cgroup as CRI names it in cgroup_parent: a path with
// cgroupfs, a slice's name with systemd.
func (m *Manager) Parent(pod *v1.Pod) string {
	return m.names.parent(m.names.chain(class(QOS(pod)), podName(pod.UID)))
}

// Ensure makes the pod's cgroup in every tree and sets its limits. It may be
// called again, also after a crash in the middle.
func (m *Manager) Ensure(ctx context.Context, pod *v1.Pod) error {
	if strings.ContainsAny(string(pod.UID), "/\x00") || pod.UID == "" {
		return fmt.Errorf("cgroup of pod %s: the uid cannot name a folder: %w", podpkg.Describe(pod), errdefs.ErrInvalid)
	}
	qos := class(QOS(pod))
	l := m.podLimits(pod)
	chain := m.names.chain(qos, podName(pod.UID))
	m.warnMissing(l)
	if err := m.ensure(ctx, chain, l); err != nil {
		return fmt.Errorf("cgroup %s of pod %s: %w", m.names.parent(chain), podpkg.Describe(pod), err)
	}
	if qos == class(v1.PodQOSBurstable) {
		m.share(ctx, pod.UID, l.shares)
	}
	m.shelter(ctx)
	return nil
}

// shelter brings the protection above the pods in line with theirs. A failure is
// repaired by the next pod's call.
func (m *Manager) shelter(ctx context.Context) {
	if !m.tiered {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.protect(ctx); err != nil {
		m.log.Warn("the memory that pods requested cannot be protected; will try again", "err", err)
	}
}

func (m *Manager) ensure(ctx context.Context, chain []string, l limits) error {
	if m.units != nil {
		if err := m.slice(ctx, chain, l); err != nil {
			return err
		}
	}
	for _, h := range m.trees {
		if h.passive {
			continue
		}
		if m.units != nil && h.v2 {
			// systemd hands down the controllers that it has properties for; the
			// one for huge pages is not among them.
			if err := m.parents(ctx, h, chain[:len(chain)-1]); err != nil {
				return err
			}
		}
		if err := m.leaf(ctx, h, chain); err != nil {
			return err
		}
		dir := m.dir(h, chain)
		for _, s := range h.settings(l, m.pageSizes, m.period) {
			if err := m.set(dir, s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *Manager) dir(h hierarchy, chain []string) string {
	return filepath.Join(h.dir, m.names.fsPath(chain))
}

// leaf makes the last cgroup of the chain in one tree. The parents are there
// but for the first pod, so they are only made when the kernel says otherwise.
func (m *Manager) leaf(ctx context.Context, h hierarchy, chain []string) error {
	_, err := m.mkdir(h, chain)
	if errors.Is(err, os.ErrNotExist) {
		if err := m.parents(ctx, h, chain[:len(chain)-1]); err != nil {
			return err
		}
		_, err = m.mkdir(h, chain)
	}
	if err != nil {
		return err
	}
	// "It exists" does not mean that it is marked: systemd made the folder when
	// its slice was started, or we died in between.
	m.mark(m.dir(h, chain))
	return nil
}

func (m *Manager) mark(dir string) {
	if err := m.kernel.Mark(dir, m.owner); err != nil {
		m.warnOnce("mark", "cgroups cannot be marked as ours; leftovers of lost pods will not be collected", "dir", dir, "err", err)
	}
}

// mkdir makes one cgroup, says if it is new and, on v1, gives it its parent's
// cpus and memory nodes, without which no process may enter it.
func (m *Manager) mkdir(h hierarchy, chain []string) (fresh bool, err error) {
	dir := m.dir(h, chain)
	err = m.kernel.Mkdir(dir)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return false, err
	}
	return err == nil, m.inherit(h, dir)
}

func (m *Manager) inherit(h hierarchy, dir string) error {
	if h.v2 || !h.has("cpuset") {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := read(dir, file)
		if err != nil || have != "" {
			continue
		}
		parent, err := read(filepath.Dir(dir), file)
		if err == nil && parent != "" {
			err = m.kernel.Write(dir, file, parent)
		}
		if err != nil {
			return fmt.Errorf("passing on %s: %w", file, err)
		}
	}
	return nil
}

// parents makes the chain above a pod, top first. On v2 every level hands its
// controllers down before the next one is made.
func (m *Manager) parents(ctx context.Context, h hierarchy, chain []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.v2 {
		if err := m.delegate(h, h.dir); err != nil {
			return err
		}
	}
	for i := range chain {
		level := chain[:i+1]
		fresh, err := m.mkdir(h, level)
		if err != nil {
			return fmt.Errorf("parent %s: %w", m.names.fsPath(level), err)
		}
		if fresh {
			m.mark(m.dir(h, level)) // what was there belongs to somebody else
		}
		if fresh && h.has("cpu") {
			if err := m.parentShares(ctx, h, level); err != nil {
				return err
			}
		}
		if h.v2 {
			if err := m.delegate(h, m.dir(h, level)); err != nil {
				return err
			}
		}
	}
	return nil
}

func exists(dir string) bool {
	_, err := os.Lstat(dir)
	return err == nil
}

// parentShares sets what a new QoS parent gets of the CPU: kubepods as much as
// the node has, besteffort the minimum; burstable follows its pods.
func (m *Manager) parentShares(ctx context.Context, h hierarchy, chain []string) error {
	s := m.initialShares(chain)
	if s == 0 {
		return nil
	}
	if chain[len(chain)-1] == class(v1.PodQOSBurstable) {
		m.burstable, m.written = nil, 0 // a new folder: the sum is written again
	}
	return m.setShares(ctx, h, chain, s)
}

// initialShares is 0 for Options.Root, which is the user's.
func (m *Manager) initialShares(chain []string) uint64 {
	switch {
	case len(chain) <= len(m.names.root):
		return 0
	case len(chain) == len(m.names.root)+1 && m.node != nil:
		return m.node.shares
	case len(chain) == len(m.names.root)+1:
		return shares(int64(runtime.NumCPU()) * 1000)
	}
	return minShares
}

func (m *Manager) setShares(ctx context.Context, h hierarchy, chain []string, s uint64) error {
	if m.units != nil {
		if err := m.units.Set(ctx, m.names.parent(chain), shareProperty(h.v2, s)); err != nil {
			return err
		}
	}
	return m.set(m.dir(h, chain), h.cpu(limits{shares: s}, m.period)[0])
}

// set writes one file. A file that is not there means that the controller
// lacks the feature: one warning, and on.
func (m *Manager) set(dir string, s setting) error {
	err := m.kernel.Write(dir, s.file, s.value)
	if errors.Is(err, os.ErrNotExist) && exists(dir) {
		m.warnOnce(s.file, "the kernel's cgroup controller lacks a setting; it is not enforced", "file", s.file)
		return nil
	}
	if err != nil {
		return fmt.Errorf("setting %s to %q: %w", s.file, s.value, err)
	}
	return nil
}

// warnMissing says once which limit cannot be enforced on this host.
func (m *Manager) warnMissing(l limits) {
	huge := false
	for _, n := range l.huge {
		huge = huge || n > 0
	}
	for _, want := range []struct {
		controller string
		asked      bool
	}{{"cpu", true}, {"memory", l.memory > 0}, {"pids", l.pids > 0}, {"hugetlb", huge}} {
		has := slices.ContainsFunc(m.trees, func(h hierarchy) bool { return h.has(want.controller) })
		if want.asked && !has {
			m.warnOnce("controller "+want.controller, "a cgroup controller is missing on this host; its limits are not enforced", "controller", want.controller)
		}
	}
}

func (m *Manager) warnOnce(key, msg string, args ...any) {
	if _, seen := m.warned.LoadOrStore(key, struct{}{}); !seen {
		m.log.Warn(msg, args...)
	}
}

// share records a burstable pod's cpu.shares, 0 for a pod that is gone, and
// sets the parent to the sum. A failure is repaired by the next pod's call.
func (m *Manager) share(ctx context.Context, uid types.UID, s uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.trees, func(h hierarchy) bool { return h.has("cpu") })
	if i < 0 {
		return
	}
	h, chain := m.trees[i], m.names.chain(class(v1.PodQOSBurstable))
	if m.burstable == nil {
		m.burstable = m.readShares(h, chain)
	}
	if s == 0 {
		delete(m.burstable, uid)
	} else {
		m.burstable[uid] = s
	}
	sum := uint64(0)
	for _, v := range m.burstable {
		sum += v
	}
	sum = min(max(sum, minShares), maxShares)
	if sum == m.written || !exists(m.dir(h, chain)) {
		return
	}
	if err := m.setShares(ctx, h, chain, sum); err != nil {
		m.log.Warn("the CPU share of burstable pods could not be set; the next pod's start tries again", "err", err)
		return
	}
	m.written = sum
}

// readShares reads the burstable pods of an earlier run, and of anybody else
// below the same parent, from their folders.
func (m *Manager) readShares(h hierarchy, chain []string) map[types.UID]uint64 {
	out := map[types.UID]uint64{}
	entries, err := os.ReadDir(m.dir(h, chain))
	if err != nil {
		return out
	}
	for _, e := range entries {
		uid, ok := m.names.uidOf(e.Name(), class(v1.PodQOSBurstable))
		if !ok {
			continue
		}
		file := "cpu.shares"
		if h.v2 {
			file = "cpu.weight"
		}
		text, err := read(filepath.Join(m.dir(h, chain), e.Name()), file)
		n, perr := strconv.ParseUint(text, 10, 64)
		if err != nil || perr != nil {
			continue // removed meanwhile
		}
		if h.v2 {
			n = sharesOfWeight(n)
		}
		out[uid] = n
	}
	return out
}
