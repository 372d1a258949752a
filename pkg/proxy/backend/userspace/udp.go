package userspace

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// A flow ends after it has been idle for that long, as in the kernel's
// connection tracking: soon after one question and its answer, later when
// there was more.
const (
	questionIdle = 10 * time.Second
	streamIdle   = 60 * time.Second
)

// flow is what one client sends to one Service: it goes to one endpoint, from
// a socket of its own, so that answers find the way back.
type flow struct {
	listener *listener
	client   netip.AddrPort
	endpoint netip.AddrPort
	fd       int
	used     time.Time
	packets  int // from the client
}

func (f *flow) patience() time.Duration {
	if f.packets > 1 {
		return streamIdle
	}
	return questionIdle
}

// receive takes one packet from a client; the lock is held.
func (l *listener) receive(b *Backend, buf []byte) (more bool) {
	n, sa, err := unix.Recvfrom(l.fd, buf, 0)
	if errors.Is(err, unix.EAGAIN) {
		return false
	} else if err != nil { // an answer that a client did not want
		return true
	}
	src := addrPort(sa)
	f := l.flows[src]
	if f == nil {
		to := b.pick(l, src.Addr())
		if len(to) == 0 {
			return true
		}
		if f, err = b.openFlow(l, src, to[0]); err != nil {
			b.tell("flow", "packets to Services are lost", "service", l.serves.Service, "endpoint", to[0], "error", err)
			return true
		}
	}
	f.used = b.opts.Now()
	f.packets++
	if _, err := unix.Write(f.fd, buf[:n]); errors.Is(err, unix.ECONNREFUSED) {
		f.close(b) // the next packet finds another endpoint
	}
	return true
}

func (b *Backend) openFlow(l *listener, client, endpoint netip.AddrPort) (*flow, error) {
	if b.flows >= b.files/10 {
		return nil, fmt.Errorf("%d flows at once: %w: raise LimitNOFILE", b.flows, unix.EMFILE)
	}
	fd, err := socket(endpoint.Addr(), unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	f := &flow{listener: l, client: client, endpoint: endpoint, fd: fd}
	if err = unix.Connect(fd, sockaddr(endpoint)); err == nil {
		err = b.running.add(fd, f)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	l.flows[client] = f
	b.flows++
	return f, nil
}

// ready passes answers back.
func (f *flow) ready(b *Backend, buf []byte) {
	for range atOnce {
		n, err := unix.Read(f.fd, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			f.close(b)
			return
		}
		f.used = b.opts.Now()
		_ = unix.Sendto(f.listener.fd, buf[:n], 0, sockaddr(f.client)) // as lost as on any wire
	}
}

func (f *flow) close(b *Backend) {
	delete(f.listener.flows, f.client)
	b.running.remove(f.fd)
	b.flows--
}
