// Package kubeproxy finds and removes what a kube-proxy left in the kernel,
// whichever mode it ran in. A kubelet that goes on makes its own chains again.
package kubeproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/iptables"
	"github.com/nodeagent/nodeagent/pkg/nft"
)

// What kube-proxy calls its things (kubernetes 1.37, pkg/proxy; earlier ones had
// no others).
const (
	prefix      = "KUBE-"           // of chains and sets
	nodePortSet = "KUBE-NODE-PORT-" // ports of the node, for its IPVS
	device      = "kube-ipvs0"
	table       = "kube-proxy" // of nftables
)

// kubelets are the kubelet's own chains, which no kube-proxy needs.
var kubelets = []string{"KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"}

func chain(name string) bool {
	return strings.HasPrefix(name, prefix) && !slices.Contains(kubelets, name)
}

// Find lists what there is, for people, in the network namespace of the calling
// thread.
func Find(ctx context.Context) ([]string, error) { return all(ctx, false) }

// Remove removes it and lists what it removed; when there is nothing it succeeds.
func Remove(ctx context.Context) ([]string, error) { return all(ctx, true) }

func all(ctx context.Context, remove bool) (found []string, err error) {
	sets, err := ipsets()
	if err != nil {
		return nil, err
	}
	var errs []error
	// Sets are removed after the rules that use them, and the device after the
	// virtual servers that its addresses tell.
	for _, step := range []func() ([]string, error){
		func() ([]string, error) { return chains(ctx, remove) },
		func() ([]string, error) { return virtualServers(sets, remove) },
		func() ([]string, error) { return link(remove) },
		func() ([]string, error) { return destroy(sets, remove) },
		func() ([]string, error) { return tables(ctx, remove) },
	} {
		some, err := step()
		found, errs = append(found, some...), append(errs, err)
	}
	return found, errors.Join(errs...)
}

func chains(ctx context.Context, remove bool) (found []string, err error) {
	var errs []error
	for _, t := range iptables.All() {
		do := t.Find
		if remove {
			do = t.Remove
		}
		some, err := do(ctx, chain)
		errs = append(errs, err)
		for _, c := range some {
			found = append(found, "chain "+c+" of "+iptables.Tool{Variant: t.Mode, V6: t.V6}.Program(""))
		}
	}
	return found, errors.Join(errs...)
}

// set is one of its ipsets, with the ports in it.
type set struct {
	name  string
	ports []uint16
}

func ipsets() ([]set, error) {
	if _, _, err := netlink.IpsetProtocol(); err != nil {
		return nil, nil // the kernel has no sets at all
	}
	list, err := netlink.IpsetListAll()
	if err != nil {
		return nil, fmt.Errorf("list the ipsets: %w", err)
	}
	var out []set
	for _, s := range list { // a large one comes in parts
		if !strings.HasPrefix(s.SetName, prefix) {
			continue
		}
		i := slices.IndexFunc(out, func(o set) bool { return o.name == s.SetName })
		if i < 0 {
			i, out = len(out), append(out, set{name: s.SetName})
		}
		for _, e := range s.Entries {
			if e.Port != nil {
				out[i].ports = append(out[i].ports, *e.Port)
			}
		}
	}
	return out, nil
}

func destroy(sets []set, remove bool) (found []string, err error) {
	var errs []error
	for _, s := range sets {
		if remove {
			if err := netlink.IpsetDestroy(s.name); err != nil {
				errs = append(errs, fmt.Errorf("destroy the ipset %s: %w", s.name, err))
				continue
			}
		}
		found = append(found, "ipset "+s.name)
	}
	return found, errors.Join(errs...)
}

// virtualServers are those at an address of the device, and at a port of the
// node that is in kube-proxy's sets.
func virtualServers(sets []set, remove bool) (found []string, err error) {
	if _, err := os.Stat("/proc/thread-self/net/ip_vs"); err != nil {
		return nil, nil // the kernel has no IPVS
	}
	h, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("ask for IPVS: %w", err)
	}
	defer h.Close()
	services, err := h.GetServices()
	if err != nil {
		return nil, fmt.Errorf("list the virtual servers of IPVS: %w", err)
	}
	bound, local, err := addresses()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, s := range services {
		ip := s.Address.String()
		nodePort := slices.ContainsFunc(sets, func(k set) bool {
			return strings.HasPrefix(k.name, nodePortSet) && slices.Contains(k.ports, s.Port)
		})
		if !bound[ip] && (!local[ip] || !nodePort) {
			continue
		}
		name := fmt.Sprintf("virtual server %s, protocol %d", net.JoinHostPort(ip, fmt.Sprint(s.Port)), s.Protocol)
		if remove {
			if err := h.DelService(s); err != nil {
				errs = append(errs, fmt.Errorf("remove the %s: %w", name, err))
				continue
			}
		}
		found = append(found, name)
	}
	return found, errors.Join(errs...)
}

// addresses are those of the device, and those of all others.
func addresses() (bound, local map[string]bool, err error) {
	bound, local = map[string]bool{}, map[string]bool{}
	index := 0
	if l, err := netlink.LinkByName(device); err == nil {
		index = l.Attrs().Index
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		switch {
		case !ok:
		case a.LinkIndex == index:
			bound[ip.Unmap().String()] = true
		default:
			local[ip.Unmap().String()] = true
		}
	}
	return bound, local, nil
}

func link(remove bool) ([]string, error) {
	l, err := netlink.LinkByName(device)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err == nil && remove {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return nil, fmt.Errorf("the device %s: %w", device, err)
	}
	return []string{"device " + device}, nil
}

// tables are nftables'. The kernel says which there are; nft is needed to
// remove one.
func tables(ctx context.Context, remove bool) (found []string, err error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
	const header = 4 // struct nfgenmsg, the family first
	req.AddRawData(make([]byte, header))
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // the kernel has no nf_tables
	}
	if err != nil {
		return nil, fmt.Errorf("list the tables of nftables: %w", err)
	}
	families := map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
	var text bytes.Buffer
	for _, a := range answers {
		if len(a) < header || families[a[0]] == "" {
			continue
		}
		attrs, err := nl.ParseRouteAttr(a[header:])
		if err != nil {
			return nil, fmt.Errorf("list the tables of nftables: %w", err)
		}
		for _, attr := range attrs {
			if attr.Attr.Type == unix.NFTA_TABLE_NAME && nl.BytesToString(attr.Value) == table {
				name := "table " + families[a[0]] + " " + table
				found = append(found, name)
				fmt.Fprintf(&text, "delete %s\n", name)
			}
		}
	}
	if !remove || text.Len() == 0 {
		return found, nil
	}
	if err := nft.Command(nil).Apply(ctx, &text); err != nil {
		return nil, fmt.Errorf("remove kube-proxy's %s: %w", strings.Join(found, ", "), err)
	}
	return found, nil
}
