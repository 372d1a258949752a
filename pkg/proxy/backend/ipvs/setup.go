package ipvs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

type sysctl struct{ name, value string }

var sysctls = []sysctl{
	// Masquerading, and the state of a connection that our rules ask for, are
	// conntrack's, which without this knows nothing of IPVS's translation.
	{"net/ipv4/vs/conntrack", "1"},
	// A connection to a server that is gone gets another one, and is not
	// silently dropped: UDP flows would end nowhere.
	{"net/ipv4/vs/expire_nodest_conn", "1"},
	// Affinity does not hold on to a server that is on the way out.
	{"net/ipv4/vs/expire_quiescent_template", "1"},
}

// strictARP is for who announces external addresses by itself (MetalLB).
var strictARP = []sysctl{
	{"net/ipv4/conf/all/arp_ignore", "1"},
	{"net/ipv4/conf/all/arp_announce", "2"},
}

// Supported says why this host's kernel has no IPVS; nil is that it has. It
// loads the module, as IPVS's own tools do.
func Supported(ctx context.Context) error {
	if _, err := netlink.GenlFamilyGet("IPVS"); err == nil {
		return nil
	}
	out, modErr := exec.CommandContext(ctx, "modprobe", "ip_vs").CombinedOutput()
	if _, err := netlink.GenlFamilyGet("IPVS"); err == nil {
		return nil
	}
	if modErr == nil {
		return errors.New("the module ip_vs is loaded but does not answer over netlink: is this a container without CAP_NET_ADMIN?")
	}
	return fmt.Errorf("the kernel has no IPVS (module ip_vs): %w: %s", modErr, strings.TrimSpace(string(out)))
}

// Used says that there may be something of ours: without IPVS there is nothing,
// since nobody can unload it under a virtual service.
func Used() bool { return !absent() }

// Detect says what of kernel or tools is missing. It asks nft to check the
// tables, and changes nothing but for the module.
func Detect(ctx context.Context, opts Options) error {
	if err := Supported(ctx); err != nil {
		return err
	}
	var text bytes.Buffer
	for _, f := range families {
		text.WriteString(baseTable(f, ruleset.Node{NodePortAddresses: []netip.Addr{f.any}}))
	}
	return opts.Nft.Check().Apply(ctx, &text)
}

// open opens the sockets once; the caller holds the lock.
func (b *Backend) open(ctx context.Context) error {
	if err := b.openNetwork(); err != nil || b.table != nil {
		return err
	}
	if err := Supported(ctx); err != nil {
		return err
	}
	return b.opts.In(func() (err error) { b.table, err = openTable(); return err })
}

// prepare sets what the kernel has to know of IPVS as a whole.
func (b *Backend) prepare() error {
	values := sysctls
	if b.opts.StrictARP {
		values = append(values[:len(values):len(values)], strictARP...)
	}
	// Until 5.9 a client's port that was used again cost a second (the first
	// packet was dropped) with 1, the default.
	major, minor, err := release()
	if err != nil {
		return err
	}
	if major < 5 || major == 5 && minor < 9 {
		values = append(values[:len(values):len(values)], sysctl{"net/ipv4/vs/conn_reuse_mode", "0"})
	}
	return b.opts.In(func() error {
		for _, s := range values {
			if err := writeSysctl(s.name, s.value); err != nil {
				return err
			}
		}
		return idleLikeConntrack()
	})
}

func (b *Backend) openNetwork() error {
	if b.net != nil {
		return nil
	}
	return b.opts.In(func() (err error) { b.net, err = openNetwork(); return err })
}

// writeSysctl writes a value of the calling thread's network namespace.
func writeSysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}

// idleLikeConntrack lets IPVS keep an idle TCP connection for as long as
// conntrack does. Its own 15 minutes cut connections that every other mode keeps.
func idleLikeConntrack() error {
	const file = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("conntrack's time-out of TCP: %w", err)
	}
	seconds, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	h, err := ipvs.New("")
	if err != nil {
		return fmt.Errorf("open IPVS's netlink socket: %w", err)
	}
	defer h.Close()
	c, err := h.GetConfig()
	if err != nil {
		return fmt.Errorf("read IPVS's time-outs: %w", err)
	}
	if want := time.Duration(seconds) * time.Second; c.TimeoutTCP < want {
		c.TimeoutTCP = want
		if err := h.SetConfig(c); err != nil {
			return fmt.Errorf("set IPVS's time-out of TCP to %s: %w", want, err)
		}
	}
	return nil
}
