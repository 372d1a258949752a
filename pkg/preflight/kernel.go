package preflight

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Capabilities by bit, see capability.h.
const (
	capNetAdmin    = 12
	capSysChroot   = 18
	capSysAdmin    = 21
	capSysResource = 24
	capMknod       = 27
)

func privileges(_ context.Context, p *probe) Result {
	status := fields(p.text("/proc/self/status"))
	uid, caps := firstWord(status["Uid"]), status["CapEff"]
	if uid != "0" {
		return bad(Fail, "running as uid "+uid, "run as root")
	}
	eff, err := strconv.ParseUint(strings.TrimSpace(caps), 16, 64)
	if err != nil {
		return bad(Warn, "root; capabilities cannot be read", "mount /proc")
	}
	var missing []string
	for _, c := range []struct {
		bit  int
		name string
	}{{capNetAdmin, "CAP_NET_ADMIN"}, {capSysChroot, "CAP_SYS_CHROOT"}, {capSysAdmin, "CAP_SYS_ADMIN"}, {capMknod, "CAP_MKNOD"}} {
		if eff&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return bad(Fail, "root without "+strings.Join(missing, ", "), "give these capabilities; in a container, run it privileged")
	}
	if eff&(1<<capSysResource) == 0 {
		return bad(Warn, "root without CAP_SYS_RESOURCE", "OOM scores cannot be lowered; a containerd of your own needs restrict_oom_score_adj = true")
	}
	return ok("root with all that is needed")
}

func kernelVersion(_ context.Context, p *probe) Result {
	major, minor, found := release(p.release)
	switch {
	case !found:
		return bad(Warn, fmt.Sprintf("release %q is not understood", p.release), "Linux 4.19 or newer is expected")
	case major < 4:
		return bad(Fail, "Linux "+p.release, "upgrade to 4.19 or newer; overlayfs and cgroups are incomplete before")
	case major == 4 && minor < 19:
		return bad(Warn, "Linux "+p.release, "upgrade to 4.19 or newer")
	}
	return ok("Linux %s", p.release)
}

func release(s string) (major, minor int, ok bool) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	digits := func(r rune) bool { return r < '0' || r > '9' }
	if i := strings.IndexFunc(parts[1], digits); i >= 0 {
		parts[1] = parts[1][:i]
	}
	major, e1 := strconv.Atoi(parts[0])
	minor, e2 := strconv.Atoi(parts[1])
	return major, minor, e1 == nil && e2 == nil
}

func cgroups(_ context.Context, p *probe) Result {
	if v2, err := p.Files.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		have := strings.Fields(string(v2))
		if lack := missing(have, "cpu", "memory", "pids"); len(lack) > 0 {
			return bad(Fail, "cgroup v2 without "+strings.Join(lack, ", "),
				"enable the controllers in the parent's cgroup.subtree_control, or boot without cgroup_disable")
		}
		if lack := missing(have, "cpuset", "io"); len(lack) > 0 {
			return bad(Warn, "cgroup v2 without "+strings.Join(lack, ", "), "limits that need these are not enforced")
		}
		return ok("cgroup v2: %s", strings.Join(have, " "))
	}
	var have []string
	for line := range strings.Lines(p.text("/proc/self/mounts")) {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "cgroup" {
			have = append(have, strings.Split(f[3], ",")...)
		}
	}
	if len(have) == 0 {
		return bad(Fail, "no cgroups are mounted", "mount cgroup2 at /sys/fs/cgroup")
	}
	if lack := missing(have, "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer"); len(lack) > 0 {
		return bad(Fail, "cgroup v1 without "+strings.Join(lack, ", "), "mount these controllers below /sys/fs/cgroup")
	}
	if lack := missing(have, "pids", "blkio", "hugetlb"); len(lack) > 0 {
		return bad(Warn, "cgroup v1 without "+strings.Join(lack, ", "), "limits that need these are not enforced; cgroup v2 is better (systemd.unified_cgroup_hierarchy=1)")
	}
	return info("cgroup v1; newer runtimes call it deprecated")
}

func missing(have []string, want ...string) []string {
	var out []string
	for _, w := range want {
		if !slices.Contains(have, w) {
			out = append(out, w)
		}
	}
	return out
}

