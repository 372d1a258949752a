package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestResolvConf(t *testing.T) {
	const stub = "nameserver 127.0.0.53\n"
	for _, c := range []struct{ title, etc, run, want string }{
		{"plain", "# nameserver 1.1.1.1\nsearch x\nnameserver 192.0.2.1 \nnameserver\t2001:db8::1\nnameserver fe80::1%eth0\nnameserver x\nnameserver\n", "nameserver 192.0.2.9", "[192.0.2.1:53 [2001:db8::1]:53 [fe80::1%eth0]:53]"},
		{"stub", stub, "nameserver 192.0.2.9\n", "[192.0.2.9:53]"},
		{"stub among others", stub + "nameserver 192.0.2.1", "nameserver 192.0.2.9", "[192.0.2.1:53]"},
		{"stub alone", stub, "", "[127.0.0.53:53]"},
		{"nothing", "options edns0\n", "", "[]"},
	} {
		dir := t.TempDir()
		etc, run := filepath.Join(dir, "etc"), filepath.Join(dir, "run")
		write(t, etc, c.etc)
		if c.run != "" {
			write(t, run, c.run)
		}
		rc := &ResolvConf{Paths: []string{etc, run}}
		if got := fmt.Sprint(rc.Upstreams()); got != c.want {
			t.Errorf("%s: %s, want %s", c.title, got, c.want)
		}
	}
}

func TestResolvConfFollowsItsFile(t *testing.T) {
	now := time.Unix(1000, 0)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	rc := &ResolvConf{Paths: []string{path}, Now: func() time.Time { return now }}
	for _, c := range []struct {
		text  string
		later time.Duration
		want  string
	}{
		{"nameserver 192.0.2.1", 0, "[192.0.2.1:53]"},
		{"nameserver 192.0.2.2", resolvConfAge - 1, "[192.0.2.1:53]"},
		{"nameserver 192.0.2.2", 1, "[192.0.2.2:53]"},
		{"", resolvConfAge, "[192.0.2.2:53]"},
		{"nameserver 192.0.2.3", resolvConfAge, "[192.0.2.3:53]"},
	} {
		write(t, path, c.text)
		now = now.Add(c.later)
		if got := fmt.Sprint(rc.Upstreams()); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
