package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ensureSysctls turns on forwarding for the families in use and, where the
// bridge module has it, iptables for bridged packets, which Services between
// pods on one bridge need. They are left on by Cleanup: others rely on them.
func (m *Manager) ensureSysctls(cidrs []netip.Prefix) error {
	v4 := slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Addr().Is4() })
	v6 := slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Addr().Is6() })
	if v4 {
		if err := m.sysctl("net/ipv4/ip_forward", false); err != nil {
			return err
		}
		if err := m.sysctl("net/bridge/bridge-nf-call-iptables", true); err != nil {
			return err
		}
	}
	if v6 {
		m.warnRouterAdvertisements()
		if err := m.sysctl("net/ipv6/conf/all/forwarding", false); err != nil {
			return err
		}
		if err := m.sysctl("net/bridge/bridge-nf-call-ip6tables", true); err != nil {
			return err
		}
	}
	return nil
}

// sysctl sets a value to 1 when it is 0. One that is right is never written:
// /proc/sys is read-only in many containers.
func (m *Manager) sysctl(name string, optional bool) error {
	path := filepath.Join(m.opts.ProcRoot, "sys", name)
	old, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && optional {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read sysctl %s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	if strings.TrimSpace(string(old)) != "0" {
		return nil
	}
	if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s=1: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	return nil
}

// warnRouterAdvertisements says when forwarding is going to end a node's own
// autoconfiguration: the kernel ignores router advertisements on a router
// unless accept_ra is 2.
func (m *Manager) warnRouterAdvertisements() {
	root := filepath.Join(m.opts.ProcRoot, "sys/net/ipv6/conf")
	if b, err := os.ReadFile(filepath.Join(root, "all/forwarding")); err != nil || strings.TrimSpace(string(b)) != "0" {
		return
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(root, e.Name(), "accept_ra"))
		if err != nil || strings.TrimSpace(string(b)) != "1" || slices.Contains([]string{"all", "default", "lo"}, e.Name()) {
			continue
		}
		m.opts.Log.Warn("IPv6 forwarding ends router advertisements on this interface; set accept_ra to 2 if the node's address comes from them",
			"interface", e.Name(), "sysctl", "net.ipv6.conf."+e.Name()+".accept_ra")
	}
}
