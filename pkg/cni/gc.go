package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"
)

// defaultIfName is what every CRI runtime calls the pod's interface.
const defaultIfName = "eth0"

// candidate is one attachment that something on the node remembers.
type candidate struct {
	id, ifName string
	netns      string // path; empty when unknown
	args       [][2]string
	caps       map[string]any
	age        time.Duration
}

func (c candidate) String() string { return c.id + "/" + c.ifName }

// GC releases what sandboxes that no longer exist hold on the network that we
// wrote: attachments that the runtime's library remembers, addresses of
// host-local, forwarded ports, bridge ports and abandoned namespaces. Networks
// of others are never touched. It waits until no sandbox is being created (see
// Creating) and keeps new ones waiting while it runs; when ctx ends before
// that it fails with errdefs.ErrTransient. One failure does not keep the rest
// from being collected.
func (m *Manager) GC(ctx context.Context, live LiveFunc) (Report, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	own, err := m.own()
	if err != nil || own == nil {
		return Report{}, err
	}
	open, err := m.gate.close(ctx)
	if err != nil {
		return Report{}, err
	}
	defer open()
	// Only now: a sandbox that was made after the list would look dead.
	alive, err := live(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("collect network leftovers: list sandboxes: %w", err)
	}
	return m.collect(ctx, own, alive)
}

func (m *Manager) collect(ctx context.Context, own *config, alive []Attachment) (Report, error) {
	var rep Report
	var errs []error
	cands, err := m.candidates(own)
	if err != nil {
		return rep, err
	}
	keep := newKeeper(m, alive, cands)
	var valid []types.GCAttachment
	for _, c := range cands {
		if keep.attachment(c) {
			valid = append(valid, types.GCAttachment{ContainerID: c.id, IfName: c.ifName})
			continue
		}
		if err := m.del(ctx, own.list, c); err != nil {
			errs = append(errs, fmt.Errorf("release %s on network %s: %w", c, own.list.Name, err))
			continue
		}
		rep.Attachments = append(rep.Attachments, c.String())
		ok, err := m.dropNetNS(keep, c.netns)
		errs = append(errs, err)
		if ok {
			rep.NetNS = append(rep.NetNS, c.netns)
		}
		m.step("released")
	}
	// Plugins of CNI 1.1 may know of more than the library's memory.
	if ok, err := version.GreaterThanOrEqualTo(own.list.CNIVersion, "1.1.0"); err == nil && ok {
		gctx, cancel := context.WithTimeout(ctx, pluginTimeout)
		errs = append(errs, m.cni.GCNetworkList(gctx, own.list, &libcni.GCArgs{ValidAttachments: valid}))
		cancel()
	}
	released, err := m.releaseAddresses(own.list.Name, keep)
	rep.Addresses = released
	errs = append(errs, err)
	links, spaces, err := m.collectPorts(own.marker.bridges(), keep)
	rep.Links, rep.NetNS = links, append(rep.NetNS, spaces...)
	errs = append(errs, err)
	rep.Kept = keep.inUse
	for _, l := range [][]string{rep.Attachments, rep.Addresses, rep.Links, rep.NetNS, rep.Kept} {
		slices.Sort(l)
	}
	return rep, errors.Join(errs...)
}

// candidates are all attachments of the network that the library, host-local
// or portmap's rules remember; one each, the library's memory first as it
// knows most.
func (m *Manager) candidates(own *config) ([]candidate, error) {
	cached, err := m.cni.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("read the runtime's memory of attachments in %s: %w", m.opts.CacheDir, err)
	}
	var out []candidate
	seen := map[string]bool{}
	add := func(c candidate) {
		if !seen[c.String()] {
			seen[c.String()] = true
			out = append(out, c)
		}
	}
	for _, a := range cached {
		if a.Network != own.list.Name {
			continue
		}
		// The name of the file is libcni's; a missing one counts as old.
		file := filepath.Join(m.opts.CacheDir, "results", fmt.Sprintf("%s-%s-%s", a.Network, a.ContainerID, a.IfName))
		add(candidate{id: a.ContainerID, ifName: a.IfName, netns: a.NetNS, args: a.CniArgs, caps: a.CapabilityArgs, age: age(file)})
	}
	reserved, err := readReservations(filepath.Join(m.opts.DataDir, own.list.Name))
	if err != nil {
		return nil, err
	}
	for _, r := range reserved {
		add(candidate{id: r.id, ifName: r.ifName, age: age(r.file)})
	}
	ids, err := portmapIDs(own.list.Name)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if !slices.ContainsFunc(out, func(c candidate) bool { return c.id == id }) {
			// Rules have no date, but they are made after the address is reserved.
			add(candidate{id: id, ifName: defaultIfName, age: 1<<63 - 1})
		}
	}
	return out, nil
}

