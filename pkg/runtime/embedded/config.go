package embedded

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"golang.org/x/sys/unix"
)

// capSysResource is CAP_SYS_RESOURCE's bit in /proc/self/status.
const capSysResource = 24

// settings is what the configuration file is made from.
type settings struct {
	Options
	Banner       string // of the program: another version gets another file
	Major        int
	Snapshotter  string
	OtherStorage string // the snapshotter that is not used
	OOMScore     int
	// RestrictOOM tells containerd not to ask for a lower OOM score than it has.
	RestrictOOM bool
}

// configuration is format 2 for containerd 1.x and format 3 for 2.x. Nothing in
// it points outside our folders and nothing listens on an address but the
// streaming server, which takes requests that a token from CRI came with. Plugins
// that open sockets at fixed paths (NRI) or need devices are off.
var configuration = template.Must(template.New("config").Funcs(template.FuncMap{"q": strconv.Quote}).Parse(
	`# Written by nodeagent for: {{.Banner}}
version = {{if eq .Major 1}}2{{else}}3{{end}}
root = {{q .Root}}
state = {{q .State}}
oom_score = {{.OOMScore}}
disabled_plugins = [
  "io.containerd.snapshotter.v1.{{.OtherStorage}}", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[debug]
  level = "warn"

[grpc]
  address = {{q .Socket}}

[plugins."io.containerd.internal.v1.opt"]
  path = {{q .Opt}}
{{if eq .Major 1}}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {{q .SandboxImage}}
  restrict_oom_score_adj = {{.RestrictOOM}}
  enable_unprivileged_ports = true # as by default since 2.0
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {{q .CNIBinDir}}
    conf_dir = {{q .CNIConfDir}}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {{q .RegistryConfigDir}}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = {{q .Snapshotter}}
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = {{eq .CgroupDriver "systemd"}}
{{- else}}
[plugins."io.containerd.cri.v1.images"]
  snapshotter = {{q .Snapshotter}}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = {{q .SandboxImage}}
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = {{q .RegistryConfigDir}}

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = {{.RestrictOOM}}
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{{q .CNIBinDir}}]
    conf_dir = {{q .CNIConfDir}}
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = {{eq .CgroupDriver "systemd"}}

[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
{{- end}}
`))

// render returns the configuration and the name of the file it belongs in. The
// name carries the content's hash, so that a running containerd shows on its
// command line which configuration it was started with.
func (s settings) render() (file string, content []byte, err error) {
	var b bytes.Buffer
	if err := configuration.Execute(&b, s); err != nil {
		return "", nil, fmt.Errorf("embedded runtime: cannot write its configuration: %w", err)
	}
	sum := sha256.Sum256(b.Bytes())
	return filepath.Join(s.StateDir, configPrefix+hex.EncodeToString(sum[:6])+configSuffix), b.Bytes(), nil
}

// settings looks at the host for what the options leave open.
func (s *Supervisor) settings(p program) settings {
	v := settings{Options: s.o, Banner: p.banner, Major: p.major, OOMScore: -999}
	if v.CgroupDriver == "" {
		v.CgroupDriver = hostCgroupDriver()
	}
	if !mayLowerOOMScore() {
		v.OOMScore, v.RestrictOOM = 0, true
	}
	v.Snapshotter, v.OtherStorage = "overlayfs", "native"
	if !s.overlayfs() {
		v.Snapshotter, v.OtherStorage = "native", "overlayfs"
	}
	return v
}

// hostCgroupDriver is systemd where systemd runs the host: two writers in one
// cgroup tree undo each other's work.
func hostCgroupDriver() string {
	if st, err := os.Lstat("/run/systemd/system"); err == nil && st.IsDir() {
		return "systemd"
	}
	return "cgroupfs"
}

// mayLowerOOMScore says whether the kernel lets us lower an OOM score: it wants
// CAP_SYS_RESOURCE in the first user namespace (proc(5)), and runc gives up when
// it is refused.
func mayLowerOOMScore() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			if err != nil || set&(1<<capSysResource) == 0 {
				return false
			}
		}
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(ids))
	return err == nil && len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}

// overlayfs says whether images are unpacked for overlayfs. What was chosen once
// stays: images unpacked for another snapshotter would be lost to sight.
func (s *Supervisor) overlayfs() bool {
	for _, name := range []string{"overlayfs", "native"} {
		if _, err := os.Stat(filepath.Join(s.o.Root(), "io.containerd.snapshotter.v1."+name)); err == nil {
			return name == "overlayfs"
		}
	}
	err := tryOverlay(s.o.StateDir)
	if err != nil {
		s.o.Log.Warn("overlayfs cannot be used; images are copied for every container instead, which costs disk and time",
			"folder", s.o.StateDir, "err", err)
	}
	return err == nil
}

// tryOverlay mounts an overlay for a moment: whether the file system below can
// carry one (it cannot on another overlay, NFS or some FUSE) has no better test.
func tryOverlay(dir string) (err error) {
	tmp, err := os.MkdirTemp(dir, "overlay-")
	if err != nil {
		return err
	}
	defer func() {
		if e := os.RemoveAll(tmp); err == nil {
			err = e
		}
	}()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(tmp, name), 0o700); err != nil {
			return err
		}
	}
	merged := filepath.Join(tmp, "merged")
	data := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", tmp)
	if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return unix.Unmount(merged, unix.MNT_DETACH)
}
