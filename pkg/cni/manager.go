package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// pluginTimeout bounds one call of a plugin chain; plugins wait for the
// xtables lock, which a large ruleset holds for seconds.
const pluginTimeout = 30 * time.Second

// Manager looks after the network configuration of the namespace that the
// process runs in. Its methods may be called from any goroutine.
type Manager struct {
	opts Options
	cni  *libcni.CNIConfig
	gate *gate

	// mu: one of Ensure, Repair, GC, Cleanup at a time.
	mu sync.Mutex

	// versions remembers what plugins said of themselves.
	vmu      sync.Mutex
	versions map[string]pluginVersion

	// step is called between actions; tests die there.
	step func(name string)
}

// pluginVersion is one program's answer to VERSION, valid while the file is the same.
type pluginVersion struct {
	mod      time.Time
	size     int64
	versions []string
}

// New checks the options; it neither reads nor changes anything.
func New(o Options) (*Manager, error) {
	if o.ConfDir == "" {
		o.ConfDir = "/etc/cni/net.d"
	}
	if o.BinDir == "" {
		o.BinDir = DefaultBinDir()
	}
	if o.CacheDir == "" {
		o.CacheDir = libcni.CacheDir
	}
	if o.DataDir == "" {
		o.DataDir = "/var/lib/cni/networks"
	}
	if o.Bridge == "" {
		o.Bridge = "na0"
	}
	if o.ProcRoot == "" {
		o.ProcRoot = "/proc"
	}
	if o.NetNSDir == "" {
		o.NetNSDir = "/run/netns"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkCIDRs(o.PodCIDRs); err != nil {
		return nil, err
	}
	if len(o.Bridge) > maxBridgeName || strings.ContainsAny(o.Bridge, "/ \t\n:") {
		return nil, errdefs.Errorf(errdefs.ErrInvalid, "bridge name %q: at most %d characters without blanks, slashes and colons",
			o.Bridge, maxBridgeName)
	}
	exec := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: io.Discard}}
	return &Manager{
		opts:     o,
		cni:      libcni.NewCNIConfigWithCacheDir([]string{o.BinDir}, o.CacheDir, exec),
		gate:     newGate(),
		versions: map[string]pluginVersion{},
		step:     func(string) {},
	}, nil
}

// DefaultBinDir is where the plugins are: /opt/cni/bin, or /usr/lib/cni, where
// Debian puts them, when only that has them.
func DefaultBinDir() string {
	const usual, debian = "/opt/cni/bin", "/usr/lib/cni"
	if _, err := os.Stat(filepath.Join(usual, "bridge")); err == nil {
		return usual
	}
	if _, err := os.Stat(filepath.Join(debian, "bridge")); err == nil {
		return debian
	}
	return usual
}

func checkCIDRs(cidrs []netip.Prefix) error {
	if len(cidrs) == 0 {
		return errdefs.Errorf(errdefs.ErrInvalid, "no pod CIDR given")
	}
	var v4, v6 int
	for _, c := range cidrs {
		switch {
		case !c.IsValid() || c != c.Masked():
			return errdefs.Errorf(errdefs.ErrInvalid, "pod CIDR %s: not a network address", c)
		case c.Addr().Is4In6():
			return errdefs.Errorf(errdefs.ErrInvalid, "pod CIDR %s: write it as IPv4", c)
		case c.Addr().BitLen()-c.Bits() < 2:
			return errdefs.Errorf(errdefs.ErrInvalid, "pod CIDR %s: too small for a gateway and a pod", c)
		case c.Addr().Is4():
			v4++
		default:
			v6++
		}
	}
	if v4 > 1 || v6 > 1 {
		return errdefs.Errorf(errdefs.ErrInvalid, "pod CIDRs %v: one per family at most", cidrs)
	}
	return nil
}

// Creating says that a sandbox is about to be made; done says that it is made
// or given up. It waits while a collection runs. done may be called again.
func (m *Manager) Creating() (done func()) { return m.gate.enter() }

// active reads the configuration that the runtime uses for pods: the first one.
func (m *Manager) active() (*config, error) {
	files, err := configFiles(m.opts.ConfDir)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errdefs.Errorf(errdefs.ErrNotFound, "no CNI network configuration in %s", m.opts.ConfDir)
	}
	return readConfig(files[0]), nil
}

