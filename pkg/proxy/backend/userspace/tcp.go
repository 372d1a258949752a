package userspace

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

const (
	// dialPatience is for an endpoint that does not answer.
	dialPatience = 5 * time.Second
	// filesOfConn are both sides and a pipe for each direction.
	filesOfConn = 6
	// mostDials is how many connections of a listener look for their endpoint at
	// once; more wait in the kernel, where they take no file.
	mostDials = 256
)

// conn is a client's connection and the endpoint's.
type conn struct{ client, endpoint *net.TCPConn }

// accept takes one connection; the lock is held.
func (l *listener) accept(b *Backend) (more bool) {
	if l.dialing >= min(mostDials, b.files/filesOfConn/10) {
		l.paused = true
		b.running.interest(l.fd, 0)
		return false
	}
	fd, sa, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return b.throwOut(l)
	case err != nil: // the connection is gone already
		return true
	}
	src := addrPort(sa)
	to := b.pick(l, src.Addr())
	if len(b.conns) >= b.files/filesOfConn/5 {
		b.tell("conns", "connections to Services are thrown out: there are too many; raise LimitNOFILE", "connections", len(b.conns), "files", b.files)
		to = nil
	}
	if len(to) == 0 {
		reset(fd)
		return true
	}
	_ = attach(fd, nil) // it came with the listener's filter, and has passed it
	client, err := tcpConn(fd)
	if err != nil {
		b.tell("accept", "a connection was lost", "service", l.serves.Service, "error", err)
		return true
	}
	c, f := &conn{client: client}, l.serves
	b.conns[c] = true
	l.dialing++
	b.wg.Go(func() { b.forward(l, c, f, src.Addr(), to) })
	return true
}

// throwOut refuses a connection for which there is no file.
func (b *Backend) throwOut(l *listener) (more bool) {
	b.tell("files", "connections to Services are thrown out: there are no files left; raise LimitNOFILE")
	if b.running.spare < 0 {
		b.running.spare = spare()
		return false
	}
	unix.Close(b.running.spare)
	if fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC); err == nil {
		reset(fd)
	}
	b.running.spare = spare()
	return b.running.spare >= 0
}

// reset ends a connection at once.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

// tcpConn takes the file over.
func tcpConn(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close() // FileConn has its own copy
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%T is no TCP connection", c)
	}
	return t, nil
}

// forward passes a connection on to the first endpoint that takes it.
func (b *Backend) forward(l *listener, c *conn, f *ruleset.Frontend, src netip.Addr, to []netip.AddrPort) {
	endpoint, which := b.dial(to)
	b.mu.Lock()
	l.dialing--
	if l.paused && b.listeners[l.key] == l {
		l.paused = false
		b.running.interest(l.fd, unix.EPOLLIN)
	}
	if endpoint == nil || !b.conns[c] {
		delete(b.conns, c)
		b.mu.Unlock()
		if endpoint != nil {
			endpoint.Close()
		}
		c.abort()
		return
	}
	if which != to[0] {
		b.remember(f, ruleset.TCP, src, which)
	}
	c.endpoint = endpoint
	b.mu.Unlock()
	_ = c.client.SetKeepAlive(true)

	done := make(chan struct{})
	go func() {
		defer close(done)
		c.pass(c.endpoint, c.client)
	}()
	c.pass(c.client, c.endpoint)
	<-done
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
	c.client.Close()
	c.endpoint.Close()
}

func (b *Backend) dial(to []netip.AddrPort) (*net.TCPConn, netip.AddrPort) {
	for _, e := range to {
		var c net.Conn
		err := b.opts.In(func() (err error) {
			c, err = net.DialTimeout("tcp", e.String(), dialPatience)
			return err
		})
		if t, ok := c.(*net.TCPConn); err == nil && ok {
			return t, e
		}
		b.opts.Log.Debug("an endpoint takes no connection", "endpoint", e, "error", err)
	}
	return nil, netip.AddrPort{}
}

// pass copies one direction, within the kernel (splice). An end is passed on
// as an end, so that the other direction may go on; anything else ends both.
func (c *conn) pass(to, from *net.TCPConn) {
	if _, err := io.Copy(to, from); err != nil || to.CloseWrite() != nil {
		c.abort()
	}
}

// abort resets both sides, as the one that failed did.
func (c *conn) abort() {
	for _, side := range []*net.TCPConn{c.client, c.endpoint} {
		if side != nil {
			_ = side.SetLinger(0)
			side.Close()
		}
	}
}
