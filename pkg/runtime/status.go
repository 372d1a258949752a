package runtime

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

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
			Options map[string]any `json:"options"`
		} `json:"runtimes"`
	} `json:"containerd"`
}

// readStatus fills in what a verbose status says. Unknown shapes leave fields
// empty: the text belongs to the runtime and no contract covers it.
func readStatus(a *about, st *cri.StatusResponse) {
	for _, h := range st.GetRuntimeHandlers() {
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
		case said:
			a.cgroupDriver = "cgroupfs"
		}
	}
}

func driverName(d cri.CgroupDriver) string {
	if d == cri.CgroupDriver_CGROUPFS {
		return "cgroupfs"
	}
	return "systemd"
}

// firstEvents guesses how events arrive before Watch has tried. containerd has
// the CRI stream since 1.7; what another runtime does is found out by asking.
func firstEvents(a *about) string {
	if a.name == containerdName && olderThan(a.version, 1, 7) {
		return eventsContainerd
	}
	return eventsCRI
}

// olderThan reads the first two numbers of a version such as "1.6.20~ds1" or
// "v2.4.2". A version that cannot be read is not old.
func olderThan(version string, major, minor int) bool {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return false
	}
	ma, err1 := strconv.Atoi(parts[0])
	mi, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil {
		return false
	}
	return ma < major || ma == major && mi < minor
}
