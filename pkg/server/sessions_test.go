package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// streaming is a runtime's streaming server: it takes every upgrade, greets,
// and sends back what it is sent in capitals.
type streaming struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
}

func newStreaming(t *testing.T) *streaming {
	s := &streaming{}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *streaming) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r)
	s.mu.Unlock()
	switch {
	case strings.HasSuffix(r.URL.Path, "refused"):
		http.Error(w, "no such session", http.StatusNotFound)
		return
	case strings.HasSuffix(r.URL.Path, "strange"):
		fmt.Fprint(w, "hello")
		return
	case strings.HasSuffix(r.URL.Path, "teapot"):
		w.WriteHeader(http.StatusTeapot)
		return
	}
	c, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	// The greeting comes in one piece with the head.
	fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\n\r\nhello\n", r.Header.Get("Upgrade"))
	buf.Flush()
	for {
		line, err := buf.ReadString('\n')
		if err != nil || line == "bye\n" {
			return
		}
		if _, err := io.WriteString(c, strings.ToUpper(line)); err != nil {
			return
		}
	}
}

func (s *streaming) last(t *testing.T) *http.Request {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		t.Fatal("the runtime was not asked")
	}
	return s.seen[len(s.seen)-1]
}

// sessions is a server whose pod web runs, and a runtime to connect to.
func sessions(t *testing.T) (*started, *streaming) {
	t.Helper()
	s, backend := start(t, nil), newStreaming(t)
	uid := s.create(t, "web", "").UID
	s.status(t, "web", phase(v1.PodRunning))
	s.node.set(func(n *node) {
		n.streaming = backend.URL
		n.observed[uid] = runtime.Pod{UID: uid, Sandboxes: []runtime.Sandbox{{ID: "sb1", Ready: true}},
			Containers: []runtime.Container{{ID: "c1", Name: "app", SandboxID: "sb1", State: runtime.StateRunning}}}
	})
	return s, backend
}

func (s *started) asked() string {
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	return strings.Join(s.node.asked, "\n")
}

// upgrade opens a connection of its own and asks for an upgrade; what is early
// goes out with the request.
func (s *started) upgrade(t *testing.T, method, path, early string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	c, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: agent\r\nConnection: keep-alive, Upgrade\r\nUpgrade: SPDY/3.1\r\n"+
		"X-Stream-Protocol-Version: v4.channel.k8s.io\r\nAuthorization: Bearer secret\r\nCookie: a=b\r\n\r\n%s", method, path, early)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, r, resp
}

func line(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	got, err := r.ReadString('\n')
	if got != want+"\n" {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func TestSession(t *testing.T) {
	s, backend := sessions(t)
	for _, tt := range []struct{ method, path, asked string }{
		{"POST", "/exec?command=ls&command=-l&stdin=true&stdout=1&stderr", "/exec/c1?cmd=ls&cmd=-l&o=%7Btrue+true+true+false%7D"},
		{"GET", "/exec?command=sh&stdin=true&stdout=true&stderr=true&tty=true&container=app", "/exec/c1?cmd=sh&o=%7Btrue+true+false+true%7D"},
		{"POST", "/attach?stdout=true", "/attach/c1?o=%7Bfalse+true+false+false%7D"},
		{"POST", "/portforward", "/portforward/sb1?ports=%5B%5D"},
		{"GET", "/portforward?ports=80,443&ports=8080", "/portforward/sb1?ports=%5B80+443+8080%5D"},
	} {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			c, r, resp := s.upgrade(t, tt.method, podsPath+"/web"+tt.path, "early\n")
			if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "SPDY/3.1" {
				t.Fatalf("%s %v", resp.Status, resp.Header)
			}
			if got := s.asked(); !strings.HasSuffix(got, tt.asked) {
				t.Errorf("the runtime was asked for %s, want %s", got, tt.asked)
			}
			line(t, r, "hello")
			line(t, r, "EARLY")
			fmt.Fprint(c, "more\n")
			line(t, r, "MORE")
			h := backend.last(t).Header
			if h.Get("X-Stream-Protocol-Version") != "v4.channel.k8s.io" || h.Get("Authorization") != "" || h.Get("Cookie") != "" {
				t.Errorf("the runtime was sent %v", h)
			}
			// Each side may end it.
			if tt.method == "POST" {
				fmt.Fprint(c, "bye\n")
			} else if err := c.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
				t.Errorf("after the end: %q, %v", rest, err)
			}
		})
	}
	// A server that stops ends sessions; Run returns when they are over.
	_, r, _ := s.upgrade(t, "POST", podsPath+"/web/attach?stdin=1", "")
	line(t, r, "hello")
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("after the server's end: %v", err)
	}
}

