package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ReadHost asks the machine for what Default needs.
func ReadHost() (Host, error) {
	name, err := os.Hostname()
	if err != nil {
		return Host{}, fmt.Errorf("host name: %w", err)
	}
	addresses, err := NodeAddresses()
	if err != nil {
		return Host{}, err
	}
	// A host without the file has no resolver; the check command says so.
	resolv, _ := os.ReadFile(defaultResolvConf)
	return Host{
		Hostname:   name,
		Addresses:  addresses,
		CPUs:       runtime.NumCPU(),
		Exists:     func(p string) bool { _, err := os.Stat(p); return err == nil },
		HasPlugins: hasPlugins,
		ResolvConf: string(resolv),
	}, nil
}

func hasPlugins(dir string) bool {
	st, err := os.Stat(filepath.Join(dir, "bridge"))
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// NodeAddresses returns at most one address per family, IPv4 first: the one of
// the interface with the default route, else the first global one. It returns
// none on a host that has no address yet; ask again later.
func NodeAddresses() ([]string, error) {
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		a, err := familyAddress(family)
		if err != nil {
			return nil, err
		}
		if a != "" {
			out = append(out, a)
		}
	}
	return out, nil
}

func familyAddress(family int) (string, error) {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return "", fmt.Errorf("list routes: %w", err)
	}
	best, metric := -1, 0
	for _, r := range routes {
		if !isDefault(r.Dst) || r.LinkIndex == 0 {
			continue
		}
		if best < 0 || r.Priority < metric {
			best, metric = r.LinkIndex, r.Priority
			if ip := r.Src; usable(ip) {
				return ip.String(), nil
			}
		}
	}
	addrs, err := netlink.AddrList(nil, family)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return "", fmt.Errorf("list addresses: %w", err)
	}
	first := ""
	for _, a := range addrs {
		if !usable(a.IP) || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY) != 0 {
			continue
		}
		if a.LinkIndex == best {
			return a.IP.String(), nil
		}
		if first == "" {
			first = a.IP.String()
		}
	}
	return first, nil
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0 && dst.IP.IsUnspecified()
}

func usable(ip net.IP) bool { return ip != nil && ip.IsGlobalUnicast() }
