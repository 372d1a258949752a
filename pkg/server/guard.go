package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/nodeagent/nodeagent/pkg/server/credentials"
)

func (o *Options) defaults() {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
}

type peerKey struct{}

// peer is who is on the other end of a connection to the socket.
type peer struct {
	uid   uint32
	known bool
}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	uid, ok := peerUID(underlying(c))
	return context.WithValue(ctx, peerKey{}, peer{uid: uid, known: ok})
}

// Handler is what a listener of that kind ("local", "tls", "health") serves:
// limits and authentication around the routes.
func (s *Server) Handler(kind string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := &tracked{ResponseWriter: w}
		rt := s.route(r, kind)
		defer s.o.Metrics.Request(methodLabel(r.Method), rt.label, kind, rt.long)()
		defer s.recovered(t, r)
		if err := s.guarded(t, r, kind, rt); err != nil {
			s.writeError(t, r, err, rt.resource, rt.name)
		}
	})
}

// guarded authenticates, takes a slot and serves.
func (s *Server) guarded(w http.ResponseWriter, r *http.Request, kind string, rt route) error {
	if err := s.authenticate(w, r, kind); err != nil {
		return err
	}
	rc := http.NewResponseController(w)
	now := s.o.Now()
	slots := s.short
	// Deadlines exist on real connections only.
	if rt.long {
		slots = s.long
		_ = rc.SetWriteDeadline(time.Time{})
	} else {
		_ = rc.SetWriteDeadline(now.Add(writeTimeout))
	}
	_ = rc.SetReadDeadline(now.Add(readBodyTimeout))
	if err := acquire(r.Context(), slots, !rt.long); err != nil {
		return err
	}
	defer func() { <-slots }()
	if !rt.long {
		return rt.serve(w, r)
	}
	if r.ContentLength == 0 {
		// Nothing more is to come: the connection is only watched for its end.
		_ = rc.SetReadDeadline(time.Time{})
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.ending, cancel)()
	return rt.serve(w, r.WithContext(ctx))
}

// acquire takes a slot; short requests wait a little for one.
func acquire(ctx context.Context, slots chan struct{}, wait bool) error {
	select {
	case slots <- struct{}{}:
		return nil
	default:
	}
	busy := apierrors.NewTooManyRequests("too many requests at once, please try again later", retryAfter)
	if !wait {
		return busy
	}
	t := time.NewTimer(queueTimeout)
	defer t.Stop()
	select {
	case slots <- struct{}{}:
		return nil
	case <-t.C:
		return busy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// authenticate lets root in on the socket, the token in over TCP, and everybody
// in on the health listener, which serves nothing else.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request, kind string) error {
	switch kind {
	case kindHealth:
		return nil
	case kindLocal:
		// The socket's mode says the same; this holds when somebody changes it.
		p, _ := r.Context().Value(peerKey{}).(peer)
		if p.known && (p.uid == 0 || int(p.uid) == os.Geteuid()) {
			return nil
		}
		return apierrors.NewForbidden(resource(""), "", errors.New("the local API is for root only"))
	}
	want, err := s.token.sum()
	if err != nil {
		s.log.Error("API over TCP", "err", err)
		return apierrors.NewServiceUnavailable("the agent cannot read its token")
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	have := sha256.Sum256([]byte(strings.TrimSpace(token)))
	// Hashes have one length, so that neither content nor length of the token
	// shows in the time that this takes.
	if subtle.ConstantTimeCompare(have[:], want[:]) == 1 && strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="nodeagent"`)
	return apierrors.NewUnauthorized("Unauthorized")
}

// secure prepares TLS and the token, with the agent's own in place of what is
// not given.
func (s *Server) secure(o TCP) (err error) {
	var own *credentials.Files
	if o.CertFile == "" || o.TokenFile == "" {
		if o.Dir == "" {
			return fmt.Errorf("API over TCP on %s: a certificate, its key and a token file are needed", o.Listen)
		}
		if own, err = credentials.Open(o.Dir, s.o.Now); err != nil {
			return err
		}
	}
	if o.CertFile == "" {
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: own.Certificate(o.Hosts)}
	} else if s.tls, err = tlsConfig(o.CertFile, o.KeyFile); err != nil {
		return err
	}
	s.token = &tokenFile{path: o.TokenFile}
	if o.TokenFile == "" {
		s.token.path = own.TokenFile()
	}
	_, err = s.token.sum()
	return err
}

// tokenFile is one bearer token in a file.
type tokenFile struct {
	path string

	mu       sync.Mutex
	modified time.Time
	size     int64
	hash     [sha256.Size]byte
	ok       bool
}

// sum is the hash of the token. A file that cannot be read or that others may
// read is an error, and lets nobody in.
func (t *tokenFile) sum() ([sha256.Size]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	none := [sha256.Size]byte{}
	st, err := os.Stat(t.path)
	if err != nil {
		return none, fmt.Errorf("token file: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return none, fmt.Errorf("token file %s has mode %04o: others can read it: chmod 600 it", t.path, st.Mode().Perm())
	}
	if t.ok && st.ModTime().Equal(t.modified) && st.Size() == t.size {
		return t.hash, nil
	}
	b, err := os.ReadFile(t.path)
	if err != nil {
		return none, fmt.Errorf("token file: %w", err)
	}
	b = bytes.TrimSpace(b)
	if len(b) < 16 {
		return none, fmt.Errorf("token file %s: the token has %d characters, at least 16 are needed: head -c 24 /dev/urandom | base64 makes one", t.path, len(b))
	}
	t.hash, t.modified, t.size, t.ok = sha256.Sum256(b), st.ModTime(), st.Size(), true
	return t.hash, nil
}

// recovered turns a panic of one request into a 500, so that it does not take
// the node's pods' keeper down.
func (s *Server) recovered(w *tracked, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler {
		panic(v)
	}
	s.log.Error("a request made the API panic", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
	if w.wrote {
		// The answer is half sent: only cutting it off is honest.
		panic(http.ErrAbortHandler)
	}
	s.writeError(w, r, apierrors.NewInternalError(fmt.Errorf("this request made the server panic: %v", v)), "", "")
}

// tracked remembers whether the answer has begun.
type tracked struct {
	http.ResponseWriter
	wrote bool
}

func (t *tracked) WriteHeader(code int) {
	t.wrote = true
	t.ResponseWriter.WriteHeader(code)
}

func (t *tracked) Write(b []byte) (int, error) {
	t.wrote = true
	return t.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController through.
func (t *tracked) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// methodLabel keeps the metrics' labels few.
func methodLabel(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return m
	}
	return "other"
}
