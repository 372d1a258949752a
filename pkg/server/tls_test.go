package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/server/credentials"
)

const token = "0123456789abcdef"

// tlsFiles is a folder with a certificate of 127.0.0.1, its key, and a token.
func tlsFiles(t testing.TB) TCP {
	t.Helper()
	dir := t.TempDir()
	o := TCP{Listen: "127.0.0.1:0", CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"), TokenFile: filepath.Join(dir, "token")}
	certify(t, o, "first")
	put(t, o.TokenFile, token+"\n")
	return o
}

func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// certify writes a new certificate, which is its own CA.
func certify(t testing.TB, o TCP, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	put(t, o.CertFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	put(t, o.KeyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}

// dial is a client for new connections that trusts what CertFile has now.
func dial(t testing.TB, o TCP) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	b, err := os.ReadFile(o.CertFile)
	if err != nil || !pool.AppendCertsFromPEM(b) {
		t.Fatal("no certificate: ", err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
	return &http.Client{Transport: tr}
}

func ask(t testing.TB, c *http.Client, s *started, path, authorization string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest("GET", "https://"+s.Addr(kindTLS).String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp, body(t, resp)
}

func TestToken(t *testing.T) {
	o := tlsFiles(t)
	s := start(t, func(all *Options) { all.TCP = o })
	c := dial(t, o)
	const unauthorised = `"reason":"Unauthorized"`
	for _, tt := range []struct {
		authorization string
		code          int
	}{
		{"Bearer " + token, 200},
		{"bearer  " + token + " ", 200},
		{"", 401},
		{"Bearer", 401},
		{"Bearer ", 401},
		{"Bearer " + token[1:], 401},
		{"Bearer " + token + "0", 401},
		{"Bearer " + strings.ToUpper(token), 401},
		{"Basic " + token, 401},
		{token, 401},
	} {
		for _, path := range []string{podsPath, "/version", "/healthz", "/metrics", "/nothing"} {
			resp, text := ask(t, c, s, path, tt.authorization)
			want := tt.code
			if want == 200 && path == "/nothing" {
				want = 404
			}
			if resp.StatusCode != want {
				t.Errorf("%q, %s: %s: %s", tt.authorization, path, resp.Status, text)
			}
			if want == 401 && (!strings.Contains(text, unauthorised) || !strings.Contains(text, `"kind":"Status"`) || resp.Header.Get("WWW-Authenticate") == "") {
				t.Errorf("%q, %s: %v %s", tt.authorization, path, resp.Header, text)
			}
		}
	}

	// A new token counts at once, the old one no more.
	put(t, o.TokenFile, "a-new-token-of-24-letters")
	if resp, _ := ask(t, c, s, podsPath, "Bearer "+token); resp.StatusCode != 401 {
		t.Errorf("the old token: %s", resp.Status)
	}
	if resp, text := ask(t, c, s, podsPath, "Bearer a-new-token-of-24-letters"); resp.StatusCode != 200 {
		t.Errorf("the new token: %s: %s", resp.Status, text)
	}
	// One that others can read, or that is gone, lets nobody in.
	if err := os.Chmod(o.TokenFile, 0o640); err != nil {
		t.Fatal(err)
	}
	closed := func(what string) {
		t.Helper()
		resp, text := ask(t, c, s, podsPath, "Bearer a-new-token-of-24-letters")
		if resp.StatusCode != 503 || strings.Contains(text, o.TokenFile) {
			t.Errorf("%s: %s: %s", what, resp.Status, text)
		}
	}
	closed("a token that others can read")
	if err := os.Remove(o.TokenFile); err != nil {
		t.Fatal(err)
	}
	closed("no token file")
	put(t, o.TokenFile, "short")
	closed("a short token")
	put(t, o.TokenFile, token)
	if resp, _ := ask(t, c, s, podsPath, "Bearer "+token); resp.StatusCode != 200 {
		t.Errorf("the token is back: %s", resp.Status)
	}
}

func TestCertificate(t *testing.T) {
	o := tlsFiles(t)
	s := start(t, func(all *Options) { all.TCP = o })
	old := dial(t, o)
	ask(t, old, s, "/version", "Bearer "+token)
	// While files are half renewed the old pair goes on.
	put(t, o.KeyFile, "nonsense")
	ask(t, old, s, "/version", "Bearer "+token)
	if err := os.Remove(o.KeyFile); err != nil {
		t.Fatal(err)
	}
	ask(t, old, s, "/version", "Bearer "+token)
	certify(t, o, "second")
	resp, _ := ask(t, dial(t, o), s, "/version", "Bearer "+token)
	if got := resp.TLS.PeerCertificates[0].Subject.CommonName; got != "second" {
		t.Errorf("the certificate is the %s", got)
	}
	if resp.TLS.Version < tls.VersionTLS12 || resp.ProtoMajor != 1 {
		t.Errorf("TLS %x, HTTP/%d", resp.TLS.Version, resp.ProtoMajor)
	}
	ancient := dial(t, o)
	ancient.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS11
	if resp, err := ancient.Get("https://" + s.Addr(kindTLS).String()); err == nil {
		resp.Body.Close()
		t.Error("TLS 1.1 is spoken")
	}
	if plain, err := http.Get("http://" + s.Addr(kindTLS).String() + "/version"); err == nil {
		text := body(t, plain)
		plain.Body.Close()
		if plain.StatusCode != 400 || strings.Contains(text, "gitVersion") {
			t.Errorf("without TLS: %s: %s", plain.Status, text)
		}
	}
}

// TestBadTLSOptions: a mistake is found at start, and named.
func TestBadTLSOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(*TCP)
		want  string
	}{
		"no certificate":         {func(o *TCP) { o.CertFile = "" }, "a certificate, its key and a token file are needed"},
		"no token":               {func(o *TCP) { o.TokenFile = "" }, "a certificate, its key and a token file are needed"},
		"certificate is missing": {func(o *TCP) { o.CertFile += ".x" }, "tls.crt.x"},
		"key of another":         {func(o *TCP) { key, _ := os.ReadFile(o.KeyFile); certify(t, *o, "x"); put(t, o.KeyFile, string(key)) }, "tls.key"},
		"token is missing":       {func(o *TCP) { o.TokenFile += ".x" }, "token.x"},
		"token is short":         {func(o *TCP) { put(t, o.TokenFile, "short") }, "at least 16 are needed"},
		"token is everybody's":   {func(o *TCP) { os.Chmod(o.TokenFile, 0o644) }, "chmod 600"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newFixture(t, nil).o
			o.TCP = tlsFiles(t)
			tt.spoil(&o.TCP)
			if _, err := New(o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestHealthListener serves health and metrics to everybody, and nothing else.
func TestHealthListener(t *testing.T) {
	s := start(t, func(o *Options) { o.Health = "127.0.0.1:0" })
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + s.Addr(kindHealth).String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, body(t, resp)
	}
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		if code, text := get(path); code != 200 || text != "ok" {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if code, text := get("/metrics"); code != 200 || !strings.Contains(text, `kubelet_http_requests_total{long_running="false",method="GET",path="readyz",server_type="health"} 1`) {
		t.Errorf("/metrics: %d %s", code, text)
	}
	for _, path := range []string{"/", podsPath, "/version", "/apis/nodeagent.dev/v1alpha1/config", "/metrics/x"} {
		if code, text := get(path); code != 404 || !strings.Contains(text, `"reason":"NotFound"`) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if a := s.Addr(kindTLS); a != nil {
		t.Errorf("nobody asked for a listener on %v", a)
	}
}

// Without files of the user's own the agent makes what it needs, and a client
// with its kubeconfig is let in.
func TestOwnCredentials(t *testing.T) {
	dir := t.TempDir()
	s := start(t, func(all *Options) {
		all.Now = time.Now
		all.TCP = TCP{Listen: "127.0.0.1:0", Dir: dir}
	})
	own, err := credentials.Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(own.Authority())
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	secret, err := own.Token()
	if err != nil {
		t.Fatal(err)
	}
	if resp, text := ask(t, c, s, podsPath, "Bearer "+secret); resp.StatusCode != 200 {
		t.Errorf("%s: %s", resp.Status, text)
	}
	if err := own.Renew(); err != nil {
		t.Fatal(err)
	}
	if resp, _ := ask(t, c, s, podsPath, "Bearer "+secret); resp.StatusCode != 401 {
		t.Errorf("the old token: %s", resp.Status)
	}
}

// An address that nobody asked for and that is taken keeps no agent from running.
func TestOptionalListener(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := start(t, func(all *Options) {
		all.TCP = TCP{Listen: taken.Addr().String(), Dir: t.TempDir(), Optional: true}
	})
	if s.Addr(kindTLS) != nil || s.Addr(kindLocal) == nil {
		t.Errorf("listens on %v and %v", s.Addr(kindTLS), s.Addr(kindLocal))
	}
}
