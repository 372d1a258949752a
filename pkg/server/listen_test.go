package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// nobody is a user without rights.
const nobody = 65534

// dialAs connects to a socket as another user. Credentials are a thread's in
// Linux: the one that gets them ends with the goroutine.
func dialAs(uid int, socket string) (net.Conn, error) {
	type answer struct {
		c   net.Conn
		err error
	}
	done := make(chan answer)
	go func() {
		runtime.LockOSThread()
		c, err := func() (net.Conn, error) {
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
				return nil, e
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			f := os.NewFile(uintptr(fd), "socket")
			defer f.Close()
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
				return nil, err
			}
			return net.FileConn(f)
		}()
		done <- answer{c, err}
	}()
	a := <-done
	return a.c, a.err
}

func TestSocketIsRootOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to be somebody else needs root")
	}
	s := start(t, nil)
	st, err := os.Stat(s.socket)
	if err != nil || st.Mode()&fs.ModeSocket == 0 || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v; want a socket of mode 0600", st.Mode(), err)
	}
	if err := os.Chmod(filepath.Dir(s.socket), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := dialAs(nobody, s.socket); !errors.Is(err, unix.EACCES) {
		t.Fatalf("somebody else connects: %v", err)
	}
	// Also when somebody opens the socket.
	if err := os.Chmod(s.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[int]int{nobody: 403, 0: 200} {
		for _, path := range []string{"/version", podsPath, "/healthz", "/metrics", "/nothing"} {
			c, err := dialAs(uid, s.socket)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n", path)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			text := body(t, resp)
			c.Close()
			if want == 403 && (resp.StatusCode != want || !strings.Contains(text, `"reason":"Forbidden"`)) || want == 200 && resp.StatusCode == 403 {
				t.Errorf("user %d, %s: %s: %s", uid, path, resp.Status, text)
			}
		}
	}
	if len(s.short) != 0 {
		t.Errorf("%d slots are still taken", len(s.short))
	}
}

// TestNobodyKnown: a connection that the kernel says nothing of is refused.
func TestNobodyKnown(t *testing.T) {
	f := newFixture(t, nil)
	r, err := http.NewRequest("GET", podsPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.serve(t, kindLocal, r).status(403, metav1.StatusReasonForbidden)
	f.serve(t, kindLocal, r.WithContext(context.WithValue(t.Context(), peerKey{}, peer{uid: nobody, known: true}))).status(403, metav1.StatusReasonForbidden)
	f.serve(t, kindLocal, r.WithContext(context.WithValue(t.Context(), peerKey{}, peer{uid: uint32(os.Geteuid()), known: true}))).code(200)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if uid, ok := peerUID(a); ok {
		t.Errorf("a pipe's other end is user %d", uid)
	}
}

func TestSocketPath(t *testing.T) {
	dir, err := os.MkdirTemp("", "na")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "run", SocketName)
	left := func(want string) {
		t.Helper()
		list, err := os.ReadDir(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, f := range list {
			names = append(names, f.Name())
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("the run folder has %q, want %q", got, want)
		}
	}

	if _, err := listenUnix("/" + strings.Repeat("x", maxSocketPath)); err == nil || !strings.Contains(err.Error(), "choose a shorter run folder") {
		t.Errorf("a path that is too long: %v", err)
	}
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	left(SocketName)
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another agent answers on it") {
		t.Errorf("a socket that is in use: %v", err)
	}
	// What a dead agent left is replaced; its late Close leaves the new one alone.
	dead := l.(*unixListener)
	if err := dead.UnixListener.Close(); err != nil {
		t.Fatal(err)
	}
	next, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	left(SocketName)
	if err := next.Close(); err != nil {
		t.Error(err)
	}
	left("")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file where the socket goes: %v", err)
	}
	left(SocketName)
	if _, err := listenUnix(filepath.Join(path, "below", SocketName)); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a run folder that cannot be made: %v", err)
	}
}

func TestRunFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	socket := filepath.Join(t.TempDir(), "s")
	f := newFixture(t, func(o *Options) { o.Socket, o.Health = socket, taken.Addr().String() })
	if err := f.Run(t.Context()); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays behind: %v", err)
	}
	if _, err := New(Options{}); err == nil {
		t.Error("a server of nothing")
	}
}

