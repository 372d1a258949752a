package credentials

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(now *time.Time) func() time.Time { return func() time.Time { return *now } }

func open(t *testing.T, dir string, now *time.Time) *Files {
	t.Helper()
	f, err := Open(dir, at(now))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// verify checks a server's certificate as a client of that time does.
func verify(t *testing.T, f *Files, cert *tls.Certificate, host string, now time.Time) error {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(f.Authority()) {
		t.Fatal("no authority")
	}
	_, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host, CurrentTime: now})
	return err
}

func token(t *testing.T, f *Files) string {
	t.Helper()
	s, err := f.Token()
	if err != nil || len(s) < 32 {
		t.Fatalf("token %q: %v", s, err)
	}
	return s
}

func TestFilesStay(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "api"), epoch
	f := open(t, dir, &now)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		if st, err := e.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", e.Name(), st.Mode(), err)
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", st.Mode(), err)
	}
	again := open(t, dir, &now)
	if string(again.Authority()) != string(f.Authority()) || token(t, again) != token(t, f) {
		t.Error("another authority or token after a restart")
	}
	old := token(t, f)
	if err := again.Renew(); err != nil {
		t.Fatal(err)
	}
	if token(t, f) == old || string(open(t, dir, &now).Authority()) != string(f.Authority()) {
		t.Error("a new token was asked for, and no new authority")
	}
}

// What a crash or a person left of the files is made anew.
func TestDamagedFiles(t *testing.T) {
	dir, now := t.TempDir(), epoch
	for _, name := range []string{authorityFile, tokenFile} {
		for _, text := range []string{"", "\n"} {
			open(t, dir, &now)
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			f := open(t, dir, &now)
			cert, err := f.Certificate(nil)(nil)
			if err != nil || verify(t, f, cert, "127.0.0.1", now) != nil {
				t.Errorf("%s: %q: %v", name, text, err)
			}
			token(t, f)
		}
	}
}

func TestCertificate(t *testing.T) {
	now := epoch
	f := open(t, t.TempDir(), &now)
	get := f.Certificate([]string{"node-1", "192.0.2.7", "", "127.0.0.1"})
	first, err := get(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"localhost", "127.0.0.1", "[::1]", "node-1", "192.0.2.7"} {
		if err := verify(t, f, first, host, now); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if verify(t, f, first, "192.0.2.8", now) == nil {
		t.Error("good for an address that was not named")
	}
	if err := verify(t, f, first, "localhost", time.Unix(1, 0)); err != nil {
		t.Errorf("on a host that has lost the time: %v", err)
	}
	for range 14 { // months
		now = now.Add(30 * 24 * time.Hour)
		c, err := get(nil)
		if err != nil || verify(t, f, c, "localhost", now.Add(renewal-time.Hour)) != nil {
			t.Fatalf("%s: %v", now, err)
		}
	}
	if c, _ := get(nil); c == first {
		t.Error("a certificate of a year was good for 14 months")
	}
}

func TestAuthorityEnds(t *testing.T) {
	dir, now := t.TempDir(), epoch
	f := open(t, dir, &now)
	now = now.Add(authorityLife - renewal + time.Hour)
	if again := open(t, dir, &now); string(again.Authority()) == string(f.Authority()) {
		t.Error("an authority that ends soon is still in use")
	}
}

func TestKubeconfig(t *testing.T) {
	now := epoch
	f := open(t, t.TempDir(), &now)
	b, err := Kubeconfig{Name: "node-1", Server: "https://127.0.0.1:1", Authority: f.Authority(), Token: "abc"}.YAML()
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientcmd.RESTConfigFromKubeConfig(b)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if c.Host != "https://127.0.0.1:1" || c.BearerToken != "abc" || string(c.CAData) != string(f.Authority()) || !strings.Contains(string(b), "current-context: node-1") {
		t.Errorf("%+v\n%s", c, b)
	}
}

func TestServerURL(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:1": "https://127.0.0.1:1", "0.0.0.0:1": "https://127.0.0.1:1", ":1": "https://127.0.0.1:1",
		"[::]:1": "https://[::1]:1", "[2001:db8::1]:1": "https://[2001:db8::1]:1",
	} {
		if got := ServerURL(listen); got != want {
			t.Errorf("%s: %s, want %s", listen, got, want)
		}
	}
}
