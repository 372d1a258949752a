package runtime

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// verboseConfig is the part of containerd's configuration, as its CRI status
// prints it, that the agent reads. 1.6 and 1.7 name the pause image
// sandboxImage; 2.x moved it to pinned images of another plugin and prints it
// only in some releases.
type verboseConfig struct {
	SandboxImage string            `json:"sandboxImage"`
	PinnedImages map[string]string `json:"pinnedImages"`
	Containerd   struct {
		DefaultRuntime string `json:"defaultRuntimeName"`
		Runtimes       map[string]struct {
			Type    string         `json:"runtimeType"`
			Options map[string]any `json:"options"`
		} `json:"runtimes"`
	} `json:"containerd"`
}

// readStatus fills in what a verbose status says. Unknown shapes leave fields
// empty: the text belongs to the runtime and no contract covers it.
func readStatus(a *about, st *cri.StatusResponse) {
	a.features.SupplementalGroupsPolicy = st.GetFeatures().GetSupplementalGroupsPolicy()
	a.features.ImageVolumes = mountsImages(a.name, a.version)
	for _, h := range st.GetRuntimeHandlers() {
		if h.GetFeatures().GetUserNamespaces() {
			a.features.UserNamespaces = append(a.features.UserNamespaces, h.GetName())
		}
		if h.GetFeatures().GetRecursiveReadOnlyMounts() {
			a.features.RecursiveReadOnly = append(a.features.RecursiveReadOnly, h.GetName())
		}
		if h.GetName() != "" {
			a.handlers = append(a.handlers, h.GetName())
		}
	}
	var v verboseConfig
	if err := json.Unmarshal([]byte(st.GetInfo()["config"]), &v); err != nil {
		slices.Sort(a.handlers)
		return
	}
	a.sandboxImage = v.SandboxImage
	if a.sandboxImage == "" {
		a.sandboxImage = v.PinnedImages["sandbox"]
	}
	if len(a.handlers) == 0 {
		for name := range v.Containerd.Runtimes {
			a.handlers = append(a.handlers, name)
		}
	}
	slices.Sort(a.handlers)
	if r, ok := v.Containerd.Runtimes[v.Containerd.DefaultRuntime]; ok {
		systemd, said := r.Options["SystemdCgroup"].(bool)
		switch {
		case systemd:
			a.cgroupDriver = "systemd"
		case said, r.Type == "io.containerd.runc.v2":
			a.cgroupDriver = "cgroupfs"
		}
	}
}

// firstWithImages are the releases that brought image volumes; no runtime says
// by itself whether it has them.
var firstWithImages = map[string][2]int{containerdName: {2, 1}, "cri-o": {1, 31}}

var majorMinor = regexp.MustCompile(`(\d+)\.(\d+)`)

// mountsImages says so of a runtime that is not known, too: it may be tried.
func mountsImages(name, version string) bool {
	first, known := firstWithImages[name]
	m := majorMinor.FindStringSubmatch(version)
	if !known || m == nil {
		return true
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > first[0] || major == first[0] && minor >= first[1]
}

func driverName(d cri.CgroupDriver) string {
	if d == cri.CgroupDriver_CGROUPFS {
		return "cgroupfs"
	}
	return "systemd"
}

// eventWays are the ways to learn of events, best first. containerd's own
// events come at once; its CRI stream (since 1.7) comes when the runtime has
// reaped the task and deleted its cgroups, 20 to 30 ms later with runc, and
// 1.7 splits it between its readers.
func eventWays(a *about) []string {
	if a.name == containerdName {
		return []string{eventsContainerd, eventsCRI, eventsPoll}
	}
	return []string{eventsCRI, eventsPoll}
}
