package testbed

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"text/template"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PauseImage is the sandbox image that the private containerd is configured
// with and that every node has.
const PauseImage = "registry.k8s.io/pause:3.10.1"

// OtherHandler is a second runtime handler; it is runc under another name,
// because crun refuses hybrid cgroups.
const OtherHandler = "other"

// containerdTOML is the configuration of 1.6 (version 2) and of 2.x (version 3).
// Nothing of it points outside the node's folder. restrict_oom_score_adj: a
// test machine may lack CAP_SYS_RESOURCE, and runc then dies on a lower score.
var containerdTOML = template.Must(template.New("config.toml").Parse(`version = {{.Version}}
root = "{{.Dir}}/containerd/root"
state = "{{.Dir}}/containerd/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[debug]
  level = "warn"

[grpc]
  address = "{{.Dir}}/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/containerd/opt"
{{if eq .Version 2}}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{{.Pause}}"
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true # as by default since 2.0
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{{.CNIBin}}"
    conf_dir = "{{.Dir}}/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{{.Dir}}/registry"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{{.Other}}]
      runtime_type = "io.containerd.runc.v2"
{{else}}
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{{.Pause}}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{{.Dir}}/registry"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{{.CNIBin}}"]
    conf_dir = "{{.Dir}}/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{{.Other}}]
      runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
{{end}}`))

// RuntimeSocket is the private containerd's socket.
func (n *Node) RuntimeSocket() string { return n.Path("containerd/containerd.sock") }

// CNIBin is the folder of the CNI plugins that belong to the node's containerd.
func (n *Node) CNIBin() string {
	if d := containerdBin(n.set.containerd); d != "" {
		return d
	}
	for _, d := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(d, "bridge")); err == nil {
			return d
		}
	}
	missing(n.t, "needs the CNI plugins in /usr/lib/cni or /opt/cni/bin (hack/install-deps.sh installs them)")
	return ""
}

// StartContainerd starts the private containerd and, the first time, imports
// the images. It returns when CRI answers.
func (n *Node) StartContainerd() {
	n.t.Helper()
	first := false
	conf := n.Path("containerd/config.toml")
	if _, err := os.Stat(conf); err != nil {
		first = true
		if err := n.writeContainerdConfig(conf); err != nil {
			n.t.Fatal(err)
		}
	}
	p, err := n.start(n.Path("containerd.log"), nil, "containerd", "--config", conf)
	if err != nil {
		n.t.Fatalf("start containerd: %v", err)
	}
	n.mu.Lock()
	n.containerd = p
	n.mu.Unlock()
	n.Eventually(60*time.Second, "containerd answers", func() error {
		select {
		case <-p.done:
			n.t.Fatalf("containerd ended: %v\n%s", p.err, tail(n.ContainerdLog(), 20))
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := n.CRI().Version(ctx, &runtimeapi.VersionRequest{})
		return err
	})
	if !first {
		return
	}
	n.Import(pauseArchive(n.t))
	if n.set.images {
		n.Import(Images(n.t))
	}
}

func (n *Node) writeContainerdConfig(file string) error {
	v := struct {
		Version                   int
		Dir, CNIBin, Pause, Other string
	}{2, n.Dir, n.CNIBin(), PauseImage, OtherHandler}
	if n.set.containerd == Containerd24 {
		v.Version = 3
		if _, err := os.Stat(filepath.Join(containerdBin(Containerd24), "containerd")); err != nil {
			missing(n.t, "needs containerd 2: run hack/build-containerd2.sh")
		}
	}
	var b bytes.Buffer
	if err := containerdTOML.Execute(&b, v); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// Import loads a docker or OCI archive into the runtime's k8s.io namespace.
func (n *Node) Import(archive string) {
	n.t.Helper()
	if _, err := n.Exec("ctr", "--address", n.RuntimeSocket(), "--namespace", "k8s.io",
		"images", "import", archive); err != nil {
		n.t.Fatal(err)
	}
}

// KillContainerd ends containerd with SIGKILL; its containers keep running.
func (n *Node) KillContainerd() { n.t.Helper(); n.endContainerd(syscall.SIGKILL) }

func (n *Node) endContainerd(sig syscall.Signal) {
	n.t.Helper()
	n.mu.Lock()
	p := n.containerd
	n.containerd = nil
	n.mu.Unlock()
	if p == nil {
		return
	}
	if err := p.signal(sig, 30*time.Second); err != nil {
		n.t.Fatalf("end containerd: %v", err)
	}
}

// ContainerdLog is what the private containerd has logged so far.
func (n *Node) ContainerdLog() string { return readLog(n.Path("containerd.log")) }

func readLog(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Sprintf("(no log: %v)", err)
	}
	return string(b)
}
