package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// maxBridgeName leaves room for a digit within the kernel's 15 characters.
const maxBridgeName = 13

// linkByName returns nil when there is no such link.
func linkByName(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	}
	return l, nil
}

// ports are the links that hang on a bridge.
func ports(bridge netlink.Link) ([]netlink.Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return slices.DeleteFunc(all, func(l netlink.Link) bool {
		return l.Attrs().MasterIndex != bridge.Attrs().Index
	}), nil
}

// dropUnused removes former bridges that no pod hangs on any more and returns
// the others.
func dropUnused(old []retired) ([]retired, error) {
	var kept []retired
	for _, r := range old {
		l, err := linkByName(r.Bridge)
		if err != nil {
			return nil, err
		}
		if l == nil {
			continue
		}
		ps, err := ports(l)
		if err != nil {
			return nil, err
		}
		if len(ps) > 0 {
			kept = append(kept, r)
			continue
		}
		if err := deleteLink(r.Bridge); err != nil {
			return nil, err
		}
	}
	return kept, nil
}

func deleteLink(name string) error {
	l, err := linkByName(name)
	if err != nil || l == nil {
		return err
	}
	if err := netlink.LinkDel(l); err != nil {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// pickBridge finds the first of NAME, then NAME with its last digit counted
// up, that is free or already fits our ranges.
func (m *Manager) pickBridge(taken map[string]bool) (string, error) {
	base := m.opts.Bridge
	for base != "" && base[len(base)-1] >= '0' && base[len(base)-1] <= '9' {
		base = base[:len(base)-1]
	}
	names := []string{m.opts.Bridge}
	for i := range 10 {
		if n := fmt.Sprintf("%s%d", base, i); n != m.opts.Bridge {
			names = append(names, n)
		}
	}
	for _, name := range names {
		if taken[name] {
			continue
		}
		l, err := linkByName(name)
		if err != nil {
			return "", err
		}
		if l == nil {
			return name, nil
		}
		if ok, err := m.fits(l); err != nil || ok {
			return name, err
		}
	}
	return "", fmt.Errorf("no free name for the pods' bridge: %v are all in use by other links: %w", names, errdefs.ErrExists)
}

// fits says that a link is a bridge whose addresses, if any, are in our ranges.
func (m *Manager) fits(l netlink.Link) (bool, error) {
	if l.Type() != "bridge" {
		return false, nil
	}
	addrs, err := addresses(l)
	if err != nil {
		return false, err
	}
	for _, a := range addrs {
		if !slices.ContainsFunc(m.opts.PodCIDRs, func(c netip.Prefix) bool {
			return c.Masked() == a.Masked()
		}) {
			return false, nil
		}
	}
	return true, nil
}

// addresses are a link's addresses (all links' for nil), without link-local ones.
func addresses(l netlink.Link) ([]netip.Prefix, error) {
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.IPNet == nil || ip.Unmap().IsLinkLocalUnicast() {
			continue
		}
		bits, _ := a.Mask.Size()
		out = append(out, netip.PrefixFrom(ip.Unmap(), bits))
	}
	return out, nil
}

// checkOverlap refuses pod ranges that the node itself has an address in:
// another bridge (podman's default is our default, too) or the node's network.
func (m *Manager) checkOverlap() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		addrs, err := addresses(l)
		if err != nil {
			return err
		}
		if ok, err := m.fits(l); err != nil || ok && l.Attrs().Name == m.opts.Bridge {
			if err != nil {
				return err
			}
			continue // ours, from before somebody removed the file
		}
		for _, a := range addrs {
			for _, c := range m.opts.PodCIDRs {
				switch {
				case c.Contains(a.Addr()):
					return fmt.Errorf("pod CIDR %s: interface %s has the address %s in it; set podCIDRs to a free range: %w",
						c, l.Attrs().Name, a, errdefs.ErrExists)
				case a.Overlaps(c) && a.Bits() > 0:
					m.opts.Log.Warn("the pod CIDR hides a part of a network of this node",
						"podCIDR", c.String(), "interface", l.Attrs().Name, "network", a.Masked().String())
				}
			}
		}
	}
	return nil
}
