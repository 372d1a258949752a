package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Sockets are what a server listens on. Several on one address share the load
// when they were opened with SO_REUSEPORT.
type Sockets struct {
	UDP []net.PacketConn
	TCP []net.Listener
}

// Listen opens a UDP and a TCP socket for each address, in the network
// namespace of the calling thread. With port 0 both get the same free port.
func Listen(ctx context.Context, addrs ...netip.AddrPort) (s Sockets, err error) {
	defer func() {
		if err != nil {
			s.Close()
			s = Sockets{}
		}
	}()
	var lc net.ListenConfig
	for _, a := range addrs {
		udp, err := lc.ListenPacket(ctx, "udp", a.String())
		if err != nil {
			return s, fmt.Errorf("listen for DNS on udp %s: %w", a, err)
		}
		s.UDP = append(s.UDP, udp)
		tcp, err := lc.Listen(ctx, "tcp", udp.LocalAddr().String())
		if err != nil {
			return s, fmt.Errorf("listen for DNS on tcp %s: %w", udp.LocalAddr(), err)
		}
		s.TCP = append(s.TCP, tcp)
	}
	return s, nil
}

// Close closes all; those that are closed already stay so.
func (s Sockets) Close() error {
	var errs []error
	for _, c := range s.UDP {
		errs = append(errs, closed(c.Close()))
	}
	for _, l := range s.TCP {
		errs = append(errs, closed(l.Close()))
	}
	return errors.Join(errs...)
}

func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// listensOn says whether what is sent to a arrives here. A socket on every
// address has loopback's, too.
func (s Sockets) listensOn(a netip.AddrPort) bool {
	for _, c := range s.UDP {
		u, ok := c.LocalAddr().(*net.UDPAddr)
		if !ok || u.Port != int(a.Port()) {
			continue
		}
		own, ip := u.AddrPort().Addr().Unmap(), a.Addr().Unmap()
		if own == ip || own.IsUnspecified() && (ip.IsLoopback() || ip.IsUnspecified()) {
			return true
		}
	}
	return false
}
