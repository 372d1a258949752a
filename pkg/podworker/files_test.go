package podworker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// TestRemoveLogs: one pod's logs and links go, also dead ones; others stay.
func TestRemoveLogs(t *testing.T) {
	logs, links := t.TempDir(), t.TempDir()
	for _, folder := range []string{"default_web_u1", "default_web_u2"} {
		if err := os.MkdirAll(filepath.Join(logs, folder, "main"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, attempt := range []string{"0", "1"} {
			if err := os.Symlink(filepath.Join(logs, folder, "main", attempt+".log"), filepath.Join(links, "web_default_main-"+folder+attempt+".log")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 { // again: nothing is left to do
		if err := RemoveLogs(logs, links, "u1"); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(logs); err != nil || len(left) != 1 || left[0].Name() != "default_web_u2" {
		t.Errorf("logs: %v, %v", left, err)
	}
	if left, err := os.ReadDir(links); err != nil || len(left) != 2 {
		t.Errorf("links: %v, %v", left, err)
	}
	if err := RemoveLogs(filepath.Join(logs, "none"), links, "u2"); err != nil {
		t.Errorf("no log folder: %v", err)
	}
}

// TestHostsFile: what a pod is called by itself and by DNS, and whom it knows.
func TestHostsFile(t *testing.T) {
	host := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(host, []byte("192.0.2.1 node"), 0o644); err != nil {
		t.Fatal(err)
	}
	aliases := []v1.HostAlias{{IP: "192.0.2.9", Hostnames: []string{"a.example", "b"}}, {IP: "::9", Hostnames: []string{"c"}}}
	const aliased = "192.0.2.9\ta.example\tb\n::9\tc\n"
	named := func(names string) string { return "ip6-allrouters\n10.88.0.7\t" + names + "\nfd00::7\t" + names + "\n" }
	for name, tc := range map[string]struct {
		spec v1.PodSpec
		pod  string
		want string // the end of it
	}{
		"its own name":          {v1.PodSpec{}, "web", named("web")},
		"a host name":           {v1.PodSpec{Hostname: "db-0"}, "web", named("db-0")},
		"a subdomain":           {v1.PodSpec{Subdomain: "db"}, "web", named("web.db.shop.svc.k8s.test\tweb")},
		"both":                  {v1.PodSpec{Hostname: "db-0", Subdomain: "db"}, "web", named("db-0.db.shop.svc.k8s.test\tdb-0")},
		"a name that is cut":    {v1.PodSpec{}, strings.Repeat("a", 62) + "-b", named(strings.Repeat("a", 62))},
		"aliases":               {v1.PodSpec{HostAliases: aliases}, "web", named("web") + aliased},
		"on the host's network": {v1.PodSpec{HostNetwork: true, Hostname: "db-0", HostAliases: aliases}, "web", "192.0.2.1 node\n" + aliased},
	} {
		m := New(Options{PodsDir: t.TempDir(), HostsFile: host, Hostname: "node", ClusterDomain: "k8s.test"})
		p := &v1.Pod{Spec: tc.spec}
		p.Name, p.Namespace, p.UID = tc.pod, "shop", "u"
		if err := os.Mkdir(m.podDir("u"), 0o755); err != nil {
			t.Fatal(err)
		}
		path, err := m.writeHosts(p, []string{"10.88.0.7", "fd00::7"})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(b), tc.want) {
			t.Errorf("%s: %v: %s", name, err, b)
		}
	}
}

// TestFilesOutgrown: what a container writes into its hosts file and its
// termination message counts, and nothing else does (CVE-2020-8557).
func TestFilesOutgrown(t *testing.T) {
	dir := t.TempDir()
	m := New(Options{PodsDir: dir})
	if n, err := m.OwnFiles("none"); n != 0 || err != nil {
		t.Errorf("a pod without files: %d, %v", n, err)
	}
	big := make([]byte, 1<<20)
	for _, name := range []string{"etc-hosts", "containers/main/0.msg", "containers/main/1.msg", "volumes/data/file"} {
		file := filepath.Join(dir, "u", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, big, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/", filepath.Join(dir, "u/containers/main/link")); err != nil {
		t.Fatal(err)
	}
	// A file that is long and takes nothing is not what fills the disk.
	if err := os.Truncate(filepath.Join(dir, "u/etc-hosts"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if n, err := m.OwnFiles("u"); n < 3<<20 || n > 4<<20 || err != nil {
		t.Errorf("three files of 1 MiB take %d, %v", n, err)
	}
}

// TestMessagesLeadNowhere: a link or a pipe where a message or a log was is not
// read.
func TestMessagesLeadNowhere(t *testing.T) {
	m := New(Options{PodsDir: t.TempDir(), PodLogDir: t.TempDir()})
	p := testPod("x", v1.RestartPolicyNever, "main")
	p.Spec.Containers[0].TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
	secret := filepath.Join(t.TempDir(), "secret")
	message, err := m.makeMessageFile(p, "main", 0)
	log := filepath.Join(m.logDir(p), logPath("main", 0))
	err = errors.Join(err, os.MkdirAll(filepath.Dir(log), 0o755),
		os.WriteFile(secret, []byte("2026-01-01T00:00:00Z stdout F secret\n"), 0o600), os.Symlink(secret, log))
	if err != nil {
		t.Fatal(err)
	}
	dead := &runtime.Container{Name: "main", ExitCode: 1}
	if got := m.terminationMessage(p, dead); got != "" {
		t.Errorf("the log is a link: %q", got)
	}
	if err := os.Remove(message); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, message); err != nil {
		t.Fatal(err)
	}
	if got := m.terminationMessage(p, dead); !strings.HasPrefix(got, "Error reading termination message") || strings.Contains(got, "stdout") {
		t.Errorf("the message is a link: %q", got)
	}
	if _, err := m.makeMessageFile(p, "main", 0); err == nil {
		t.Error("a message is written through a link")
	}
	if err := errors.Join(os.Remove(message), syscall.Mkfifo(message, 0o666)); err != nil {
		t.Fatal(err)
	}
	if got := m.terminationMessage(p, dead); !strings.Contains(got, "not a regular file") {
		t.Errorf("the message is a pipe: %q", got)
	}
}
