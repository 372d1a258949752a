package userspace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

const (
	backlog = 4096
	// atOnce is how many connections or packets of one socket are taken before
	// it is another one's turn.
	atOnce = 64
	sweep  = time.Second
	// again is how often a port that could not be had is tried.
	again = 5 * time.Second
)

// listener is a socket that belongs to one address and port.
type listener struct {
	key    ruleset.Key
	fd     int
	serves *ruleset.Frontend
	filter []unix.SockFilter
	next   int                      // whose turn it is
	flows  map[netip.AddrPort]*flow // of UDP, by client
	// dialing is how many connections look for their endpoint; while paused no
	// more are accepted.
	dialing int
	paused  bool
}

// poller is one goroutine for all sockets but those of TCP connections: ten
// thousand goroutines that wait to accept would take more memory than the rest
// of the agent.
type poller struct {
	epoll, wake int
	// spare is closed when there are no files left, to throw a connection out
	// that would otherwise wait to be accepted for ever.
	spare  int
	byFD   map[int]ready
	swept  time.Time
	tried  time.Time
	ending bool
}

// ready is called when there is something to read, with the lock.
type ready interface {
	ready(b *Backend, buf []byte)
}

func newPoller() (*poller, error) {
	p := &poller{byFD: map[int]ready{}, spare: -1}
	var err error
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("wait for connections to Services: %w", err)
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = p.add(p.wake, nil)
	}
	if err != nil {
		unix.Close(p.epoll)
		return nil, fmt.Errorf("wait for connections to Services: %w", err)
	}
	p.spare = spare()
	return p, nil
}

func spare() int {
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return fd
}

func (p *poller) add(fd int, r ready) error {
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return err
	}
	p.byFD[fd] = r
	return nil
}

// interest says which events of a file wake the poller; it cannot fail for one
// that is in the set.
func (p *poller) interest(fd int, events uint32) {
	_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// remove closes the file, which takes it out of the set.
func (p *poller) remove(fd int) {
	delete(p.byFD, fd)
	unix.Close(fd)
}

// stop ends poll; the caller holds the lock.
func (p *poller) stop() {
	p.ending = true
	_, _ = unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// poll serves until stop. It runs in the namespace.
func (b *Backend) poll(p *poller) error {
	defer func() {
		for _, fd := range []int{p.epoll, p.wake, p.spare} {
			unix.Close(fd)
		}
	}()
	events := make([]unix.EpollEvent, 256)
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.EpollWait(p.epoll, events, int(sweep.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for connections to Services: %w", err)
		}
		b.mu.Lock()
		if p.ending {
			b.mu.Unlock()
			return nil
		}
		for _, e := range events[:max(n, 0)] {
			if r := p.byFD[int(e.Fd)]; r != nil {
				r.ready(b, buf)
			}
		}
		b.sweep(p)
		b.mu.Unlock()
	}
}

// sweep ends what has been idle, and tries again what failed.
func (b *Backend) sweep(p *poller) {
	now := b.opts.Now()
	if now.Sub(p.swept) < sweep {
		return
	}
	p.swept = now
	for _, r := range p.byFD {
		if f, ok := r.(*flow); ok && now.Sub(f.used) > f.patience() {
			f.close(b)
		}
	}
	for key, c := range b.clients {
		if c.expired(now) {
			delete(b.clients, key)
		}
	}
	if len(b.failing) > 0 && now.Sub(p.tried) >= again {
		p.tried = now
		if err := b.serve(); err != nil {
			b.opts.Log.Error("some Services are not served", "error", err)
		}
	}
}

// listen opens the socket of an address and port.
func (b *Backend) listen(key ruleset.Key, f *ruleset.Frontend) error {
	kind := unix.SOCK_STREAM
	if key.Proto == ruleset.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := socket(key.Addr, kind)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", key, err)
	}
	l := &listener{key: key, fd: fd}
	err = func() error {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1); err != nil {
			return err
		}
		if key.Proto == ruleset.TCP { // a restart does not wait for TIME_WAIT
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
				return err
			}
		}
		b.give(l, f) // first: nobody is to slip in
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(key.Addr, key.Port))); err != nil {
			return err
		}
		if key.Proto == ruleset.TCP {
			if err := unix.Listen(fd, backlog); err != nil {
				return err
			}
		}
		return b.running.add(fd, l)
	}()
	if err != nil {
		unix.Close(fd)
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			err = fmt.Errorf("another program uses the port: %w", err)
		case errors.Is(err, unix.EACCES):
			err = fmt.Errorf("ports below 1024 need CAP_NET_BIND_SERVICE: %w", err)
		}
		return fmt.Errorf("listen on %s: %w", key, err)
	}
	if key.Proto == ruleset.UDP {
		l.flows = map[netip.AddrPort]*flow{}
	}
	b.listeners[key] = l
	return nil
}

// give says what a listener serves from now on.
func (b *Backend) give(l *listener, f *ruleset.Frontend) {
	l.serves = f
	if prog := b.filter(f); !slices.Equal(prog, l.filter) {
		if err := attach(l.fd, prog); err != nil {
			_ = attach(l.fd, nil) // pick throws out who may not connect
			b.tell("filter", "who may not connect to a Service is reset instead of dropped", "service", f.Service, "error", err)
		}
		l.filter = prog
	}
	for _, flow := range l.flows {
		if !slices.Contains(f.Endpoints, flow.endpoint) && !slices.Contains(f.Inside, flow.endpoint) {
			flow.close(b)
		}
	}
}

func (b *Backend) close(l *listener) {
	for _, f := range l.flows {
		f.close(b)
	}
	b.running.remove(l.fd)
	delete(b.listeners, l.key)
}

func (l *listener) ready(b *Backend, buf []byte) {
	for range atOnce {
		if more := l.one(b, buf); !more {
			return
		}
	}
}

func (l *listener) one(b *Backend, buf []byte) (more bool) {
	if l.key.Proto == ruleset.UDP {
		return l.receive(b, buf)
	}
	return l.accept(b)
}

// socket is one of an address's family.
func socket(like netip.Addr, kind int) (int, error) {
	family := unix.AF_INET6
	if like.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil || like.Is4() {
		return fd, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
