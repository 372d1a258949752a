package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/nfmonitor"
)

// routeBuffer is a limit, and no memory while nothing waits.
const routeBuffer = 16 << 20

// Watch tells when somebody else changes what is ours: nftables and routes over
// netlink, IPVS by looking. A single virtual service, server or route it puts
// right by itself. It also takes out endpoints whose connections have ended.
type Watch struct {
	b     *Backend
	nft   *nfmonitor.Monitor
	route *nl.NetlinkSocket
	round uint  // of looks
	turn  []key // that are still to be asked for by name
	// text is IPVS's; before is that of the last look, and clean what changes
	// were when there was nothing to put right in it, or 0.
	text, before []byte
	clean        uint64
	mended       func()
}

// Mended has f called after the watch has put something right by itself.
func (w *Watch) Mended(f func()) { w.mended = f }

// say says that something was put right.
func (w *Watch) say(what string) {
	w.b.opts.Log.Warn(putRight, "what", what)
	if w.mended != nil {
		w.mended()
	}
}

// Watch listens from now on.
func (b *Backend) Watch() (*Watch, error) {
	w := &Watch{b: b}
	err := b.opts.In(func() (err error) {
		groups := []uint{
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_LINK,
		}
		if w.route, err = nl.Subscribe(unix.NETLINK_ROUTE, groups...); err != nil {
			return fmt.Errorf("listen for changes of routes: %w", err)
		}
		if err := w.route.SetReceiveBufferSize(routeBuffer, true); err != nil {
			return fmt.Errorf("listen for changes of routes: receive buffer: %w", err)
		}
		w.nft, err = nfmonitor.Listen()
		return err
	})
	if err != nil {
		if w.route != nil {
			w.route.Close()
		}
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.monitor, b.route, b.news = w.nft, w.route, news{moved: true}
	return w, nil
}

// close ends to listen for changes of routes.
func (w *Watch) close() {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if w.b.route == w.route {
		w.b.route = nil
	}
	w.route.Close()
}

const putRight = "somebody else changed what we programmed: it is put right"

// Run calls changed after each change by others, until the context ends; the
// cure is Forget and Apply.
func (w *Watch) Run(ctx context.Context, changed func()) error {
	defer w.close()
	g, ctx := errgroup.WithContext(ctx)
	foreign := func(what string) {
		w.b.opts.Log.Warn(putRight, "what", what)
		changed()
	}
	g.Go(func() error {
		return w.nft.Run(ctx, nfmonitor.Watcher{
			Touches: func(p nfmonitor.Part) bool { return p.Table == Table },
			Changed: func(_ map[nfmonitor.Part]bool, program string) { foreign("nftables, by " + program) },
			Lost:    func() { foreign("nftables, too much to follow") },
		})
	})
	g.Go(func() error { return w.look(ctx, foreign) })
	return g.Wait()
}

// receive hands over everything that waits, and says that something was lost.
// (The socket's own Receive waits.)
func receive(s *nl.NetlinkSocket, buf []byte, each func(kind uint16, data []byte)) (lost bool, err error) {
	for {
		n, _, err := unix.Recvfrom(s.GetFd(), buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return lost, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			lost = true
			continue
		case err != nil:
			return lost, fmt.Errorf("listen for changes: %w", err)
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return lost, fmt.Errorf("listen for changes: %w", err)
		}
		for _, m := range messages {
			each(m.Header.Type, m.Data)
		}
	}
}

// news are what was told of routes, addresses and links, until somebody acts
// on it.
type news struct {
	gone    []netip.Prefix // routes of ours
	foreign string         // what takes a full Apply
	moved   bool           // own and ways may be others
	own     []netip.Addr   // the node's addresses, sorted
	ways    sources
}

// notice takes in what was told. The caller holds the lock, and has the socket.
func (b *Backend) notice() error {
	if b.buf == nil {
		b.buf = make([]byte, nl.RECEIVE_BUFFER_SIZE)
	}
	n := &b.news
	lost, err := receive(b.route, b.buf, func(kind uint16, data []byte) {
		switch kind {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			m := nl.DeserializeRtMsg(data)
			if m.Protocol != routeProtocol || m.Table != unix.RT_TABLE_LOCAL {
				n.moved = true
			} else if p := netip.PrefixFrom(addrOf(data[m.Len():], unix.RTA_DST), int(m.Dst_len)); kind == unix.RTM_DELROUTE && b.routes[p] {
				n.gone = append(n.gone, p)
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			n.moved = true
			m := nl.DeserializeIfAddrmsg(data)
			a := addrOf(data[m.Len():], unix.IFA_LOCAL)
			if !a.IsValid() {
				a = addrOf(data[m.Len():], unix.IFA_ADDRESS)
			}
			if a.IsValid() && (b.routes[netip.PrefixFrom(a, a.BitLen())] || kind == unix.RTM_DELADDR && slices.Contains(b.sources[:], a)) {
				// The kernel takes routes with that source away without a word.
				n.foreign = "address " + a.String()
				b.sources = sources{}
			}
		default:
			n.moved = true
		}
	})
	if lost {
		n.moved, n.foreign = true, "routes: too much to follow"
	}
	return err
}

// routes puts routes of ours back that went, and says what takes a full Apply:
// addresses that came or went which our rules or routes depend on.
func (w *Watch) routes() (foreign string, err error) {
	b := w.b
	if b.route != w.route {
		return "", nil
	}
	if err := b.notice(); err != nil {
		return "", err
	}
	gone, foreign := b.news.gone, b.news.foreign
	b.news.gone, b.news.foreign = nil, ""
	if foreign != "" || !b.loaded {
		return foreign, nil
	}
	for _, p := range gone {
		if !b.routes[p] {
			continue
		}
		if err := b.net.add(p, b.sources.of(p)); err != nil {
			return "", err
		}
		w.say("route to " + p.String())
	}
	return "", nil
}

func addrOf(attrs []byte, kind uint16) netip.Addr {
	all, err := nl.ParseRouteAttr(attrs)
	if err != nil {
		return netip.Addr{}
	}
	for _, a := range all {
		if a.Attr.Type == kind {
			ip, _ := netip.AddrFromSlice(net.IP(a.Value))
			return ip.Unmap()
		}
	}
	return netip.Addr{}
}