// age of a file; for ever when it is gone.
func age(file string) time.Duration {
	info, err := os.Stat(file)
	if err != nil {
		return 1<<63 - 1
	}
	return time.Since(info.ModTime())
}

// portmapRule is the comment that the plugin writes on its rules.
var portmapRule = regexp.MustCompile(`dnat name: \\?"([^"\\]+)\\?" id: \\?"([^"\\]+)\\?"`)

// portmapIDs are the containers of a network that have forwarded ports.
func portmapIDs(network string) ([]string, error) {
	var ids []string
	for _, v6 := range []bool{false, true} {
		ipt, err := newIPTables(v6)
		if err != nil {
			continue // no program, no rules
		}
		list, err := listChain(ipt, "nat", "CNI-HOSTPORT-DNAT")
		if v6Missing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, line := range list {
			if f := portmapRule.FindStringSubmatch(line); f != nil && f[1] == network && !slices.Contains(ids, f[2]) {
				ids = append(ids, f[2])
			}
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// del has the plugins release one attachment, as the runtime would have.
func (m *Manager) del(ctx context.Context, list *libcni.NetworkConfigList, c candidate) error {
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	rt := &libcni.RuntimeConf{ContainerID: c.id, IfName: c.ifName, NetNS: c.netns, Args: c.args, CapabilityArgs: c.caps}
	if c.netns != "" && !isNetNS(c.netns) {
		rt.NetNS = "" // gone; plugins refuse what is left of its file
	}
	if _, ok := rt.CapabilityArgs["portMappings"]; !ok {
		// portmap removes a container's chain only when it is told of a port; which
		// one does not matter, the chain is found by the container's id.
		caps := map[string]any{"portMappings": []map[string]any{{"hostPort": 1, "containerPort": 1, "protocol": "tcp"}}}
		for k, v := range rt.CapabilityArgs {
			caps[k] = v
		}
		rt.CapabilityArgs = caps
	}
	return m.cni.DelNetworkList(ctx, list, rt)
}

// reservation is one file of host-local.
type reservation struct{ file, ip, id, ifName string }

// readReservations lists host-local's addresses of one network.
func readReservations(dir string) ([]reservation, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read host-local's addresses: %w", err)
	}
	var out []reservation
	for _, e := range entries {
		name := e.Name()
		if !e.Type().IsRegular() || name == "lock" || strings.HasPrefix(name, "last_reserved_ip.") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read host-local's addresses: %w", err)
		}
		id, ifName, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
		r := reservation{file: filepath.Join(dir, name), ip: name, id: strings.TrimSpace(id), ifName: strings.TrimSpace(ifName)}
		if r.ifName == "" {
			r.ifName = defaultIfName
		}
		if r.id == "" { // killed between create and write
			r.id = unknownID
		}
		out = append(out, r)
	}
	return out, nil
}

// unknownID stands for an address that is reserved for nobody: host-local was
// killed between making the file and writing to it.
const unknownID = "unknown"

// releaseAddresses removes, under host-local's lock, what the plugins left.
func (m *Manager) releaseAddresses(network string, keep *keeper) ([]string, error) {
	dir := filepath.Join(m.opts.DataDir, network)
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // never used
	}
	if err != nil {
		return nil, fmt.Errorf("lock host-local's addresses: %w", err)
	}
	defer lock.Close() // ends the lock, too
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock host-local's addresses: %w", err)
	}
	all, err := readReservations(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range all {
		if keep.attachment(candidate{id: r.id, ifName: r.ifName, age: age(r.file)}) {
			continue
		}
		if err := removeIfThere(r.file); err != nil {
			return out, fmt.Errorf("release address %s: %w", r.ip, err)
		}
		out = append(out, r.ip)
	}
	return out, nil
}