func TestSessionRefused(t *testing.T) {
	s, backend := sessions(t)
	s.create(t, "ended", "")
	s.status(t, "ended", phase(v1.PodSucceeded))
	s.create(t, "two", "")
	s.call(t, "POST", podsPath, strings.Replace(podYAML("pair", ""), "  - name: app", "  - name: other\n    image: x\n  - name: app", 1), "Content-Type", mediaYAML).code(201)
	const bad, notFound = metav1.StatusReasonBadRequest, metav1.StatusReasonNotFound
	for _, tt := range []struct {
		method, path string
		code         int
		reason       metav1.StatusReason
		message      string
	}{
		{"POST", "none/exec?command=x&stdout=1", 404, notFound, `"none" not found`},
		{"POST", "ended/exec?command=x&stdout=1", 400, bad, "has ended"},
		{"POST", "web/exec?command=x", 400, bad, "at least 1 of stdin, stdout, stderr"},
		{"POST", "web/attach?tty=1&stderr=1", 400, bad, "at least 1 of stdin, stdout, stderr"},
		{"POST", "web/exec?stdout=1", 400, bad, "at least 1 command"},
		{"POST", "web/exec?stdout=1&command=", 400, bad, "at least 1 command"},
		{"POST", "web/exec?stdout=perhaps&command=x", 400, bad, "not a boolean"},
		{"POST", "web/exec?stdout=1&command=x&container=none", 400, bad, "container none is not valid for pod web"},
		{"POST", "pair/exec?stdout=1&command=x", 400, bad, "choose one of: [other app]"},
		{"POST", "web/portforward?ports=0", 400, bad, "not a port"},
		{"POST", "web/portforward?ports=70000", 400, bad, "not a port"},
		{"POST", "web/exec?stdout=1&command=x", 400, bad, "Upgrade request required"},
		{"POST", "web/portforward", 400, bad, "Upgrade request required"},
		{"PUT", "web/exec?stdout=1&command=x", 405, metav1.StatusReasonMethodNotAllowed, ""},
		{"DELETE", "web/portforward", 405, metav1.StatusReasonMethodNotAllowed, ""},
	} {
		if st := s.call(t, tt.method, podsPath+"/"+tt.path, "").status(tt.code, tt.reason); !strings.Contains(st.Message, tt.message) {
			t.Errorf("%s: message %q, want %q", tt.path, st.Message, tt.message)
		}
	}
	if got := s.asked(); got != "" {
		t.Errorf("the runtime was asked for a session that nobody takes up: %s", got)
	}

	refused := func(what string, path string, code int, message string) {
		t.Helper()
		_, _, resp := s.upgrade(t, "POST", podsPath+"/"+path, "")
		text := body(t, resp)
		if resp.StatusCode != code || !strings.Contains(text, `"kind":"Status"`) || !strings.Contains(text, message) {
			t.Errorf("%s: %s: %s", what, resp.Status, text)
		}
	}
	refused("a pod without containers yet", "two/exec?command=x&stdout=1", 500, "is not running")
	refused("a pod without a sandbox yet", "two/portforward", 500, "its sandbox is not running")
	for name, tt := range map[string]struct {
		edit    func(*node)
		code    int
		message string
	}{
		"the runtime does not answer": {func(n *node) { n.failWith = errdefs.ErrUnavailable }, 503, "unavailable"},
		"no streaming server":         {func(n *node) { n.streaming = "http://127.0.0.1:1" }, 500, "connecting to the runtime's streaming server"},
		"no URL":                      {func(n *node) { n.streaming = "::" }, 500, "is not one"},
		"URL of something else":       {func(n *node) { n.streaming = "ftp://localhost" }, 500, "unknown scheme"},
		"session is unknown":          {func(n *node) { n.streaming = backend.URL + "/refused?" }, 404, "no such session"},
		"no upgrade":                  {func(n *node) { n.streaming = backend.URL + "/strange?" }, 500, "answered 200 OK to an upgrade"},
		"refused without a word":      {func(n *node) { n.streaming = backend.URL + "/teapot?" }, 418, "418 I'm a teapot"},
	} {
		s.node.set(tt.edit)
		for _, path := range []string{"web/exec?command=x&stdout=1", "web/attach?stdout=1", "web/portforward"} {
			refused(name, path, tt.code, tt.message)
		}
		s.node.set(func(n *node) { n.failWith, n.streaming = nil, backend.URL })
	}
	s.node.set(func(n *node) { n.observed = map[types.UID]runtime.Pod{} })
	refused("the container has just gone", "web/attach?stdout=1", 500, "is not running")
}
