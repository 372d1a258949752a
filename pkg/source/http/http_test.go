package http

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestForms(t *testing.T) {
	const jsonPod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"},"spec":{"containers":[{"name":"c","image":"i"}]}}`
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write([]byte(pod("a"))); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	list := func(kind string, items ...string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":%q,"items":[%s]}`, kind, strings.Join(items, ","))
	}
	bare := strings.Replace(jsonPod, `"apiVersion":"v1","kind":"Pod",`, "", 1)
	for name, tc := range map[string]struct{ body, encoding, want string }{
		"a pod in YAML":            {pod("a"), "", "a"},
		"a pod in JSON":            {jsonPod, "", "j"},
		"a stream":                 {"# pods\n---\n" + pods("a", "b") + "---\n", "", "a b"},
		"a PodList":                {list("PodList", bare, strings.Replace(bare, `"j"`, `"k"`, 1)), "", "j k"},
		"a List":                   {list("List", jsonPod), "", "j"},
		"no pods at all":           {list("PodList"), "", ""},
		"a byte order mark":        {"\xef\xbb\xbf" + pod("a"), "", "a"},
		"gzip, which was accepted": {packed.String(), "gzip", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, httptest.NewServer)
			s.set(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain") // as a simple server says of any file
				if tc.encoding != "" {
					w.Header().Set("Content-Encoding", tc.encoding)
				}
				page(tc.body)(w, r)
			})
			r := run(t, t.TempDir(), s.URL)
			r.want("the first poll", tc.want)
			if !r.state().Synced {
				t.Error("not synced")
			}
		})
	}
}

// badAnswers are all that must change nothing, with what the user is told.
func badAnswers() map[string]struct {
	answer http.HandlerFunc
	want   []string
} {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "so\x1b[31m\nsorry", code) }
	}
	return map[string]struct {
		answer http.HandlerFunc
		want   []string
	}{
		"404":                   {status(404), []string{"404 Not Found", "sorry", "check manifestURL;"}},
		"401":                   {status(401), []string{"401 Unauthorized", "check manifestURLHeader"}},
		"500":                   {status(500), []string{"500 Internal Server Error: so", "sorry", "last good answer"}},
		"503 quiet":             {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, []string{"503 Service Unavailable ("}},
		"204":                   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, []string{"204 No Content"}},
		"empty":                 {page(" \n"), []string{"the answer is empty", "PodList that has no items"}},
		"no more than comments": {page("# to do: a PodList\n---\n"), []string{"the answer is empty"}},
		"null":                  {page("null\n"), []string{"the answer is empty"}},
		"a login page":          {page("<html><body>Log in: <form>\n</html>\n"), []string{"not understood"}},
		"garbage":               {page("a: [\x00"), []string{"not understood: line 1: a NUL byte"}},
		"another kind":          {page("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"), []string{"not understood", "Deployment"}},
		"two mistakes":          {page(strings.Replace(pod("a"), "image: i", "imag: i, pots: []", 1)), []string{"not understood", "more; nodeagent validate"}},
		"huge":                  {page("# " + strings.Repeat("x", maxBody) + "\n" + pod("a")), []string{"10 MiB"}},
		"truncated": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write([]byte(pod("a")))
		}, []string{"broke off after", "EOF"}},
		"hung up on": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, []string{"EOF"}},
		"no HTTP": {func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_, _ = conn.Write([]byte("220 mail.example ESMTP\r\n"))
				conn.Close()
			}
		}, []string{"malformed HTTP"}},
	}
}

func TestBadAnswersKeepTheLastGoodSet(t *testing.T) {
	for name, bad := range badAnswers() {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, httptest.NewServer)
			s.set(page(pods("a", "b")))
			r := run(t, t.TempDir(), s.URL)
			r.want("before", "a b")
			synced := r.state().LastSync
			s.set(bad.answer)
			for range 2 {
				r.poll()
				r.want("the bad answer", "a b", bad.want...)
			}
			if st := r.state(); !st.Synced || !st.LastSync.Equal(synced) || st.Objects != 2 {
				t.Errorf("the source is %+v", st)
			}
			s.set(page(pods("a", "c")))
			r.poll()
			r.want("healed", "a c")
		})
	}
}

// TestNothingGoesBeforeTheFirstGoodAnswer restarts an agent that knows a pod
// while its server is in trouble.
func TestNothingGoesBeforeTheFirstGoodAnswer(t *testing.T) {
	for name, bad := range badAnswers() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := newSite(t, httptest.NewServer)
			t.Run("before", func(t *testing.T) {
				s.set(page(pod("a")))
				run(t, dir, s.URL).want("before", "a")
			})
			s.set(bad.answer)
			r := run(t, dir, s.URL)
			r.want("the bad answer", "a", bad.want...)
			if st := r.state(); !st.Tried || st.Synced {
				t.Errorf("the source is %+v", st)
			}
			s.set(page(`{"apiVersion":"v1","kind":"PodList","items":[]}`))
			r.poll()
			r.want("no pods any more", "")
			if !r.state().Synced {
				t.Error("not synced after a good answer")
			}
		})
	}
}

