package userspace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watchBuffer is a limit, and no memory while nothing waits: the routes of
// 10,000 Services that somebody flushes at once.
const watchBuffer = 32 << 20

// Watch tells when somebody else removes our routes.
type Watch struct {
	b      *Backend
	socket *nl.NetlinkSocket
}

// Watch listens from now on, in the network namespace of the calling thread.
func (b *Backend) Watch() (*Watch, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("listen for changes of routes: %w", err)
	}
	// Without CAP_NET_ADMIN there are no routes of ours either.
	_ = s.SetReceiveBufferSize(watchBuffer, true)
	// The socket cannot be closed under a reader: the reader looks up now and then.
	if err := s.SetReceiveTimeout(&unix.Timeval{Usec: 200_000}); err != nil {
		s.Close()
		return nil, fmt.Errorf("listen for changes of routes: receive timeout: %w", err)
	}
	return &Watch{b, s}, nil
}

// Run calls changed when routes of ours are missing, until the context ends;
// the cure is Apply. It looks when a message tells of a route that is not as it
// should be, and after each change of an interface: with lo its routes go, and
// pods' interfaces are new ones. What Apply itself does makes thousands of
// messages, and to look takes as long as to list all routes.
func (w *Watch) Run(ctx context.Context, changed func()) error {
	defer w.socket.Close()
	for ctx.Err() == nil {
		messages, _, err := w.socket.Receive()
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS): // some were lost
		case err != nil:
			return fmt.Errorf("listen for changes of routes: %w", err)
		}
		look, links := err != nil, err != nil
		for _, m := range messages {
			switch m.Header.Type {
			case unix.RTM_NEWLINK, unix.RTM_DELLINK:
				look, links = true, true
			case unix.RTM_DELROUTE, unix.RTM_NEWROUTE:
				look = look || w.b.surprising(m.Header.Type == unix.RTM_NEWROUTE, m.Data)
			}
		}
		if !look {
			continue
		}
		missing, err := w.b.missing(links)
		if err != nil {
			return err
		}
		if missing {
			w.b.opts.Log.Warn("somebody removed routes to Services: they are put back")
			changed()
		}
	}
	return nil
}

// surprising says that a route of ours came that nobody wants, or went though
// it is wanted. It waits for an Apply under way.
func (b *Backend) surprising(came bool, message []byte) bool {
	if len(message) < unix.SizeofRtMsg {
		return false
	}
	m := nl.DeserializeRtMsg(message)
	if m.Protocol != protocol {
		return false
	}
	attributes, err := nl.ParseRouteAttr(message[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	var dst netip.Addr
	for _, a := range attributes {
		if a.Attr.Type == unix.RTA_DST {
			dst, _ = netip.AddrFromSlice(a.Value)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	kind, wanted := b.routes.wanted[netip.PrefixFrom(dst, int(m.Dst_len))]
	return came != (wanted && kind == int(m.Type))
}

// missing says that routes are not as they should be; it waits for an Apply
// under way. With new interfaces the filters may have to be others.
func (b *Backend) missing(links bool) (missing bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running == nil || b.routes.wanted == nil {
		return false, nil
	}
	err = b.opts.In(func() error {
		lost, more, err := b.routes.compare()
		if err != nil {
			return err
		}
		for p := range lost {
			missing = missing || !b.routes.others[p]
		}
		missing = missing || len(more) > 0
		if !missing && links && b.now.Node.LocalPods.Interface != "" {
			return b.serve()
		}
		return nil
	})
	return missing, err
}
