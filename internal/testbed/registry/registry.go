// Package registry is a real image registry for tests: it speaks the
// distribution protocol, asks for a password when told to, and can stall in
// the middle of a layer.
package registry

import (
	"bytes"
	"crypto/subtle"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Opts of a registry; the zero value lets everybody in and never stalls.
type Opts struct {
	// User and Pass are asked for (basic auth) when User is set.
	User, Pass string
	// StallAfter stops each layer after so many bytes, keeping the connection
	// open, until Release or the end of the test; 0 never stalls. Images are
	// pushed through all the same.
	StallAfter int64
}

// Registry is one that runs.
type Registry struct {
	// Addr is host:port; images are named Addr + "/repository:tag".
	Addr string

	t       testing.TB
	opts    Opts
	handler http.Handler
	stall   atomic.Int64
	release chan struct{}
	once    sync.Once
	pulls   atomic.Int64 // manifests fetched by GET
	stalled atomic.Int64 // layers that stand still
}

// Start serves a registry on addr, for example "127.0.0.1:0", until the test
// ends.
func Start(t testing.TB, addr string, o Opts) *Registry {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("listen for the registry: %v", err)
	}
	return Serve(t, ln, o)
}

// Serve is Start on a listener of the caller's, perhaps one in another network
// namespace; it is closed at the end.
func Serve(t testing.TB, ln net.Listener, o Opts) *Registry {
	t.Helper()
	r := New(t, o)
	r.Addr = ln.Addr().String()
	srv := &http.Server{Handler: r, ErrorLog: log.New(io.Discard, "", 0)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.Serve(ln) // http.ErrServerClosed
	}()
	t.Cleanup(func() {
		r.Release()
		_ = srv.Close()
		<-ended
	})
	return r
}

// New returns a registry that the caller serves; Push works once Addr is set.
func New(t testing.TB, o Opts) *Registry {
	r := &Registry{t: t, opts: o, release: make(chan struct{}),
		handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	r.stall.Store(o.StallAfter)
	t.Cleanup(r.Release)
	return r
}

// Release lets layers that stand still go on, and never stalls again.
func (r *Registry) Release() {
	r.stall.Store(0)
	r.once.Do(func() { close(r.release) })
}

// Pulls counts manifests handed out to clients, one per pull at least.
func (r *Registry) Pulls() int { return int(r.pulls.Load()) }

// Stalled counts layers that stand still now.
func (r *Registry) Stalled() int { return int(r.stalled.Load()) }

// Push stores an image as repoTag ("app:1") and returns the reference for
// pods: Addr + "/" + repoTag. It goes past password and stalls.
func (r *Registry) Push(repoTag string, img v1.Image) string {
	r.t.Helper()
	repo, tag, ok := strings.Cut(repoTag, ":")
	if !ok {
		r.t.Fatalf("push %s: no tag", repoTag)
	}
	layers, err := img.Layers()
	if err != nil {
		r.t.Fatalf("push %s: %v", repoTag, err)
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			r.t.Fatalf("push %s: %v", repoTag, err)
		}
		body, err := l.Compressed()
		if err != nil {
			r.t.Fatalf("push %s: %v", repoTag, err)
		}
		r.send(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest.String(), "", body)
		_ = body.Close()
	}
	config, err := img.RawConfigFile()
	if err != nil {
		r.t.Fatalf("push %s: %v", repoTag, err)
	}
	digest, err := img.ConfigName()
	if err != nil {
		r.t.Fatalf("push %s: %v", repoTag, err)
	}
	r.send(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest.String(), "", bytes.NewReader(config))
	manifest, err := img.RawManifest()
	if err != nil {
		r.t.Fatalf("push %s: %v", repoTag, err)
	}
	kind, err := img.MediaType()
	if err != nil {
		r.t.Fatalf("push %s: %v", repoTag, err)
	}
	r.send(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, string(kind), bytes.NewReader(manifest))
	return r.Addr + "/" + repoTag
}

// send makes one upload within the process.
func (r *Registry) send(method, url, contentType string, body io.Reader) {
	r.t.Helper()
	req := httptest.NewRequest(method, url, body)
	req.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, req)
	if w.Code/100 != 2 {
		r.t.Fatalf("push: %s %s: %d %s", method, url, w.Code, w.Body)
	}
}

// ServeHTTP checks the password and serves the protocol.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if r.opts.User != "" {
		user, pass, _ := req.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(user+"\x00"+pass), []byte(r.opts.User+"\x00"+r.opts.Pass)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
	}
	if req.Method == http.MethodGet {
		switch {
		case strings.Contains(req.URL.Path, "/manifests/"):
			r.pulls.Add(1)
		case strings.Contains(req.URL.Path, "/blobs/") && r.stall.Load() > 0:
			w = &stalling{ResponseWriter: w, r: r, req: req, left: r.stall.Load()}
		}
	}
	r.handler.ServeHTTP(w, req)
}

// stalling writes so many bytes of a body and then waits.
type stalling struct {
	http.ResponseWriter
	r    *Registry
	req  *http.Request
	left int64
}

func (s *stalling) Write(p []byte) (int, error) {
	if int64(len(p)) <= s.left {
		s.left -= int64(len(p))
		return s.ResponseWriter.Write(p)
	}
	n, err := s.ResponseWriter.Write(p[:s.left])
	if err != nil {
		return n, err
	}
	s.left = 0
	if f, ok := s.ResponseWriter.(http.Flusher); ok {
		f.Flush() // the client shall see what came before
	}
	s.r.stalled.Add(1)
	defer s.r.stalled.Add(-1)
	select {
	case <-s.r.release:
		s.left = 1 << 62
		more, err := s.ResponseWriter.Write(p[n:])
		return n + more, err
	case <-s.req.Context().Done():
		return n, s.req.Context().Err()
	}
}
