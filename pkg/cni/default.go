package cni

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

const (
	// confName sorts late enough that what network add-ons install under 05-
	// or under 10- with an earlier letter wins.
	confName = "10-nodeagent.conflist"
	// netName is the network's name and, with it, host-local's folder. It stays
	// the same when the state folder is wiped, because addresses of pods that
	// still run are reserved under it.
	netName = "nodeagent"
	// floorVersion is what every libcni in use reads; newer ones take the
	// highest of cniVersions, so 1.1's verbs are used where the runtime's
	// library can parse 1.1 results and nowhere else.
	floorVersion = "1.0.0"
)

// marker stands in the file we write and makes it ours.
type marker struct {
	Owner    string         `json:"owner"`
	Bridge   string         `json:"bridge"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	// Retired are bridges of former pod CIDRs that still had pods when the
	// CIDRs changed: they keep their addresses and masquerade rules.
	Retired []retired `json:"retired,omitempty"`
	// Checksum is of the file with an empty checksum; a difference means that
	// somebody edited it, and then it is not written again.
	Checksum string `json:"checksum"`
}

type retired struct {
	Bridge   string         `json:"bridge"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

// cidrs are all ranges whose pods may exist.
func (mk *marker) cidrs() []netip.Prefix {
	out := slices.Clone(mk.PodCIDRs)
	for _, r := range mk.Retired {
		out = append(out, r.PodCIDRs...)
	}
	return slices.Compact(out)
}

func (mk *marker) bridges() []string {
	out := []string{mk.Bridge}
	for _, r := range mk.Retired {
		out = append(out, r.Bridge)
	}
	return out
}

// The file's shape; the order of fields is the order in the file.
type (
	confList struct {
		CNIVersion  string   `json:"cniVersion"`
		CNIVersions []string `json:"cniVersions,omitempty"`
		Name        string   `json:"name"`
		Inlined     bool     `json:"loadOnlyInlinedPlugins"`
		Marker      marker   `json:"nodeagent.dev"`
		Plugins     []any    `json:"plugins"`
	}
	bridgeConf struct {
		Type        string   `json:"type"`
		Bridge      string   `json:"bridge"`
		IsGateway   bool     `json:"isGateway"`
		IPMasq      bool     `json:"ipMasq"`
		HairpinMode bool     `json:"hairpinMode"`
		PromiscMode bool     `json:"promiscMode"`
		IPAM        ipamConf `json:"ipam"`
	}
	ipamConf struct {
		Type    string        `json:"type"`
		DataDir string        `json:"dataDir"`
		Ranges  [][]rangeConf `json:"ranges"`
		Routes  []routeConf   `json:"routes"`
	}
	rangeConf struct {
		Subnet netip.Prefix `json:"subnet"`
	}
	routeConf struct {
		Dst string `json:"dst"`
	}
	portmapConf struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
		SNAT         bool            `json:"snat"`
		Backend      string          `json:"backend"`
	}
)

// render makes the file's bytes; versions are those that all plugins speak,
// ascending. The same input gives the same bytes.
func render(mk marker, dataDir string, versions []string) ([]byte, error) {
	l := confList{Name: netName, Inlined: true, Marker: mk}
	for _, v := range versions {
		if compareVersions(v, floorVersion) <= 0 {
			l.CNIVersion = v
		}
	}
	if l.CNIVersion == "" {
		return nil, fmt.Errorf("the CNI plugins speak %s only, not %s or older: %w",
			strings.Join(versions, ", "), floorVersion, errdefs.ErrInvalid)
	}
	if slices.Contains(versions, "1.1.0") {
		l.CNIVersions = []string{l.CNIVersion, "1.1.0"}
	}
	b := bridgeConf{Type: "bridge", Bridge: mk.Bridge, IsGateway: true, HairpinMode: true,
		IPAM: ipamConf{Type: "host-local", DataDir: dataDir}}
	for _, c := range mk.PodCIDRs {
		b.IPAM.Ranges = append(b.IPAM.Ranges, []rangeConf{{c}})
		dst := "0.0.0.0/0"
		if c.Addr().Is6() {
			dst = "::/0"
		}
		b.IPAM.Routes = append(b.IPAM.Routes, routeConf{dst})
	}
	// Our own rules are iptables'; portmap's are in the same place then.
	p := portmapConf{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}, SNAT: true, Backend: "iptables"}
	l.Plugins = []any{b, p}

	l.Marker.Checksum = ""
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append(data, '\n'))
	l.Marker.Checksum = hex.EncodeToString(sum[:])
	if data, err = json.MarshalIndent(l, "", "  "); err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// readMarker finds the marker in a file; nil when there is none. edited says
