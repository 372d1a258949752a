// Package packaging judges what `make install` and `make deb` bring to a host.
package packaging

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// run runs a program in the repository and returns what it prints.
func run(t *testing.T, env []string, name string, args ...string) (string, error) {
	t.Helper()
	root, err := testbed.Root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// files lists "MODE PATH" of everything below dir but the folders on the way.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st, err := e.Info()
		if err == nil && (!e.IsDir() || strings.Contains(rel, "nodeagent")) {
			out = append(out, st.Mode().String()+" "+rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInstall(t *testing.T) {
	testbed.Require(t, "make")
	dir := t.TempDir()
	bin := filepath.Join(t.TempDir(), "built")
	if err := os.WriteFile(bin, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	target := func(name string) string {
		t.Helper()
		out, err := run(t, nil, "make", "-s", name, "DESTDIR="+dir, "PREFIX=/opt/na", "SYSCONFDIR=/opt/etc", "BIN="+bin)
		if err != nil {
			t.Fatalf("make %s: %v\n%s", name, err, out)
		}
		return out
	}
	target("install")
	want := []string{
		"-rw-r--r-- lib/systemd/system/nodeagent.service",
		"drwxr-xr-x opt/etc/nodeagent", "drwxr-xr-x opt/etc/nodeagent/manifests", "-rw------- opt/etc/nodeagent/nodeagent.yaml",
		"-rwxr-xr-x opt/na/bin/nodeagent", "drwx------ var/lib/nodeagent",
	}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("installed\n%q, want\n%q", got, want)
	}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	config := "opt/etc/nodeagent/nodeagent.yaml"
	if s := read(config); !strings.Contains(s, "manifests: /opt/etc/nodeagent/manifests\n") || strings.Contains(strings.ReplaceAll(s, "/opt/etc", ""), " /etc/nodeagent/manifests") {
		t.Errorf("the configuration is for another folder:\n%s", s)
	}
	if s := read("lib/systemd/system/nodeagent.service"); !strings.Contains(s, "ExecStart=/opt/na/bin/nodeagent run --config /opt/etc/nodeagent/nodeagent.yaml\n") || strings.Contains(s, "/usr/bin/nodeagent") {
		t.Errorf("the unit starts another program:\n%s", s)
	}

	// A second installation changes nothing, and a user's own text stays.
	target("install")
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("installed again\n%q, want\n%q", got, want)
	}
	if err := os.WriteFile(filepath.Join(dir, config), []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := target("install"); !strings.Contains(out, "kept your "+filepath.Join(dir, config)) || read(config) != "mine\n" || !strings.Contains(read(config+".dist"), "kind: NodeAgentConfiguration") {
		t.Errorf("make install says %q and leaves %q", out, read(config))
	}
	if out := target("uninstall"); !strings.Contains(out, "kept "+filepath.Join(dir, "opt/etc/nodeagent")) {
		t.Errorf("make uninstall says %q", out)
	}
	if got, want := files(t, dir), []string{"drwxr-xr-x opt/etc/nodeagent", "-rw------- " + config}; !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
	if err := os.Remove(filepath.Join(dir, config)); err != nil {
		t.Fatal(err)
	}
	target("install")
	target("uninstall")
	if got := files(t, dir); len(got) > 0 {
		t.Errorf("left %q", got)
	}
}

// TestDebianVersion: dpkg must see later commits as later.
func TestDebianVersion(t *testing.T) {
	testbed.Require(t, "dpkg")
	before := ""
	for _, v := range []struct{ describe, commits, want string }{
		{"abc1234", "9", "0~git9.abc1234"},
		{"0123456", "10", "0~git10.0123456"},
		{"0123456-dirty", "10", "0~git10.0123456+dirty"},
		{"v0.1.0-rc.1", "11", "0.1.0~rc.1"},
		{"v0.1.0-rc.1-2-gabc1234", "13", "0.1.0~rc.1+2.abc1234"},
		{"v0.1.0-rc.2", "14", "0.1.0~rc.2"},
		{"v0.1.0", "15", "0.1.0"},
		{"v0.1.0-9-gfff1234", "24", "0.1.0+9.fff1234"},
		{"v0.1.0-10-gabc1234", "25", "0.1.0+10.abc1234"},
		{"v0.1.1", "26", "0.1.1"},
	} {
		out, err := run(t, nil, "hack/deb/version", v.describe, v.commits)
		got := strings.TrimSpace(out)
		if err != nil || got != v.want {
			t.Errorf("%s: %q, %v; want %s", v.describe, got, err, v.want)
		}
		if out, err := run(t, nil, "dpkg", "--compare-versions", before, "lt", got); before != "" && err != nil {
			t.Errorf("%s is not before %s: %v %s", before, got, err, out)
		}
		before = got
	}
}

// TestPurge removes the state when nothing uses it, and nothing that pods use.
func TestPurge(t *testing.T) {
	for name, tc := range map[string]struct {
		holds string // below the state folder
		stays bool
	}{
		"never used":     {"", false},
		"cleaned up":     {"images/a.tar", false},
		"pods run":       {"pods/uid/pod.json", true},
		"its containerd": {"containerd/containerd.sock", true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			state := filepath.Join(root, "var/lib/nodeagent")
			file := filepath.Join(state, tc.holds, "x")
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			env := []string{"DPKG_ROOT=" + root}
			for _, script := range [][2]string{{"prerm", "upgrade"}, {"postrm", "upgrade"}, {"prerm", "remove"}, {"postrm", "remove"}} {
				// With systemd on this machine the scripts would stop its agent.
				if _, err := os.Stat("/run/systemd/system"); err == nil && script[0] == "prerm" {
					continue
				}
				out, err := run(t, env, "hack/deb/"+script[0], script[1])
				if warned := strings.Contains(out, "nodeagent cleanup"); err != nil || warned != (tc.stays && script == [2]string{"prerm", "remove"}) {
					t.Errorf("%v: %v, %q", script, err, out)
				}
			}
			if _, err := os.Stat(state); err != nil {
				t.Fatalf("gone before the purge: %v", err)
			}
			out, err := run(t, env, "hack/deb/postrm", "purge")
			if err != nil || strings.Contains(out, "is kept") != tc.stays {
				t.Errorf("purge: %v, %q", err, out)
			}
			if _, err := os.Stat(state); (err == nil) != tc.stays {
				t.Errorf("after the purge: %v", err)
			}
			if out, err := run(t, env, "hack/deb/postrm", "purge"); err != nil {
				t.Errorf("a second purge: %v, %q", err, out)
			}
		})
	}
}