// TestOneBadPodInAList: the others are taken, and what was known stays.
func TestOneBadPodInAList(t *testing.T) {
	s := newSite(t, httptest.NewServer)
	s.set(page(pods("a", "b", "c")))
	r := run(t, t.TempDir(), s.URL)
	bad := strings.Replace(pod("b"), "image: i", "image: i, bogus: 1", 1)
	s.set(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("ETag", `"1"`)
		if q.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		page(pod("a")+"---\n"+bad+"---\n"+pod("d"))(w, q)
	})
	for _, what := range []string{"one is bad", "not modified since"} {
		r.poll()
		r.want(what, "a b c d", "Pod default/b", "bogus", s.URL)
	}
	s.set(page(pods("a", "d")))
	r.poll()
	r.want("mended", "a d")
}

func TestTimeouts(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter){
		"no header": func(http.ResponseWriter) {},
		"half a body": func(w http.ResponseWriter) {
			_, _ = w.Write([]byte(pod("b")))
			w.(http.Flusher).Flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, httptest.NewServer)
			s.set(page(pod("a")))
			r := run(t, t.TempDir(), s.URL)
			s.set(func(w http.ResponseWriter, q *http.Request) {
				answer(w)
				<-q.Context().Done()
			})
			patience := r.source.o.Timeout
			r.source.o.Timeout = 50 * time.Millisecond
			r.poll()
			r.want("a server that hangs", "a", "no complete answer within 50ms")
			r.source.o.Timeout = patience
			s.set(page(pod("b")))
			r.poll()
			r.want("it has woken up", "b")
		})
	}
}

func TestConditionalRequests(t *testing.T) {
	s := newSite(t, httptest.NewServer)
	etag, modified := `W/"one"`, "Sun, 01 Mar 2026 00:00:00 GMT"
	good := func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("ETag", etag)
		w.Header().Set("Last-Modified", modified)
		page(pod("a"))(w, q)
	}
	notModified := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }
	sent := func(r *rig, none, since string) {
		r.Helper()
		h := s.last().Header
		if h.Get("If-None-Match") != none || h.Get("If-Modified-Since") != since {
			r.Errorf("sent %q, want %q and %q", h, none, since)
		}
	}

	s.set(notModified)
	r := run(t, t.TempDir(), s.URL)
	r.want("304 before anything is known", "", "304")
	sent(r, "", "")

	s.set(good)
	r.poll()
	r.want("the first answer", "a")
	sent(r, "", "")

	s.set(notModified)
	r.poll()
	r.want("not modified", "a")
	sent(r, etag, modified)
	if st := r.state(); !st.LastSync.Equal(r.now) {
		t.Errorf("a 304 is no sync: %+v", st)
	}

	s.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	r.poll()
	sent(r, etag, modified)
	s.set(notModified)
	r.poll()
	r.want("not modified after an error", "a")
	sent(r, etag, modified)
	if r.decodes != 1 {
		t.Errorf("decoded %d times", r.decodes)
	}

	etag, modified = `"two"`, ""
	s.set(good)
	r.poll()
	r.poll()
	sent(r, etag, "")
	if r.decodes != 1 {
		t.Errorf("the same body was decoded %d times", r.decodes)
	}

	s.set(page("a: ["))
	r.poll()
	r.want("garbage", "a", "not understood")
	r.poll()
	sent(r, "", "") // or 304 would make the garbage good
	s.set(page(pod("a")))
	r.poll()
	r.want("mended", "a")
	r.poll()
	sent(r, "", "") // the server gave no validators
}

func TestWhatIsSent(t *testing.T) {
	s := newSite(t, httptest.NewServer)
	s.set(page(pod("a")))
	with := strings.Replace(s.URL, "http://", "http://user:"+secret+"@", 1) + "/pods?token=" + secret + "&x=%20#part"
	r := run(t, t.TempDir(), with, func(o *Options) {
		delete(o.Header, "Authorization")
		o.Header["host"] = []string{"config.example.org"}
		o.Header["accept"] = []string{"text/yaml"}
		o.Header["X-Two"] = []string{"1", "2"}
	})
	r.want("the first poll", "a")
	q := s.last()
	user, password, _ := q.BasicAuth()
	got := fmt.Sprint(q.Method, " ", q.Host, q.RequestURI, " ", user, ":", password, q.Header["X-Token"], q.Header["X-Two"], q.Header["Accept"], q.UserAgent())
	if want := fmt.Sprintf("GET config.example.org/pods?token=%s&x=%%20 user:%s[%s] [1 2] [text/yaml]nodeagent", secret, secret, secret); got != want {
		t.Errorf("sent %s\nwant %s", got, want)
	}
	if o := r.store.Records()[0].Origin; o != s.URL+"/pods" {
		t.Errorf("the pod is from %q", o)
	}
	s.Close()
	r.poll()
	r.want("a server that is gone", "a", "connection refused")
}

