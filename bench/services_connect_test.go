//go:build bench

package bench

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// serve answers four bytes with four bytes on every address outside.
func serve(t *testing.T, n *testbed.Node) {
	t.Helper()
	l, err := n.ListenOutside("tcp", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(time.Minute)) // of a connection that was just made
				buf := make([]byte, 4)
				if _, err := io.ReadFull(c, buf); err == nil {
					_, _ = c.Write(buf)
				}
			}()
		}
	}()
}

// firstConnect is when a connection to the address was first accepted. A SYN
// that came too early is lost and sent again after a second: so there is a new
// one each millisecond. All is done by one thread inside the node.
func firstConnect(ctx context.Context, n *testbed.Node, ip string) (at time.Time, err error) {
	addr := unix.SockaddrInet4{Port: 80, Addr: netip.MustParseAddr(ip).As4()}
	err = n.In(func() error {
		var fds []unix.PollFd
		defer func() {
			for _, f := range fds {
				_ = unix.Close(int(f.Fd))
			}
		}()
		for ctx.Err() == nil {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			switch err := unix.Connect(fd, &addr); {
			case err == nil, errors.Is(err, unix.EINPROGRESS):
				fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
			default: // refused at once
				_ = unix.Close(fd)
			}
			if len(fds) > 500 { // these were too early
				_ = unix.Close(int(fds[0].Fd))
				fds = fds[1:]
			}
			if _, err := unix.Poll(fds, 1); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
			open := fds[:0]
			for _, f := range fds {
				if f.Revents == 0 {
					open = append(open, f)
					continue
				}
				code, err := unix.GetsockoptInt(int(f.Fd), unix.SOL_SOCKET, unix.SO_ERROR)
				if err == nil && code == 0 && at.IsZero() {
					at = time.Now()
				}
				_ = unix.Close(int(f.Fd))
			}
			fds = open
			if !at.IsZero() {
				return nil
			}
			if len(fds) == 0 {
				time.Sleep(time.Millisecond) // poll does not wait for nothing
			}
		}
		return ctx.Err()
	})
	return at, err
}

// dial makes a connection that ends with a reset: none of thousands waits for a
// minute on its port.
func dial(ip string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", ip+":80", 5*time.Second)
	if err != nil {
		return nil, err
	}
	return c, c.(*net.TCPConn).SetLinger(0)
}

// connects are the times that connect takes, one after the other, in µs.
func connects(n *testbed.Node, ip string, d time.Duration) (took []float64, err error) {
	err = n.In(func() error {
		for end := time.Now().Add(d); time.Now().Before(end); {
			began := time.Now()
			c, err := dial(ip)
			if err != nil {
				return err
			}
			took = append(took, float64(time.Since(began))/float64(time.Microsecond))
			c.Close()
		}
		return nil
	})
	return took, err
}

// requests is how many requests a second four clients get answered, each over a
// connection of its own, and how many were not answered at all.
func requests(n *testbed.Node, ip string, d time.Duration) (rate float64, failed int64, err error) {
	var done, lost atomic.Int64
	var g errgroup.Group
	end := time.Now().Add(d)
	for range 4 {
		g.Go(func() error {
			return n.In(func() error {
				for time.Now().Before(end) {
					if err := request(ip); err != nil {
						lost.Add(1)
					} else {
						done.Add(1)
					}
				}
				return nil
			})
		})
	}
	err = g.Wait()
	return float64(done.Load()) / d.Seconds(), lost.Load(), err
}

func request(ip string) error {
	c, err := dial(ip)
	if err != nil {
		return err
	}
	defer c.Close()
	buf := []byte("ping")
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(buf); err != nil {
		return err
	}
	_, err = io.ReadFull(c, buf)
	return err
}
