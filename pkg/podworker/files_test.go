package podworker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
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
