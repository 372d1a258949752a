package cgroup

import (
	"path"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// top is the cgroup that holds every pod, in kubelet's name, so that tools
// which know kubelet's layout (cAdvisor, systemd-cgtop filters) work unchanged.
const top = "kubepods"

// classes are the QoS parents; Guaranteed pods sit directly below top.
func class(q v1.PodQOSClass) string {
	switch q {
	case v1.PodQOSBurstable:
		return "burstable"
	case v1.PodQOSBestEffort:
		return "besteffort"
	}
	return ""
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// names spells a chain of cgroups in the driver's way.
type names struct {
	root    []string // components of Options.Root
	systemd bool
}

func newNames(root string, systemd bool) names {
	n := names{systemd: systemd}
	for _, c := range strings.Split(path.Clean("/"+root), "/") {
		if c != "" {
			n.root = append(n.root, c)
		}
	}
	return n
}

// chain is root + top + QoS class + pod as components; empty ones are left out.
func (n names) chain(tail ...string) []string {
	out := append([]string(nil), n.root...)
	for _, c := range append([]string{top}, tail...) {
		if c != "" {
			out = append(out, c)
		}
	}
	return out
}

// fsPath is the folder below a hierarchy's mount point, absolute.
func (n names) fsPath(chain []string) string {
	if !n.systemd {
		return "/" + strings.Join(chain, "/")
	}
	// systemd nests a-b-c.slice as /a.slice/a-b.slice/a-b-c.slice.
	p, name := "/", ""
	for _, c := range chain {
		name += escape(c)
		p = path.Join(p, name+".slice")
		name += "-"
	}
	return p
}

// parent is what CRI calls cgroup_parent: a path for cgroupfs, a slice's unit
// name for systemd.
func (n names) parent(chain []string) string {
	p := n.fsPath(chain)
	if n.systemd {
		return path.Base(p)
	}
	return p
}

// escape keeps "-" out of one component, where systemd would read a level.
func escape(c string) string { return strings.ReplaceAll(c, "-", "_") }

func podName(uid types.UID) string { return "pod" + string(uid) }

// uidOf reads a pod's UID back from a folder's name; false for other folders.
func (n names) uidOf(folder, class string) (types.UID, bool) {
	name := folder
	if n.systemd {
		prefix := path.Base(n.fsPath(n.chain(class)))
		prefix = strings.TrimSuffix(prefix, ".slice") + "-"
		var ok bool
		if name, ok = strings.CutPrefix(folder, prefix); !ok {
			return "", false
		}
		if name, ok = strings.CutSuffix(name, ".slice"); !ok {
			return "", false
		}
		name = strings.ReplaceAll(name, "_", "-")
	}
	uid, ok := strings.CutPrefix(name, "pod")
	if !ok || uid == "" {
		return "", false
	}
	return types.UID(uid), true
}
