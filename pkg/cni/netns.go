package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nsID tells one namespace from another, whatever path leads to it.
type nsID struct{ dev, ino uint64 }

// nsOf returns the namespace that a path leads to.
func nsOf(path string) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nsID{}, fmt.Errorf("stat %s: %w", path, err)
	}
	return nsID{uint64(st.Dev), st.Ino}, nil
}

// isNetNS says that a path is a mounted namespace and not the empty file that
// an unmount leaves.
func isNetNS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == unix.NSFS_MAGIC
}

// keeper knows what must not be collected.
type keeper struct {
	m     *Manager
	ids   map[string]bool // sandboxes of the runtime
	nss   map[nsID]bool   // their namespaces
	netns map[string]string
	procs map[nsID]bool // namespaces that processes live in; nil until asked
	inUse []string
}

func newKeeper(m *Manager, alive []Attachment, cands []candidate) *keeper {
	k := &keeper{m: m, ids: map[string]bool{}, nss: map[nsID]bool{}, netns: map[string]string{}}
	add := func(path string) {
		if path == "" {
			return
		}
		if id, err := nsOf(path); err == nil {
			k.nss[id] = true
		}
	}
	for _, a := range alive {
		k.ids[a.SandboxID] = true
		add(a.NetNS)
	}
	for _, c := range cands {
		if c.netns != "" {
			k.netns[c.id] = c.netns
		}
		if k.ids[c.id] {
			add(c.netns) // the runtime need not tell paths: its library knows them
		}
	}
	return k
}

// attachment says whether to keep one: the runtime has the sandbox, it is too
// young, or a process lives in its namespace, which happens when another
// runtime, or another agent's state, uses the same network.
func (k *keeper) attachment(c candidate) bool {
	if k.ids[c.id] || c.age < k.m.opts.MinAge {
		return true
	}
	path := c.netns
	if path == "" {
		path = k.netns[c.id]
	}
	if path == "" || !isNetNS(path) {
		return false
	}
	id, err := nsOf(path)
	if err != nil || !k.inhabited(id) {
		return false
	}
	if !slices.Contains(k.inUse, c.String()) {
		k.inUse = append(k.inUse, c.String())
	}
	return true
}

// namespace says whether a namespace is a sandbox's or inhabited.
func (k *keeper) namespace(id nsID) bool { return k.nss[id] || k.inhabited(id) }

// inhabited says that some process is in the namespace. When the processes
// cannot be listed everything counts as inhabited.
func (k *keeper) inhabited(id nsID) bool {
	if k.procs == nil {
		k.procs = map[nsID]bool{}
		entries, err := os.ReadDir(k.m.opts.ProcRoot)
		if err != nil {
			k.procs = nil
			return true
		}
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err != nil {
				continue
			}
			if ns, err := nsOf(filepath.Join(k.m.opts.ProcRoot, e.Name(), "ns/net")); err == nil {
				k.procs[ns] = true
			}
		}
	}
	return k.procs[id]
}

// dropNetNS unmounts a namespace that a runtime left behind. Only names that
// CNI runtimes give (cni-…) in the folder for them are touched.
func (m *Manager) dropNetNS(keep *keeper, path string) (bool, error) {
	if path == "" || !strings.HasPrefix(filepath.Base(path), "cni-") || !m.inNetNSDir(path) || !isNetNS(path) {
		return false, nil
	}
	id, err := nsOf(path)
	if err != nil || keep.namespace(id) {
		return false, nil
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return false, fmt.Errorf("unmount abandoned network namespace %s: %w", path, err)
	}
	if err := removeIfThere(path); err != nil {
		return false, fmt.Errorf("remove abandoned network namespace %s: %w", path, err)
	}
	return true, nil
}

// inNetNSDir follows links: /var/run is one.
func (m *Manager) inNetNSDir(path string) bool {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return false
	}
	want, err := filepath.EvalSymlinks(m.opts.NetNSDir)
	return err == nil && dir == want
}

// collectPorts removes ports of our bridges whose other end is in a namespace
// that is neither a sandbox's nor inhabited, and that namespace. A port whose
// other end cannot be found stays: somebody keeps that namespace open.
func (m *Manager) collectPorts(bridges []string, keep *keeper) (links, spaces []string, err error) {
	paths, err := m.namespacePaths()
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for _, name := range bridges {
		br, err := linkByName(name)
		if err != nil {
			return links, spaces, err
		}
		if br == nil {
			continue
		}
		ps, err := ports(br)
		if err != nil {
			return links, spaces, err
		}
		for _, p := range ps {
			path, ok := paths[p.Attrs().NetNsID]
			if p.Type() != "veth" || p.Attrs().NetNsID < 0 || !ok {
				continue
			}
			id, err := nsOf(path)
			if err != nil || keep.namespace(id) || age(path) < m.opts.MinAge {
				continue
			}
			if err := deleteLink(p.Attrs().Name); err != nil {
				errs = append(errs, err)
				continue
			}
			links = append(links, p.Attrs().Name)
			dropped, err := m.dropNetNS(keep, path)
			errs = append(errs, err)
			if dropped {
				spaces = append(spaces, path)
			}
		}
	}
	return links, spaces, errors.Join(errs...)
}

// namespacePaths maps the kernel's numbers for other namespaces, as seen from
// ours, to the mounted ones in NetNSDir.
func (m *Manager) namespacePaths() (map[int]string, error) {
	entries, err := os.ReadDir(m.opts.NetNSDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	out := map[int]string{}
	for _, e := range entries {
		path := filepath.Join(m.opts.NetNSDir, e.Name())
		if !isNetNS(path) {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			continue // gone meanwhile
		}
		id, err := netlink.GetNetNsIdByFd(int(f.Fd()))
		f.Close()
		if err == nil && id >= 0 {
			out[id] = path
		}
	}
	return out, nil
}
