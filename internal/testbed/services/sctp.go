package services

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// protocols are those that the kernel has sockets for. The suite asks over each.
var protocols = sync.OnceValue(func() []ruleset.Proto {
	all := []ruleset.Proto{ruleset.TCP, ruleset.UDP}
	if noSCTP() == nil {
		all = append(all, ruleset.SCTP)
	}
	return all
})

// noSCTP is why there are no SCTP sockets; nil when there are.
func noSCTP() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// sctpSocket is a socket of the address's family. To package net it looks like
// TCP, which is all the same from here on.
func sctpSocket(addr netip.AddrPort) (fd int, sa unix.Sockaddr, err error) {
	family := unix.AF_INET6
	sa = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if addr.Addr().Is4() {
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_SCTP)
	return fd, sa, err
}

func listenSCTP(addr netip.AddrPort) (net.Listener, error) {
	fd, sa, err := sctpSocket(addr)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close() // FileListener has its own
	if err := errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 16)); err != nil {
		return nil, fmt.Errorf("listen on %s over sctp: %w", addr, err)
	}
	return net.FileListener(f)
}

func bindSCTP(fd int, own netip.Addr) error {
	if own.Is4() {
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: own.As4()})
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Addr: own.As16()})
}

func dialSCTP(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	fd, sa, err := sctpSocket(to)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close() // FileConn has its own
	// With one address the client names no others of its own, to which a server
	// would turn when a packet is late: no NAT knows of them.
	probe, err := (&net.Dialer{}).DialContext(ctx, "udp", to.String())
	if err != nil {
		return nil, err
	}
	own := netip.MustParseAddrPort(probe.LocalAddr().String()).Addr()
	probe.Close()
	if err := bindSCTP(fd, own); err != nil {
		return nil, fmt.Errorf("bind to %s over sctp: %w", own, err)
	}
	// SCTP ignores ICMP errors unless they are asked for.
	if to.Addr().Is4() {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sa); errors.Is(err, unix.EINPROGRESS) {
		err = connected(ctx, fd)
		if err != nil {
			return nil, fmt.Errorf("connect to %s over sctp: %w", to, err)
		}
	} else if err != nil {
		return nil, fmt.Errorf("connect to %s over sctp: %w", to, err)
	}
	return net.FileConn(f)
}

// connected waits for the end of a connect.
func connected(ctx context.Context, fd int) error {
	for {
		left := time.Minute
		if d, ok := ctx.Deadline(); ok {
			left = time.Until(d)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(max(left, 0).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return context.DeadlineExceeded
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		return err
	}
}