// that the file is no longer what was written.
func readMarker(data []byte) (mk *marker, edited bool) {
	var f struct {
		Marker *marker `json:"nodeagent.dev"`
	}
	if json.Unmarshal(data, &f) != nil || f.Marker == nil || f.Marker.Bridge == "" {
		return nil, false
	}
	sum := f.Marker.Checksum
	if len(sum) != sha256.Size*2 {
		return f.Marker, true
	}
	got := sha256.Sum256(bytes.Replace(data, []byte(sum), nil, 1))
	return f.Marker, hex.EncodeToString(got[:]) != sum
}

// Ensure sees to it that pods have a network. With a configuration of
// somebody else in the folder it does nothing but check that ours, if it is
// there too, still has its rules. An empty folder gets our default network;
// the file comes last, so that the runtime is ready only when everything that
// pods need is in place. It may be called again at any time and after a kill
// at any point.
func (m *Manager) Ensure(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.removeLeftovers(); err != nil {
		return err
	}
	own, err := m.own()
	if err != nil {
		return err
	}
	files, err := configFiles(m.opts.ConfDir)
	if err != nil {
		return err
	}
	if own == nil && len(files) > 0 {
		return nil // somebody else's network
	}
	if own != nil && files[0] != own.file {
		m.opts.Log.Info("another network configuration comes before nodeagent's and is the one in use",
			"file", files[0])
	} else if own != nil && len(files) > 1 {
		m.opts.Log.Warn("nodeagent's default network is in use although there is another configuration; remove one of them",
			"inUse", own.file, "notUsed", files[1])
	}
	mk, err := m.nextMarker(own)
	if err != nil {
		return err
	}
	m.step("decided")
	if err := m.ensureSysctls(mk.cidrs()); err != nil {
		return err
	}
	m.step("sysctls")
	if err := errors.Join(m.ensureRules(ctx, mk.cidrs()), ensurePortmap(ctx, mk.cidrs())); err != nil {
		return err
	}
	m.step("rules")
	if own != nil && own.edited {
		m.opts.Log.Info("the network configuration was edited and is left as it is", "file", own.file)
		return nil
	}
	versions, err := m.commonVersions(ctx, "bridge", "host-local", "portmap")
	if err != nil {
		return fmt.Errorf("write the default network: %w", err)
	}
	data, err := render(mk, m.opts.DataDir, versions)
	if err != nil {
		return fmt.Errorf("write the default network: %w", err)
	}
	if own != nil && bytes.Equal(own.data, data) {
		return nil
	}
	return m.write(data)
}

// nextMarker decides which bridge and ranges the network has from now on.
func (m *Manager) nextMarker(own *config) (marker, error) {
	mk := marker{Owner: m.opts.Owner, Bridge: m.opts.Bridge, PodCIDRs: m.opts.PodCIDRs}
	if own != nil {
		if own.edited {
			return *own.marker, nil
		}
		mk.Retired = slices.Clone(own.marker.Retired)
		mk.Bridge = own.marker.Bridge
		if !slices.Equal(own.marker.PodCIDRs, m.opts.PodCIDRs) {
			// The bridge plugin refuses a bridge with another address, and taking
			// the old address away would cut off the pods that use it as gateway.
			mk.Retired = append(mk.Retired, retired{own.marker.Bridge, own.marker.PodCIDRs})
			mk.Bridge = ""
		}
	}
	var err error
	if mk.Retired, err = dropUnused(mk.Retired); err != nil {
		return marker{}, err
	}
	taken := map[string]bool{}
	for _, r := range mk.Retired {
		taken[r.Bridge] = true
	}
	if own == nil {
		if err := m.checkOverlap(); err != nil {
			return marker{}, err
		}
	}
	if own == nil || mk.Bridge == "" {
		if mk.Bridge, err = m.pickBridge(taken); err != nil {
			return marker{}, err
		}
	}
	return mk, nil
}

// tmpPrefix hides a half-written file from runtimes: they go by the extension.
const tmpPrefix = ".nodeagent-tmp-"

// write replaces our file at once: a reader sees the old or the new content.
func (m *Manager) write(data []byte) (err error) {
	if err := os.MkdirAll(m.opts.ConfDir, 0o755); err != nil {
		return fmt.Errorf("make the CNI configuration folder: %w", err)
	}
	f, err := os.CreateTemp(m.opts.ConfDir, tmpPrefix)
	if err != nil {
		return fmt.Errorf("write the default network: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write the default network: %w", err), f.Close(), removeIfThere(f.Name()))
		}
	}()
	m.step("created")
	if _, err := f.Write(data); err != nil {
		return err
	}
	m.step("written")
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(m.opts.ConfDir, confName)); err != nil {
		return err
	}
	m.step("renamed")
	if err := f.Close(); err != nil {
		return err
	}
	return syncDir(m.opts.ConfDir)
}

// removeLeftovers removes what a kill in write left.
func (m *Manager) removeLeftovers() error {
	left, err := filepath.Glob(filepath.Join(m.opts.ConfDir, tmpPrefix+"*"))
	if err != nil {
		return err
	}
	for _, f := range left {
		if err := removeIfThere(f); err != nil {
			return err
		}
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
