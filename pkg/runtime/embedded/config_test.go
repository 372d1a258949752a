package embedded

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

func TestVersions(t *testing.T) {
	for banner, want := range map[string]string{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1": "1.6.20~ds1",
		"containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da":    "1.7.27",
		"containerd github.com/containerd/containerd/v2 v2.4.2 0d3b":                  "2.4.2",
		"containerd github.com/containerd/containerd v3.0.0-rc.1":                     "3.0.0-rc.1",
		"containerd github.com/containerd/containerd 1.5.9 abc":                       "",
		"docker 27": "",
	} {
		p := program{path: "/x", banner: banner}
		err := p.parse()
		if want == "" {
			if !errors.Is(err, errdefs.ErrInvalid) {
				t.Errorf("%s: error %v", banner, err)
			}
			continue
		}
		if err != nil || p.version != want {
			t.Errorf("%s: version %q, error %v", banner, p.version, err)
		}
	}
}

func TestMissingPrograms(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"runc", "containerd-shim-runc-v2"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", "")
			if _, err := lookPath(name, searchPath); err == nil {
				t.Skip("the host has one")
			}
			h.must(os.Remove(filepath.Join(h.bin, name)))
			if _, err := findProgram(t.Context(), h.o.Program); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("error %v", err)
			}
		})
	}
	_, err := findProgram(t.Context(), "no-such-containerd")
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "apt install containerd") {
		t.Errorf("error %v", err)
	}
}

// TestConfigurationIsUnderstood has each containerd read what is written for it
// and print it back with all its defaults.
func TestConfigurationIsUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		program string
		want    []string
	}{
		"1.6": {"/usr/bin/containerd", []string{
			`sandbox_image = "example.org/pause:1"`, `bin_dir = "/opt/cni/bin"`, `conf_dir = "/etc/cni/net.d"`,
			`config_path = "/registries"`, `snapshotter = "native"`, `SystemdCgroup = true`, `restrict_oom_score_adj = true`}},
		"2": {"/var/tmp/nodeagent-build/containerd2/containerd", []string{
			`sandbox = 'example.org/pause:1'`, `bin_dirs = ['/opt/cni/bin']`, `conf_dir = '/etc/cni/net.d'`,
			`config_path = '/registries'`, `snapshotter = 'native'`, `SystemdCgroup = true`, `restrict_oom_score_adj = true`}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := findProgram(t.Context(), c.program)
			if errors.Is(err, errdefs.ErrUnavailable) {
				t.Skipf("this containerd is not on this machine: %v", err)
			}
			h := newHost(t)
			h.must(err)
			h.must(os.MkdirAll(h.o.StateDir, 0o755))
			h.o.CgroupDriver = "systemd"
			s := settings{Options: h.o, Banner: p.banner, Major: p.major, Snapshotter: "native", OtherStorage: "overlayfs", RestrictOOM: true}
			file, content, err := s.render()
			h.must(err)
			h.must(os.WriteFile(file, content, 0o600))
			out, err := exec.CommandContext(t.Context(), p.path, "--config", file, "config", "dump").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s\n%s", err, out, content)
			}
			for line := range strings.Lines(string(out)) {
				// 2.4 reads format 3 and says that there is a newer one.
				if strings.Contains(line, "level=") && !strings.Contains(line, "level=info") && !strings.Contains(line, "Configuration migrated") {
					t.Errorf("it complains: %s", line)
				}
			}
			for _, want := range append(c.want, h.o.Root(), h.o.State(), h.o.Socket(), h.o.Opt()) {
				if !strings.Contains(string(out), want) {
					t.Errorf("%s is not in what it understood:\n%s", want, out)
				}
			}
		})
	}
}

func TestFileNameFollowsContent(t *testing.T) {
	a := settings{Options: Options{StateDir: "/s"}, Major: 1}
	b := a
	b.SandboxImage = "other"
	fa, ca, err := a.render()
	if err != nil {
		t.Fatal(err)
	}
	fb, cb, err := b.render()
	if err != nil {
		t.Fatal(err)
	}
	if fa == fb || string(ca) == string(cb) {
		t.Errorf("two configurations, one name: %s", fa)
	}
}