// TestConnectionsAreLimited: one more than the limit waits in the kernel's
// queue until another ends, and a closed listener keeps nobody waiting.
func TestConnectionsAreLimited(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLimitListener(inner, 1)
	accepted := make(chan net.Conn)
	failed := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				failed <- err
				return
			}
			accepted <- c
		}
	}()
	dial := func() {
		t.Helper()
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	dial()
	first := <-accepted
	dial()
	select {
	case l.slots <- struct{}{}:
		t.Fatal("there is room for another connection")
	case <-accepted:
		t.Fatal("one connection too many")
	default:
	}
	first.Close()
	first.Close() // gives its place back once
	second := <-accepted
	if len(l.slots) != 1 {
		t.Errorf("%d places are taken by one connection", len(l.slots))
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	second.Close()
}

// TestRequestsAreLimited: what is too much is told so, or waits for its turn.
func TestRequestsAreLimited(t *testing.T) {
	f := newFixture(t, nil)
	for range maxLong {
		f.long <- struct{}{}
	}
	a := f.call(t, "GET", podsPath+"?watch=true", "")
	if s := a.status(429, metav1.StatusReasonTooManyRequests); s.Details.RetryAfterSeconds == 0 || a.Header().Get("Retry-After") == "" {
		t.Errorf("the client is not told when to come again: %+v, %v", s.Details, a.Header())
	}
	f.call(t, "GET", podsPath, "").code(200) // of the other kind there is room

	for range maxShort {
		f.short <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	gone, err := http.NewRequestWithContext(ctx, "GET", podsPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.serve(t, kindLocal, asRoot(gone)).status(504, metav1.StatusReasonTimeout)
	served := make(chan struct{})
	go func() {
		defer close(served)
		f.call(t, "GET", podsPath, "").code(200)
	}()
	<-f.short
	<-served
	if len(f.short) != maxShort-1 || len(f.long) != maxLong {
		t.Errorf("%d and %d slots are taken", len(f.short), len(f.long))
	}
}

// TestStopsAtOnce: a connection on which nothing was asked is not waited for.
func TestStopsAtOnce(t *testing.T) {
	var log bytes.Buffer
	s := start(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	c, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for ctx, known := deadline(t), false; !known; {
		if ctx.Err() != nil {
			t.Fatal("the server does not know the connection")
		}
		s.fresh.Range(func(any, any) bool { known = true; return false })
	}
	s.call(t, "GET", podsPath, "").code(200)
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if log.Len() > 0 {
		t.Errorf("the log says %s", &log)
	}
}

// panics is a runtime that takes the request down.
type panics struct{}

func (panics) Images(context.Context) ([]api.Image, []api.PullProgress, error) { panic("images") }

func (panics) Pull(_ context.Context, image string, progress func(api.PullProgress)) error {
	if image == "late" {
		progress(api.PullProgress{Image: image})
	}
	panic("pull")
}

// TestPanic: one bad request does not take the agent down.
func TestPanic(t *testing.T) {
	s := start(t, func(o *Options) { o.Images = panics{} })
	s.call(t, "GET", "/apis/nodeagent.dev/v1alpha1/images", "").status(500, metav1.StatusReasonInternalError)
	s.call(t, "POST", "/apis/nodeagent.dev/v1alpha1/images/pull", `{"image":"x"}`).status(500, metav1.StatusReasonInternalError)
	// An answer that has begun is cut off, so that nobody takes it for whole.
	resp, err := s.client.Post("http://agent/apis/nodeagent.dev/v1alpha1/images/pull", mediaJSON, strings.NewReader(`{"image":"late"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadString(0); err == nil || resp.StatusCode != 200 {
		t.Errorf("%s, %v", resp.Status, err)
	}
	s.call(t, "GET", podsPath, "").code(200)
	if len(s.short)+len(s.long) != 0 {
		t.Errorf("%d slots are still taken", len(s.short)+len(s.long))
	}
}

// TestAddressInUse: the error names the address and the setting to change.
func TestAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := newFixture(t, func(o *Options) { o.Health = l.Addr().String() })
	err = f.Run(t.Context())
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), l.Addr().String()) || !strings.Contains(err.Error(), "with --listen") {
		t.Errorf("got %v", err)
	}
}
