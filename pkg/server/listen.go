package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// SocketName is the local API's socket below the run folder.
const SocketName = "nodeagent.sock"

// maxSocketPath is sizeof(sun_path) less the final zero byte.
const maxSocketPath = 107

// listenUnix binds the local API's socket at path, for root only.
//
// It is bound inside a fresh 0700 folder, given mode 0600 there and then
// renamed into place, so that there is no moment at which anybody else can
// connect (a umask would reach every other thread of the process). The rename
// also replaces what a dead agent left; a socket that still answers is an error.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket %s: the path is %d bytes long, the kernel takes %d: choose a shorter run folder", path, len(path), maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	if err := freeSocket(path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(dir, ".sock")
	if err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	defer os.RemoveAll(private)
	d, err := os.Open(private)
	if err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	defer d.Close()
	// Through the descriptor: the temporary name may be longer than sun_path.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/s"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	bound := filepath.Join(private, "s")
	if err := os.Chmod(bound, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), l.Close())
	}
	st, err := os.Stat(bound)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), l.Close())
	}
	if err := os.Rename(bound, path); err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), l.Close())
	}
	return &unixListener{UnixListener: l, path: path, made: st}, nil
}

// freeSocket refuses to replace anything but a socket that nobody answers on.
func freeSocket(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("socket %s: something that is not a socket is there: remove it", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("socket %s: another agent answers on it: stop it, or choose another run folder", path)
	}
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("socket %s: cannot tell whether another agent answers on it: %w", path, err)
}

type unixListener struct {
	*net.UnixListener
	path string
	made os.FileInfo
	once sync.Once
}

// Close also removes the socket, unless a successor has put its own there.
func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	l.once.Do(func() {
		if st, serr := os.Lstat(l.path); serr == nil && os.SameFile(st, l.made) {
			err = errors.Join(err, os.Remove(l.path))
		}
	})
	return err
}

// peerUID asks the kernel who is on the other end of a unix socket; ok is false
// for any other connection.
func peerUID(c net.Conn) (uid uint32, ok bool) {
	u, isUnix := c.(*net.UnixConn)
	if !isUnix {
		return 0, false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, false
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cerr != nil {
		return 0, false
	}
	return cred.Uid, true
}

// limitListener accepts a connection only while fewer than n are open, so that
// a flood waits in the kernel's queue and costs us no memory.
type limitListener struct {
	net.Listener
	slots  chan struct{}
	closed context.Context
	stop   context.CancelFunc
}

func newLimitListener(l net.Listener, n int) *limitListener {
	ctx, cancel := context.WithCancel(context.Background())
	return &limitListener{Listener: l, slots: make(chan struct{}, n), closed: ctx, stop: cancel}
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed.Done():
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limitListener) Close() error {
	l.stop()
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.release()
	return err
}

// underlying returns the connection that the kernel knows.
func underlying(c net.Conn) net.Conn {
	for {
		switch v := c.(type) {
		case *limitedConn:
			c = v.Conn
		case *tls.Conn:
			c = v.NetConn()
		default:
			return c
		}
	}
}

// tlsConfig loads the certificate now, so that a mistake is found at start.
// Certificates are read again for each new connection whose files changed, so
// that renewal needs no restart.
func tlsConfig(certFile, keyFile string) (*tls.Config, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if _, err := c.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}, nil
}

type certificate struct {
	certFile, keyFile string

	mu       sync.Mutex
	cert     *tls.Certificate
	modified [2]time.Time
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var modified [2]time.Time
	for i, f := range []string{c.certFile, c.keyFile} {
		st, err := os.Stat(f)
		if err != nil {
			return c.orOld(fmt.Errorf("API over TCP: TLS file: %w", err))
		}
		modified[i] = st.ModTime()
	}
	if c.cert != nil && modified == c.modified {
		return c.cert, nil
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return c.orOld(fmt.Errorf("API over TCP: TLS certificate %s with key %s: %w", c.certFile, c.keyFile, err))
	}
	c.cert, c.modified = &cert, modified
	return c.cert, nil
}

// orOld keeps serving what worked while files are half renewed.
func (c *certificate) orOld(err error) (*tls.Certificate, error) {
	if c.cert != nil {
		return c.cert, nil
	}
	return nil, err
}
