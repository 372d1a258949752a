package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/nfmonitor"
)

const (
	// IPVS tells nobody of a change. A question for one virtual service finds
	// that all are gone; reading everything finds the rest, and takes one part
	// in sweepShare of the time at most.
	lookAgain  = 300 * time.Millisecond
	sweepShare = 50

	// routeBuffer is a limit, and no memory while nothing waits.
	routeBuffer = 16 << 20
)

// Watch tells when somebody else changes what is ours: nftables and routes over
// netlink, IPVS by looking. It also takes out endpoints whose connections have
// ended.
type Watch struct {
	b     *Backend
	nft   *nfmonitor.Monitor
	route *nl.NetlinkSocket
}

// Watch listens from now on.
func (b *Backend) Watch() (*Watch, error) {
	w := &Watch{b: b}
	err := b.opts.In(func() (err error) {
		groups := []uint{unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}
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
	b.monitor = w.nft
	return w, nil
}

// Run calls changed after each change by others, until the context ends; the
// cure is Forget and Apply.
func (w *Watch) Run(ctx context.Context, changed func()) error {
	defer w.route.Close()
	g, ctx := errgroup.WithContext(ctx)
	foreign := func(what string) {
		w.b.opts.Log.Warn("somebody else changed what we programmed: it is put right", "what", what)
		changed()
	}
	g.Go(func() error {
		return w.nft.Run(ctx, nfmonitor.Watcher{
			Touches: func(p nfmonitor.Part) bool { return p.Table == Table },
			Changed: func(_ map[nfmonitor.Part]bool, program string) { foreign("nftables, by " + program) },
			Lost:    func() { foreign("nftables, too much to follow") },
		})
	})
	g.Go(func() error { return w.lookAgain(ctx, foreign) })
	return g.Wait()
}

func (w *Watch) lookAgain(ctx context.Context, foreign func(what string)) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	var sweep time.Time // the next
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			due := !now.Before(sweep)
			what, err := w.look(due)
			if err != nil {
				return err
			}
			if due {
				sweep = now.Add(sweepShare * time.Since(now))
			}
			if what != "" {
				foreign(what)
			}
		}
	}
}

// look finds what others did to routes and IPVS; with sweep it reads all of
// IPVS.
func (w *Watch) look(sweep bool) (foreign string, err error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if foreign, err = w.routes(); err != nil || foreign != "" || !w.b.loaded {
		return foreign, err
	}
	if sweep {
		return w.b.sweep()
	}
	for k, s := range w.b.have { // any will do
		if !w.b.table.has(*s) {
			foreign = "IPVS: no " + k.String()
		}
		break
	}
	return foreign, nil
}

// sweep compares IPVS with what we remember, and reaps.
func (b *Backend) sweep() (foreign string, err error) {
	all, err := b.table.list(func(k key) bool { return b.have[k] != nil || owns(k, b.routes) })
	if err != nil {
		return "", err
	}
	for i := range all {
		if have := b.have[all[i].key]; have == nil || !have.like(&all[i]) {
			return "IPVS: " + all[i].key.String(), nil
		}
	}
	if len(all) < len(b.have) {
		return fmt.Sprintf("IPVS: %d virtual services are missing", len(b.have)-len(all)), nil
	}
	return "", b.reap(all)
}

// reap takes out destinations at weight 0 without connections, and those that
// have kept theirs for too long.
func (b *Backend) reap(all []service) error {
	if len(b.draining) == 0 {
		return nil
	}
	for i := range all {
		s := b.have[all[i].key]
		if s == nil {
			continue
		}
		for _, d := range all[i].dests {
			at := drain{s.key, d.addr}
			since, ok := b.draining[at]
			if !ok || d.weight != 0 {
				delete(b.draining, at) // it came back
				continue
			}
			if late := b.opts.Clock().Sub(since) >= b.opts.DrainLimit; d.conns > 0 && !late {
				continue
			} else if late {
				b.opts.Log.Warn("connections to an endpoint that went are cut", "service", s.key.String(), "endpoint", d.addr.String(), "after", b.opts.DrainLimit)
			}
			if err := b.do([]step{{what: deleteDest, of: *s, dest: d}}); err != nil {
				return err
			}
			delete(b.draining, at)
			if len(s.dests) == 0 {
				if err := b.do([]step{{what: deleteService, of: *s}}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// like compares what can be seen of a virtual service.
func (s *service) like(o *service) bool {
	if s.scheduler != o.scheduler || s.flags != o.flags || s.timeout != o.timeout || len(s.dests) != len(o.dests) {
		return false
	}
	for i, d := range s.dests {
		if d.addr != o.dests[i].addr || d.weight != o.dests[i].weight {
			return false
		}
	}
	return true
}

// receive hands over everything that waits, and says that something was lost.
// (The socket's own Receive waits.)
func receive(s *nl.NetlinkSocket, each func(kind uint16, data []byte)) (lost bool, err error) {
	buf := make([]byte, nl.RECEIVE_BUFFER_SIZE)
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

// routes notices routes of ours that went, and addresses that came or went
// which our rules or routes depend on.
func (w *Watch) routes() (foreign string, err error) {
	lost, err := receive(w.route, func(kind uint16, data []byte) {
		switch kind {
		case unix.RTM_DELROUTE:
			m := nl.DeserializeRtMsg(data)
			if m.Protocol != routeProtocol || m.Table != unix.RT_TABLE_LOCAL {
				return
			}
			a := addrOf(data[m.Len():], unix.RTA_DST)
			if p := netip.PrefixFrom(a, int(m.Dst_len)); w.b.routes[p] {
				foreign = "route to " + p.String()
				delete(w.b.routes, p)
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			m := nl.DeserializeIfAddrmsg(data)
			a := addrOf(data[m.Len():], unix.IFA_LOCAL)
			if !a.IsValid() {
				a = addrOf(data[m.Len():], unix.IFA_ADDRESS)
			}
			if a.IsValid() && (w.b.routes[netip.PrefixFrom(a, a.BitLen())] || kind == unix.RTM_DELADDR && slices.Contains(w.b.sources[:], a)) {
				// The kernel takes routes with that source away without a word.
				foreign = "address " + a.String()
				w.b.sources = sources{}
			}
		}
	})
	if lost {
		foreign = "routes: too much to follow"
	}
	return foreign, err
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