// Ready returns nil when pods can get a network, else the reason: there is no
// configuration, it is wrong (file and field), a plugin is missing or too old,
// or a plugin of CNI 1.1 says so itself (STATUS). It runs the plugins, about
// 10 ms each: call it seconds apart.
func (m *Manager) Ready(ctx context.Context) error {
	c, err := m.active()
	if err != nil {
		return err
	}
	if c.err != nil {
		return c.err
	}
	if err := m.checkPrograms(ctx, c); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	if err := m.cni.GetStatusNetworkList(ctx, c.list); err != nil {
		return errdefs.Errorf(errdefs.ErrUnavailable, "network %s (%s) is not ready: %w", c.list.Name, c.file, err)
	}
	return nil
}

// checkPrograms sees that every plugin of a configuration is there and speaks
// its version.
func (m *Manager) checkPrograms(ctx context.Context, c *config) error {
	for _, typ := range c.types() {
		vs, err := m.pluginVersions(ctx, typ)
		if err != nil {
			return fmt.Errorf("%s: %w", c.file, err)
		}
		// host-local and its like are called with the version of the chain, too.
		if want := c.list.CNIVersion; want != "" && !slices.Contains(vs, want) {
			return errdefs.Errorf(errdefs.ErrInvalid, "%s: cniVersion %s: plugin %s in %s knows %s only; install newer plugins or lower cniVersion",
				c.file, want, typ, m.opts.BinDir, strings.Join(vs, ", "))
		}
	}
	return nil
}

// pluginVersions asks a plugin which versions of CNI it speaks.
func (m *Manager) pluginVersions(ctx context.Context, typ string) ([]string, error) {
	path := filepath.Join(m.opts.BinDir, typ)
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return nil, errdefs.Errorf(errdefs.ErrNotFound, "CNI plugin %q is not in %s; install it there (Debian: containernetworking-plugins) or set the folder",
			typ, m.opts.BinDir)
	}
	m.vmu.Lock()
	known, ok := m.versions[path]
	m.vmu.Unlock()
	if ok && known.mod.Equal(info.ModTime()) && known.size == info.Size() {
		return known.versions, nil
	}
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	vi, err := m.cni.GetVersionInfo(ctx, typ)
	if err != nil {
		return nil, fmt.Errorf("CNI plugin %s does not say its version: %w", path, err)
	}
	vs := vi.SupportedVersions()
	m.vmu.Lock()
	m.versions[path] = pluginVersion{info.ModTime(), info.Size(), vs}
	m.vmu.Unlock()
	return vs, nil
}

// commonVersions are the versions that every one of the plugins speaks,
// ascending.
func (m *Manager) commonVersions(ctx context.Context, types ...string) ([]string, error) {
	var common []string
	for i, typ := range types {
		vs, err := m.pluginVersions(ctx, typ)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			common = slices.Clone(vs)
			continue
		}
		common = slices.DeleteFunc(common, func(v string) bool { return !slices.Contains(vs, v) })
	}
	common = slices.DeleteFunc(common, func(v string) bool {
		_, _, _, err := version.ParseVersion(v)
		return err != nil
	})
	slices.SortFunc(common, compareVersions)
	if len(common) == 0 {
		return nil, errdefs.Errorf(errdefs.ErrInvalid, "the CNI plugins %s in %s share no version of CNI; install them from one release",
			strings.Join(types, ", "), m.opts.BinDir)
	}
	return common, nil
}

func compareVersions(a, b string) int {
	if gt, err := version.GreaterThan(a, b); err == nil && gt {
		return 1
	}
	if gt, err := version.GreaterThan(b, a); err == nil && gt {
		return -1
	}
	return 0
}

// Networks lists the configurations in the folder in the runtime's order.
func (m *Manager) Networks() []Network {
	files, err := configFiles(m.opts.ConfDir)
	if err != nil {
		return []Network{{File: m.opts.ConfDir, Error: err.Error()}}
	}
	var out []Network
	for i, f := range files {
		c := readConfig(f)
		n := c.describe()
		n.Active = i == 0
		if c.err == nil {
			for _, typ := range c.types() {
				if _, err := os.Stat(filepath.Join(m.opts.BinDir, typ)); err != nil {
					n.Error = fmt.Sprintf("plugin %q is not in %s", typ, m.opts.BinDir)
					break
				}
			}
		}
		out = append(out, n)
	}
	return out
}

// own reads the file that we write; nil when there is none or it is not ours.
func (m *Manager) own() (*config, error) {
	c := readConfig(filepath.Join(m.opts.ConfDir, confName))
	if errors.Is(c.err, os.ErrNotExist) || c.marker == nil {
		return nil, nil
	}
	if c.err != nil {
		return nil, c.err
	}
	return c, nil
}
