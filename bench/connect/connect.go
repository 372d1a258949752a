// Package connect says when a Service first answers. It runs on the machine and
// in the guest of the VM tier, and so imports little.
package connect

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// waiting is how many connections at most are kept that were asked for too
// early.
const waiting = 500

// First is when a connection to an IPv4 address was first accepted. A SYN that
// came too early is lost and sent again after a second: so there is a new one
// each time that every has passed. It runs on the caller's thread, whose network
// namespace counts.
func First(ctx context.Context, to netip.AddrPort, every time.Duration) (time.Time, error) {
	addr := unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	var fds []unix.PollFd
	defer func() {
		for _, f := range fds {
			_ = unix.Close(int(f.Fd))
		}
	}()
	for ctx.Err() == nil {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return time.Time{}, err
		}
		switch err := unix.Connect(fd, &addr); {
		case err == nil, errors.Is(err, unix.EINPROGRESS):
			fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
		default: // refused at once
			_ = unix.Close(fd)
		}
		if len(fds) > waiting {
			_ = unix.Close(int(fds[0].Fd))
			fds = fds[1:]
		}
		if _, err := unix.Poll(fds, int(every.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return time.Time{}, err
		}
		var at time.Time
		if fds, at = accepted(fds); !at.IsZero() {
			return at, nil
		}
		if len(fds) == 0 {
			time.Sleep(every) // poll does not wait for nothing
		}
	}
	return time.Time{}, ctx.Err()
}

// accepted closes the connections that are decided. The time is zero when none
// of them was accepted.
func accepted(fds []unix.PollFd) (open []unix.PollFd, at time.Time) {
	open = fds[:0]
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
	return open, at
}

// Serve answers four bytes with four bytes until the listener is closed.
func Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
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
}