func TestRedirects(t *testing.T) {
	other := newSite(t, httptest.NewServer)
	other.set(page(pod("b")))
	s := newSite(t, httptest.NewServer)
	to := func(url string) http.HandlerFunc {
		return func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Path != "/" && url == "/moved" {
				page(pod("a"))(w, q)
				return
			}
			http.Redirect(w, q, url, http.StatusFound)
		}
	}
	s.set(to("/moved"))
	r := run(t, t.TempDir(), s.URL+"/?token="+secret)
	r.want("on the same host", "a")
	if h := s.last().Header; h.Get("X-Token") != secret || h.Get("Authorization") == "" {
		t.Errorf("a redirect on the same host lost our headers: %q", h)
	}
	s.set(to(other.URL + "/elsewhere"))
	r.poll()
	r.want("on another host", "b")
	if h := other.last().Header; strings.Contains(fmt.Sprint(h), secret) {
		t.Errorf("another host was told our secrets: %q", h)
	}
	s.set(to("/again"))
	r.poll()
	r.want("in a circle", "b", "more than 10 redirects")
	s.set(to("file:///etc/passwd"))
	r.poll()
	r.want("to a file", "b", "unsupported protocol scheme")
	if o := r.store.Records(); o[len(o)-1].Origin != s.URL+"/" {
		t.Errorf("the pod is from %q", o[len(o)-1].Origin)
	}
}

// certificate is one that signs nothing.
func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestTLS(t *testing.T) {
	s := newSite(t, httptest.NewTLSServer)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.set(page(pod("a")))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write := func(der []byte) {
		t.Helper()
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	run(t, t.TempDir(), s.URL).want("without the CA", "", "certificate signed by unknown authority")

	r := run(t, t.TempDir(), s.URL, func(o *Options) { o.CAFile = ca })
	r.want("no such file", "", "manifestURLCA", ca)
	if err := os.WriteFile(ca, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.poll()
	r.want("no certificate in it", "", "manifestURLCA", ca, "PEM")
	write(s.Certificate().Raw)
	r.poll()
	r.want("with the CA", "a")
	write(certificate(t))
	r.poll()
	r.want("with another CA", "a", "certificate signed by unknown authority")
	write(s.Certificate().Raw)
	r.poll()
	r.want("with the CA again", "a")

	elsewhere := strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
	run(t, t.TempDir(), elsewhere, func(o *Options) { o.CAFile = ca }).want("a name that the certificate lacks", "", "certificate is valid for")

	plain := newSite(t, httptest.NewServer)
	plain.set(page(pod("b")))
	s.set(func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, plain.URL, http.StatusFound) })
	r.poll()
	r.want("from https to http", "a", "a redirect from https to http is not followed")
	if len(plain.requests) > 0 {
		t.Error("the plain server was asked")
	}
	run(t, t.TempDir(), strings.Replace(plain.URL, "http:", "https:", 1)).want("a server without TLS", "", "HTTP response to HTTPS client")
}

// TestAServerThatComesLate polls before anybody listens.
func TestAServerThatComesLate(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	r := run(t, t.TempDir(), "http://"+address+"/")
	r.want("nobody listens", "", "connection refused")
	if st := r.state(); !st.Tried || st.Synced || !r.store.AllTried() {
		t.Errorf("the source is %+v", st)
	}
	s := newSite(t, func(h http.Handler) *httptest.Server {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
		s.Start()
		return s
	})
	s.set(page(pod("a")))
	r.poll()
	r.want("the server is up", "a")
}

// TestInterval: polls come at the interval, but not all nodes' at once.
func TestInterval(t *testing.T) {
	s := newSite(t, httptest.NewServer)
	s.set(page(pod("a")))
	r := run(t, t.TempDir(), s.URL)
	for range 20 {
		r.poll()
	}
	different := map[time.Duration]bool{}
	for _, d := range r.waits {
		different[d] = true
		if d < 57*time.Second || d > 63*time.Second {
			t.Errorf("%s between two polls, want a minute or so", d)
		}
	}
	if len(different) < 2 {
		t.Errorf("every wait was %s", r.waits[0])
	}
	if o := New(Options{URL: s.URL}).o; o.Interval != defaultInterval || o.Timeout != defaultTimeout {
		t.Errorf("the defaults are %s and %s", o.Interval, o.Timeout)
	}
}

func TestShown(t *testing.T) {
	for raw, want := range map[string]string{
		"https://u:hunter2@h:1/p?t=hunter2#hunter2": "https://h:1/p",
		"http://h/p":                 "http://h/p",
		"http://u:hunter2@h:x/p\x7f": "the manifest URL",
	} {
		if got := Shown(raw); got != want {
			t.Errorf("%q is shown as %q, want %q", raw, got, want)
		}
	}
}