func namespaces(_ context.Context, p *probe) Result {
	have, err := p.Files.List("/proc/self/ns")
	if err != nil {
		return bad(Fail, "cannot be listed: "+err.Error(), "mount /proc")
	}
	if lack := missing(have, "mnt", "net", "pid", "ipc", "uts"); len(lack) > 0 {
		return bad(Fail, "kernel without "+strings.Join(lack, ", "), "use a kernel with CONFIG_NAMESPACES and all of its kinds")
	}
	if lack := missing(have, "cgroup", "user"); len(lack) > 0 {
		return bad(Warn, "kernel without "+strings.Join(lack, ", "), "pods that ask for these namespaces cannot run")
	}
	return ok("mnt net pid ipc uts cgroup user")
}

// propagation looks at the root mount: Bidirectional and HostToContainer
// mounts of pods pass through it.
func propagation(_ context.Context, p *probe) Result {
	for line := range strings.Lines(p.text("/proc/self/mountinfo")) {
		f := strings.Fields(line)
		if len(f) < 7 || f[4] != "/" {
			continue
		}
		for _, o := range f[6:] {
			if strings.HasPrefix(o, "shared:") {
				return ok("/ is shared")
			}
			if o == "-" {
				break
			}
		}
		return bad(Warn, "/ is private", "mount --make-rshared /; else mountPropagation in pods has no effect")
	}
	return bad(Warn, "the root mount is not listed", "mount /proc")
}

func overlayfs(ctx context.Context, p *probe) Result {
	for line := range strings.Lines(p.text("/proc/filesystems")) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == "overlay" {
			return ok("in the kernel")
		}
	}
	return feature("CONFIG_OVERLAY_FS", "overlay", Fail, "images are stacked with it")(ctx, p)
}

// feature checks one thing that a kernel has built in, as a module, or not.
func feature(option, module string, level Level, why string) func(context.Context, *probe) Result {
	return func(_ context.Context, p *probe) Result {
		if _, err := p.Files.List("/sys/module/" + module); err == nil {
			return ok("in the kernel")
		}
		switch p.kernel[option] {
		case "y":
			return ok("in the kernel")
		case "m":
			if p.hasModule("modules.dep", module) {
				return ok("as module %s, not loaded yet", module)
			}
			return bad(level, "built as a module that is not installed", fmt.Sprintf("install the modules of Linux %s; %s", p.release, why))
		}
		if p.hasModule("modules.builtin", module) {
			return ok("in the kernel")
		}
		if p.hasModule("modules.dep", module) {
			return ok("as module %s, not loaded yet", module)
		}
		if len(p.kernel) == 0 && p.text(p.modules("modules.dep")) == "" {
			return bad(Warn, "unknown: neither the kernel's configuration nor its modules can be read", why)
		}
		return bad(level, "the kernel has none", fmt.Sprintf("use a kernel with %s; %s", option, why))
	}
}

func (p *probe) modules(file string) string {
	return filepath.Join("/lib/modules", p.release, file)
}

// hasModule looks for NAME.ko, however compressed; file names write _ as _ or -.
func (p *probe) hasModule(file, module string) bool {
	for line := range strings.Lines(p.text(p.modules(file))) {
		path, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, _, _ := strings.Cut(filepath.Base(path), ".ko")
		if strings.ReplaceAll(name, "-", "_") == module {
			return true
		}
	}
	return false
}

// kernelConfig reads the options that the kernel was built with.
func (p *probe) kernelConfig() map[string]string {
	text := ""
	if b, err := p.Files.ReadFile("/proc/config.gz"); err == nil {
		if z, err := gzip.NewReader(bytes.NewReader(b)); err == nil {
			// A kernel's configuration is some 300 KB.
			if b, err := io.ReadAll(io.LimitReader(z, 8<<20)); err == nil {
				text = string(b)
			}
		}
	}
	if text == "" {
		text = p.text("/boot/config-" + p.release)
	}
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(k, "CONFIG_") {
			out[k] = v
		}
	}
	return out
}

// fields parses "Name:<space>value" lines.
func fields(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			out[k] = strings.TrimSpace(v)
		}
	}
	return out
}

func firstWord(s string) string {
	if f := strings.Fields(s); len(f) > 0 {
		return f[0]
	}
	return "unknown"
}
